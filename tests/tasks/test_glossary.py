"""Glossaries: terms are found as words, and their translations in any ending; bad files are named with their line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bimo.core.errors import UserError
from bimo.tasks.glossary import Glossary, Term, has_term, read_glossary

TERMS = {
    "file": "Datei",
    "text file": "Textdatei",
    "GIMP": "GIMP",
    "IT": "IT",
    "猫": "cat",
    "save": ["sichern", "speichern"],
}


def found(text: str) -> list[tuple[str, int]]:
    return [(use.term.source, use.start) for use in read_glossary(TERMS).uses(text)]


def test_terms_are_found_as_words_and_the_longest_counts() -> None:
    assert found("A text file, a file and profiles") == [("text file", 2), ("file", 15)]
    assert found("Files! Save it.") == [("file", 0), ("save", 7)]
    assert found("那只猫坐着") == [("猫", 2)]
    assert found("使用GIMP打开file吧") == [("GIMP", 2), ("file", 8)], "no spaces around them"


def test_capitals_inside_a_term_must_be_there() -> None:
    assert found("it is IT, not gimp") == [("IT", 6)]


def test_an_answer_has_a_term_in_any_form() -> None:
    terms = {term.source: term for term in read_glossary(TERMS).terms}
    assert has_term("Die Dateien sind da", terms["file"])
    assert has_term("Eine Konfigurationsdatei", terms["file"]), "a compound"
    assert has_term("Bitte speichern", terms["save"]), "any of several"
    assert has_term("两只cat坐着", terms["猫"])
    assert not has_term("Das Dokument", terms["file"])
    assert not has_term("mit", terms["IT"]), "a short one is a word of its own"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "en\tde\nfile\tDatei\nsave\tsichern|speichern\n"),
        ("a.csv", 'file,Datei\n"save","sichern|speichern"\n'),
        ("b.csv", "source;target\nfile;Datei\nsave;sichern|speichern\n"),
        ("a.json", '{"file": "Datei", "save": ["sichern", "speichern"]}'),
        ("a.txt", "\ufefffile\tDatei\n\n# a comment\nsave\tsichern|speichern\r\n"),
    ],
)
def test_files_of_every_kind_hold_the_same_terms(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert read_glossary(path).terms == (Term("file", ("Datei",)), Term("save", ("sichern", "speichern")))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"file\tDatei\nalone\n", "line 2: there is a term without a translation"),
        (b"file\t\n", "line 1: a term or a translation is empty"),
        (b"file\tDatei\nfile\tAkte\n", "'file' stands twice, as 'Datei' and 'Akte'"),
        (b"\n\n", "there is no term in it"),
        (b"f\xff\tx\n", "not UTF-8"),
    ],
)
def test_a_bad_glossary_is_named_with_its_line(tmp_path: Path, text: bytes, problem: str) -> None:
    path = tmp_path / "terms.tsv"
    path.write_bytes(text)
    with pytest.raises(UserError, match=problem):
        read_glossary(path)
    with pytest.raises(UserError, match=r"terms\.tsv"):
        read_glossary(path)


def test_a_missing_glossary_and_bad_json_are_errors_for_people(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no glossary can be read"):
        read_glossary(tmp_path / "none.tsv")
    for text in ("[1]", "{", '{"a": 3}', "[" * 100_000):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError):
            read_glossary(tmp_path / "a.json")


@given(st.lists(st.text("abAB猫 ", min_size=1, max_size=4), max_size=8, unique=True), st.text("abAB猫 -", max_size=30))
def test_places_are_those_of_the_text(sources: list[str], text: str) -> None:
    terms = [Term(source.strip(), ("x",)) for source in sources if source.strip()]
    glossary = Glossary({term.source: term for term in terms}.values())
    end = 0
    for use in glossary.uses(text):
        assert text[use.start :].lower().startswith(use.term.source.lower()), json.dumps(text)
        assert use.start >= end, "they do not overlap"
        end = use.start + len(use.term.source)
