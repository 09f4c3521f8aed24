"""Runs as the server hands them out: thinned, in bounds, and whatever lies in the folder."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from serving.servers import Serve

from bimo.core.errors import UserError
from bimo.serving import runs as reading
from bimo.serving.errors import ApiError
from bimo.serving.runs import Runs, thinned


def step(number: int, **more: Any) -> dict[str, Any]:
    return {"step": number, "tokens": 10 * number, "loss": 5 - number / 1e6, "learning_rate": 1e-3, **more}


def evaluation(number: int) -> dict[str, Any]:
    return {"step": number, "tokens": 10 * number, "loss": 4.0, "bits_per_byte": 1.5}


def write(folder: Path, name: str, metrics: list[Any], **logs: list[Any]) -> Path:
    run = folder / name
    run.mkdir(parents=True)
    for log, lines in {"metrics": metrics, **logs}.items():
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        (run / f"{log}.jsonl").write_text(text, encoding="utf-8")
    return run


def test_a_run_is_listed_with_its_newest_figures(tmp_path: Path) -> None:
    write(tmp_path, "one", [step(1), evaluation(2), step(3)])
    (found,) = Runs(tmp_path).listed()
    assert (found["name"], found["step"], found["valid_loss"]) == ("one", 3, 4.0)
    assert found["loss"] == step(3)["loss"]


def test_the_newest_run_stands_first(tmp_path: Path) -> None:
    for number, name in enumerate(["b", "c", "a"]):
        os.utime(write(tmp_path, name, [step(1)]) / "metrics.jsonl", (number, number))
    assert [run["name"] for run in Runs(tmp_path).listed()] == ["a", "c", "b"]


def test_curves_are_thinned_and_keep_their_ends_and_evaluations() -> None:
    lines = [step(number) for number in range(1, 10_001)]
    for number in range(100, 10_001, 100):
        lines.insert(lines.index(step(number)) + 1, evaluation(number))
    found = thinned(lines)
    assert len(found) <= 2000
    assert found[0] == lines[0]
    assert found[-1] == lines[-1]
    assert sum("bits_per_byte" in line for line in found) == 100, "no evaluation is lost"
    assert [line["step"] for line in found] == sorted(line["step"] for line in found)
    assert thinned(lines[:50]) == lines[:50], "what is short stays as it is"


def test_thinning_holds_also_where_there_are_evaluations_alone() -> None:
    found = thinned([evaluation(number) for number in range(5000)])
    assert 400 < len(found) <= 2000


def test_damaged_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    deep = '{"a":' * 5000 + "1" + "}" * 5000
    broken = ["{", "[1]", "null", '{"a": "\\ud800"}', deep, '{"a": "' + "x" * 70_000 + '"}', "\ufffd\x00"]
    write(tmp_path, "one", [step(1), *broken, step(2)], events=["x", {"event": "mended", "step": 1}])
    runs = Runs(tmp_path)
    one = runs.one("one")
    assert [line["step"] for line in one["metrics"]] == [1, 2]
    assert one["damaged"] == len(broken) + 1
    assert [event["event"] for event in runs.events("one")] == ["mended"]


def test_a_line_in_writing_is_not_damaged(tmp_path: Path) -> None:
    run = write(tmp_path, "one", [step(1)])
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')
    assert Runs(tmp_path).one("one") == {"name": "one", "metrics": [step(1)], "samples": [], "damaged": 0}


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    write(tmp_path, "one", ['{"step": 1, "loss": NaN, "learning_rate": Infinity}'])
    assert Runs(tmp_path).one("one")["metrics"] == [{"step": 1, "loss": None, "learning_rate": None}]
    assert Runs(tmp_path).listed()[0]["loss"] is None


def test_of_a_huge_file_a_bounded_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [step(number) for number in range(1, 30_001)]
    run = write(tmp_path, "one", lines)
    read = []
    parsed = reading._parsed
    monkeypatch.setattr(reading, "_parsed", lambda lines: read.append(sum(map(len, lines))) or parsed(lines))
    monkeypatch.setattr(reading, "_WHOLE", 2**20)
    assert (run / "metrics.jsonl").stat().st_size > 2**21, "it is huge, for this test"
    metrics = Runs(tmp_path).one("one")["metrics"]
    assert sum(read) < 2**20, "a part of it is read"
    assert metrics[0] == lines[0]
    assert metrics[-1] == lines[-1]
    steps = [line["step"] for line in metrics]
    assert steps == sorted(set(steps))
    assert max(b - a for a, b in itertools.pairwise(steps)) < 100, "at even distances"


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../one", "one/../one", "one/", "/etc", "one\0", "ONE", "link", ".hidden", "file", "empty"]
)
def test_a_name_is_that_of_a_run_or_of_nothing(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "runs"
    write(folder, "one", [step(1)])
    write(folder, ".hidden", [step(1)])
    write(tmp_path, "elsewhere", [step(1)])
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "file").write_text("")
    (folder / "empty").mkdir()
    runs = Runs(folder)
    assert [run["name"] for run in runs.listed()] == ["one"]
    with pytest.raises(ApiError) as caught:
        runs.one(name)
    assert caught.value.status == 404
    with pytest.raises(ApiError):
        runs.events(name)


def test_links_inside_of_a_run_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"step": 1, "loss": 42}\n', encoding="utf-8")
    run = write(tmp_path / "runs", "one", [step(1)])
    for name in ("events", "samples"):
        (run / f"{name}.jsonl").symlink_to(secret)
    runs = Runs(tmp_path / "runs")
    assert runs.events("one") == []
    assert runs.one("one")["samples"] == []
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(secret)
    assert runs.listed() == [], "with nothing of its own it is no run"


def test_a_pipe_in_the_place_of_a_log_does_not_hang(tmp_path: Path) -> None:
    run = write(tmp_path, "one", [step(1)])
    os.mkfifo(run / "events.jsonl")
    assert Runs(tmp_path).events("one") == []


def test_a_folder_that_is_not_there_and_a_run_itself_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Runs(tmp_path / "none")
    with pytest.raises(UserError, match="one run, not a folder of runs"):
        Runs(write(tmp_path, "one", [step(1)]))


def test_the_routes_hand_them_out(serve: Serve, tmp_path: Path) -> None:
    write(tmp_path, "a b 试", [step(1)], events=[{"event": "finished", "step": 1}], samples=[{"step": 1, "text": "猫"}])
    server = serve(runs=str(tmp_path))
    assert [run["name"] for run in server.get("/v1/runs").json()] == ["a b 试"]
    assert server.get("/v1/runs/a b 试").json()["samples"] == [{"step": 1, "text": "猫"}]
    assert server.get("/v1/runs/a b 试/events").json() == [{"event": "finished", "step": 1}]
    answer = server.get("/v1/runs/..%2f..%2fetc")
    assert answer.status_code == 404
    assert "error" in answer.json()
