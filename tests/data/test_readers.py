"""Whatever container and encoding a text is in, the same documents come back; what is broken is told with its place."""

# text in many scripts looks ambiguous to someone who expects English

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bimo.core.config import DataSettings
from bimo.core.errors import UserError
from bimo.data.corpus import Corpus
from bimo.data.documents import Document, Problem
from bimo.data.readers import ReadProgress, document_rule, read_documents

CHINESE = "人人生而自由，在尊严和权利上一律平等。"


def read(*paths: Path | str, **choices: str) -> tuple[list[Document], list[Problem]]:
    problems: list[Problem] = []
    documents = list(read_documents([str(p) for p in paths], DataSettings.from_dict(choices), problems.append))
    return documents, problems


def texts(*paths: Path | str, **choices: str) -> list[str]:
    documents, problems = read(*paths, **choices)
    assert not problems, f"nothing here is broken, yet {problems} was reported"
    return [document.text for document in documents]


def as_text(separator: str, encoding: str) -> Callable[[list[str]], bytes]:
    return lambda documents: separator.join([*documents, ""]).encode(encoding)


def as_jsonl(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(documents)).encode()


def as_strings(documents: list[str]) -> bytes:
    return "\r\n".join(json.dumps(text, ensure_ascii=False) for text in documents).encode("utf-8-sig")


def as_csv(delimiter: str) -> Callable[[list[str]], bytes]:
    def write(documents: list[str]) -> bytes:
        table = io.StringIO()
        csv.writer(table, delimiter=delimiter).writerows([["n", "text"], *enumerate(documents)])
        return table.getvalue().encode()

    return write


def as_parquet(documents: list[str]) -> bytes:
    arrow, parquet = (pytest.importorskip(name, reason="an extra brings it") for name in ("pyarrow", "pyarrow.parquet"))
    file = io.BytesIO()
    parquet.write_table(arrow.table({"n": list(range(len(documents))), "text": documents}), file, row_group_size=3)
    return file.getvalue()


CONTAINERS = {
    ".txt": as_text("\n\n", "utf-8"),
    ".md": as_text("\r\n \t\r\n\r\n", "utf-8-sig"),
    ".TXT": as_text("\r\n\r\n", "utf-16"),
    ".be.txt": lambda documents: b"\xfe\xff" + as_text("\n\n\n", "utf-16-be")(documents),
    ".gb.txt": lambda documents: b"\x84\x31\x95\x33" + as_text("\n\n", "gb18030")(documents),
    ".jsonl": as_jsonl,
    ".strings.jsonl": as_strings,
    ".csv": as_csv(","),
    ".tabs.csv": as_csv("\t"),
    ".parquet": as_parquet,
}

characters = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufeff\u2028\u2029")
one_line = st.text(st.one_of(characters, st.sampled_from('",;\t\\|é的😀')), min_size=1)
document_text = (
    st.lists(one_line, min_size=1, max_size=3).map("\n".join).map(str.strip).filter(lambda t: "\n\n" not in t)
)
solid = document_text.filter(lambda text: text and all(line.strip() for line in text.split("\n")))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", CONTAINERS)
@settings(max_examples=25, deadline=None)
@given(documents=st.lists(solid, min_size=1, max_size=8))
def test_the_documents_written_are_the_documents_read(suffix: str, compressed: bool, documents: list[str]) -> None:
    data = CONTAINERS[suffix](documents)
    with TemporaryDirectory() as folder:
        file = Path(folder, "text" + suffix + (".gz" if compressed else ""))
        file.write_bytes(gzip.compress(data) if compressed else data)
        assert texts(file) == documents, f"{suffix} gave other documents than were written"


def test_a_document_knows_its_file_its_row_and_its_record(tmp_path: Path) -> None:
    plain, table = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text("\nfirst\n  still first\n\n \nsecond\n")
    table.write_text('{"text": "row", "label": 3}\n\n{"text": "  "}\n{"text": "last\\r\\nline"}\n')
    documents, _ = read(plain, table)
    assert [(d.text, d.row, d.fields) for d in documents] == [
        ("first\n  still first", 2, {}),
        ("second", 6, {}),
        ("row", 1, {"text": "row", "label": 3}),
        ("last\nline", 4, {"text": "last\r\nline"}),
    ]
    assert [Path(d.file).name for d in documents] == ["a.txt", "a.txt", "b.jsonl", "b.jsonl"]


