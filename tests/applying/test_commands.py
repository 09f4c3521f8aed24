"""translate, summarize, classify and chat on the command line, as a person and as a pipe use them."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from bimo import ModelSpec, Tokenizer, new
from bimo.cli import main


class Done:
    """What a command left."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def run(folder: Path, *arguments: str, stdin: bytes = b"") -> Done:
    """A command in this process, which has imported everything."""
    out, err, before = io.StringIO(), io.StringIO(), sys.stdin
    with tempfile.TemporaryFile() as file:
        file.write(stdin)
        file.seek(0)
        sys.stdin = io.TextIOWrapper(file, encoding="utf-8")
        try:
            with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main([*arguments, "--engine.threads", "1"])
        finally:
            sys.stdin = before
    return Done(code, out.getvalue(), err.getvalue())


RECORDS = [{"text": "The old cat.", "id": 1}, {"text": "", "id": 2}, {"text": "The {x} dog eats 7.", "id": 3}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS), encoding="utf-8")
    (tmp_path / "in.csv").write_text('id,english\n1,"The old cat."\n2,The red tree.\n', encoding="utf-8")
    (tmp_path / "a.md").write_bytes(b"# The cat.\r\n\r\n- The dog eats.\r\n")
    (tmp_path / "b.txt").write_text("The old tree. The cat.\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "order", ["MODEL --to de FILE", "--to de MODEL FILE", "MODEL FILE --to=de", "MODEL FILE --to de"]
)
def test_a_document_is_translated_wherever_the_flag_stands(folder: Path, toy_folder: Path, order: str) -> None:
    words = [{"MODEL": str(toy_folder), "FILE": "a.md"}.get(word, word) for word in order.split()]
    done = run(folder, "translate", *words, "--retries", "0")
    assert done.code == 0, done.err
    assert done.out.startswith("# Die")
    assert "\r\n\r\n- Die" in done.out, "its layout and line ends"


def test_records_keep_their_fields_and_their_order(folder: Path, toy_folder: Path) -> None:
    done = run(folder, "translate", str(toy_folder), "in.jsonl", "--to", "de", "--retries", "0")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["id"] for row in rows] == [1, 2, 3]
    assert [list(row) for row in rows] == [["text", "id", "translation"]] * 3
    assert rows[1]["translation"] == ""
    assert "in.jsonl, line 3: line 1" in done.err
    assert "'{x}' is missing" in done.err


def test_csv_goes_in_and_out(folder: Path, toy_folder: Path) -> None:
    flags = ["--to", "German", "--field", "english", "--output", "out.csv", "--output_field", "german"]
    done = run(folder, "translate", str(toy_folder), "in.csv", *flags)
    assert done.code == 0, done.err
    with (folder / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["1", "2"]
    assert all(row["german"].startswith("Die") for row in rows)


def test_several_documents_go_into_a_folder(folder: Path, toy_folder: Path) -> None:
    done = run(folder, "translate", str(toy_folder), "a.md", "b.txt", "--to", "de", "--output", "out", "--retries", "0")
    assert done.code == 0, done.err
    assert (folder / "out" / "a.md").read_text(encoding="utf-8").startswith("# Die")
    assert (folder / "out" / "b.txt").exists()
    shown = run(folder, "summarize", str(toy_folder), "a.md", "b.txt")
    assert shown.out.startswith("==> a.md <==\n")
    assert "==> b.txt <==\n" in shown.out


def test_labels_and_their_probabilities(folder: Path, toy_folder: Path) -> None:
    done = run(folder, "classify", str(toy_folder), "in.jsonl", "--probabilities")
    assert done.code == 0, done.err
    first = json.loads(done.out.splitlines()[0])
    assert first["label"] in ("animal", "thing")
    assert set(first["probabilities"]) == {"animal", "thing"}
    other = run(folder, "classify", str(toy_folder), "b.txt", "--labels", "yes, no")
    assert other.out.strip() in ("yes", "no")


def test_a_broken_row_is_said_and_the_others_are_done(folder: Path, toy_folder: Path) -> None:
    with (folder / "in.jsonl").open("a", encoding="utf-8") as file:
        file.write('nonsense\n{"text": "The end tree."}\n')
    done = run(folder, "classify", str(toy_folder), "in.jsonl")
    assert done.code == 1, "not all was done"
    assert "in.jsonl, line 4: not valid JSON" in done.err
    assert len(done.out.splitlines()) == 4


def test_compressed_files_are_read(folder: Path, toy_folder: Path) -> None:
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(b'{"document": "The cat eats."}\n'))
    done = run(folder, "summarize", str(toy_folder), "c.jsonl.gz")
    assert done.code == 0, done.err
    assert json.loads(done.out)["summary"]


