"""bimo train with tasks: from records to a model that answers, and a run that says what it did."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

import bimo
from bimo import LM, UserError
from bimo.cli import main
from bimo.core.artifacts import RunDirectory, read_jsonl
from bimo.core.config import RunSettings
from bimo.interop import load_adapter
from bimo.live import Waiting
from bimo.materials import Telling, read_materials
from bimo.model.heads import LabelHead
from bimo.model.lora import merge
from bimo.scoring import _telling
from bimo.tasks.naming import make_task

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "an", "old", "tree", "by", "water"]
TRAINING = {"steps": 4, "batch_size": 4, "evaluate_every": 2, "log_every": 1, "precision": "fp32", "device": "cpu"}


def pairs(path: Path, count: int = 40, first: int = 0) -> Path:
    rows = [(" ".join(WORDS[(n + i) % len(WORDS)] for i in range(4)), n) for n in range(first, first + count)]
    lines = [json.dumps({"source": text, "target": text.upper(), "origin": "test"}) for text, _ in rows]
    path.write_text("\n".join(dict.fromkeys(lines)), encoding="utf-8")
    return path


def recipe(folder: Path, **parts: object) -> Path:
    small = {"n_layers": 1, "n_heads": 2, "d_model": 16, "context_length": 64}
    whole = {"name": "it", "folder": str(folder / "runs"), "tokenizer": {"vocab_size": 300}, "training": TRAINING}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**whole, **({} if "adapt" in parts else {"model": small}), **parts}))
    return path


def entry(path: Path, task: str = "translation", **more: object) -> dict[str, object]:
    return {"task": task, "train": [str(path)], **more}


@pytest.fixture
def base(lm: LM, tmp_path: Path) -> Path:
    return lm.save(tmp_path / "base")


def test_a_new_model_learns_a_task_and_remembers_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, tasks=[entry(pairs(tmp_path / "pairs.jsonl"), "translation(target='zh')")])
    assert main(["train", str(path)]) == 0
    said = capsys.readouterr().out
    assert "trained" in said
    assert "<|assistant|>" in said, "one row is shown with its control tokens"
    lm = bimo.load(tmp_path / "runs" / "it")
    assert [task.name for task in lm.tasks] == ["translation"]
    assert lm.tasks[0].target == "zh"  # type: ignore[attr-defined]
    final = read_jsonl(tmp_path / "runs" / "it" / "metrics.jsonl")[-1]
    assert final["final"]
    assert 0 < final["end_probability"] < 1, "whether the end is learned is in the log"
    again = lm.save(tmp_path / "again")
    assert [task.name for task in bimo.load(again).tasks] == ["translation"], "and it stays with the model"


def test_lora_leaves_the_base_and_gives_an_adapter_and_a_merged_model(tmp_path: Path, base: Path) -> None:
    adapt = {"base": str(base), "method": "lora", "rank": 2, "general_text": [str(pairs(tmp_path / "general.jsonl"))]}
    (tmp_path / "general.txt").write_text("the old tree by the water\n" * 20)
    adapt["general_text"] = [str(tmp_path / "general.txt")]
    training = {**TRAINING, "optimizer": "adamw", "learning_rate": 0.01}
    path = recipe(tmp_path, tasks=[entry(pairs(tmp_path / "pairs.jsonl"))], adapt=adapt, training=training)
    assert main(["train", str(path)]) == 0
    run = tmp_path / "runs" / "it"
    merged, plain = bimo.load(run).model, bimo.load(base).model
    ids = torch.arange(20)[None]
    assert not torch.allclose(merged(ids), plain(ids)), "something was learned"
    torch.testing.assert_close(
        merge(plain, load_adapter(run / "adapter", plain))(ids), merged(ids), rtol=1e-5, atol=1e-5
    )
    events = {event["event"]: event for event in read_jsonl(run / "events.jsonl")}
    assert events["merged"]["largest_difference"] < 1e-4
    for when in ("before", "after"):
        assert "general_bits_per_byte" in events["finished"][when], "how much was forgotten"
        assert 0 <= events["finished"][when]["chrF of translation"] <= 100, "and what its answers are worth"


def test_several_tasks_are_mixed_and_measured_each(tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    rows = [f"{WORDS[n % 12]} {WORDS[n % 7]} {n},{'even' if n % 2 == 0 else 'odd'}" for n in range(40)]
    labels.write_text("\n".join(["words,class", *rows]), encoding="utf-8")
    tasks = [
        entry(pairs(tmp_path / "pairs.jsonl"), "translation(both=True)", weight=2.0),
        entry(labels, "classification", fields={"text": "words", "label": "class"}),
    ]
    assert main(["train", str(recipe(tmp_path, tasks=tasks))]) == 0
    final = read_jsonl(tmp_path / "runs" / "it" / "metrics.jsonl")[-1]
    assert {"loss", "loss 1 translation", "loss 2 classification"} <= final.keys()
    assert bimo.load(tmp_path / "runs" / "it").tasks[1].labels == ("even", "odd")  # type: ignore[attr-defined]


def test_what_one_task_is_measured_on_no_other_task_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, valid = pairs(tmp_path / "pairs.jsonl"), pairs(tmp_path / "valid.jsonl", count=3)
    other, back = pairs(tmp_path / "other.jsonl", 2, first=5), {"source": "target", "target": "source"}
    tasks = [
        entry(data, "translation(target='zh')", valid=[str(valid)]),
        entry(data, "translation(source='zh', target='en')", fields=back, valid=[str(other)]),
    ]
    assert main(["train", str(recipe(tmp_path, tasks=tasks))]) == 0
    said = " ".join(capsys.readouterr().out.split())
    final = read_jsonl(tmp_path / "runs" / "it" / "metrics.jsonl")[-1]
    assert {"chrF of translation", "chrF of translation (2)"} <= final.keys(), "each has its score"
    assert said.count("5 records of translation stand among those to measure on") == 2, "both directions of a pair"


def test_conversations_that_end_alike_are_not_the_same(tmp_path: Path) -> None:
    def saved(name: str, firsts: list[str]) -> str:
        end = [{"role": "user", "content": "Thanks"}, {"role": "assistant", "content": "You are welcome"}]
        begins = [[{"role": "user", "content": first}, {"role": "assistant", "content": "Yes"}] for first in firsts]
        (tmp_path / name).write_text("".join(json.dumps({"messages": begin + end}) + "\n" for begin in begins))
        return str(tmp_path / name)

    task = {"task": "dialogue", "train": [saved("train.jsonl", ["a", "b", "c"])], "valid": [saved("v.jsonl", ["b"])]}
    settings = RunSettings.from_dict({"tasks": [task]})
    told = Telling(Console(), RunDirectory(tmp_path / "run"), quiet=True)
    (material,) = read_materials(settings, told)
    assert [example.messages[0]["content"] for example in material.train] == ["a", "c"]


@pytest.mark.parametrize(("on_bad_row", "code"), [("skip", 0), ("stop", 2)])
def test_bad_rows_are_named_and_the_run_goes_on_or_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], on_bad_row: str, code: int
) -> None:
    data = pairs(tmp_path / "pairs.jsonl")
    data.write_text(data.read_text() + '\n{"source": "only"}\n')
    path = recipe(tmp_path, tasks=[entry(data)])
    bad = len(data.read_text().splitlines())
    assert main(["train", str(path), "--adapt.on_bad_row", on_bad_row]) == code
    said = capsys.readouterr()
    assert f"line {bad}: there is no field 'target'" in (said.out if code == 0 else said.err)
    events = read_jsonl(tmp_path / "runs" / "it" / "events.jsonl") if code == 0 else []
    assert code or any(event.get("row") == bad for event in events), "and it is in the log"


def test_records_that_are_measured_on_are_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    valid = pairs(tmp_path / "valid.jsonl", count=3)
    path = recipe(tmp_path, tasks=[entry(pairs(tmp_path / "pairs.jsonl"), valid=[str(valid)])])
    assert main(["train", str(path)]) == 0
    assert "3 records of translation stand among those to measure on" in " ".join(capsys.readouterr().out.split())


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    path = recipe(tmp_path, tasks=[entry(pairs(tmp_path / "pairs.jsonl"))])
    often = ["--training.checkpoint_every", "2"]
    assert main(["train", str(path), *often]) == 0
    assert main(["train", str(path), *often, "--name", "half", "--training.steps", "2"]) == 0
    assert main(["train", "--resume", str(tmp_path / "runs" / "half"), "--training.steps", "4"]) == 0
    whole, halves = (bimo.load(tmp_path / "runs" / name).model.state_dict() for name in ("it", "half"))
    schedule_differs = [name for name in whole if not torch.allclose(whole[name], halves[name], atol=0.1)]
    assert not schedule_differs, "near, because the schedule of the first half was that of a shorter run"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"tasks": [{"task": "translation"}]}, "no file of records"),
        ({"tasks": [{"task": "translatoin", "train": ["x"]}]}, "translation"),
        ({"tasks": [{"task": "translation", "train": ["nowhere.jsonl"]}]}, "nowhere.jsonl"),
        ({"tasks": [{"task": "translation", "trian": ["x"]}]}, "train"),
        ({"tasks": [{"task": "translation", "train": ["x"], "weight": 0}]}, "weight must be positive"),
        ({"adapt": {"method": "lora"}, "tasks": [{"task": "translation", "train": ["x"]}]}, "no base"),
        ({"adapt": {"method": "frozen", "base": "x"}, "tasks": []}, "nothing to train"),
        ({"adapt": {"method": "lora", "base": "x"}, "tasks": []}, "is for tasks"),
    ],
)
def test_a_recipe_that_cannot_be_run_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: dict[str, object], said: str
) -> None:
    assert main(["train", str(recipe(tmp_path, **parts))]) == 2
    assert said in capsys.readouterr().err


def test_pretraining_goes_on_from_a_base_with_its_tokenizer(tmp_path: Path, base: Path, text_file: Path) -> None:
    adapt = {"base": str(base), "context_length": 32}
    training = {**TRAINING, "optimizer": "adamw", "learning_rate": 0.001}
    path = recipe(tmp_path, adapt=adapt, training=training, data={"validation_share": 0.1})
    assert main(["train", str(path), str(text_file)]) == 0
    run, plain = bimo.load(tmp_path / "runs" / "it"), bimo.load(base)
    assert run.fingerprint == plain.fingerprint
    assert run.model.spec == plain.model.spec, "rows are shorter, the model's context stays"
    final = read_jsonl(tmp_path / "runs" / "it" / "metrics.jsonl")
    assert final[0]["tokens"] == 4 * 32
    assert final[0]["loss"] < 5, "it has not begun from nothing, where the loss is ln 400 = 6"


@pytest.mark.parametrize("loss", ["dpo(beta=0.2)", "simpo"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_preferences_are_learned_by_their_losses(tmp_path: Path, base: Path, loss: str, method: str) -> None:
    data = tmp_path / "preferences.jsonl"
    rows = [{"prompt": f"{WORDS[n % 12]} {n}", "chosen": "the cat sat", "rejected": "an old tree"} for n in range(40)]
    data.write_text("\n".join(map(json.dumps, rows)))
    training = {**TRAINING, "loss": loss, "optimizer": "adamw", "learning_rate": 0.01, "steps": 8}
    adapt = {"base": str(base), "method": method, "rank": 2}
    path = recipe(tmp_path, tasks=[entry(data, "preference")], adapt=adapt, training=training)
    assert main(["train", str(path)]) == 0
    final = read_jsonl(tmp_path / "runs" / "it" / "metrics.jsonl")[-1]
    assert final["preferred"] == 1.0


@pytest.mark.parametrize("method", ["full", "lora", "frozen"])
def test_a_head_of_labels_is_trained_and_kept_beside_the_model(tmp_path: Path, base: Path, method: str) -> None:
    data = tmp_path / "labels.jsonl"
    rows = [{"text": f"{WORDS[n % 2]} {n}", "label": ["first", "second"][n % 2]} for n in range(120)]
    data.write_text("\n".join(map(json.dumps, rows[:90])))
    valid = tmp_path / "valid.jsonl"
    valid.write_text("\n".join(map(json.dumps, rows[90:])))
    training = {**TRAINING, "optimizer": "adamw", "learning_rate": 0.02, "steps": 40}
    adapt = {"base": str(base), "method": method, "rank": 2, "label_head": True}
    tasks = [entry(data, "classification", valid=[str(valid)])]
    assert main(["train", str(recipe(tmp_path, tasks=tasks, adapt=adapt, training=training))]) == 0
    run = tmp_path / "runs" / "it"
    assert read_jsonl(run / "metrics.jsonl")[-1]["accuracy"] > 0.9
    lm, plain = bimo.load(run), bimo.load(base)
    assert lm.label_head is not None
    found = bimo.classify(lm, [row["text"] for row in rows], report=True)
    assert sum(one.label == row["label"] for one, row in zip(found, rows, strict=True)) > 108, "used where it is asked"
    assert lm.label_head.weight.shape == (2, lm.model.spec.d_model)
    same = all(torch.equal(p, q) for p, q in zip(lm.model.parameters(), plain.model.parameters(), strict=True))
    assert same == (method == "frozen"), "what is frozen stays, and nothing else"
    (run / "model" / "label_head.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="label_head"):
        bimo.load(run)


@pytest.mark.parametrize(("task", "labels"), [("translation", ()), ("classification", ("a", "b", "c"))])
def test_a_head_of_labels_of_the_base_does_not_outlive_another_training(
    tmp_path: Path, lm: LM, task: str, labels: tuple[str, ...]
) -> None:
    first = bimo.load(lm.save(tmp_path / "plain"))
    first.tasks = [make_task("classification(labels=['x', 'y'])")]
    first.label_head = LabelHead(torch.zeros(2, lm.model.spec.d_model), torch.zeros(2))
    data = pairs(tmp_path / "pairs.jsonl")
    if labels:
        rows = [{"text": f"{WORDS[n % 12]} {n}", "label": labels[n % 3]} for n in range(60)]
        data.write_text("\n".join(map(json.dumps, rows)))
    path = recipe(tmp_path, tasks=[entry(data, task)], adapt={"base": str(first.save(tmp_path / "first"))})
    assert main(["train", str(path)]) == 0
    again = bimo.load(tmp_path / "runs" / "it")
    assert again.label_head is None, "it belongs to the labels x and y"


def test_plain_text_goes_on_with_the_base_and_its_tokenizer(
    tmp_path: Path, base: Path, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "texts" / f"{number}.txt").write_text(text, encoding="utf-8")
    training = {**TRAINING, "optimizer": "adamw", "learning_rate": 1e-6, "steps": 2}
    data = {"paths": [str(tmp_path / "texts")], "validation_share": 0.2, "check": False}
    path = recipe(tmp_path, data=data, adapt={"base": str(base)}, training=training)
    assert main(["train", str(path)]) == 0
    plain, more = bimo.load(base), bimo.load(tmp_path / "runs" / "it")
    assert more.fingerprint == plain.fingerprint
    assert more.model.spec == plain.model.spec
    for before, after in zip(plain.model.parameters(), more.model.parameters(), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    (tmp_path / "other").mkdir()
    bimo.Tokenizer.train(["something else"], 270).save(tmp_path / "other")
    other = ["--name", "other", "--tokenizer.path", str(tmp_path / "other" / "tokenizer.json")]
    assert main(["train", str(path), *other]) == 2
    assert "not the tokenizer of" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "said"), [(["--cluster", "local"], "on a cluster"), (["--budget", "20s"], "budget")])
@pytest.mark.parametrize("with_tasks", [True, False])
def test_what_knows_no_base_and_no_tasks_says_so(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str, with_tasks: bool
) -> None:
    data = pairs(tmp_path / "pairs.jsonl")
    parts = {"tasks": [entry(data)]} if with_tasks else {"adapt": {"base": str(base)}, "data": {"paths": [str(data)]}}
    assert main(["train", str(recipe(tmp_path, **parts)), *flags]) == 2
    assert said in capsys.readouterr().err


def completions(path: Path, count: int, first: int = 0) -> Path:
    """Records of some 8 to 30 tokens."""
    rows = [{"prompt": f"{n} cat " * (1 + n % 4), "completion": f" sat on {n}"} for n in range(first, first + count)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_packed_batches_of_several_tasks_train_and_resume_exactly(tmp_path: Path, base: Path) -> None:
    tasks = [
        entry(completions(tmp_path / "some.jsonl", 60), "completion", weight=2.0),
        entry(completions(tmp_path / "more.jsonl", 40, 60), "completion"),
    ]
    training = {**TRAINING, "optimizer": "adamw", "learning_rate": 0.01, "checkpoint_every": 2, "keep_checkpoints": 9}
    training |= {"steps": 6, "micro_batch_size": 1, "batch_size": 3}
    adapt = {"base": str(base), "method": "lora", "rank": 2, "batches": "packed", "scored_answers": 0}
    path = recipe(tmp_path, tasks=tasks, adapt=adapt, training=training)
    assert main(["train", str(path)]) == 0
    run = tmp_path / "runs" / "it"
    whole = bimo.load(run).model.state_dict()
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    shutil.rmtree(run / "model")
    assert main(["train", "--resume", str(run)]) == 0
    again = bimo.load(run).model.state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("kind", ["label head", "preferences"])
def test_rows_that_cannot_be_packed_are_refused_and_by_auto_grouped(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [
        {"text": f"{n} cat", "label": "ab"[n % 2], "prompt": f"{n} cat", "chosen": "sat", "rejected": "mat"}
        for n in range(40)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    training = {**TRAINING, "loss": "simpo"} if kind == "preferences" else TRAINING
    adapt = {"base": str(base), "label_head": kind == "label head"}
    task = "preference" if kind == "preferences" else "classification"
    path = recipe(tmp_path, tasks=[entry(data, task)], adapt=adapt, training=training)
    assert main(["train", str(path), "--adapt.batches", "packed"]) == 2
    assert "rows cannot be packed" in capsys.readouterr().err
    assert main(["train", str(path), "--name", "auto"]) == 0
    assert "batches are grouped" in capsys.readouterr().out


def test_a_head_of_labels_with_a_loss_of_preferences_is_refused(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "labels.jsonl"
    data.write_text("\n".join(json.dumps({"text": f"{n} cat", "label": "ab"[n % 2]}) for n in range(30)))
    adapt = {"base": str(base), "label_head": True}
    training = {**TRAINING, "loss": "dpo(beta=0.1)"}
    path = recipe(tmp_path, tasks=[entry(data, "classification")], adapt=adapt, training=training)
    assert main(["train", str(path)]) == 2
    assert "a head of labels has no answers to compare" in capsys.readouterr().err


def test_the_answers_before_and_after_show_their_share(lm: LM) -> None:
    out = io.StringIO()
    waiting = Waiting(Console(file=out, width=200), "answering 4 records", lambda: 0.0)
    waiting.shown = -1e9  # long ago
    tell = _telling(waiting)
    tell("scoring the targets", 0.5)
    assert "answering 4 records: scoring the targets: 50%" in out.getvalue()
