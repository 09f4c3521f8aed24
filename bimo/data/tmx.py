"""Translation memories (.tmx) as records; a stream, so that a large file takes no memory.

The file is XML of strangers: it may declare no entities, nothing outside is ever read, and neither a text nor the
nesting can grow without bound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from bimo.data.documents import UnreadableError
from bimo.data.files import ReadProgress, byte_chunks
from bimo.data.tables import Broken, Row

_NATIVE = {"bpt", "ept", "ph", "it", "ut", "sub"}
"""Elements within a text that hold codes of the program it came from, or a text of its own such as a footnote's
(TMX 1.4b); their content is no part of the text."""
_DEEPEST = 64
_LONGEST = 2**20  # characters of one text
_MOST_LANGUAGES = 256  # of one unit


def is_tmx(file: Path) -> bool:
    """Whether a file is a translation memory, by its name."""
    return file.name.lower().removesuffix(".gz").endswith(".tmx")


def tmx_rows(
    file: Path, languages: tuple[str, str] | None = None, progress: ReadProgress | None = None
) -> Iterator[Row]:
    """One record for each unit, with the line where it begins.

    Args:
        file: A .tmx file, also .tmx.gz.
        languages: Codes of source and target; "en" also means "en-US". None: the header's source language, and the
            first other one of each unit.
        progress: Kept up to date with the bytes that were read.

    Yields:
        {"source", "target", "source_language", "target_language"}. A unit that lacks one of the languages is passed
        over when they were given, and is `Broken` else.

    Raises:
        UnreadableError: It is no TMX, or its XML is broken or hostile.
    """
    reader = _Reader(languages)
    seen = False
    for chunk in byte_chunks(file, progress or ReadProgress()):
        seen = True
        reader.feed(chunk)
        while reader.rows:
            yield reader.rows.popleft()
    if not seen:
        raise UnreadableError("the file is empty")
    reader.feed(b"", final=True)
    yield from reader.rows
    if not reader.is_tmx:
        raise UnreadableError("it is no translation memory: there is no element <tmx>")


class _Reader:
    """Takes the events of the XML parser, and keeps the rows that are complete."""

    def __init__(self, languages: tuple[str, str] | None) -> None:
        self.rows: deque[Row] = deque()
        self.is_tmx = False
        self._languages = languages
        self._default = ""
        self._open: list[str] = []
        self._texts: dict[str, str] = {}  # of this unit, by language
        self._language = ""
        self._parts: list[str] = []
        self._length = self._line = self._codes = 0
        self._in_text = False
        self._parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.EntityDeclHandler = self._entity
        parser.ExternalEntityRefHandler = lambda *names: 0
        parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)

    def feed(self, chunk: bytes, *, final: bool = False) -> None:
        try:
            self._parser.Parse(chunk, final)
        except expat.ExpatError as error:
            what = f"the XML is broken ({expat.ErrorString(error.code)} at column {error.offset + 1})"
            raise UnreadableError(what, "Export the memory again.", row=error.lineno) from error

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._open.append(name)
        if len(self._open) > _DEEPEST:
            self._refuse(f"elements are nested more than {_DEEPEST} deep")
        if len(self._open) == 1:
            self.is_tmx = name == "tmx"
            if not self.is_tmx:
                self._refuse(f"it is no translation memory: its first element is <{name[:40]}>")
        elif name == "header":
            self._default = attributes.get("srclang", "")
        elif name == "tu":
            self._texts, self._line = {}, self._parser.CurrentLineNumber
        elif name == "tuv":
            self._language = (attributes.get("xml:lang") or attributes.get("lang") or "").lower()
        elif name == "seg":
            self._parts, self._length, self._in_text, self._codes = [], 0, True, 0
        elif self._in_text and name in _NATIVE:
            self._codes += 1

    def _end(self, name: str) -> None:
        self._open.pop()
        if name == "seg":
            self._in_text = False
            if len(self._texts) < _MOST_LANGUAGES:
                self._texts.setdefault(self._language, "".join(self._parts).strip())
        elif name == "tu":
            self._unit()
        elif self._in_text and name in _NATIVE:
            self._codes -= 1

    def _characters(self, text: str) -> None:
        if self._in_text and not self._codes:
            self._length += len(text)
            if self._length > _LONGEST:
                self._refuse(f"a text is longer than {_LONGEST:,} characters")
            self._parts.append(text)

    def _entity(self, name: str, *facts: object) -> None:
        self._refuse(f"it declares the entity {name[:40]!r}, which an honest translation memory does not need")

    def _refuse(self, what: str) -> NoReturn:
        raise UnreadableError(what, "Export the memory again.", row=self._parser.CurrentLineNumber)

    def _unit(self) -> None:
        if self._languages is not None:
            source, target = (self._of(language) for language in self._languages)
            if source is None or target is None:
                return
        else:
            source = self._of(self._default) or next(iter(self._texts), None)
            target = next((language for language in self._texts if language != source), None)
        if source is None or target is None:
            self.rows.append((self._line, Broken("the unit has no text in a second language", "Complete it.")))
            return
        texts = {"source": self._texts[source], "target": self._texts[target]}
        self.rows.append((self._line, {**texts, "source_language": source, "target_language": target}))

    def _of(self, language: str) -> str | None:
        """The language of this unit that a code means: itself, or with a region."""
        wanted = language.lower().replace("_", "-")
        if wanted in self._texts:
            return wanted
        short = wanted.partition("-")[0]
        return next((code for code in self._texts if code.replace("_", "-").partition("-")[0] == short), None)
