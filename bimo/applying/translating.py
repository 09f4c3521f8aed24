"""Translation of texts and documents: sentence by sentence through one engine, checked, tried again, and reported."""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bimo.applying.asking import Asked, OnWarning, given_back
from bimo.applying.checking import Fault, faults, forced_form, terms_in
from bimo.applying.pieces import Piece, Plan, planned
from bimo.applying.results import Notice, Translated, TranslatedPiece
from bimo.applying.working import Ask, Source, Work, Works, in_order
from bimo.core.errors import UserError
from bimo.core.settings import Settings
from bimo.engine import SamplingParams
from bimo.engine.answers import Completion
from bimo.tasks.glossary import Glossary, read_glossary
from bimo.tasks.languages import language_code
from bimo.tasks.task import Message
from bimo.tasks.translation import translation_request

if TYPE_CHECKING:
    from bimo.lm import LM

_BEAMS_AGAIN = 4
_ANSWERS_AGAIN = 4
_LONGER = 3  # tokens of an answer for each of the source's, at most
_MORE = 16
_LEAST = 8  # tokens of a piece; with less room nothing sensible can be asked


@dataclass(frozen=True)
class TranslationSettings(Settings):
    """How a text is translated."""

    beams: int = 1
    """Above 1: beam search for the likeliest translation with so many beams; 1: always the likeliest next token."""
    length_penalty: float = 1.0
    """Of beam search: above 1 favours long translations, below 1 short ones."""
    max_tokens: int = 0
    """Of the translation of one piece; 0: three for each of the source's, and 16."""
    piece_tokens: int = 0
    """Sentences go together up to so many tokens; 0: each sentence alone, as models for translation learn them."""
    context_sentences: int = 0
    """So many pieces before are shown with their translations, where the context has room; slower, since each waits."""
    glossary_notes: bool = True
    """Terms that a piece holds are named in the request; off for a model that was trained without such lines."""
    retries: int = 2
    """How often an answer in which something is wrong is tried again: with beams, then drawn, then forced."""
    seed: int = 0
    """Of what is drawn."""
    at_once: int = 64
    """Pieces under way together."""

    def problems(self) -> list[str]:
        least = {"beams": 1, "max_tokens": 0, "piece_tokens": 0, "context_sentences": 0, "retries": 0, "at_once": 1}
        found = [f"{n} must be at least {m}, is {getattr(self, n)}" for n, m in least.items() if getattr(self, n) < m]
        if self.beams > 64:
            found.append(f"beams must be at most 64, is {self.beams}")
        return found


