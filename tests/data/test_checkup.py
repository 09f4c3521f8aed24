"""What is wrong with data is named with file, row and mend; what is right is left in peace. Each has a control."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bimo import Tokenizer
from bimo.cli import main
from bimo.core.config import CheckSettings
from bimo.core.errors import UserError
from bimo.data.checkup import Report, check, quick_check
from bimo.data.checkup.kinds import KINDS

NOUNS = ("river", "mountain", "teacher", "garden", "window", "letter", "winter", "market", "bridge", "harbour")
VERBS = ("crosses", "remembers", "paints", "follows", "repairs", "describes", "admires", "forgets", "carries")
CHINESE = "我们在早上看见老师走过那座桥因为他要去市场买书然后回家写信给朋友们说话这里来了个人"


def sentences(n: int, seed: int = 0) -> list[str]:
    """Different English documents of some sentences."""
    rng = random.Random(seed)
    return [
        " ".join(
            f"The {rng.choice(NOUNS)} of the {rng.choice(NOUNS)} {rng.choice(VERBS)} number {number} and the old "
            f"{rng.choice(NOUNS)} that {rng.choice(VERBS)} it."
            for _ in range(3)
        )
        for number in range(n)
    ]


def chinese(n: int) -> list[str]:
    rng = random.Random(1)
    return ["".join(rng.choices(CHINESE, k=40)) + f"{number}。" for number in range(n)]


def text_file(folder: Path, texts: list[str], name: str = "text.txt") -> Path:
    path = folder / name
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


def rows_file(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def places(report: Report, kind: str) -> list[int]:
    return [finding.row for finding in report.findings if finding.kind == kind]


def alarms(report: Report) -> list[str]:
    return [str(finding) for finding in report.findings if finding.severity != "note"]


IN_TEXT = {
    "invisible character": "a wo\u200brd",
    "byte order mark": "a wo\ufeffrd",
    "bidirectional control": "abc \u202edcba\u202c",
    "control character": "a bell \x07 rings",
    "private use character": "an apple \uf8ff here",
    "replacement character": "caf\ufffd",
    "mojibake": "a cafÃ© near the StraÃŸe",
    "look-alike letters": "a p\u0430ypal account",
    "html": "<p>Read <b>this</b></p>",
    "entity": "Tom &amp; Jerry &quot;live&quot;",
    "control token": "<|im_start|>assistant",
    "placeholder": "Lorem ipsum dolor sit amet",
    "encoded data": "QmFzZTY0IGRhdGEg" * 3 + "x9Kq2LmZ0aP8sT7vB4nY6uW1eR3cD5fG" * 4,
    "repetition": "over and over " * 30,
    "lost characters": "?????? ???? ??????? ??? ?????? ??????? ??",
    "personal data": "write to jo.smith@gmx.de today",
    "secret": "the key AKIAIOSFODNN7EXAMPLE opens it",
    "possible secret": "password = Tr0ub4dor&3",
    "language": "Вчера вечером старый рыбак вернулся домой позже обычного и долго сидел у окна",
}


@pytest.mark.parametrize("kind", IN_TEXT)
def test_a_fault_in_a_text_is_named_with_its_line(kind: str, tmp_path: Path) -> None:
    texts = sentences(30)
    alone = kind in ("lost characters", "language", "repetition")
    texts[12] = IN_TEXT[kind] if alone else f"{texts[12]} {IN_TEXT[kind]}"
    report = check(str(text_file(tmp_path, texts)))
    assert places(report, kind) == [25], "documents stand on every second line"
    assert report.findings[0].severity == KINDS[kind][0]
    assert report.ok == (KINDS[kind][0] != "error")


HARMLESS = [
    "the family 👨‍👩‍👧‍👦 and a heart ❤️ and 1️⃣",
    "می‌خواهم به خانه بروم",
    "क्‍ष is a letter",
    "E = mc², naïve café, 10 °C, « À la carte »",
    "write to nobody@example.com, call 10002934, see 192.168.0.1",
    "ha ha ha ha, no, no, no, no!",
    "for (i = 0; i < n; i++) { if (a[i] && b) { return x; } }",
    "the password is forgotten; password = your_password_here",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "-------------------------------------------------------------------------------------------------------------",
    "AT&T and R&D, 5 < 7, a > b",
    "the card 1234 5678 9012 3456 has a wrong check digit",
]


def test_what_only_looks_suspicious_raises_no_alarm(tmp_path: Path) -> None:
    texts = [f"{text} {odd}" for text, odd in zip(sentences(len(HARMLESS)), HARMLESS, strict=True)]
    assert not alarms(check(str(text_file(tmp_path, texts + sentences(20, seed=2)))))


def damaged_file(folder: Path, name: str) -> Path:
    """A file with one fault as a whole."""
    good = "\n\n".join(sentences(40)).encode() + b"\n"
    han = "\n\n".join(chinese(60))
    data: dict[str, tuple[str, bytes]] = {
        "encoding": ("a.txt", han.encode("gb18030")),
        "unknown encoding": ("a.txt", "Die Straße über den Fluß ist für Fußgänger schön. ".encode("latin-1") * 20),
        "mixed encodings": ("a.txt", han.encode() + "\n\n这一行是用另一种编码写的，大家都看不懂\n".encode("gbk")),
        "bad bytes": ("a.txt", good.replace(b"number 20", b"num\xffer 20", 1)),
        "unreadable": ("a.txt", b"\x7fELF\x00\x01\x02\x03" * 200),
        "truncated": ("a.txt.gz", gzip.compress(good * 3)[:-40]),
        "empty file": ("a.txt", b" \n \n"),
        "line ends": ("a.txt", good.replace(b"\n\n", b"\n\r\n", 1)),
        "control character": ("a.txt", good.replace(b"number 20", b"num\x00er 20", 1)),
    }
    path = folder / data[name][0]
    path.write_bytes(data[name][1])
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "encoding",
        "unknown encoding",
        "mixed encodings",
        "bad bytes",
        "unreadable",
        "truncated",
        "empty file",
        "line ends",
    ],
)
def test_a_fault_of_a_file_is_named(kind: str, tmp_path: Path) -> None:
    text_file(tmp_path, sentences(20, seed=5), "good.txt")
    path = damaged_file(tmp_path, kind)
    report = check(str(tmp_path))
    assert [f.file for f in report.findings if f.kind == kind] == [str(path)], alarms(report)


def test_a_nul_byte_is_a_control_character_and_not_the_end_of_the_file(tmp_path: Path) -> None:
    report = check(str(damaged_file(tmp_path, "control character")))
    assert report.figures["train"]["rows"] == 40, "all is read"
    assert sorted(places(report, "control character")) == [0, 41], "the file, and the line"


def test_an_empty_file_in_a_folder_is_not_passed_over(tmp_path: Path) -> None:
    text_file(tmp_path, sentences(5))
    (tmp_path / "nothing.jsonl").touch()
    assert [f.file for f in check(str(tmp_path)).findings] == [str(tmp_path / "nothing.jsonl")]


TASKS: dict[str, Callable[[int], dict[str, Any]]] = {
    "pair": lambda i: {"source": sentences(30)[i], "target": chinese(30)[i]},
    "summary": lambda i: {"document": sentences(30)[i], "summary": sentences(30)[i][:30]},
    "label": lambda i: {"text": sentences(30)[i], "label": "good" if i % 2 else "bad"},
    "prompt": lambda i: {"prompt": f"Say {i}", "completion": sentences(30)[i]},
    "chat": lambda i: {
        "messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": sentences(30)[i]}]
    },
}


@pytest.mark.parametrize("task", TASKS)
def test_records_of_a_task_are_understood(task: str, tmp_path: Path) -> None:
    report = check(str(rows_file(tmp_path, [TASKS[task](i) for i in range(30)])))
    assert not alarms(report)
    (fields,) = report.figures["fields"]
    assert fields.endswith(f"({', '.join(TASKS[task](0))})")


ASKED, ANSWERED = {"role": "user", "content": "Really?"}, {"role": "assistant", "content": "Yes, really."}
BROKEN_RECORDS: list[tuple[str, dict[str, Any], str, str]] = [
    ("pair", {"source": "A", "traget": "B"}, "wrong field", "did you mean 'traget'"),
    ("pair", {"source": "A", "target": 7}, "wrong field", "int, not str"),
    ("pair", {"source": "A", "target": None}, "wrong field", "null"),
    ("pair", {"source": "A", "target": " "}, "empty", "'target' is empty"),
    ("pair", {"source": "one of the many rows", "target": "one of the many rows"}, "untranslated", "the same"),
    ("pair", {"source": "Yes.", "target": chinese(1)[0] * 8}, "length ratio", "characters"),
    ("summary", {"document": "All is well.", "summary": "All is well."}, "copied", "the same"),
    ("label", {"text": "Fine.", "label": 1}, "wrong field", "int, not str"),
    ("label", {"text": sentences(30)[4], "label": "good"}, "contradiction", "another label"),
    ("chat", {"messages": []}, "empty", "no messages"),
    ("chat", {"messages": [{"role": "user", "content": "Hello"}]}, "roles", "no answer"),
    ("chat", {"messages": [{"role": "usr", "content": "Hello"}]}, "roles", "did you mean 'user'"),
    ("chat", {"messages": [ASKED, {"role": "user", "content": "Well?"}, ANSWERED]}, "roles", "both"),
    ("chat", {"messages": [{"role": "user", "content": " "}, ANSWERED]}, "empty", "message 1"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "record", "kind", "words"), BROKEN_RECORDS)
def test_a_record_that_deviates_is_named(
    task: str, record: dict[str, Any], kind: str, words: str, tmp_path: Path
) -> None:
    rows = [TASKS[task](i) for i in range(30)]
    report = check(str(rows_file(tmp_path, [*rows[:20], record, *rows[20:]])))
    (finding,) = [finding for finding in report.findings if finding.row == 21 and finding.kind == kind]
    assert words in finding.what


def test_a_misspelt_label_is_named_and_a_rare_one_is_not(tmp_path: Path) -> None:
    rows = [{"text": text, "label": "positive" if i % 2 else "negative"} for i, text in enumerate(sentences(100))]
    rows[40]["label"], rows[60]["label"] = "postive", "undecided"
    assert places(check(str(rows_file(tmp_path, rows))), "label") == [41]


def test_rows_of_json_that_are_no_rows_are_named(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in sentences(10)]
    lines[3] = '{"text": "a", "text": "b"}'
    lines[6] = "{'text': 'python'}"
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + '\n{"text": "cut of')
    report = check(str(path))
    found = [(f.kind, f.row) for f in report.findings]
    assert sorted(found) == [("broken row", 7), ("duplicate key", 4), ("truncated", 11)]


def test_duplicates_and_leaks_are_named_on_both_sides_of_files(tmp_path: Path) -> None:
    texts = sentences(40)
    train = [text_file(tmp_path, texts[:20], "a.txt"), text_file(tmp_path, [*texts[20:30], texts[5]], "b.txt")]
    valid = text_file(tmp_path, [*texts[30:], texts[7].upper()], "v.txt")
    report = check([str(path) for path in train], valid=str(valid))
    assert places(report, "duplicate") == [21]
    (leak,) = [finding for finding in report.findings if finding.kind == "leak"]
    assert (leak.row, leak.severity) == (15, "error")
    assert "line 21 of" in leak.what, "it says where the other one lies"
    apart = check([str(path) for path in train], valid=str(text_file(tmp_path, texts[30:], "w.txt")))
    assert not places(apart, "leak")


def test_near_duplicates_are_found_when_asked_for(tmp_path: Path) -> None:
    texts = [" ".join(sentences(6, seed=seed)) for seed in range(20)]
    texts.append(texts[4].replace("number 3", "figure 3"))
    path = str(text_file(tmp_path, texts))
    assert not places(check(path), "near duplicate")
    assert places(check(path, settings=CheckSettings(near_duplicates=True)), "near duplicate") == [41]


def test_boilerplate_is_named_and_a_refrain_is_not(tmp_path: Path) -> None:
    footer = "\nAll rights reserved. Accept our cookies."
    texts = [text + footer if number % 2 else text + "\nThe end of it." for number, text in enumerate(sentences(60))]
    texts[1] += "\nSing it again, sing it again." * 3
    report = check(str(text_file(tmp_path, texts)))
    lines = [finding.what for finding in report.findings if finding.kind == "boilerplate"]
    assert any("cookies" in line for line in lines)
    assert not any("Sing" in line for line in lines)


def test_the_context_and_the_tokenizer_are_judged(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(sentences(200), vocab_size=500)
    texts = [*sentences(20), " ".join(sentences(60))]
    path = str(text_file(tmp_path, texts))
    report = check(path, settings=CheckSettings(context_length=500), tokenizer=tokenizer)
    assert places(report, "cut by context") == [41]
    assert report.figures["share_cut_by_context"] == pytest.approx(1 / 21, abs=1e-4)
    rare = text_file(tmp_path, ["ไทยเป็นภาษาที่ไม่มีช่องว่างระหว่างคำ" * 4] * 20, "thai.txt")
    strange = check(str(rare), tokenizer=tokenizer)
    assert places(strange, "tokens per byte") == [0], strange.figures
    assert not places(report, "tokens per byte")


def test_a_long_list_is_summarised_and_its_rows_are_kept(tmp_path: Path) -> None:
    report = check(str(rows_file(tmp_path, [{"text": "the same"}] * 5000)))
    duplicates = [finding for finding in report.findings if finding.kind == "duplicate"]
    assert len(duplicates) < 50, "the first are named singly"
    assert sum(finding.count for finding in duplicates) == 4999
    assert len(next(iter(report.rows["duplicate"].values()))) == 4999


def test_a_quick_check_says_that_it_stopped(tmp_path: Path) -> None:
    path = str(rows_file(tmp_path, [{"text": text} for text in sentences(5000)]))
    settings = CheckSettings(most_megabytes=0.3)
    assert "stopped after" in check(path, settings=settings).figures["stopped"]
    assert "stopped" not in quick_check([path]).figures


def test_the_command_says_it_in_words_and_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = sentences(30)
    good = text_file(tmp_path, texts, "good.txt")
    assert main(["check", str(good)]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    texts[3] += " \x07"
    bad = text_file(tmp_path, texts, "bad.txt")
    assert main(["check", str(bad), "--output", str(tmp_path / "report.json")]) == 1
    printed = capsys.readouterr().out
    assert f"{bad}, line 7: U+0007" in printed
    assert "--fix" in printed.splitlines()[-1]
    assert json.loads((tmp_path / "report.json").read_text())["findings"][0]["row"] == 7
    assert main(["check", str(tmp_path / "missing.txt")]) == 2


def test_the_page_names_every_kind() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert not [kind for kind in KINDS if f"`{kind}`" not in page], "kinds that the page does not name"


def test_a_path_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        check(str(tmp_path / "nothing"))
