"""Glossaries: terms and the translations that they must have; which a text holds, and whether an answer has them.

A file is a table with two columns (`.tsv`, `.csv`) or a JSON object {"term": "translation"}. Several translations of a
term that will all do are divided by `|`, or are a JSON list. A name that stays as it is is its own translation.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bimo.core.errors import UserError
from bimo.core.unicode import SCRIPTS
from bimo.tasks.languages import LANGUAGES

_NO_SPACES = re.compile(f"[{SCRIPTS['Han']}{SCRIPTS['Kana']}{SCRIPTS['Thai']}]")
_HEADERS = {"source", "term", "from", *LANGUAGES, *(name.lower() for name in LANGUAGES.values())}
_LARGEST = 2**26  # bytes of a file
_INDEX = 2  # characters by which terms are found
_MAY_BE_INSIDE = 4  # letters from which on a translation may be part of a longer word, as in German compounds
_ENDINGS = re.compile(r"(?:s|es|'s|’s)?(?!\w)")
_EXAMPLE = "Write a term and its translation on each line, with a tab between them."


@dataclass(frozen=True, slots=True)
class Term:
    """A term and the translations that will do, the best first."""

    source: str
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Use:
    """Where a term stands in a text, in characters."""

    term: Term
    start: int


class Glossary:
    """Terms that can be looked up in a text.

    Args:
        terms: Each term once.

    Raises:
        UserError: A term or a translation is empty, or a term stands twice with different translations.
    """

    def __init__(self, terms: Iterable[Term]) -> None:
        by_source: dict[str, Term] = {}
        for term in terms:
            known = by_source.setdefault(term.source, term)
            if known != term:
                both = f"{known.targets[0]!r} and {term.targets[0]!r}"
                mend = "Keep one; divide translations that will both do by |."
                raise UserError(f"the term {term.source!r} stands twice, as {both}", where="glossary", mend=mend)
        self.terms = tuple(by_source.values())
        self._index: dict[str, list[Term]] = {}
        for term in sorted(self.terms, key=lambda term: -len(term.source)):  # the longest counts
            self._index.setdefault(term.source[:_INDEX].lower(), []).append(term)

    def uses(self, text: str) -> list[Use]:
        """Which terms a text holds, in order; of terms that overlap the longest.

        Capitals make no difference unless the term has one behind its first letter, as in "GIMP".
        """
        found, small, place = [], text.lower(), 0
        if len(small) != len(text):  # a few capitals become two characters
            small = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
        while place < len(text):
            term = self._term_at(text, small, place)
            if term is not None:
                found.append(Use(term, place))
            place += len(term.source) if term else 1
        return found

    def _term_at(self, text: str, small: str, place: int) -> Term | None:
        inside = place > 0 and _is_letter(text[place - 1]) and _is_letter(text[place])
        keys = {small[place : place + n] for n in range(1, _INDEX + 1)}
        for term in (term for key in sorted(keys, key=len, reverse=True) for term in self._index.get(key, ())):
            source = term.source
            same = text.startswith(source, place) or (
                source[1:] == source[1:].lower() and small.startswith(source.lower(), place)
            )
            wide = bool(_NO_SPACES.match(source))
            if same and (wide or (not inside and _ends_word(text, place + len(source)))):
                return term
        return None


def has_term(answer: str, term: Term) -> bool:
    """Whether an answer has one of a term's translations, in any case, with any ending."""
    small = answer.lower()
    for target in term.targets:
        wanted = target.lower()
        start = small.find(wanted)
        while start >= 0:
            inside = start > 0 and _is_letter(small[start - 1]) and _is_letter(wanted[0])
            if not inside or len(wanted) >= _MAY_BE_INSIDE or _NO_SPACES.match(wanted):
                return True
            start = small.find(wanted, start + 1)
    return False


def read_glossary(given: str | Path | Mapping[str, object] | Glossary) -> Glossary:
    """A glossary out of a file, or of a dictionary {term: translation, or a list of them}.

    Raises:
        UserError: The file is not there or cannot be read, or a line of it is no term with a translation.
    """
    if isinstance(given, Glossary):
        return given
    if isinstance(given, Mapping):
        return Glossary(_of_mapping(given, "glossary"))
    path = Path(given)
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError("it is too large for a glossary", where=str(path), mend="Give terms, not sentences.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"no glossary can be read ({error.strerror})", where=str(path), mend="Check it.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the glossary is not UTF-8 ({error})", where=str(path), mend="Convert it.") from error
    try:
        terms = list(_of_json(text, path) if path.suffix.lower() == ".json" else _of_table(text, path))
        if not terms:
            raise UserError("there is no term in it", where=str(path), mend=_EXAMPLE)
        return Glossary(terms)
    except UserError as error:
        raise UserError(
            error.what, where=str(path) if error.where == "glossary" else error.where, mend=error.mend
        ) from error


def _of_json(text: str, path: Path) -> Iterator[Term]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})", where=str(path), mend='Write {"term": "translation"}.') from error
    if not isinstance(content, Mapping):
        raise UserError("not a JSON object", where=str(path), mend='Write {"term": "translation"}.')
    return _of_mapping(content, str(path))


def _of_mapping(content: Mapping[str, object], where: str) -> Iterator[Term]:
    for source, targets in content.items():
        listed = [targets] if isinstance(targets, str) else targets
        if not isinstance(listed, Sequence) or not all(isinstance(target, str) for target in listed):
            raise UserError(f"the translation of {source!r} is no text", where=where, mend="Give a text, or a list.")
        yield _term(source, listed, where)


def _of_table(text: str, path: Path) -> Iterator[Term]:
    lines = text.splitlines()
    mark = "\t" if path.suffix.lower() == ".tsv" or any("\t" in line for line in lines[:10]) else ","
    if mark == "," and lines and lines[0].count(";") > lines[0].count(","):
        mark = ";"
    rows = csv.reader(lines, delimiter=mark, quoting=csv.QUOTE_NONE if mark == "\t" else csv.QUOTE_MINIMAL)
    try:
        for number, cells in enumerate(rows, start=1):
            if not any(cell.strip() for cell in cells) or cells[0].startswith("#"):
                continue
            if number == 1 and cells[0].strip().lower() in _HEADERS and len(cells) > 1:
                continue
            where = f"{path}, line {number}"
            if len(cells) < 2:
                raise UserError("there is a term without a translation", where=where, mend=_EXAMPLE)
            yield _term(cells[0], cells[1].split("|"), where)
    except csv.Error as error:
        raise UserError(f"not a table ({error})", where=str(path), mend=_EXAMPLE) from error


def _term(source: str, targets: Sequence[str], where: str) -> Term:
    term = Term(source.strip(), tuple(target.strip() for target in targets))
    if not term.source or not term.targets or not all(term.targets):
        raise UserError("a term or a translation is empty", where=where, mend=_EXAMPLE)
    return term


def _is_letter(character: str) -> bool:
    return character.isalnum() and not _NO_SPACES.match(character)


def _ends_word(text: str, end: int) -> bool:
    return (
        end >= len(text)
        or not _is_letter(text[end - 1])
        or bool(_ENDINGS.match(text, end))
        or not _is_letter(text[end])
    )
