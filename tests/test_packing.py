"""One command trains a pack for each language and says what it gains; a pack of any adapter can be made and checked."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

import bimo
from bimo import LM
from bimo.cli import main
from bimo.core.errors import UserError
from bimo.core.json_files import read_json
from bimo.packing import Gain, PackWish, _by_language, make_pack
from bimo.serving.packs import read_pack

GERMAN = {"wo": "hier", "wann": "gleich", "wer": "niemand", "was": "nichts"}
CHINESE = {"哪里": "这里", "什么时候": "马上", "谁": "没有人", "什么": "没什么"}


def talk(code: str, question: str, answer: str) -> dict[str, object]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "lang": code, "origin": "test"}


def talks(path: Path, seed: int) -> Path:
    """Questions whose first word settles the answer, in two languages, mixed, and some of a third."""
    chance = random.Random(seed)
    rows = []
    for _ in range(30):
        for code, words in (("de", GERMAN), ("zh", CHINESE)):
            word = chance.choice(list(words))
            rows.append(talk(code, f"{word} {chance.randrange(100)}", words[word]))
    rows.append(talk("fr", "où", "ici"))
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def base(lm: LM, tmp_path: Path) -> Path:
    return lm.save(tmp_path / "base")


def recipe(folder: Path, **parts: object) -> Path:
    """The shipped one, made small."""
    content = yaml.safe_load((Path(__file__).parent.parent / "recipes" / "language_pack.yaml").read_text())
    content["folder"] = str(folder / "runs")
    content["adapt"] |= {"rank": 4, "context_length": 64}
    content["training"] |= {
        "steps": 25,
        "learning_rate": 0.03,
        "warmup_steps": 4,
        "evaluate_every": 40,
        "precision": "fp32",
        "device": "cpu",
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**content, **parts}))
    return path


def test_a_pack_for_each_language_gains_on_its_own_rows(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, valid = talks(tmp_path / "train.jsonl", 1), talks(tmp_path / "valid.jsonl", 2)
    arguments = [str(recipe(tmp_path)), str(train), "--data.validation_paths", f"[{valid}]", "--adapt.base", str(base)]
    packs = tmp_path / "packs"
    arguments += ["--languages", "[de, Chinese]", "--packs", str(packs), "--limit", "16"]
    assert main(["pack", "train", *arguments]) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in packs.iterdir()) == ["de", "zh"]
    for code in ("de", "zh"):
        found = read_pack(packs / code)
        assert (found.name, found.manifest.language, found.manifest.task) == (code, code, "dialogue")
        rows = [json.loads(line) for line in (packs / code / "evaluation.jsonl").read_text().splitlines()]
        assert rows
        assert {row["lang"] for row in rows} == {code}, "measured on its own language"
        gains = {gain["metric"]: gain for gain in read_json(packs / code / "gain.json")["gains"]}
        bits = gains["bits per byte"]
        assert bits["pack"] < bits["alone"] - 0.2, "something was learned"
        assert bits["low"] <= bits["pack"] - bits["alone"] <= bits["high"] < 0, "with its interval"
        assert bits["p"] < 0.05
    assert "bits per byte: " in said
    assert "better" in said
    assert main(["pack", "list", str(packs)]) == 0
    assert "bits per byte" in capsys.readouterr().out
    assert main(["pack", "check", str(packs / "zh"), "--model", str(base)]) == 0


def test_a_pack_is_made_of_an_adapter_that_is_there(
    tmp_path: Path, base: Path, lm: LM, capsys: pytest.CaptureFixture[str]
) -> None:
    from model.test_lora import adapter_of

    from bimo.interop import save_adapter

    save_adapter(tmp_path / "adapter", lm.model, adapter_of(lm.model, "mine", 2, seed=1), str(base))
    guard = ["--guard", '[personal_data(action="mask")]', "--system", "Antworte kurz.", "--license", "CC0-1.0"]
    out = tmp_path / "packs" / "de"
    assert main(["pack", "make", str(tmp_path / "adapter"), str(out), "--language", "German", *guard]) == 0
    found = read_pack(out)
    assert (found.name, found.rules, found.manifest.license) == ("de", ('personal_data(action="mask")',), "CC0-1.0")
    assert main(["pack", "check", str(out), "--model", str(base)]) == 0
    (out / "guard.yaml").write_text("[]")
    capsys.readouterr()
    assert main(["pack", "check", str(out)]) == 2
    assert "guard.yaml has changed" in capsys.readouterr().err
    assert main(["pack", "list", str(tmp_path / "packs")]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make", "NOWHERE", "OUT", "--language", "de"], "there is no adapter"),
        (["make", "NOWHERE", "OUT"], "language is missing"),
        (["make", "NOWHERE", "OUT", "--language", "gremlin"], "no language"),
        (["check", "NOWHERE"], "no language pack"),
        (["list", "NOWHERE"], "no folder"),
        (["chek", "NOWHERE"], "did you mean 'check'"),
        (["train", "recipes/language_pack.yaml", "x.jsonl", "--languages", "[]"], "no language is named"),
        (["train", "recipes/lora.yaml", "x.jsonl", "--adapt.method", "full", "--languages", "[de]"], "is an adapter"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [str(tmp_path / part) if part in ("NOWHERE", "OUT") else part for part in arguments]
    assert main(["pack", *own]) == 2
    assert message in capsys.readouterr().err


def test_a_language_without_rows_is_said(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(recipe(tmp_path)), str(talks(tmp_path / "train.jsonl", 1)), "--adapt.base", str(base)]
    assert main(["pack", "train", *arguments, "--languages", "[ru]", "--packs", str(tmp_path / "packs")]) == 2
    assert "there are 0 rows to train on" in capsys.readouterr().err


def test_rows_without_a_language_are_told_apart_by_what_is_to_be_said(tmp_path: Path) -> None:
    rows: list[Mapping[str, object]] = [
        {"source": "Where are the keys of the house?", "target": "Wo sind denn die Schlüssel für das Haus?"},
        {"source": "Where are the keys of the house?", "target": "房子的钥匙到底放在哪里了？"},
        {"source": "Where?", "target": "42"},
        {"source": "Where are the keys?", "target": "Wo sind die Schlüssel?", "lang": "en"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = _by_language([str(path)], ["de", "zh", "en"])
    assert {code: len(own) for code, own in found.items()} == {"de": 1, "zh": 1, "en": 1}


def test_a_gain_says_which_way_is_better() -> None:
    assert str(Gain("chrF", True, 10, 20, 5, 15, 0.001)).endswith("better")
    assert str(Gain("bits per byte", False, 1, 2, 0.5, 1.5, 0.001)).endswith("worse")
    assert str(Gain("chrF", True, 10, 11, -5, 6, 0.4)).endswith("no clear difference")


def test_a_quantised_model_takes_a_pack_that_is_for_any_weights(tmp_path: Path, base: Path, lm: LM) -> None:
    from model.test_lora import adapter_of

    from bimo.interop import save_adapter
    from bimo.serving.packs import fingerprint

    save_adapter(tmp_path / "adapter", lm.model, adapter_of(lm.model, "mine", 2, seed=1), str(base))
    packed = fingerprint(bimo.load(lm.export(tmp_path / "small.gguf", "Q8_0")))
    for any_weights in (False, True):
        wish = PackWish(language="de", any_weights=any_weights)
        made, gains = make_pack(tmp_path / "adapter", tmp_path / f"pack-{any_weights}", wish)
        assert gains == []
        if any_weights:
            assert read_pack(made.folder, packed).name == "de"
        else:
            with pytest.raises(UserError, match="other weights"):
                read_pack(made.folder, packed)
