"""Files against their manifests: what was changed since is found, and only that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bimo import LM, load
from bimo.core.artifacts import sha256
from bimo.evaluation.certificate import Finding
from bimo.evaluation.seals import compare_files


@pytest.fixture(scope="module")
def saved(lm: LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm.save(tmp_path_factory.mktemp("seals") / "model")


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1  # of the last weight
    (folder / "model.safetensors").write_bytes(data)


def exchange_two_merges(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    merges = content["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def remove_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def remove_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


TAMPERING: dict[str, Callable[[Path], None]] = {
    "model.safetensors": flip_a_bit,
    "tokenizer.json": exchange_two_merges,
    "tokenizer.json is missing": remove_the_tokenizer,
}


@pytest.fixture
def run(saved: Path, lm: LM, tmp_path: Path) -> Path:
    """A run that has ended, as far as `verify` looks at it."""
    folder = tmp_path / "runs" / "a"
    shutil.copytree(saved, folder / "model")
    (folder / "run.yaml").write_text("", encoding="utf-8")
    lineage = {"model": sha256(saved / "model.safetensors"), "tokenizer": lm.tokenizer.fingerprint}
    (folder / "manifest.json").write_text(json.dumps(lineage), encoding="utf-8")
    return folder


def about_files(folder: Path) -> list[Finding]:
    lm = load(folder)
    assert lm.source is not None, "it was read from files"
    found = compare_files(lm.source, lm.tokenizer if lm.has_tokenizer else None)
    return [] if found is None else [found]


def test_files_that_nobody_touched_are_as_the_manifests_say(run: Path) -> None:
    [found] = about_files(run)
    assert found.ok, found


@pytest.mark.parametrize("what", TAMPERING)
def test_a_changed_file_of_a_sealed_folder_is_named(what: str, saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    TAMPERING[what](folder)
    [found] = about_files(folder)
    assert not found.ok, found
    assert found.tensor == what.split()[0], "the first file that differs"
    assert what in found.note, "and what is wrong with it"


@pytest.mark.parametrize("what", TAMPERING)
def test_the_manifest_of_a_run_tells_when_its_model_was_sealed_again(what: str, run: Path) -> None:
    TAMPERING[what](run / "model")
    path = run / "model" / "manifest.json"
    files = {
        file.name: {"sha256": sha256(file), "bytes": file.stat().st_size}
        for file in path.parent.iterdir()
        if file != path
    }
    path.write_text(json.dumps({"files": files, "parents": {}}), encoding="utf-8")
    [found] = about_files(run)
    assert not found.ok, found
    assert found.tensor == what.split()[0], found


def test_a_run_whose_model_has_lost_its_manifest_is_not_verified(run: Path) -> None:
    remove_the_manifest(run / "model")
    [found] = about_files(run)
    assert found.tensor == "manifest.json", found


@pytest.mark.parametrize("content", [None, '{"version": 3}'], ids=["no manifest", "another tool's"])
def test_files_of_others_have_no_manifest_to_keep(content: str | None, saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    remove_the_manifest(folder)
    if content is not None:
        (folder / "manifest.json").write_text(content, encoding="utf-8")
    assert about_files(folder) == [], "nothing to compare with"


@pytest.mark.parametrize("name", ["/dev/zero", "../a", "x\0"])
def test_a_manifest_that_names_what_lies_elsewhere_is_not_followed(name: str, saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    files = {"files": {name: {"sha256": "", "bytes": 0}}}
    (folder / "manifest.json").write_text(json.dumps(files), encoding="utf-8")
    [found] = about_files(folder)
    assert "no name of a file" in found.note, found
