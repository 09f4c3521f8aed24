"""Message catalogues: each translated text is a record; what is fuzzy, obsolete or of another language is none."""

from __future__ import annotations

import gzip
import time
import tracemalloc
from pathlib import Path

import pytest

from bimo.core.errors import UserError
from bimo.data.documents import UnreadableError
from bimo.data.po import po_rows
from bimo.data.tables import Broken
from bimo.tasks.records import read_examples
from bimo.tasks.translation import Translation

HEAD = (
    'msgid ""\nmsgstr ""\n"Project-Id-Version: it\\n"\n"Language: {}\\n"\n"Content-Type: text/plain; charset={}\\n"\n'
)
ENTRIES = r"""
# of a translator
#. of a programmer
#: main.c:12
#, c-format
msgctxt "menu"
msgid "Open the file "
"\"%s\"\n"
msgstr ""
"Die Datei „%s“ "
"öffnen\n"

#, fuzzy
msgid "Close"
msgstr "Nah"

#| msgid "Saves"
msgid "Save"
msgstr "Speichern"

msgid "not yet"
msgstr ""

#~ msgid "Gone"
#~ msgstr "Weg"

msgid "one file"
msgid_plural "%d files"
msgstr[0] "eine Datei"
msgstr[1] "%d Dateien"
"""


def written(tmp_path: Path, text: str, name: str = "de.po", encoding: str = "utf-8") -> Path:
    path = tmp_path / name
    content = text.encode(encoding)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def whole(entries: str = ENTRIES, language: str = "de", charset: str = "UTF-8") -> str:
    return HEAD.format(language, charset) + entries


def pairs(path: Path, languages: tuple[str, str] | None = None) -> list[tuple[object, object]]:
    return [(r["source"], r["target"]) for _, r in po_rows(path, languages) if not isinstance(r, Broken)]


EXPECTED = [
    ('Open the file "%s"\n', "Die Datei „%s“ öffnen\n"),
    ("Save", "Speichern"),
    ("one file", "eine Datei"),
    ("%d files", "%d Dateien"),
]


def test_every_translated_text_is_a_record(tmp_path: Path) -> None:
    assert pairs(written(tmp_path, whole())) == EXPECTED
    assert pairs(written(tmp_path, whole(), "de.po.gz"), ("en-GB", "de")) == EXPECTED
    assert pairs(written(tmp_path, whole().replace("\n", "\r\n"))) == EXPECTED, "from Windows"


def test_fuzzy_entries_are_told_once_with_the_first_line(tmp_path: Path) -> None:
    path = written(tmp_path, whole(ENTRIES + '\n#, c-format, fuzzy\nmsgid "x"\nmsgstr "y"\n'))
    [(line, told)] = [row for row in po_rows(path) if isinstance(row[1], Broken)]
    assert isinstance(told, Broken)
    assert told.what.startswith("2 entries are fuzzy")
    assert path.read_text(encoding="utf-8").splitlines()[line - 1] == 'msgid "Close"'


@pytest.mark.parametrize(
    ("forms", "expected"),
    [
        (["%d 个文件"], [("%d files", "%d 个文件")]),
        (["%d plik", "%d pliki", "%d plików"], [("a", "%d plik"), ("%d files", "%d pliki"), ("%d files", "%d plików")]),
        (["", ""], []),
    ],
    ids=["one form", "three forms", "none"],
)
def test_each_plural_form_stands_with_what_it_says(
    tmp_path: Path, forms: list[str], expected: list[tuple[str, str]]
) -> None:
    lines = ['msgid "a"', 'msgid_plural "%d files"', *(f'msgstr[{n}] "{form}"' for n, form in enumerate(forms))]
    assert pairs(written(tmp_path, whole("\n".join(lines), "pl"))) == expected


def test_the_singular_stands_with_the_form_that_the_header_gives_to_one(tmp_path: Path) -> None:
    formula = "nplurals=3; plural=n==0 ? 0 : n==1 ? 1 : 2;"  # Arabic's first form is that of none
    lines = ['msgid "a"', 'msgid_plural "%d files"', *(f'msgstr[{n}] "{form}"' for n, form in enumerate("صفر"))]
    catalogue = whole("\n".join(lines), "ar").replace('"Language:', f'"Plural-Forms: {formula}\\n"\n"Language:')
    assert pairs(written(tmp_path, catalogue)) == [("a", "ف"), ("%d files", "ص"), ("%d files", "ر")]
    broken = catalogue.replace(formula, "nplurals=3; plural=__import__('os');")
    assert pairs(written(tmp_path, broken))[0] == ("a", "ص"), "the first, where the formula is none"


