"""A watched folder: whole packs come, change and go; half of one waits, a damaged one is left out and said."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from serving.pack_files import write_pack

from bimo import LM
from bimo.core.errors import UserError
from bimo.serving.pack_folder import PackFolder
from bimo.serving.packs import Pack, read_pack


class Told:
    """What the folder told, and a host that may refuse."""

    def __init__(self, folder: Path) -> None:
        self.events: list[str] = []
        self.refuses = ""
        self.watch = PackFolder(folder, read_pack, self.add, self.remove, poll_s=0.01)

    def add(self, pack: Pack) -> None:
        if pack.name == self.refuses:
            raise MemoryError("no room")
        self.events.append(f"+{pack.name}")

    def remove(self, name: str) -> None:
        self.events.append(f"-{name}")

    def after(self, looks: int = 2) -> list[str]:
        """What was told in the next looks."""
        self.events.clear()
        for _ in range(looks):
            self.watch.look()
        return list(self.events)


@pytest.fixture
def told(tmp_path: Path) -> Told:
    (tmp_path / "packs").mkdir()
    return Told(tmp_path / "packs")


@pytest.fixture(scope="module")
def made(small: LM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("made")
    return {name: write_pack(home / name, small, name, "zh", seed) for seed, name in enumerate(("one", "two"), start=1)}


def put(source: Path, target: Path) -> None:
    """A pack, in one piece."""
    aside = target.with_name(f".{target.name}")
    shutil.copytree(source, aside)
    if target.exists():
        shutil.rmtree(target)
    aside.rename(target)


def test_a_pack_comes_and_goes(told: Told, made: dict[str, Path]) -> None:
    put(made["one"], told.watch.folder / "one")
    assert told.after() == ["+one"]
    assert told.after() == [], "it is told once"
    shutil.rmtree(told.watch.folder / "one")
    assert told.after(1) == [], "it may be about to be replaced"
    assert told.after(1) == ["-one"]
    assert told.watch.names == []


def test_at_the_start_nothing_is_waited_for(told: Told, made: dict[str, Path]) -> None:
    put(made["one"], told.watch.folder / "one")
    told.watch.look(at_once=True)
    assert told.events == ["+one"]


def test_what_is_still_being_copied_is_waited_for(told: Told, made: dict[str, Path]) -> None:
    target = told.watch.folder / "one"
    (target / "adapter").mkdir(parents=True)
    for file in ("pack.yaml", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "manifest.json"):
        shutil.copy(made["one"] / file, target / file)
        assert told.after(1) == [], "it changed since the last look"
    assert told.after(1) == ["+one"]
    assert not told.watch.problems


def test_a_damaged_pack_is_left_out_and_said_until_it_changes(told: Told, made: dict[str, Path]) -> None:
    put(made["one"], told.watch.folder / "one")
    weights = told.watch.folder / "one" / "adapter" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert told.after() == []
    assert "has changed since it was written" in told.watch.problems["one"]
    weights.write_bytes(whole)
    assert told.after() == ["+one"]
    assert not told.watch.problems


def test_a_pack_that_is_replaced_by_a_damaged_one_goes_on(told: Told, made: dict[str, Path]) -> None:
    put(made["one"], told.watch.folder / "zh")
    assert told.after() == ["+one"]
    (told.watch.folder / "zh" / "pack.yaml").write_text("name: broken")
    assert told.after() == []
    assert told.watch.names == ["one"]
    assert "zh" in told.watch.problems


def test_another_pack_in_the_same_folder_comes_before_the_old_one_goes(told: Told, made: dict[str, Path]) -> None:
    put(made["one"], told.watch.folder / "zh")
    told.after()
    put(made["two"], told.watch.folder / "zh")
    assert told.after() == ["+two", "-one"]


def test_a_new_version_is_taken_in_without_a_gap(told: Told, made: dict[str, Path], small: LM, tmp_path: Path) -> None:
    put(made["one"], told.watch.folder / "zh")
    told.after()
    put(write_pack(tmp_path / "newer", small, "one", "zh", seed=7), told.watch.folder / "zh")
    assert told.after() == ["+one"], "and never removed"


def test_two_packs_of_one_name_are_not_mixed(told: Told, made: dict[str, Path]) -> None:
    put(made["one"], told.watch.folder / "a")
    put(made["one"], told.watch.folder / "b")
    assert told.after() == ["+one"]
    assert "is there already, in a" in told.watch.problems["b"]


def test_a_host_that_fails_costs_the_pack_and_not_the_watch(told: Told, made: dict[str, Path]) -> None:
    told.refuses = "one"
    put(made["one"], told.watch.folder / "one")
    put(made["two"], told.watch.folder / "two")
    assert told.after() == ["+two"]
    assert told.watch.problems["one"] == "it failed: MemoryError"


def test_other_things_in_the_folder_are_not_looked_at(told: Told, made: dict[str, Path]) -> None:
    (told.watch.folder / "README.md").write_text("x")
    (told.watch.folder / ".hidden").mkdir()
    os.symlink(made["one"], told.watch.folder / "link")
    assert told.after() == []
    assert not told.watch.problems


def test_a_folder_that_is_away_for_a_while_costs_no_pack(told: Told, made: dict[str, Path]) -> None:
    put(made["one"], told.watch.folder / "one")
    told.after()
    told.watch.folder.rename(told.watch.folder.with_name("away"))
    assert told.after(3) == []
    told.watch.folder.with_name("away").rename(told.watch.folder)
    assert told.after() == []


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is no folder"):
        Told(tmp_path / "none")