def test_standard_input_is_a_document(folder: Path, toy_folder: Path) -> None:
    done = run(folder, "translate", str(toy_folder), "--to", "de", stdin=b"The cat.\n")
    assert done.code == 0, done.err
    assert done.out.startswith("Die ")


def test_each_line_of_a_stream_is_answered_as_it_comes(folder: Path, toy_folder: Path) -> None:
    command = [sys.executable, "-m", "bimo.cli", "translate", str(toy_folder), "--to", "de", "--format", "jsonl", "-"]
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    watch = threading.Timer(120, process.kill)
    watch.start()
    try:
        for number in range(3):
            process.stdin.write(json.dumps({"text": "The cat.", "n": number}) + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["n"] == number, "before the next line is written"
        process.stdin.close()
        assert process.wait(60) == 0
    finally:
        watch.cancel()
        process.kill()
        process.stdout.close()


def test_a_glossary_is_read(folder: Path, toy_folder: Path) -> None:
    (folder / "terms.tsv").write_text("cat\tKater\n", encoding="utf-8")
    flags = ["--to", "de", "--glossary", "terms.tsv", "--retries", "0"]
    done = run(folder, "translate", str(toy_folder), "a.md", *flags)
    assert done.code == 0, done.err
    assert "the term 'cat' is not translated as 'Kater'" in done.err


WRONG = {
    "no such file": (["translate", "MODEL", "none.txt", "--to", "de"], "none.txt: no such file"),
    "no such model": (["translate", "none", "a.md", "--to", "de"], "none: no run"),
    "no language": (["translate", "MODEL", "a.md"], "--to"),
    "unknown language": (["translate", "MODEL", "a.md", "--to", "klingon"], "no language that is known"),
    "empty": (["summarize", "MODEL", "empty.txt"], "empty.txt: "),
    "only spaces": (["summarize", "MODEL", "spaces.txt"], "there is no text in it"),
    "not UTF-8": (["summarize", "MODEL", "latin.txt"], "latin.txt"),
    "a translation memory": (["translate", "MODEL", "m.tmx", "--to", "de"], "holds translations already"),
    "no such field": (["classify", "MODEL", "in.jsonl", "--field", "txt"], "no field 'txt' (did you mean 'text'?)"),
    "a field that is no text": (["classify", "MODEL", "in.jsonl", "--field", "id"], "the field 'id' is int, not text"),
    "an answer over a field": (["classify", "MODEL", "in.jsonl", "--output_field", "id"], "a field 'id' already"),
    "both kinds": (["classify", "MODEL", "in.jsonl", "a.md"], "both documents and records"),
    "over itself": (["classify", "MODEL", "in.jsonl", "--output", "in.jsonl"], "also what is read"),
    "over another file": (["classify", "MODEL", "in.jsonl", "--output", "b.txt"], "there is a file already"),
    "a folder that is not there": (["classify", "MODEL", "in.jsonl", "--output", "no/x.jsonl"], "cannot be written"),
    "one file for several": (["summarize", "MODEL", "a.md", "b.txt", "--output", "in.csv"], "need a folder"),
    "unknown flag": (["translate", "MODEL", "a.md", "--to", "de", "--beens", "4"], "beens"),
    "wrong setting": (["translate", "MODEL", "a.md", "--to", "de", "--beams", "0"], "beams must be at least 1"),
    "bad format": (["classify", "MODEL", "a.md", "--format", "xml"], "must be one of"),
    "one label": (["classify", "MODEL", "a.md", "--labels", "one"], "two labels or more"),
    "a mute model": (["translate", "MUTE", "a.md", "--to", "de"], "no chat template"),
    "a mute model in chat": (["chat", "MUTE"], "no chat template"),
    "no such glossary": (
        ["translate", "MODEL", "a.md", "--to", "de", "--glossary", "x.tsv"],
        "no glossary can be read",
    ),
    "a broken history": (["chat", "MODEL", "--history", "a.md"], "a.md, line 1: it is no JSON"),
}


@pytest.fixture(scope="module")
def mute_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows no conversations and no task."""
    tokenizer = Tokenizer.train(["abc " * 100], vocab_size=300)
    tokenizer.special = replace(tokenizer.special, template="")
    spec = ModelSpec(vocab_size=tokenizer.vocab_size, n_layers=1, n_heads=2, d_model=16, context_length=32)
    folder = new(spec, tokenizer).save(tmp_path_factory.mktemp("mute") / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8").replace("<|end_of_turn|>", "<|other|>")
        config = json.loads(text)
        config.pop("chat_template", None)
        (folder / name).write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    folder: Path, toy_folder: Path, mute_folder: Path, name: str
) -> None:
    (folder / "empty.txt").touch()
    (folder / "spaces.txt").write_text("  \n\n")
    (folder / "latin.txt").write_bytes("Grüße aus der Höhe\n".encode("latin-1"))
    (folder / "m.tmx").write_text("<tmx/>")
    words, problem = WRONG[name]
    before = sorted(path.name for path in folder.iterdir())
    done = run(folder, *({"MODEL": str(toy_folder), "MUTE": str(mute_folder)}.get(word, word) for word in words))
    assert done.code == 2, done.out + done.err
    assert problem in done.err
    assert len(done.err.strip().splitlines()) == 1, "one sentence"
    assert sorted(path.name for path in folder.iterdir()) == before, "nothing was written"


def test_force_replaces_a_file(folder: Path, toy_folder: Path) -> None:
    done = run(folder, "classify", str(toy_folder), "in.jsonl", "--output", "b.txt", "--force")
    assert done.code == 0, done.err
    assert '"label"' in (folder / "b.txt").read_text(encoding="utf-8")


def test_chat_keeps_a_history_and_obeys_its_commands(folder: Path, toy_folder: Path) -> None:
    flags = ["chat", str(toy_folder), "--max_tokens", "4", "--temperature", "0", "--history", "talk.jsonl"]
    done = run(folder, *flags, stdin=b"The cat.\n/undo\nThe dog.\n/nonsense\n/save copy.jsonl\n//slash\n")
    assert done.code == 0, done.err
    assert "there is no command /nonsense" in done.err
    lines = [json.loads(line) for line in (folder / "talk.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["content"] for line in lines if line["role"] == "user"] == ["The dog.", "/slash"]
    assert len((folder / "copy.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    again = run(folder, *flags, stdin=b"/help\n/reset\nThe tree.\n")
    assert again.code == 0, again.err
    assert "going on from talk.jsonl: 4 messages" in again.err
    assert "/undo" in again.err
    lines = [json.loads(line) for line in (folder / "talk.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["content"] for line in lines if line["role"] == "user"] == ["The tree."]


def test_a_message_that_is_too_long_ends_a_pipe_with_a_sentence(folder: Path, toy_folder: Path) -> None:
    done = run(folder, "chat", str(toy_folder), "--max_tokens", "4", stdin=b"cat " * 300 + b"\n")
    assert done.code == 2
    assert "no room" in done.err


def test_a_talk_of_two_hundred_turns_says_what_it_forgets(folder: Path, toy_folder: Path) -> None:
    said = "".join(f"The cat {n}.\n" for n in range(200)).encode()
    done = run(folder, "chat", str(toy_folder), "--max_tokens", "4", "--history", "long.jsonl", stdin=said)
    assert done.code == 0, done.err
    assert "no longer reads" in done.err
    assert len((folder / "long.jsonl").read_text(encoding="utf-8").splitlines()) == 400


def test_the_output_of_a_closed_pipe_is_no_error(folder: Path, toy_folder: Path) -> None:
    (folder / "many.jsonl").write_text('{"text": "The cat."}\n' * 3000)
    command = [sys.executable, "-m", "bimo.cli", "classify", str(toy_folder), "many.jsonl"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
