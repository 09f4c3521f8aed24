"""Counts for Prometheus. Names of routes, models and keys are labels; they are few, and come from us."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from bimo.serving.contract import ServiceStats

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """All counts of one server; several in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("bimo_requests", "Requests answered.", ("route", "status"), **own)
        self.seconds = Histogram(
            "bimo_request_seconds", "From a request to its end.", ("route",), buckets=_SECONDS, **own
        )
        self.first = Histogram("bimo_first_token_seconds", "From a request to its first text.", buckets=_SECONDS, **own)
        self.tokens = Counter("bimo_tokens", "Tokens read (prompt) and written (completion).", ("model", "kind"), **own)
        self.key_tokens = Counter("bimo_key_tokens", "Tokens read and written, by key.", ("key",), **own)
        self.rejected = Gauge(
            "bimo_rejected", "Requests sent away so far: queue, waited, or a key's limit.", ("reason",), **own
        )
        self.left = Counter("bimo_clients_left", "Requests whose client left before the end.", **own)
        self.running = Gauge("bimo_running", "Requests that have a place.", **own)
        self.waiting = Gauge("bimo_waiting", "Requests that wait for a place.", **own)
        self.engine = Gauge(
            "bimo_engine", "Of the engine: running, waiting, blocks, tokens per second.", ("model", "what"), **own
        )
        self.ready = Gauge("bimo_ready", "1: every engine works.", **own)
        self.memory = Gauge("bimo_memory_bytes", "Of the engines' process.", **own)

    def page(self, stats: ServiceStats | None, running: int, waiting: int, rejected: dict[str, int]) -> bytes:
        """The page that Prometheus reads."""
        self.running.set(running)
        self.waiting.set(waiting)
        for reason, count in rejected.items():
            self.rejected.labels(reason).set(count)
        self.ready.set(bool(stats and stats.ready))
        if stats is not None:
            self.memory.set(stats.memory_bytes)
            for engine in stats.engines:
                for what in ("running", "waiting", "free_blocks", "n_blocks", "tokens_per_s", "n_tokens", "n_restarts"):
                    self.engine.labels(engine.model, what).set(getattr(engine, what))
        return generate_latest(self.registry)
