"""Message catalogues of gettext (.po) as records, line by line.

What counts is what a person has approved: fuzzy entries are left out and told, obsolete ones (#~) and those without a
translation are no records. An entry with plural forms becomes a record for each form that says the same: the singular
with the form that the header gives to one thing (Arabic's first is that of none), the plural with all others. Codes of
programs (%s, &File) stay as they are.
"""

from __future__ import annotations

import codecs
import gettext
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from bimo.data.cutting import lines
from bimo.data.decoding import BAD, TextStream
from bimo.data.documents import UnreadableError
from bimo.data.encodings import Encoding, recognise
from bimo.data.files import ReadProgress, byte_chunks
from bimo.data.tables import Broken, Row

_LINE = re.compile(r'(?:(msgctxt|msgid_plural|msgid|msgstr)(?:\[(\d{1,2})\])?\s*)?"((?:[^"\\]|\\.)*)"\s*')
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3})|(.))")
_SIGNS = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_CHARSET = re.compile(rb'Content-Type:[^"]*charset=([A-Za-z0-9_.:-]{2,40})')
_PLAIN = re.compile(r"(us-)?ascii|iso[-_]?8859|windows-|cp\d|koi8|gb|big5|euc|shift[-_]?jis|sjis|tis", re.IGNORECASE)
_LONGEST = 2**20  # characters of one entry
_MEND = "Mend it with msgfmt --check."


def is_po(file: Path) -> bool:
    """Whether a file is a message catalogue, by its name."""
    return file.name.lower().removesuffix(".gz").endswith((".po", ".pot"))


def po_rows(
    file: Path, languages: tuple[str, str] | None = None, progress: ReadProgress | None = None
) -> Iterator[Row]:
    """One record for each translated text, with the line where its entry begins.

    Args:
        file: A .po file, also .po.gz.
        languages: Codes of source and target; "en" also means "en-US". A catalogue is read the other way round where
            its language is the source. None: as it stands.
        progress: Kept up to date with the bytes that were read.

    Yields:
        {"source", "target", "source_language", "target_language"}; what is wrong with an entry; and, as the last one,
        how many entries were fuzzy.

    Raises:
        UnreadableError: It is no catalogue, or one of other languages.
    """
    reader = _Reader(languages)
    stream = _text(file, progress or ReadProgress())
    for number, line in enumerate(lines(stream), start=1):
        if BAD in line:
            reader.spoil(stream.take_bad(number))
        yield from reader.read(number, line.strip())
    yield from reader.end()
    if not reader.seen:
        raise UnreadableError("it is no message catalogue: there is no msgid", _MEND)


def _text(file: Path, progress: ReadProgress) -> TextStream:
    """Its text, in the encoding that its header names."""
    chunks = byte_chunks(file, progress)
    first = next(chunks, b"")
    if not first:
        raise UnreadableError("the file is empty")
    named = _CHARSET.search(first[: 2**16])
    name = named[1].decode() if named else ""
    if not _PLAIN.match(name):  # UTF-8 or UTF-16, which are seen, or not said
        return TextStream(chain([first], chunks), recognise(first))
    try:
        return TextStream(chain([first], chunks), Encoding(codecs.lookup(name).name, name))
    except LookupError as error:
        raise UnreadableError(f"its header names the unknown encoding {name}", "Save it as UTF-8.") from error


