"""Folders and logs after a kill, a torn write and a flipped bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bimo.core import artifacts
from bimo.core.artifacts import RunDirectory, append_jsonl, read_jsonl, verify, write_folder, write_text

# Replaces a folder and is killed, without any clean-up, at the n-th rename, removal or truncation.
KILLED = """
import os, sys
from pathlib import Path
from bimo.core import artifacts
left = int(sys.argv[2])
def kill(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.truncate"):
        left -= 1
        if left == 0:
            os._exit(9)
with artifacts.write_folder(Path(sys.argv[1])) as folder:
    (folder / "a").write_text("new")
    sys.addaudithook(kill)
"""


def old_folder(path: Path) -> Path:
    with write_folder(path) as folder:
        (folder / "a").write_text("old")
    return path


def killed_at(path: Path, moment: int) -> int:
    command = [sys.executable, "-c", KILLED, str(path), str(moment)]
    return subprocess.run(command, check=False, cwd=Path(__file__).parents[2]).returncode


def can_exchange(folder: Path) -> bool:
    for name in ("one", "other"):
        (folder / name).mkdir()
    return artifacts._exchange(folder / "one", folder / "other")


def test_a_kill_at_any_moment_of_a_replacement_leaves_the_old_or_the_new_folder(tmp_path: Path) -> None:
    if not can_exchange(tmp_path):
        pytest.skip("this system cannot exchange two folders in one step")
    codes = []
    for moment in range(1, 20):
        target = old_folder(tmp_path / f"x{moment}")
        codes.append(killed_at(target, moment))
        assert verify(target) == [], f"whole after a kill at moment {moment}"
        if codes[-1] == 0:
            break
    assert codes[0] == 9, "the control: the first kill hit"
    assert codes[-1] == 0, "every moment was tried"
    assert (target / "a").read_text() == "new", "without a kill the new one is there"


def test_two_renames_do_where_folders_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "another")
    target = old_folder(tmp_path / "x")
    with write_folder(target) as folder:
        (folder / "b").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"], "nothing is left behind"
    assert sorted(path.name for path in target.iterdir()) == ["b", "manifest.json"], "the new one replaces the old"


def test_files_in_folders_are_sealed_too(tmp_path: Path) -> None:
    with write_folder(tmp_path / "x") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_text("1")
    (tmp_path / "x" / "deep" / "a").write_text("2")
    assert verify(tmp_path / "x") == ["deep/a has changed since it was written"]


@given(place=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_manifest_never_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    folder = old_folder(tmp_path_factory.mktemp("flipped") / "x")
    manifest = folder / "manifest.json"
    content = bytearray(manifest.read_bytes())
    content[place % len(content)] ^= 1 << bit
    manifest.write_bytes(content)
    assert all(isinstance(problem, str) for problem in verify(folder)), "sentences, whatever has flipped"


@pytest.mark.parametrize(
    "manifest", ["[]", "3", '{"files": []}', '{"files": {"a": 1}}', '{"files": {"a": {}}}', "\0\0"]
)
def test_any_other_json_is_a_damaged_manifest(tmp_path: Path, manifest: str) -> None:
    run = RunDirectory(tmp_path)
    folder = old_folder(run.checkpoints / "step-00000001")
    (folder / "manifest.json").write_text(manifest)
    assert verify(folder) == ["manifest.json is missing or damaged"]
    assert run.latest_checkpoint()[0] is None, "passed over"


def test_a_failed_write_keeps_the_old_text_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "text"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")  # a lone surrogate fails while writing
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path], "no half file beside it"


RECORDS = [{"text": "猫坐在垫子上"}, {"n": 1}]


@given(cut=st.integers(min_value=0))
def test_a_log_torn_at_any_byte_is_read_and_goes_on(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    log = tmp_path_factory.mktemp("torn") / "log.jsonl"
    for record in RECORDS:
        append_jsonl(log, record)
    whole = log.read_bytes()
    torn = whole[: cut % (len(whole) + 1)]
    log.write_bytes(torn)
    before = read_jsonl(log)
    assert before == RECORDS[: len(before)], "what was whole"
    assert len(before) >= torn.count(b"\n"), "and all of it"
    append_jsonl(log, {"last": True})
    assert read_jsonl(log) == [*before, {"last": True}], "the next record is not glued to half a line"


def test_zeros_after_a_power_cut_are_a_torn_line(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"a": 1}\n' + bytes(100))
    assert read_jsonl(log) == [{"a": 1}]
    append_jsonl(log, {"a": 2})
    assert log.read_bytes() == b'{"a": 1}\n{"a": 2}\n'


def test_events_say_what_and_when(tmp_path: Path) -> None:
    RunDirectory(tmp_path).log_event("left out", file="a.txt")
    (event,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (event["event"], event["file"]) == ("left out", "a.txt")
    assert event["time"].startswith("20"), "an ISO date"
