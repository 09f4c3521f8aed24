"""What is asked of a cluster is looked at before anything is started."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from bimo.cli import main
from bimo.cluster.session import check_room, session
from bimo.cluster.training import from_anywhere
from bimo.core.config import DataSettings, RunSettings
from bimo.core.errors import UserError


@pytest.mark.parametrize(
    ("cluster", "workers", "what"),
    [("kubernetes", 2, "is no cluster"), ("local", 0, "workers must be at least 1")],
)
def test_what_is_no_cluster_is_named(cluster: str, workers: int, what: str) -> None:
    with pytest.raises(UserError, match=what), session(cluster, workers):
        pass


def test_a_missing_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"bimo\[ray\]"), session("local", 1):
        pass


def test_more_workers_than_there_is_room_for_are_refused(ray: Any) -> None:
    check_room(ray, 2, gpus=False)
    with pytest.raises(UserError, match=r"has 2 CPU\(s\), too few for 3 workers"):
        check_room(ray, 3, gpus=False)


def test_the_command_line_says_it_in_one_sentence(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a text")
    assert main(["train", "--data.paths", "[text.txt]", "--cluster", "slurm"]) == 2
    assert "'slurm' is no cluster" in capsys.readouterr().err


def test_paths_are_whole_and_addresses_stay(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = RunSettings(data=DataSettings(paths=["a.txt", "s3://bucket/b.txt", "-"]), modules=["parts.py", "numpy"])
    whole = from_anywhere(given)
    assert whole.data.paths == [str(tmp_path / "a.txt"), "s3://bucket/b.txt", "-"]
    assert (whole.folder, whole.modules) == (str(tmp_path / "runs"), [str(tmp_path / "parts.py"), "numpy"])