class Translator:
    """Translates with one model into one language.

    Args:
        lm: The model.
        target: Language of the translations, by code or English name.
        source: Language of the texts; "": whatever it is.
        glossary: A file of terms, a dictionary, or a Glossary; None: there is none.
        settings: How.

    Raises:
        UserError: A language is unknown, the glossary cannot be read, or the model cannot be asked.
    """

    def __init__(
        self,
        lm: LM,
        target: str,
        *,
        source: str = "",
        glossary: str | Path | Mapping[str, object] | Glossary | None = None,
        settings: TranslationSettings | None = None,
    ) -> None:
        self.target = language_code(target)
        self.source = language_code(source) if source else ""
        if self.source == self.target:
            raise UserError(f"both languages are {target!r}", where="target", mend="Name the one to translate into.")
        self.settings = settings or TranslationSettings()
        self.glossary = None if glossary is None else read_glossary(glossary)
        self._asked = Asked(lm, "translation")
        given = self.settings.max_tokens
        room = self._asked.room(translation_request("", self.target), given or _MORE, "a sentence and its translation")
        self._most = room if given else max(room // (1 + _LONGER), min(room // 2, _LEAST))
        """Tokens of a piece."""

    def stream(
        self, texts: Iterable[str] | Source[str], *, on_progress: Callable[[int, int], None] | None = None
    ) -> Iterator[Translated | UserError]:
        """The translation of each text, in order; a text that could not be translated gives its error.

        Args:
            texts: What is translated.
            on_progress: Told after each piece how many are done, and of how many that are known.
        """
        plans: deque[tuple[Plan, list[tuple[TranslatedPiece, ...]], int]] = deque()

        def works(text: str) -> Sequence[Work[tuple[TranslatedPiece, ...]]]:
            plan, found = self.works(text)
            plans.append((plan, [], len(found)))
            return found

        results = in_order(self._asked.engine, Works(texts, works), self.settings.at_once)
        failed: UserError | None = None
        for n_done, result in enumerate(results, start=1):
            plan, done, n_works = plans[0]
            if on_progress is not None:
                on_progress(n_done, n_done - len(done) - 1 + sum(own[2] for own in plans))
            if isinstance(result, UserError):
                failed, result = failed or result, ()
            done.append(result)
            if len(done) == n_works:
                plans.popleft()
                yield failed if failed is not None else self._assembled(plan, done)
                failed = None

    def works(self, text: str) -> tuple[Plan, list[Work[tuple[TranslatedPiece, ...]]]]:
        """A document's plan, and what is to be done for it."""
        plan = planned(text, self._most, self.settings.piece_tokens, self._asked.count)
        if self.settings.context_sentences:
            return plan, [self._in_turn(plan.pieces)]
        return plan, [self._alone(piece) for piece in plan.pieces] or [self._in_turn(())]

    def _assembled(self, plan: Plan, done: Sequence[tuple[TranslatedPiece, ...]]) -> Translated:
        pieces = tuple(piece for result in done for piece in result)
        return Translated(plan.whole([piece.text for piece in pieces], self.target), pieces)

    def _in_turn(self, pieces: Sequence[Piece]) -> Work[tuple[TranslatedPiece, ...]]:
        """Pieces one after the other, each with those before it."""
        found: list[TranslatedPiece] = []
        for piece in pieces:
            earlier = [(p.source, p.text) for p in found if p.attempts and not p.notices]
            found.append((yield from self._translated(piece, earlier[-self.settings.context_sentences :])))
        return tuple(found)

    def _alone(self, piece: Piece) -> Work[tuple[TranslatedPiece, ...]]:
        return ((yield from self._translated(piece, [])),)

    def _translated(self, piece: Piece, earlier: Sequence[tuple[str, str]]) -> Work[TranslatedPiece]:
        """One piece: ask, check, ask again, and keep the best."""
        if not piece.spoken:
            return TranslatedPiece(piece.text, piece.text, piece.line, 0, piece.notices)
        terms = terms_in(piece.text, self.glossary)
        ids = self._ids(piece.text, [f"{term.source} = {term.targets[0]}" for term in terms], earlier)
        best: tuple[float, str, list[Fault]] | None = None
        attempts = 0
        forced: list[str] = []
        for params in self._ways(piece.text):
            attempts += 1
            wanted = [fault.wanted for fault in best[2] if fault.wanted] if best is not None else []
            if params.temperature and wanted and importlib.util.find_spec("llguidance") is not None:
                params = replace(params, regex=forced_form(piece.text, wanted, terms))
            (answer,) = yield [Ask(ids, params)]
            if isinstance(answer, UserError):
                if best is None:
                    raise UserError(answer.what, where=answer.where or f"line {piece.line}", mend=answer.mend)
                break  # a harder way failed; an answer is there
            for text, found in self._judged(piece.text, answer, terms):
                weight = sum(fault.weight for fault in found)
                if best is None or weight < best[0]:
                    best = weight, text, found
                    forced = wanted if params.regex else []
            if best is not None and not best[2]:
                break
        assert best is not None, "an answer has at least one text"
        notices = [Notice(fault.what, piece.line, piece.text) for fault in best[2]]
        if forced:
            what = f"the model was forced to write {' and '.join(map(repr, forced))}: read this sentence"
            notices.append(Notice(what, piece.line, piece.text))
        return TranslatedPiece(piece.text, best[1], piece.line, attempts, (*piece.notices, *notices))

    def _judged(self, source: str, answer: Completion, terms: Sequence[Any]) -> Iterator[tuple[str, list[Fault]]]:
        for choice in answer.choices:
            text = " ".join(choice.text.split("\n")).strip()  # a piece is one line
            yield text, faults(source, text, self.target, terms, choice.finish_reason)

    def _ids(self, text: str, notes: Sequence[str], earlier: Sequence[tuple[str, str]]) -> tuple[int, ...]:
        """The request, with as many of the earlier pieces as there is room for."""
        if not self.settings.glossary_notes:
            notes = ()
        own: Sequence[Message] = translation_request(text, self.target, notes)
        need = self._max_tokens(text)
        for n in range(len(earlier), -1, -1):
            messages: list[Message] = []
            for before, translated in earlier[len(earlier) - n :]:
                messages += [*translation_request(before, self.target), {"role": "assistant", "content": translated}]
            ids = self._asked.ids([*messages, *own])
            if len(ids) + need <= self._asked.context_length:
                return ids
        if notes:  # with them the piece has no room
            return self._ids(text, (), ())
        return ids

    def _max_tokens(self, text: str) -> int:
        return self.settings.max_tokens or _LONGER * self._asked.count(text) + _MORE

    def _ways(self, text: str) -> Iterator[SamplingParams]:
        """How the model is asked, time after time."""
        own = self.settings
        most = self._max_tokens(text)
        first = SamplingParams(
            temperature=0, max_tokens=most, beams=own.beams, length_penalty=own.length_penalty, seed=own.seed
        )
        yield first
        for attempt in range(own.retries):
            if attempt == 0:
                beams = max(_BEAMS_AGAIN, 2 * own.beams)
                yield replace(first, beams=beams, n=_BEAMS_AGAIN)
            else:
                drawn = replace(first, beams=1, temperature=0.7, top_p=0.9, n=_ANSWERS_AGAIN)
                yield replace(drawn, seed=own.seed + attempt)


def translate(
    lm: LM,
    texts: Any,
    target: str,
    *,
    source: str = "",
    glossary: str | Path | Mapping[str, object] | Glossary | None = None,
    report: bool = False,
    on_warning: OnWarning | None = None,
    **options: Any,
) -> Any:
    """Translate a text, several, or a stream of them; paragraphs, blank lines and list marks are kept.

    Args:
        lm: A model that was trained for translation, or one for chat.
        texts: A text gives a text, a list gives a list, anything else that gives texts gives an iterator, in order;
            it runs up to `at_once` pieces ahead.
        target: Language to translate into, by code or English name.
        source: Language of the texts; "": whatever it is.
        glossary: A file of terms (.tsv, .csv, .json), or {term: translation}.
        report: Give `Translated` with pieces and warnings, instead of texts.
        on_warning: Told of each warning; None: they are logged, unless there is a report.
        options: Fields of `TranslationSettings`: beams, length_penalty, piece_tokens, context_sentences, retries …

    Raises:
        UserError: A language or an option is unknown, a text is empty, or the model cannot be asked.
    """
    translator = Translator(
        lm, target, source=source, glossary=glossary, settings=TranslationSettings.from_dict(options)
    )
    return given_back(texts, translator.stream, report=report, on_warning=on_warning)