class _Reader:
    """Takes lines, and gives the records of an entry when the next one begins."""

    def __init__(self, languages: tuple[str, str] | None) -> None:
        self.languages, self.seen = languages, False
        self._source, self._target = languages or ("en", "")
        self._turned = False
        self._one = 0  # which plural form speaks of one thing
        self._fuzzy: list[int] = []  # lines of fuzzy entries
        self._clear()

    def _clear(self) -> None:
        self._texts: dict[str, list[str]] = {}  # the parts of each, by keyword and number
        self._key, self._line, self._length = "", 0, 0
        self._is_fuzzy, self._wrong = False, ""

    def spoil(self, what: str) -> None:
        """Of the entry that is being read something cannot be used."""
        self._wrong = self._wrong or what

    def read(self, number: int, line: str) -> Iterator[Row]:
        """One line, without its end."""
        if not line or line.startswith("#"):
            if "msgstr" in self._key:  # what follows belongs to the next entry
                yield from self._entry()
            if line.startswith("#~") and not self._key:  # flags before it were those of an entry that is no more
                self._is_fuzzy = False
            if line.startswith("#,") and "fuzzy" in re.split(r"[,\s]+", line[2:]):
                self._is_fuzzy = True
            return
        match = _LINE.fullmatch(line)
        if match is None or (not match[1] and not self._key):
            self._line = self._line or number
            self.spoil(f"line {number} is none of a catalogue: {line[:40]!r}")
            return
        keyword, form, text = match.groups()
        if keyword:
            if keyword in ("msgctxt", "msgid") and "msgstr" in self._key:
                yield from self._entry()
            self._key = f"{keyword}[{int(form)}]" if form else keyword
            self._line = self._line or number
            if self._key in self._texts:
                self.spoil(f"{self._key} stands twice")
        self._length += len(text)
        if self._length > _LONGEST:
            raise UnreadableError(f"an entry is longer than {_LONGEST:,} characters", _MEND, row=number)
        self._texts.setdefault(self._key, []).append(text)

    def end(self) -> Iterator[Row]:
        """The last entry, and how many were fuzzy."""
        yield from self._entry()
        if self._fuzzy:
            count = f"{len(self._fuzzy)} entries are" if len(self._fuzzy) > 1 else "an entry is"
            what = f"{count} fuzzy and not used" + ("; here is the first" if len(self._fuzzy) > 1 else "")
            yield self._fuzzy[0], Broken(what, "Look at it, and take the flag off.")

    def _entry(self) -> Iterator[Row]:
        texts = {key: _unescaped("".join(parts)) for key, parts in self._texts.items()}
        line, fuzzy, wrong = self._line, self._is_fuzzy, self._wrong
        self._clear()
        if not texts:
            if wrong:
                yield line, Broken(wrong, _MEND)
            return
        if wrong or "msgid" not in texts or not any(key.startswith("msgstr") for key in texts):
            yield line, Broken(wrong or "an entry needs msgid and msgstr", _MEND)
            return
        first, self.seen = not self.seen, True
        if not texts["msgid"] and "msgctxt" not in texts:
            if first:
                self._header(texts.get("msgstr", ""))
        elif fuzzy:
            self._fuzzy.append(line)
        else:
            for source, target in _pairs(texts, self._one):
                yield line, self._record(source, target)

    def _header(self, text: str) -> None:
        """Settle the direction by the languages that the header names."""
        named = dict(re.findall(r"(?m)^([A-Za-z-]+):[ \t]*(\S+)", text))
        self._one = _form_of_one(text)
        self._source = named.get("X-Source-Language", "en")
        self._target = named.get("Language", "")
        if self.languages is None or not self._target:
            self._source, self._target = self.languages or (self._source, self._target)
            return
        source, target = self.languages
        assumed = "X-Source-Language" not in named
        if _same(self._target, target) and (assumed or _same(self._source, source)):
            self._source = source if assumed else self._source
        elif _same(self._target, source) and (assumed or _same(self._source, target)):
            self._source = target if assumed else self._source
            self._turned = True
        else:
            what = f"its header says that it goes from {self._source} to {self._target}, not from {source} to {target}"
            raise UnreadableError(what, "Give the catalogue of these languages, or mend Language: in its header.")

    def _record(self, source: str, target: str) -> dict[str, object]:
        there, back = (source, self._source), (target, self._target)
        (source, of_source), (target, of_target) = (back, there) if self._turned else (there, back)
        return {"source": source, "target": target, "source_language": of_source, "target_language": of_target}


def _form_of_one(header: str) -> int:
    """Which plural form speaks of one thing, by the formula of a header; the first, where there is none."""
    formula = re.search(r"(?m)^Plural-Forms:.*\bplural\s*=\s*([^;\n]+)", header)
    if formula is None:
        return 0
    try:
        return int(gettext.c2py(formula[1])(1))  # type: ignore[attr-defined]  # it reads numbers, n and operators alone
    except (ValueError, ArithmeticError, RecursionError):
        return 0


def _pairs(texts: dict[str, str], one: int) -> Iterator[tuple[str, str]]:
    """The texts that say the same; without those that are not translated.

    Args:
        texts: Of an entry, by keyword.
        one: Which form speaks of one thing.
    """
    if "msgid_plural" not in texts:
        pairs = [(texts["msgid"], texts.get("msgstr", ""))]
    else:
        forms = {int(key[7:-1]): text for key, text in texts.items() if key.startswith("msgstr[")}
        # A language with one form says "5 files" with it, and maybe never "one file".
        single = forms.pop(one, "") if len(forms) > 1 else ""
        pairs = [(texts["msgid"], single)]
        pairs += [(texts["msgid_plural"], text) for text in dict.fromkeys(forms[n] for n in sorted(forms))]
    return (pair for pair in pairs if all(text.strip() for text in pair))


def _same(one: str, other: str) -> bool:
    """Whether two codes mean one language, maybe with a region."""
    one, other = (re.split(r"[_@.]", code.lower().replace("-", "_"))[0] for code in (one, other))
    return one == other


def _unescaped(text: str) -> str:
    """A text without the backslashes of C."""

    def sign(match: re.Match[str]) -> str:
        if match[1] or match[2]:
            return chr(int(match[1], 16) if match[1] else int(match[2], 8) & 0xFF)
        return _SIGNS.get(match[3], match[3])

    return _ESCAPE.sub(sign, text)
