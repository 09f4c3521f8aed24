"""The cleaned copy holds what was right, has no error left, and says what was done; the data stay as they were."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from data.test_checkup import chinese, rows_file, sentences, text_file

from bimo.cli import main
from bimo.core import pii
from bimo.core.errors import UserError
from bimo.data.checkup import check
from bimo.data.checkup.clean import clean, lines_of_cleaning
from bimo.data.checkup.mojibake import repaired


def cleaned_rows(paths: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_the_scenario_of_a_chinese_set_is_named_mended_and_read(tmp_path: Path) -> None:
    data, texts = tmp_path / "data", chinese(300)
    (data / "train").mkdir(parents=True)
    (data / "train" / "gbk.txt").write_bytes("\n\n".join(texts[:80]).encode("gbk"))
    (data / "train" / "cut.txt.gz").write_bytes(gzip.compress("\n\n".join(texts[80:160]).encode() * 5)[:-30])
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts[160:260])
    (data / "train" / "cut.jsonl").write_text(lines[:-20], encoding="utf-8")
    rows_file(data / "train", [{"text": texts[3]}] * 3000, "many.jsonl")
    rows_file(data, [{"text": text} for text in texts[250:]], "valid.jsonl")
    before = check(str(data / "train"), valid=str(data / "valid.jsonl"))
    named = {(finding.kind, Path(finding.file).name) for finding in before.findings}
    assert {("encoding", "gbk.txt"), ("truncated", "cut.txt.gz"), ("truncated", "cut.jsonl")} <= named
    assert {("duplicate", "many.jsonl"), ("leak", "cut.jsonl")} <= named
    done = clean([str(data / "train")], tmp_path / "copy", valid=[str(data / "valid.jsonl")])
    assert done.after is not None
    assert done.after.ok
    assert done.after.figures["train"]["duplicates"] == 0
    assert (tmp_path / "copy" / "train" / "gbk.txt").read_text(encoding="utf-8").startswith(texts[0])
    assert done.after.figures["valid"]["rows"] == 50, "validation text stays"


def test_each_mend_is_done_and_noted_with_its_row(tmp_path: Path) -> None:
    rows = [{"text": text, "label": "good" if i % 2 else "bad"} for i, text in enumerate(sentences(60))]
    rows[1]["text"] += " wo\u200brd \x07"
    rows[2]["text"] += " a cafÃ© by the sea"
    rows[3]["text"] += " cafe\u0301"
    rows[4]["text"] = " "
    rows[5]["label"] = "godo"
    rows.append(rows[7])
    rows.append({**rows[8], "label": "good"})
    rows.append({"txt": "a row", "label": "bad"})
    path = rows_file(tmp_path, rows)
    original = path.read_bytes()
    done = clean([str(path)], tmp_path / "copy")
    copy = cleaned_rows(done.paths)
    assert path.read_bytes() == original, "the data stay as they were"
    assert copy[1]["text"].endswith(" word ")
    assert copy[2]["text"].endswith(" a café by the sea")
    assert copy[3]["text"].endswith(" café")
    assert len(copy) == 59, "without the empty row, the copy, the contradiction and the wrong field"
    report = json.loads((tmp_path / "copy" / "report.json").read_text(encoding="utf-8"))
    deeds = next(iter(report["rows"].values()))
    assert deeds["left out duplicate"] == [61]
    assert deeds["left out row with another label"] == [62]
    assert deeds["left out row: wrong field"] == [63]
    assert deeds["removed invisible characters"] == [2]


def test_what_is_right_is_copied_letter_by_letter(tmp_path: Path) -> None:
    texts = [*sentences(20), "👨‍👩‍👧 ❤️", "می‌خواهم", "  indented\n\tcode(x)", "naïve « café »", "Ÿ ÄÖÜ ½ É»"]
    path = rows_file(tmp_path, [{"text": text} for text in texts])
    done = clean([str(path)], tmp_path / "copy")
    assert [row["text"] for row in cleaned_rows(done.paths)] == texts
    assert not done.counts


def test_repeated_lines_stay_once(tmp_path: Path) -> None:
    lines = "\n".join(["这一行出现了很多很多次。"] * 20_000)
    path = text_file(tmp_path, [sentences(1)[0], lines])
    done = clean([str(path)], tmp_path / "copy")
    text = Path(done.paths[0]).read_text(encoding="utf-8")
    assert text.count("这一行") == 1
    assert sentences(1)[0] in text


def test_personal_data_is_masked_only_when_asked_for(tmp_path: Path) -> None:
    rows = [{"text": f"{text} jo@gmx.de 13812345678 AKIAIOSFODNN7EXAMPLE {i}"} for i, text in enumerate(sentences(3))]
    path = rows_file(tmp_path, rows)
    plain = clean([str(path)], tmp_path / "plain")
    assert "jo@gmx.de" in cleaned_rows(plain.paths)[0]["text"]
    masked = clean([str(path)], tmp_path / "masked", mask_personal_data=True)
    assert cleaned_rows(masked.paths)[0]["text"].endswith("<EMAIL> <PHONE> <AWS_KEY> 0")
    assert masked.after is not None
    assert not masked.after.count("error")


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl.gz", "a.txt.gz", "a.parquet"])
def test_the_copy_has_the_same_name_and_kind(name: str, tmp_path: Path) -> None:
    texts = sentences(8)
    path = tmp_path / name
    if name == "a.parquet":
        arrow, parquet = (
            pytest.importorskip(name, reason="an extra brings it") for name in ("pyarrow", "pyarrow.parquet")
        )
        parquet.write_table(arrow.table({"text": [*texts, texts[0]]}), path)
    else:
        rows = [*texts, texts[0]]
        content = {
            ".csv": 'text\r\n"' + '"\r\n"'.join(rows) + '"\r\n',
            ".jsonl": "".join(json.dumps({"text": row}) + "\n" for row in rows),
            ".txt": "\n\n".join(rows),
        }[Path(name.removesuffix(".gz")).suffix]
        path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    done = clean([str(path)], tmp_path / "copy")
    assert done.paths == [str(tmp_path / "copy" / name)]
    assert check(done.paths).figures["train"]["rows"] == 8


def test_a_folder_that_holds_other_things_is_refused(tmp_path: Path) -> None:
    path = text_file(tmp_path, sentences(3))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="other things"):
        clean([str(path)], tmp_path / "mine")
    with pytest.raises(UserError, match="lie in this folder"):
        clean([str(path)], tmp_path)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_the_command_writes_the_copy_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = text_file(tmp_path, [*sentences(20), sentences(20)[4]])
    assert main(["check", str(path), "--fix", str(tmp_path / "copy")]) == 0
    printed = capsys.readouterr().out
    assert "left out duplicate: 1 time" in printed
    assert str(tmp_path / "copy" / "report.json") in printed


def test_only_certain_mojibake_is_repaired() -> None:
    assert repaired("It was a naÃ¯ve cafÃ©") == "It was a naïve café"
    assert repaired("ÖÐÎÄÎÄ±¾µÄ²âÊÔ¿ÉÒÔ") == "中文文本的测试可以"
    for text in ("the pair “Ã©” stands for é", "CAFÉ» à la carte", "Ñandú ÄÖÜ", "浜人"):
        assert repaired(text) == text


def test_numbers_count_only_with_their_checksum() -> None:
    assert pii.mask("card 4111 1111 1111 1111") == "card <CARD>"
    assert pii.mask("card 4111 1111 1111 1112") == "card 4111 1111 1111 1112"
    assert pii.mask("id 11010519491231002X") == "id <ID_CARD>"
    assert pii.mask("id 110105194912310021") == "id 110105194912310021"
    assert pii.mask("DE89 3704 0044 0532 0130 00") == "<BANK_ACCOUNT>"
    assert pii.mask("DE88 3704 0044 0532 0130 00") == "DE88 3704 0044 0532 0130 00"


def test_the_copy_says_how_a_run_is_told_of_its_two_sides(tmp_path: Path) -> None:
    for side, texts in (("train", sentences(20)), ("held", sentences(3, seed=1))):
        (tmp_path / side).mkdir()
        text_file(tmp_path / side, texts)
    copy = tmp_path / "copy"
    done = clean([str(tmp_path / "train")], copy, valid=[str(tmp_path / "held")])
    last = list(lines_of_cleaning(done, str(copy)))[-1]
    assert last == f"To train on it: --data.paths '[{copy}/train]' --data.validation_paths '[{copy}/held]'", "apart"
    alone = clean([str(tmp_path / "train")], tmp_path / "alone")
    assert list(lines_of_cleaning(alone, "alone"))[-1] == "To train on it: --data.paths '[alone]'", "without a second"
