"""What can be wrong with a translation without knowing either language: all of it is seen in the text alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from bimo.tasks.glossary import Glossary, Term, has_term
from bimo.tasks.languages import LANGUAGES
from bimo.tasks.recognising import recognise_language
from bimo.tasks.survivors import missing, survivors

_SURE = 0.9  # of a language: on real sentences no guess above 0.8 was wrong
_LETTERS = re.compile(r"[^\W\d_]")
_JUDGED = 20  # letters from which on a language is judged
_WORDS = re.compile(r"\w+")
_LOOP = re.compile(r"(\S.{0,80}?)(?:\s?\1){3,}", re.DOTALL)
_LOOP_WITHIN = 1000  # characters at the end of an answer that are looked at
_SHUFFLED = 3  # parts that are forced in every order; more are forced in the order of the source
_COPIED_WORDS = 4
_LONGER, _SHORTEST_GAP, _LONGEST_GAP = 2, 12, 200
"""Between what is forced, so many characters at most for each of the source's: without a bound, a model that does not
see where a part belongs writes on until its tokens end."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an answer.

    Attributes:
        what: One clause.
        weight: How bad it is, to choose among answers.
        wanted: Text that must stand in the answer and does not; "": it is something else.
    """

    what: str
    weight: float = 1.0
    wanted: str = ""


def faults(source: str, answer: str, target: str, terms: Sequence[Term], finish_reason: str) -> list[Fault]:
    """All that is wrong with the translation of a piece.

    Args:
        source: The piece.
        answer: Its translation.
        target: Code of the language that it must be in.
        terms: Terms of the glossary that the piece holds.
        finish_reason: Why the answer ended.
    """
    if not answer.strip():
        return [Fault("the answer is empty", 10.0)]
    found = []
    if finish_reason not in ("end", "stop"):
        found.append(Fault("the answer did not come to an end and was cut off", 3.0))
    if _loops(answer) and not _loops(source):
        found.append(Fault("the answer repeats itself", 3.0))
    found += [Fault(f"the {lost.kind} {lost.text!r} is missing", 1.0, lost.text) for lost in missing(source, answer)]
    found += [
        Fault(
            f"the term {term.source!r} is not translated as {' or '.join(map(repr, term.targets))}",
            1.0,
            term.targets[0],
        )
        for term in terms
        if not has_term(answer, term)
    ]
    language = _other_language(source, answer, target)
    return [*found, language] if language else found


def terms_in(piece: str, glossary: Glossary | None) -> list[Term]:
    """The terms that a piece holds, each once, in order."""
    return list(dict.fromkeys(use.term for use in glossary.uses(piece))) if glossary else []


def forced_form(source: str, wanted: Sequence[str], terms: Sequence[Term]) -> str:
    """A regular expression of answers on one line that hold all that must stand in them."""
    parts = list(dict.fromkeys([found.text for found in survivors(source)] + [term.targets[0] for term in terms]))
    parts += [text for text in dict.fromkeys(wanted) if not any(text in part for part in parts)]
    orders = permutations(parts) if len(parts) <= _SHUFFLED else [tuple(parts)]
    gap = f".{{0,{max(_SHORTEST_GAP, min(_LONGER * len(source) // (len(parts) + 1), _LONGEST_GAP))}}}"
    return "|".join(gap.join(["", *map(_escaped, order), ""]) for order in orders)


def needs_words(piece: str) -> bool:
    """Whether there is anything to translate: letters outside of what survives as it is."""
    for found in reversed(survivors(piece)):
        piece = piece[: found.start] + " " + piece[found.start + len(found.text) :]
    return bool(_LETTERS.search(piece))


def _escaped(text: str) -> str:
    return re.sub(r"([\\.^$|?*+(){}\[\]/&~<>\"#@-])", r"\\\1", text)


def _loops(text: str) -> bool:
    return bool(_LOOP.search(text[-_LOOP_WITHIN:])) and len(text) > 20


def _other_language(source: str, answer: str, target: str) -> Fault | None:
    """Whether an answer reads as another language than it should, or is the source again."""
    if answer.strip() == source.strip() and len(_WORDS.findall(source)) >= _COPIED_WORDS:
        return Fault("the answer is the source", 2.0)
    if len(_LETTERS.findall(answer)) < _JUDGED:
        return None
    guess = recognise_language(answer)
    if guess is None or guess.language == target or guess.probability < _SURE:
        return None
    return Fault(f"the answer reads as {LANGUAGES[guess.language]}, not {LANGUAGES[target]}", 2.0)
