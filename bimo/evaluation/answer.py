"""What somebody answered to an example: a text that knows how it came to be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

CUT = ("max_tokens", "context")
"""Reasons to finish that cut an answer off."""


@dataclass(frozen=True, slots=True)
class Foresight:
    """How well the target of an example was foreseen.

    Attributes:
        nats: Negative log-likelihood of the target.
        tokens: In how many steps it was foreseen.
        bytes: Its size in UTF-8.
    """

    nats: float
    tokens: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Circumstances:
    """How an answer came to be.

    Attributes:
        finish_reason: end, stop, max_tokens, context or error.
        probabilities: Of each label, where the answer is one.
        foresight: Of the target, where it is known.
        shortened: Whether only a part of what was asked could be read.
    """

    finish_reason: str = "end"
    probabilities: Mapping[str, float] = field(default_factory=dict)
    foresight: Foresight | None = None
    shortened: bool = False


class Answer(str):
    """An answer is its text; `how` says more to those who want to know.

    Args:
        text: What was said.
        how: How it came to be.
    """

    how: Circumstances

    def __new__(cls, text: str, how: Circumstances | None = None) -> Answer:
        answer = super().__new__(cls, text)
        answer.how = how or Circumstances()
        return answer

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        found: dict[str, Any] = {"text": str(self)}
        if self.how.finish_reason != "end":
            found["finish_reason"] = self.how.finish_reason
        if self.how.probabilities:
            found["probabilities"] = dict(self.how.probabilities)
        if self.how.shortened:
            found["shortened"] = True
        if self.how.foresight is not None:
            seen = self.how.foresight
            found["foresight"] = {"nats": seen.nats, "tokens": seen.tokens, "bytes": seen.bytes}
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Answer:
        """The answer out of plain values.

        Raises:
            ValueError, TypeError, KeyError: They are not what `to_dict` writes.
        """
        seen = values.get("foresight")
        foresight = None if seen is None else Foresight(float(seen["nats"]), int(seen["tokens"]), int(seen["bytes"]))
        probabilities = {str(label): float(p) for label, p in dict(values.get("probabilities", {})).items()}
        text = values["text"]
        if not isinstance(text, str):
            raise TypeError("the text of an answer is no text")
        reason, shortened = str(values.get("finish_reason", "end")), bool(values.get("shortened"))
        return cls(text, Circumstances(reason, probabilities, foresight, shortened))


def circumstances(answers: Iterable[str]) -> list[Circumstances]:
    """How each answer came to be; of a plain text nothing is known."""
    return [answer.how if isinstance(answer, Answer) else Circumstances() for answer in answers]
