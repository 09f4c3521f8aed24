"""Translation memories: each unit is a record; hostile XML is refused in a sentence."""

from __future__ import annotations

import gzip
import time
import tracemalloc
from pathlib import Path

import pytest

from bimo.core.errors import UserError
from bimo.data.documents import UnreadableError
from bimo.data.tables import Broken
from bimo.data.tmx import tmx_rows
from bimo.tasks.records import read_examples
from bimo.tasks.translation import Translation

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n<tmx version="1.4">\n'
UNIT = (
    '<tu><tuv xml:lang="en-US"><seg>Open the <bpt i="1">&lt;b&gt;</bpt>file<ept i="1">&lt;/b&gt;</ept>.</seg></tuv>'
    '<tuv xml:lang="de"><seg>Die Datei öffnen.</seg></tuv><tuv xml:lang="fr"><seg>Ouvrir.</seg></tuv></tu>\n'
)
TAIL = "</body></tmx>"


def written(tmp_path: Path, text: str, name: str = "memory.tmx") -> Path:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def whole(units: str) -> str:
    return f'{HEAD}<header srclang="en"/><body>\n{units}{TAIL}'


def test_a_unit_is_a_record_without_codes_of_programs(tmp_path: Path) -> None:
    ((line, record),) = tmx_rows(written(tmp_path, whole(UNIT)))
    assert line == 5
    assert record == {
        "source": "Open the file.",
        "target": "Die Datei öffnen.",
        "source_language": "en-us",
        "target_language": "de",
    }


@pytest.mark.parametrize(("languages", "target"), [(("en", "fr"), "Ouvrir."), (("de", "en"), "Open the file.")])
def test_languages_choose_the_direction(tmp_path: Path, languages: tuple[str, str], target: str) -> None:
    ((_, record),) = tmx_rows(written(tmp_path, whole(UNIT), "memory.tmx.gz"), languages)
    assert not isinstance(record, Broken)
    assert record["target"] == target


def test_a_unit_without_a_second_language_is_told(tmp_path: Path) -> None:
    lonely = '<tu><tuv xml:lang="en"><seg>Alone</seg></tuv></tu>'
    rows = [record for _, record in tmx_rows(written(tmp_path, whole(UNIT + lonely + UNIT)))]
    assert [isinstance(record, Broken) for record in rows] == [False, True, False], "the others are read"


def test_a_translation_task_learns_from_a_memory(tmp_path: Path) -> None:
    path = written(tmp_path, whole(UNIT * 3))
    examples = read_examples(Translation(source="en", target="de"), [str(path)])
    assert [example.target for example in examples] == ["Die Datei öffnen."] * 3
    with pytest.raises(UserError, match="no row can be used"):
        read_examples(Translation(source="en", target="zh"), [str(path)])


LAUGHS = '<!DOCTYPE tmx [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>\n<tmx><body><tu>&b;</tu></body></tmx>'
HOSTILE = {
    "entities": LAUGHS,
    "a file of the machine": '<!DOCTYPE tmx [<!ENTITY x SYSTEM "file:///etc/passwd">]><tmx><seg>&x;</seg></tmx>',
    "deep": f"<tmx>{'<a>' * 100_000}",
    "long": f"<tmx><body><tu><tuv><seg>{'x' * 2_000_000}</seg></tuv></tu></body></tmx>",
    "other XML": "<html><body/></html>",
    "cut off": whole(UNIT)[:-30],
    "no XML": "source,target\na,b\n",
    "nothing": "",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_xml_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, HOSTILE[name])
    started = time.perf_counter()
    with pytest.raises(UnreadableError):
        list(tmx_rows(path))
    assert time.perf_counter() - started < 2, "without work"


def test_what_is_read_of_a_large_file_does_not_stay_in_memory(tmp_path: Path) -> None:
    path = written(tmp_path, whole(UNIT * 20_000))
    tracemalloc.start()
    count = sum(1 for _ in tmx_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 2 * path.stat().st_size, "a chunk and its rows at a time"
