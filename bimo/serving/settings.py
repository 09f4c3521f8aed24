"""How a server runs: settings without tensors. Every bound that a client can meet stands here."""

from __future__ import annotations

from dataclasses import dataclass, field

from bimo.core.settings import Settings


@dataclass(frozen=True)
class ServeSettings(Settings):
    """How a server runs."""

    host: str = "127.0.0.1"
    """Address to listen on: this machine alone; 0.0.0.0: everybody who reaches it."""
    port: int = 8000
    """Port to listen on; 0: any that is free."""
    keys: str = ""
    """A file of keys, as `--new_key` writes it; with it, every address of the server needs one of them."""
    runs: str = ""
    """A folder of runs whose curves and samples are shown."""
    guard: list[str] = field(default_factory=lambda: ["length", "hidden_characters", "forged_words", "personal_data"])
    """Rules that look at what goes in and comes out, such as personal_data(action="mask"); what they note is told, what
    they mask is not passed on, what they refuse is not answered."""
    max_parallel: int = 64
    """Requests that the engine works on together."""
    queue_requests: int = 256
    """Requests that may wait for a place; more get 429."""
    queue_tokens: int = 1_000_000
    """Prompt tokens that may wait, counted as one for each 3 bytes; more get 429."""
    queue_s: float = 30.0
    """A request that has waited so long for a place gets 429."""
    first_token_s: float = 60.0
    """A request that has a place and no token after so long gets 504."""
    answer_s: float = 600.0
    """An answer that is not complete after so long is ended: 504, or an error in its stream."""
    max_tokens: int = 4096
    """New tokens that a request may ask for."""
    default_tokens: int = 512
    """New tokens of a chat answer whose request does not say how many."""
    max_n: int = 16
    """Answers to one request at most."""
    max_texts: int = 256
    """Texts in one request at most, for embeddings, moderations and applications."""
    key_requests_per_minute: int = 0
    """Of each key; 0: no limit. A line of the file of keys can say otherwise."""
    key_tokens_per_minute: int = 0
    """Read and written tokens of each key; 0: no limit."""
    key_parallel: int = 0
    """Requests of each key under way at once; 0: no limit."""
    max_body_bytes: int = 4 * 2**20
    """Of a request; larger ones get 413 before they are read."""
    max_buffered_bytes: int = 64 * 2**20
    """Of the bodies of all requests under way; more get 429."""
    max_header_bytes: int = 16 * 2**10
    """Of a request's headers, with its first line."""
    max_depth: int = 32
    """How deeply JSON may be nested."""
    max_values: int = 100_000
    """Lists and objects that a request's JSON may hold."""
    max_connections: int = 4096
    """Open connections; more are closed at once."""
    header_s: float = 10.0
    """A connection whose request has not begun properly after so long is closed."""
    body_s: float = 30.0
    """A request whose body is not there after so long gets 408."""
    write_s: float = 30.0
    """A client that takes nothing for so long is cut off."""
    keep_alive_s: float = 30.0
    """A connection without requests is closed after so long."""
    drain_s: float = 30.0
    """When the server is told to end (SIGTERM), what is under way has so long to come to its end."""

    def problems(self) -> list[str]:
        found = [] if 0 <= self.port < 2**16 else [f"port must lie in 0 … 65535, is {self.port}"]
        if not self.host.strip():
            found.append("host must be an address, is empty")
        least = dict.fromkeys(("key_requests_per_minute", "key_tokens_per_minute", "key_parallel", "queue_requests"), 0)
        least |= dict.fromkeys(
            ("max_parallel", "queue_tokens", "max_tokens", "default_tokens", "max_n", "max_texts"), 1
        )
        least |= {"max_body_bytes": 64, "max_header_bytes": 1024, "max_depth": 4, "max_values": 64}
        least |= {"max_connections": 2, "max_buffered_bytes": 64}
        found += [f"{n} must be at least {m}, is {getattr(self, n)}" for n, m in least.items() if getattr(self, n) < m]
        for name in ("queue_s", "first_token_s", "answer_s", "header_s", "body_s", "write_s", "keep_alive_s"):
            if not 0 < getattr(self, name) <= 86400:
                found.append(f"{name} must lie in 0 … 86400 and not be 0, is {getattr(self, name)}")
        if not 0 <= self.drain_s <= 86400:
            found.append(f"drain_s must lie in 0 … 86400, is {self.drain_s}")
        if self.default_tokens > self.max_tokens:
            found.append(f"default_tokens must be at most max_tokens ({self.max_tokens}), is {self.default_tokens}")
        return found
