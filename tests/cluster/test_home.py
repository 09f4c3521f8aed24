"""A run whose folder is an address works here, and lies there in the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from bimo.cluster.home import Home, at_home
from bimo.core.config import RunSettings
from bimo.core.errors import UserError


def test_what_a_run_makes_lies_at_its_address_however_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = RunSettings(name="far", folder="memory://bucket/runs")
    home = Home(replace(settings, folder=str(tmp_path / "runs")), "memory://bucket/runs/far")

    def broken_off() -> None:
        with at_home(settings) as given:
            assert given == home, "it works here"
            (home.path / "deep").mkdir(parents=True)
            (home.path / "deep" / "a.txt").write_text("made")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert fsspec.filesystem("memory").cat("/bucket/runs/far/deep/a.txt") == b"made"
    assert home.storage()["storage_path"].strip("/") == "bucket/runs/far", "Ray's notes go there, too"
    with pytest.raises(UserError, match="this run exists"), at_home(settings):
        pass
    (home.path / "deep" / "a.txt").unlink()
    (home.path / "deep").rmdir()
    home.path.rmdir()
    with at_home(settings, resume=True) as again:
        assert (again.path / "deep" / "a.txt").read_text() == "made", "a run that goes on is fetched"


def test_a_folder_of_this_machine_stays_as_it_is(tmp_path: Path) -> None:
    with at_home(RunSettings(name="near", folder=f"file://{tmp_path}")) as home:
        assert (home.path, home.address) == (tmp_path / "near", "")
        assert home.storage() == {"storage_path": str(tmp_path / "near")}
