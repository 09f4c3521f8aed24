"""`bimo serve` on a CPU beside its own engine without a server, and beside llama.cpp's server, at 1 and 16 streams.

Everybody lives in a process of its own and they take turns, round by round; only one works at a time. The client is the
same for both servers: raw sockets that are read and not parsed, so that it takes next to nothing of the two cores.

    pip install "bimo[serve]" "llama-cpp-python[server]" && python benchmarks/serve_cpu.py model.gguf
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPTS = (
    "The history of the printing press begins", "Once upon a time, a fox", "In 1969 the first humans",
    "The three laws of thermodynamics are", "Dear Sir or Madam, I am writing to", "A good soup needs",
    "The capital of France is", "When the rain had stopped,",
)  # fmt: skip
HELD_AGAINST = (
    ("bimo serve", "bare engine", 16, 0.95),
    ("bimo serve", "llama.cpp server", 1, 1.5),
    ("bimo serve", "llama.cpp server", 16, 1.5),
)
ENGINE = """
import json, sys, time
import bimo
from bimo.engine import Engine, EngineSettings, SamplingParams
lm = bimo.load(sys.argv[1])
engine = Engine(lm, settings=EngineSettings(threads=int(sys.argv[2]), share_prefixes=True))
print("ready", flush=True)
for line in sys.stdin:
    ask = json.loads(line)
    params = SamplingParams(max_tokens=ask["tokens"], min_tokens=ask["tokens"], temperature=0)
    began = time.perf_counter()
    jobs = [engine.submit(engine.request(prompt, params)) for prompt in ask["prompts"]]
    first = [0.0] * len(jobs)
    while engine.step():
        for number, job in enumerate(jobs):
            if job.pieces and not first[number]:
                first[number] = time.perf_counter() - began
    seconds = time.perf_counter() - began
    tokens = sum(job.result.n_tokens for job in jobs)
    print(json.dumps({"tokens": tokens, "seconds": seconds, "first": first}), flush=True)
"""


@dataclass(frozen=True)
class Figure:
    """What a round gave.

    Attributes:
        speed: Tokens per second, of all streams together.
        first_ms: Until the first text, the median of the streams.
        cpu_ms: Of the server's process, for each token.
    """

    speed: float
    first_ms: float
    cpu_ms: float


class Bare:
    """The engine without a server.

    Args:
        model: A file or folder.
        threads: Of the kernels.
    """

    name = "bare engine"

    def __init__(self, model: str, threads: int) -> None:
        command = [sys.executable, "-c", ENGINE, model, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None, "it is a pipe"
        assert self.process.stdout.readline() == "ready\n", "the engine opens the model"

    def run(self, prompts: Sequence[str], tokens: int) -> Figure:
        """One round."""
        assert self.process.stdin is not None, "it is a pipe"
        assert self.process.stdout is not None, "it is a pipe"
        before = cpu_seconds(self.process.pid)
        self.process.stdin.write(json.dumps({"prompts": list(prompts), "tokens": tokens}) + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        cpu = cpu_seconds(self.process.pid) - before
        return Figure(
            found["tokens"] / found["seconds"], 1e3 * statistics.median(found["first"]), 1e3 * cpu / found["tokens"]
        )


class Server:
    """A server that speaks OpenAI's dialect.

    Args:
        name: For the table.
        command: Starts it.
        port: Where it listens.
        more: Fields of its requests.
    """

    def __init__(self, name: str, command: Sequence[str], port: int, more: dict[str, Any]) -> None:
        self.name, self.port, self.more = name, port, more
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait()

    def run(self, prompts: Sequence[str], tokens: int) -> Figure:
        """One round: a stream for each prompt, all at once."""
        before = cpu_seconds(self.process.pid)
        began = time.perf_counter()
        first, counts = self._read(prompts, tokens, began)
        seconds = time.perf_counter() - began
        cpu = cpu_seconds(self.process.pid) - before
        return Figure(sum(counts) / seconds, 1e3 * statistics.median(first), 1e3 * cpu / max(1, sum(counts)))

    def _read(self, prompts: Sequence[str], tokens: int, began: float) -> tuple[list[float], list[int]]:
        watched, parts = selectors.DefaultSelector(), [bytearray() for _ in prompts]
        first = [0.0] * len(prompts)
        for number, prompt in enumerate(prompts):
            own = socket.create_connection(("127.0.0.1", self.port))
            own.sendall(self._request(prompt, tokens))
            watched.register(own, selectors.EVENT_READ, number)
        while watched.get_map():
            for key, _ in watched.select():
                data = key.fileobj.recv(65536)  # type: ignore[union-attr]  # it is a socket
                parts[key.data] += data
                if not first[key.data] and b'"text"' in data:
                    first[key.data] = time.perf_counter() - began
                if not data or b"[DONE]" in parts[key.data][-100:]:
                    watched.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
        return first, [self._count(bytes(part)) for part in parts]

    def _count(self, stream: bytes) -> int:
        """Tokens in a stream: as it says itself, else its chunks."""
        assert b" 200 OK" in stream[:20], stream[:300]
        place = stream.find(b'"completion_tokens": ')
        if place >= 0:
            return int(stream[place + 21 :].split(b",")[0].split(b"}")[0])
        return stream.count(b"data: {")

    def _request(self, prompt: str, tokens: int) -> bytes:
        content = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, **self.more}
        body = json.dumps(content).encode()
        head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return b"POST /v1/completions HTTP/1.1\r\n" + head.encode() + body

    def _wait(self) -> None:
        for _ in range(600):
            assert self.process.poll() is None, f"{self.name} does not start"
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"{self.name} does not listen")


def cpu_seconds(pid: int) -> float:
    """That a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port: int = own.getsockname()[1]
        return port