def test_the_flag_of_an_obsolete_entry_is_not_that_of_the_next(tmp_path: Path) -> None:
    obsolete = '#, fuzzy\n#~ msgid "Old"\n#~ msgstr "Alt"\n\n'
    assert pairs(written(tmp_path, whole(obsolete + 'msgid "New"\nmsgstr "Neu"\n'))) == [("New", "Neu")]


def test_the_header_settles_the_direction(tmp_path: Path) -> None:
    path = written(tmp_path, whole('msgid "Save"\nmsgstr "Speichern"\n'))
    assert pairs(path, ("de_AT", "en")) == [("Speichern", "Save")], "read the other way round"
    with pytest.raises(UnreadableError, match="from en to de, not from en to fr"):
        pairs(path, ("en", "fr"))
    sourced = path.read_text().replace('"Language:', '"X-Source-Language: it\\n"\n"Language:')
    with pytest.raises(UnreadableError, match="from it to de"):
        pairs(written(tmp_path, sourced), ("en", "de"))
    nameless = 'msgid "Save"\nmsgstr "Speichern"\n'
    assert pairs(written(tmp_path, nameless), ("en", "de")) == [("Save", "Speichern")], "as the user says"


def test_the_encoding_is_the_one_that_the_header_names(tmp_path: Path) -> None:
    entry = 'msgid "Open"\nmsgstr "Öffnen"\n'
    path = written(tmp_path, whole(entry, charset="ISO-8859-15"), encoding="iso-8859-15")
    assert pairs(path) == [("Open", "Öffnen")]
    wrong = written(tmp_path, whole(entry, charset="UTF-8"), encoding="iso-8859-15")
    [(line, told)] = po_rows(wrong)
    assert isinstance(told, Broken)
    assert (line, "is not UTF-8" in told.what) == (6, True), "the control: nothing is guessed"


def test_a_broken_entry_is_told_with_its_line_and_the_others_are_read(tmp_path: Path) -> None:
    broken = 'msgid "a\nmsgstr "b"\n\nmsgid "c"\n\nmsgid "d"\nmsgid "e"\nmsgstr "f"\n\nmsgid "good"\nmsgstr "gut"\n'
    rows = list(po_rows(written(tmp_path, broken)))
    assert [row[0] for row in rows if isinstance(row[1], Broken)] == [1, 4]
    assert [row[1]["source"] for row in rows if not isinstance(row[1], Broken)] == ["good"]


def test_a_translation_task_learns_from_a_catalogue_both_ways(tmp_path: Path) -> None:
    told: list[str] = []
    path = written(tmp_path, whole())
    task = Translation(source="en", target="de", both=True)
    examples = read_examples(task, [str(path)], on_problem=lambda problem: told.append(str(problem)))
    assert len(examples) == 2 * len(EXPECTED)
    assert told == [f"{path}, line 19: an entry is fuzzy and not used. Look at it, and take the flag off."]
    with pytest.raises(UserError, match="an entry is fuzzy"):
        read_examples(task, [str(path)])


HOSTILE = {
    "nothing": "",
    "no catalogue": "source,target\na,b\n",
    "an endless entry": whole("msgid " + '"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"\n' * 50_000),
    "an endless line": 'msgid "' + "\\" * 20_000_000,
    "an unknown encoding": whole(charset="cp99999"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, HOSTILE[name])
    started = time.perf_counter()
    with pytest.raises(UnreadableError):
        list(po_rows(path))
    assert time.perf_counter() - started < 5, "without work"


def test_what_is_read_of_a_large_file_does_not_stay_in_memory(tmp_path: Path) -> None:
    entries = "\n".join(f'msgid "source {n}"\nmsgstr "target {n}"\n' for n in range(20_000))
    path = written(tmp_path, whole(entries))
    tracemalloc.start()
    count = sum(1 for _ in po_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 12 * 2**20, "a chunk and its rows at a time"
