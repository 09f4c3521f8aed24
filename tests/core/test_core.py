"""Settings check themselves, folders are whole or not there, and the machine gives its reasons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from bimo import ModelSpec, TrainingSettings, UserError
from bimo.core import machine
from bimo.core.artifacts import RunDirectory, append_jsonl, read_jsonl, verify, write_folder, write_text
from bimo.core.batch import Batch
from bimo.core.config import DataSettings, RunSettings
from bimo.core.doctor import environment_checks
from bimo.core.errors import nearest, require


def test_an_error_says_what_where_and_the_mend() -> None:
    error = UserError("no text", where="a.txt, line 3", mend="Write some.")
    assert str(error) == "a.txt, line 3: no text. Write some."


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(UserError, match=r'pip install "bimo\[serve\]"'):
        require("a_package_that_is_not_there", "serve")


@pytest.mark.parametrize(("name", "hint"), [("tran", " (did you mean 'train'?)"), ("xyzzy", "")])
def test_only_a_close_name_is_suggested(name: str, hint: str) -> None:
    assert nearest(name, ["train", "chat"]) == hint


def test_all_problems_of_a_setting_are_raised_at_once() -> None:
    with pytest.raises(UserError, match="steps") as raised:
        TrainingSettings(steps=0, learning_rate=-1.0, beta1=2.0)
    assert all(name in str(raised.value) for name in ("steps", "learning_rate", "beta1")), "all three"


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (ModelSpec, {"n_heads": "6"}, "n_heads must be int"),
        (ModelSpec, {"norm": "batchnorm"}, "norm must be one of 'rmsnorm', 'rmsnorm_1p', 'layernorm'"),
        (ModelSpec, {"n_heads": 0}, "n_heads must be at least 1"),
        (ModelSpec, {"n_heads": 6, "n_kv_heads": 4}, "multiple of n_kv_heads"),
        (ModelSpec, {"d_model": 30, "n_heads": 6}, "head_dim must be even"),
        (TrainingSettings, {"learning_rate": float("nan")}, "learning_rate must be float"),
        (TrainingSettings, {"learning_rate": float("inf")}, "learning_rate must be positive and finite"),
        (TrainingSettings, {"steps": True}, "steps must be int"),
        (DataSettings, {"paths": ["a"], "weights": [1.0, 2.0]}, "weights has 2 numbers for 1 paths"),
        (DataSettings, {"paths": "a"}, "paths must be"),
        (RunSettings, {"name": "../x"}, "plain folder name"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**values)


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'n_layers'"):
        ModelSpec.from_dict({"n_layer": 2})


def test_settings_survive_yaml(tmp_path: Path) -> None:
    settings = RunSettings(
        name="größe", model=ModelSpec(n_layers=3, d_model=64, n_heads=4), training=TrainingSettings(steps=7)
    )
    settings.save(tmp_path / "run.yaml")
    assert RunSettings.from_dict(yaml.safe_load((tmp_path / "run.yaml").read_text(encoding="utf-8"))) == settings


def test_derived_sizes_are_settled_once() -> None:
    spec = ModelSpec(d_model=384, n_heads=6)
    assert (spec.n_kv_heads, spec.head_dim, spec.d_ff) == (6, 64, 1024), "8/3 of the width, in 64s"
    assert ModelSpec(d_model=384, n_heads=6, feedforward="gelu").d_ff == 1536, "4 times the width"


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(RuntimeError, match="half way"), write_folder(target) as folder:  # noqa: PT012 - the block is the test
        (folder / "a").write_text("1")
        raise RuntimeError("half way")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    with write_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists(), "not before it is whole"
    with write_folder(target, parents={"data": "abc"}) as folder:
        (folder / "b").write_text("2")
    assert sorted(p.name for p in target.iterdir()) == ["b", "manifest.json"], "the new one replaces the old"
    assert json.loads((target / "manifest.json").read_text())["parents"] == {"data": "abc"}, "lineage"


def test_what_is_the_users_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "photo").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(UserError, match="would be lost"), write_folder(tmp_path / name) as folder:
            (folder / "a").write_text("1")
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "photo").read_text() == "mine", "untouched"


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (lambda f: (f / "a").write_text("2"), "a has changed"),
        (lambda f: (f / "a").unlink(), "a is missing"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is missing or damaged"),
        (lambda f: None, ""),
    ],
)
def test_verify_finds_what_has_changed(tmp_path: Path, damage: object, finding: str) -> None:
    with write_folder(tmp_path / "x") as folder:
        (folder / "a").write_text("1")
    damage(tmp_path / "x")  # type: ignore[operator]
    assert "; ".join(verify(tmp_path / "x")).startswith(finding)
    assert bool(verify(tmp_path / "x")) == bool(finding), "an untouched folder has no problem"


def test_a_disk_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "file" / "below.txt", "x")


def test_a_torn_last_line_of_a_log_is_left_out_and_a_broken_middle_is_not(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    append_jsonl(log, {"a": 1})
    with log.open("a") as file:
        file.write('{"a": ')
    assert read_jsonl(log) == [{"a": 1}], "a crash cuts the last line"
    append_jsonl(log, {"a": 2})
    assert read_jsonl(log) == [{"a": 1}, {"a": 2}], "and the next line is not glued to it"
    log.write_text('{"a": 1}\n{"a": \n{"a": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        read_jsonl(log)


def test_the_latest_whole_checkpoint_is_found_and_damage_is_told(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (1, 2):
        with write_folder(run.checkpoints / f"step-{step:08d}") as folder:
            (folder / "weights").write_text(str(step))
    (run.checkpoints / "step-00000002" / "weights").write_text("x")
    found, skipped = run.latest_checkpoint()
    assert found == run.checkpoints / "step-00000001", "the one before"
    assert "step-00000002" in skipped[0], "loudly"


def test_a_batch_refuses_tensors_of_another_shape() -> None:
    ids = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(AssertionError, match=r"Batch\.weights has shape"):
        Batch(ids=ids, targets=ids, weights=torch.ones(2, 2))


def test_a_batch_splits_into_rows_in_order() -> None:
    ids = torch.arange(10).view(5, 2)
    batch = Batch(ids=ids, targets=ids, weights=torch.ones(5, 2), positions=ids)
    parts = list(batch.split(2))
    assert [part.n_rows for part in parts] == [2, 2, 1], "the rest is its own part"
    assert torch.equal(torch.cat([part.positions for part in parts]), ids), "all fields, in order"
    assert parts[0].documents is None, "what is not there stays away"


def test_choices_come_with_reasons() -> None:
    assert machine.choose_device("cpu") == machine.Choice("cpu", "asked for")
    assert machine.choose_precision("cpu", "auto").reason, "a reason that can be printed"
    with pytest.raises(UserError, match="is not on this machine"):
        machine.choose_device("cuda:99" if not torch.cuda.is_available() else "mps")


def test_measured_speed_is_positive_and_the_doctor_reports_it(tmp_path: Path) -> None:
    checks = {check.name: check for check in environment_checks(tmp_path, seconds=0.2)}
    assert checks["torch"].ok, "torch is there"
    assert "GFLOP/s" in checks["fp32 matrix products"].finding, "measured"


def test_the_doctor_sees_a_wrong_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    check = next(c for c in environment_checks(tmp_path, seconds=0.1) if c.name == "threads")
    assert not check.ok, "77 threads are not one per core"
    assert "unset" in check.mend, "and it says what to do"