@contextmanager
def everybody(model: str, threads: int) -> Iterator[list[Bare | Server]]:
    """All who take part."""
    found: list[Bare | Server] = [Bare(model, threads)]
    port = free_port()
    own = [sys.executable, "-m", "bimo", "serve", model, "--port", str(port), "--engine.threads", str(threads)]
    more = {"min_tokens": 10_000, "stream_options": {"include_usage": True}}
    found.append(Server("bimo serve", own, port, more))
    port = free_port()
    peer = [
        sys.executable,
        "-m",
        "llama_cpp.server",
        "--model",
        model,
        "--port",
        str(port),
        "--n_threads",
        str(threads),
    ]
    # It answers one after the other; by default it would cut off each for the next.
    peer += ["--n_threads_batch", str(threads), "--n_ctx", "2048", "--interrupt_requests", "false"]
    try:
        found.append(Server("llama.cpp server", peer, port, {}))
    except AssertionError as error:
        print(f"left out: {error}")
    try:
        yield found
    finally:
        for one in found:
            one.process.send_signal(signal.SIGTERM)
        for one in found:
            one.process.wait(20)


def main() -> None:
    """Race, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="A .gguf file, which all of them open.")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    figures: dict[tuple[str, int], list[Figure]] = {}
    with everybody(options.model, options.threads) as those:
        for number in range(options.rounds + 1):
            for streams in (1, 16):
                for one in those:
                    prompts = [f"{number} {n}: {PROMPTS[n % len(PROMPTS)]}" for n in range(streams)]
                    if isinstance(one, Server) and one.name == "bimo serve":
                        one.more["min_tokens"] = options.tokens
                    found = one.run(prompts, options.tokens)
                    if number:  # the first round warms up
                        figures.setdefault((one.name, streams), []).append(found)
    print("\n| who | streams | tokens/s (spread) | first text, ms | CPU ms per token |\n|---|---|---|---|---|")
    for (name, streams), own in figures.items():
        speeds = sorted(figure.speed for figure in own)
        line = f"| {name} | {streams} | {statistics.median(speeds):.1f} ({speeds[0]:.1f} … {speeds[-1]:.1f}) "
        line += f"| {statistics.median(figure.first_ms for figure in own):.1f} "
        print(line + f"| {statistics.median(figure.cpu_ms for figure in own):.2f} |")
    for who, beside, streams, least in HELD_AGAINST:
        if (beside, streams) in figures:
            pairs = zip(figures[who, streams], figures[beside, streams], strict=True)
            ratio = statistics.median(a.speed / b.speed for a, b in pairs)
            first = statistics.median(a.first_ms for a in figures[who, streams])
            others = statistics.median(b.first_ms for b in figures[beside, streams])
            print(f"{who} / {beside}, {streams} streams: {ratio:.3f} (at least {least}); ", end="")
            print(f"first text after {first:.1f} against {others:.1f} ms")


if __name__ == "__main__":
    main()
