"""Summaries: of a document that fits in one request, of a longer one part by part, and then of the parts' summaries.

Every part goes in, and the report says what came of each. Wu et al. 2021, "Recursively Summarizing Books with Human
Feedback", is the pattern.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bimo.applying.asking import Asked, OnWarning, given_back
from bimo.applying.results import Notice, Summarized, SummarizedPart
from bimo.applying.working import Answer, Ask, Source, Work, Works, in_order
from bimo.core.errors import UserError
from bimo.core.settings import Settings
from bimo.engine import SamplingParams
from bimo.tasks.numbers import missing_numbers
from bimo.tasks.portions import Portion, portions
from bimo.tasks.summarization import summary_request

if TYPE_CHECKING:
    from bimo.lm import LM

_DEFAULT = 256
_SHRINKS = 3  # a part's summary takes at most this share of what fits: the summaries of all parts are always shorter
_MOST_LEVELS = 64


@dataclass(frozen=True)
class SummarySettings(Settings):
    """How a document is summarised."""

    max_tokens: int = 0
    """Of a summary; 0: what the model was trained for, else 256, and no more than a quarter of its context."""
    beams: int = 1
    """Above 1: beam search for the likeliest summary with so many beams; 1: always the likeliest next token."""
    length_penalty: float = 1.0
    """Of beam search: above 1 favours long summaries, below 1 short ones."""
    at_once: int = 16
    """Documents under way together; the parts of each go together, too."""

    def problems(self) -> list[str]:
        least = {"max_tokens": 0, "beams": 1, "at_once": 1}
        found = [f"{n} must be at least {m}, is {getattr(self, n)}" for n, m in least.items() if getattr(self, n) < m]
        if self.beams > 64:
            found.append(f"beams must be at most 64, is {self.beams}")
        return found


class Summarizer:
    """Summarises with one model.

    Args:
        lm: The model.
        settings: How.

    Raises:
        UserError: The model cannot be asked, or its context has no room.
    """

    def __init__(self, lm: LM, settings: SummarySettings | None = None) -> None:
        self.settings = settings or SummarySettings()
        self._asked = Asked(lm, "summarization")
        own = self._asked.task.max_tokens if self._asked.task is not None else _DEFAULT
        self.max_tokens = self.settings.max_tokens or min(own, self._asked.context_length // 4)
        self.most = self._asked.room(summary_request(""), self.max_tokens, "a document and its summary")
        """Tokens of a document that is read as a whole."""

    def stream(self, texts: Iterable[str] | Source[str]) -> Iterator[Summarized | UserError]:
        """The summary of each text, in order; a text that could not be summarised gives its error."""
        works = Works(texts, lambda text: [self.work(text)])
        return in_order(self._asked.engine, works, self.settings.at_once)

    def work(self, text: str) -> Work[Summarized]:
        """One document: ask for each part, and for all of them together, until one summary is left."""
        level, parts = 0, [Portion(text, 0)] if self._fits(text) else self._parts(text)
        covered: tuple[SummarizedPart, ...] = ()
        notices: list[Notice] = []
        while True:
            last = len(parts) == 1
            answers = yield [self._ask(part.text, last) for part in parts]
            summaries = [self._said(answer) for answer in answers]
            if level == 0:
                covered = tuple(_covered(text, part, summary) for part, summary in zip(parts, summaries, strict=True))
            notices += self._notices(text, parts, answers, level)
            if last or level == _MOST_LEVELS:
                whole = summaries[-1]
                invented = missing_numbers(whole, text)
                notices += [Notice(f"the number {n.text!r} does not stand in the document") for n in invented]
                return Summarized(whole, covered, level, tuple(notices))
            joined = "\n".join(summary for summary in summaries if summary)
            level += 1
            parts = [Portion(joined, 0)] if self._fits(joined) else self._parts(joined)

    def _fits(self, text: str) -> bool:
        return self._asked.count(text) <= self.most

    def _parts(self, text: str) -> list[Portion]:
        """Parts of about the same size, so that none is a rest of two sentences."""
        count = self._asked.count(text)
        n_parts = -(-count // self.most)
        even = min(self.most, count // n_parts + self.most // 8 + 1)
        return portions(text, even, self._asked.count)

    def _ask(self, text: str, last: bool) -> Ask:
        most = self.max_tokens if last else max(1, min(self.max_tokens, self.most // _SHRINKS))
        params = SamplingParams(
            temperature=0, max_tokens=most, beams=self.settings.beams, length_penalty=self.settings.length_penalty
        )
        return Ask(self._asked.ids(summary_request(text)), params)

    @staticmethod
    def _said(answer: Answer) -> str:
        if isinstance(answer, UserError):
            raise answer
        return answer.text.strip()

    def _notices(self, text: str, parts: Sequence[Portion], answers: Sequence[Answer], level: int) -> Iterator[Notice]:
        for number, (part, answer) in enumerate(zip(parts, answers, strict=True), start=1):
            name = f"part {number} of {len(parts)}" if len(parts) > 1 else "the document"
            name += f" at level {level + 1}" if level and len(parts) > 1 else ""
            line = text.count("\n", 0, part.start) + 1 if not level else 0
            if not answer.text.strip():
                yield Notice(f"{name} has no summary: the model said nothing", line)
            elif answer.choices[0].finish_reason not in ("end", "stop") and len(parts) == 1:
                yield Notice("the summary was cut off")
            if part.cut in ("word", "character"):
                yield Notice(f"{name} ends inside a sentence that is longer than the context", line)


def _covered(text: str, part: Portion, summary: str) -> SummarizedPart:
    line = text.count("\n", 0, part.start) + 1
    return SummarizedPart(part.start, part.start + len(part.text), line, summary)


def summarize(lm: LM, texts: Any, *, report: bool = False, on_warning: OnWarning | None = None, **options: Any) -> Any:
    """Summarise a text of any length, several, or a stream of them.

    Args:
        lm: A model that was trained for summaries, or one for chat.
        texts: A text gives a text, a list gives a list, anything else that gives texts gives an iterator, in order.
        report: Give `Summarized` with the parts that went in, and warnings, instead of texts.
        on_warning: Told of each warning; None: they are logged, unless there is a report.
        options: Fields of `SummarySettings`: max_tokens, beams, length_penalty, at_once.

    Raises:
        UserError: An option is unknown, a text is empty, or the model cannot be asked.
    """
    summarizer = Summarizer(lm, SummarySettings.from_dict(options))
    return given_back(texts, summarizer.stream, report=report, on_warning=on_warning)