def test_documents_end_as_the_rule_says(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\n\nthree\n")
    assert texts(file, documents="file") == ["one\ntwo\n\nthree"]
    assert texts(file, documents="blank_line") == ["one\ntwo", "three"]
    assert texts(file, documents="line") == ["one", "two", "three"]


def test_many_text_files_are_a_document_each_and_the_reason_is_told() -> None:
    files = [Path(f"{n}.txt") for n in range(20)]
    rule, reason = document_rule(files, DataSettings())
    assert rule == "file"
    assert "20 text files" in reason
    rule, reason = document_rule([*files[1:], Path("rows.jsonl")], DataSettings())
    assert rule == "blank_line"
    assert "19 text files" in reason
    assert document_rule(files, DataSettings(documents="line"))[0] == "line"


def test_bad_bytes_cost_only_the_document_that_holds_them(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes("déjà vu\n\nsecond\nbad \xff here\n\nthird".encode().replace("\xff".encode(), b"\xff"))
    documents, problems = read(file)
    assert [d.text for d in documents] == ["déjà vu", "third"]
    (problem,) = problems
    assert (problem.file, problem.row) == (str(file), 4)
    assert "byte 0xff at offset 22 is not UTF-8" in problem.what
    assert str(problem).startswith(f"{file}, line 4: byte 0xff")


@settings(max_examples=50, deadline=None)
@given(
    before=st.lists(solid, max_size=4), after=st.lists(solid, max_size=4), bad=st.sampled_from([b"\xff", b"\xe4\xbd"])
)
def test_the_offset_and_line_of_a_bad_byte_are_right(before: list[str], after: list[str], bad: bytes) -> None:
    head = "".join(text + "\n\n" for text in before).encode()
    data = head + b"bad " + bad + "\n\n".join(["", *after]).encode() + b"\n\nend\n"
    with TemporaryDirectory() as folder:
        file = Path(folder, "a.txt")
        file.write_bytes(data)
        documents, problems = read(file)
    assert [d.text for d in documents] == [*before, *after, "end"], "another document was lost or changed"
    assert [p.row for p in problems] == [head.count(b"\n") + 1]
    assert f"0x{bad.hex()} at offset {len(head) + 4} " in problems[0].what


def test_broken_rows_are_told_with_their_line_and_skipped(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [b'{"text": "good"}', b'{"text": ', b'{"txt": "misnamed"}', b'{"text": 7}', b'{"text": "half \\ud800"}']
    rows += [
        b'{"text": "nul \\u0000"}',
        b'{"text": "\xff"}',
        b"[1, 2]",
        b"[" * 100_000,
        b'{"text": "pair \\ud83d\\ude00"}',
    ]
    file.write_bytes(b"\n".join(rows))
    documents, problems = read(file)
    assert [(d.text, d.row) for d in documents] == [("good", 1), ("pair 😀", 10)]
    assert [p.row for p in problems] == list(range(2, 10))
    assert "did you mean 'txt'?" in problems[1].what
    assert "control character U+0000" in problems[4].what
    assert "byte 0xff at offset" in problems[5].what


def test_broken_csv_rows_are_told_with_their_line_and_skipped(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b'text,n\n"two\nlines",1\nonly one cell\nx,1,2\n\n"odd"quote,3\nb\xff,4\nlast,5\n')
    documents, problems = read(file)
    assert [(d.text, d.row) for d in documents] == [("two\nlines", 2), ("last", 9)]
    assert [p.row for p in problems] == [4, 5, 7, 8]


def test_fields_of_any_length_are_read_from_csv(tmp_path: Path) -> None:
    file = tmp_path / "long.csv"
    file.write_text("text\n" + "x" * 200_000 + "\n")
    assert texts(file) == ["x" * 200_000]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_without_the_text_field_names_the_fields_it_has(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"table{suffix}"
    file.write_bytes(CONTAINERS[suffix](["a", "b"]))
    problems: list[Problem] = []
    with pytest.raises(UserError, match="no text could be read"):
        list(read_documents([str(file)], DataSettings(text_field="texts"), problems.append))
    assert "'texts' (did you mean 'text'?); the fields are 'n', 'text'" in problems[0].what


def test_a_table_without_one_good_row_is_given_up_early(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"body": "x"}\n' * 5000)
    (tmp_path / "good.txt").write_text("good")
    documents, problems = read(tmp_path)
    assert [d.text for d in documents] == ["good"]
    assert len(problems) == 1001
    assert "all broken" in problems[-1].what


def test_a_bad_string_in_parquet_costs_one_row(tmp_path: Path) -> None:
    arrow, parquet = (pytest.importorskip(name, reason="an extra brings it") for name in ("pyarrow", "pyarrow.parquet"))
    column = arrow.array([b"one", b"t\xffo", b"three"]).view(arrow.string())
    parquet.write_table(arrow.table({"text": column}), tmp_path / "a.parquet")
    documents, problems = read(tmp_path)
    assert [(d.text, d.row) for d in documents] == [("one", 1), ("three", 3)]
    assert problems[0].where.endswith("a.parquet, row 2")


def test_damaged_files_are_told_and_the_others_are_read(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(f"document {n}\n\n".encode() for n in range(50_000)))
    (tmp_path / "a-cut.txt.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b-cut.parquet").write_bytes(as_parquet(["x"] * 50)[:-20])
    (tmp_path / "c-binary.txt").write_bytes(bytes(range(256)))
    (tmp_path / "d-latin.md").write_bytes("Übergröße, Straße, fünf dünne Mädchen".encode("latin-1"))
    (tmp_path / "e-not-gzip.csv.gz").write_bytes(b"text\nplain\n")
    (tmp_path / "f.txt").write_text("sound")
    documents, problems = read(tmp_path)
    assert [Path(p.file).name[0] for p in problems] == list("abcde")
    assert "truncated" in problems[0].what
    assert documents[-1].text == "sound"
    salvaged = [d.text for d in documents[:-1]]
    assert len(salvaged) > 10_000, "what came before the damage is kept"
    assert salvaged == [f"document {n}" for n in range(len(salvaged))]
    assert 2 * len(salvaged) - 1 <= problems[0].row <= 2 * len(salvaged) + 3, "the line where the data end"


def test_on_broken_stop_ends_at_the_first_problem(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "good"}\nnot json\n')
    reading = read_documents([str(file)], DataSettings(on_broken="stop"), lambda problem: None)
    assert next(reading).text == "good"
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: not valid JSON"):
        next(reading)


def test_a_path_without_files_is_an_error_before_the_first_document(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing.txt: no such file.*\.parquet"):
        read_documents([str(tmp_path / "missing.txt")], DataSettings(), lambda problem: None)


def test_standard_input_is_read_as_text_in_any_encoding() -> None:
    program = (
        "from bimo.core.config import DataSettings\n"
        "from bimo.data.readers import read_documents\n"
        "print([(d.text, d.file) for d in read_documents(['-'], DataSettings(), print)])\n"
    )
    data = f"{CHINESE}\n\nsecond".encode("gb18030")
    result = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", program],
        input=data,
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert eval(result.stdout) == [(CHINESE, "standard input"), ("second", "standard input")]


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl", ".parquet"])
def test_progress_rises_to_the_bytes_on_disk(tmp_path: Path, suffix: str) -> None:
    documents = [os.urandom(500).hex() for _ in range(4000)]
    data = CONTAINERS[suffix.removesuffix(".gz")](documents)
    file = tmp_path / f"a{suffix}"
    file.write_bytes(gzip.compress(data, 1) if suffix.endswith(".gz") else data)
    (tmp_path / "b.txt").write_text("the end")
    progress = ReadProgress()
    shares = [progress.share for _ in read_documents([str(tmp_path)], DataSettings(), print, progress)]
    assert progress.total_bytes == sum(f.stat().st_size for f in tmp_path.iterdir())
    assert progress.read_bytes == progress.total_bytes
    assert shares == sorted(shares)
    assert 0.2 < shares[len(shares) // 2] < 0.8, "the middle of the text is about the middle of the way"


def test_a_corpus_can_be_gone_through_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    corpus = Corpus([str(tmp_path)], DataSettings(), print)
    before = corpus.fingerprint
    assert list(corpus) == list(corpus)
    assert corpus.progress.read_bytes == corpus.total_bytes == 8
    assert (corpus.rule, len(corpus.files)) == ("blank_line", 1)
    (tmp_path / "a.txt").write_text("one\n\nthree")
    assert Corpus([str(tmp_path)], DataSettings(), print).fingerprint != before, "changed text has another fingerprint"


def test_reading_loads_no_torch_and_no_pyarrow() -> None:
    program = "import sys, bimo.data.readers; print([m for m in ('torch', 'numpy', 'pyarrow') if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=environment)
    assert result.stdout.strip() == b"[]"
