"""What a caller may ask of a generation. Policy only: no tensors."""

from __future__ import annotations

from dataclasses import dataclass

from bimo.core.settings import Settings


@dataclass(frozen=True)
class SamplingParams(Settings):
    """How the next token is chosen, and when to stop."""

    max_tokens: int = 128
    """At most this many new tokens."""
    temperature: float = 0.8
    """Divides the logits: 0 is greedy (always the likeliest token), 1 the model's own distribution."""
    top_k: int = 0
    """Draw from the k likeliest tokens only; 0: no limit."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens with at least this probability together (Holtzman et al. 2019)."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that already stand in the text become less likely (Keskar et al. 2019, CTRL)."""
    seed: int | None = None
    """The same seed gives the same text; none: a new one each time."""
    stop: tuple[str, ...] = ()
    """Texts that end the generation; they are not part of the answer."""

    def problems(self) -> list[str]:
        found = [] if self.max_tokens >= 1 else [f"max_tokens must be at least 1, is {self.max_tokens}"]
        if not 0 <= self.temperature < float("inf"):
            found.append(f"temperature must be 0 or more, is {self.temperature}")
        if self.top_k < 0:
            found.append(f"top_k must be 0 or more, is {self.top_k}")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p must lie in 0 … 1 and not be 0, is {self.top_p}")
        if not 0 <= self.min_p <= 1:
            found.append(f"min_p must lie in 0 … 1, is {self.min_p}")
        if not 1e-3 <= self.repetition_penalty <= 1e3:
            found.append(f"repetition_penalty must lie in 0.001 … 1000, is {self.repetition_penalty}")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            found.append(f"seed must have at most 64 bits, is {self.seed}")
        if any(not text for text in self.stop):
            found.append("stop must not hold an empty text")
        return found


class StopStrings:
    """Cuts a stream of text at the first stop string, and holds back what may still become one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stop = stop
        self.held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Take the next piece; return what can be shown. After a stop string was found, nothing more."""
        if self.found:
            return ""
        self.held += text
        places = [place for place in (self.held.find(s) for s in self.stop) if place >= 0]
        if places:
            shown, self.held, self.found = self.held[: min(places)], "", True
            return shown
        keep = max((self._overlap(s) for s in self.stop), default=0)
        shown, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return shown

    def finish(self) -> str:
        """The text held back when the generation ended without a stop string."""
        shown, self.held = self.held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text with which `stop` begins."""
        longest = min(len(stop) - 1, len(self.held))
        return next((n for n in range(longest, 0, -1) if self.held.endswith(stop[:n])), 0)
