"""Stop strings: texts at which an answer ends, found in a stream although they may come in pieces."""

from __future__ import annotations


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
