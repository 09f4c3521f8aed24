"""Text on Ray Data becomes the tokens that a single machine makes, document for document."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bimo.cluster import training
from bimo.cluster.reading import parts_of, set_up
from bimo.core.artifacts import RunDirectory
from bimo.core.config import DataSettings, RunSettings, TokenizerSettings
from bimo.core.errors import UserError
from bimo.data.distinct import Distinct
from bimo.data.documents import Document
from bimo.data.prepare import Preparation
from bimo.data.shards import TokenShards
from bimo.preparing import open_text, prepare
from bimo.tokenizer import Tokenizer

QUIET = Console(quiet=True)
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "mat",
    "and",
    "saw",
    "一只",
    "猫",
    "坐在",
    "垫子",
    "while",
    "der",
    "Hund",
    "schlief",
    "tree",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Texts, records with broken rows, documents that are there again or nearly again, and validation text."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(20, 60))) for _ in range(240)]
    for number in range(3):
        own = texts[number * 60 : number * 60 + 70]  # ten stand in the next file, too
        (tmp_path / f"{number}.txt").write_text("\n\n".join(own), encoding="utf-8")
    rows = [json.dumps({"text": text}) for text in [*texts[190:], *(f"{text} more" for text in texts[:20])]]
    (tmp_path / "records.jsonl").write_text("\n".join([*rows[:5], '{"text": ', *rows[5:]]), encoding="utf-8")
    (tmp_path / "valid.txt").write_text("\n\n".join(texts[200:215]), encoding="utf-8")
    return tmp_path


def documents(folder: Path, tokenizer: Tokenizer) -> Counter[bytes]:
    """The documents of some shards, as ids."""
    shards = TokenShards(folder, tokenizer.fingerprint)
    starts = [*shards.document_starts(0, shards.n_tokens), shards.n_tokens]
    return Counter(shards.read(a, b).tobytes() for a, b in pairwise(starts))


def recipe(folder: Path, **data: Any) -> RunSettings:
    paths = [str(folder / "*.txt"), str(folder / "records.jsonl")] if "paths" not in data else data.pop("paths")
    return RunSettings(
        data=DataSettings(paths=paths, **data), tokenizer=TokenizerSettings(vocab_size=400), folder=str(folder / "runs")
    )


@pytest.mark.parametrize(
    "data",
    [
        {"validation_share": 0.1, "duplicates": "near"},
        {"weights": [1.0, 2.0], "check": False},
    ],
    ids=["one source, no near duplicates", "two sources, validation text that overlaps"],
)
def test_the_shards_are_those_of_a_single_machine(
    ray: Any, folder: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    text_files = [str(folder / "[0-9].txt"), str(folder / "records.jsonl")]
    if "weights" in data:
        data = {**data, "validation_paths": [str(folder / "valid.txt")]}
    settings = recipe(folder, paths=text_files, **data)
    alone = replace(settings, name="alone")
    tokenizer, _ = prepare(alone, open_text(alone.data, folder), QUIET)
    monkeypatch.setattr(training, "parts_of", lambda sources: parts_of(sources, 8000))
    monkeypatch.setattr(training, "set_up", lambda: set_up(4000))
    there = replace(settings, name="there")
    run, single = (RunDirectory(Path(settings.folder) / name) for name in ("there", "alone"))
    run.path.mkdir()
    text = open_text(there.data, folder)
    training.prepare_on(ray, there, run, text, QUIET)
    assert Tokenizer.load(run.path).fingerprint == tokenizer.fingerprint, "the tokenizer is the same"
    sides = ["valid", *(f"train/{path.name}" for path in (single.tokens / "train").iterdir())]
    for side in sides:
        assert documents(run.tokens / side, tokenizer) == documents(single.tokens / side, tokenizer), side
    assert len(list(run.tokens.rglob("*.tokens"))) > len(list(single.tokens.rglob("*.tokens"))), "many wrote them"
    kinds = [json.loads(line)["what"] for line in run.events.read_text().splitlines()]
    assert sorted(kinds) == sorted(json.loads(line)["what"] for line in single.events.read_text().splitlines())
    assert not Preparation(tokenizer, run.tokens).begin_shared(text.sources), "the journal says that it is whole"


def test_work_that_was_broken_off_leaves_no_shard_behind(ray: Any, folder: Path) -> None:
    settings = recipe(folder, validation_share=0.1)
    run = RunDirectory(folder / "runs" / "run")
    run.path.mkdir(parents=True)
    text = open_text(settings.data, folder)
    training.prepare_on(ray, settings, run, text, QUIET)
    before = documents(run.tokens / "valid", Tokenizer.load(run.path))
    journal = run.tokens / "journal.json"
    left = run.tokens / "valid" / "source-0-00009-000000000.tokens"
    left.write_bytes(next(path for path in (run.tokens / "valid").iterdir()).read_bytes())
    values = json.loads(journal.read_text())
    journal.write_text(json.dumps({"fingerprint": [*values["fingerprint"], "shared out"], "sources": {}}))
    training.prepare_on(ray, settings, run, text, QUIET)
    assert not left.exists()
    assert documents(run.tokens / "valid", Tokenizer.load(run.path)) == before


def test_a_single_machine_does_not_go_on_with_work_that_was_shared_out(tokenizer: Tokenizer, folder: Path) -> None:
    text = open_text(recipe(folder, validation_share=0.1).data, folder)
    preparation = Preparation(tokenizer, folder / "tokens")
    assert preparation.begin_shared(text.sources)
    left = folder / "tokens" / "train" / "source-0" / "source-0-00000-000000000.tokens"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half of a shard")
    preparation.run(text.sources)
    assert not left.exists(), "it would have been read twice"


def test_a_broken_row_ends_a_run_that_asks_for_that_in_one_sentence(ray: Any, folder: Path) -> None:
    settings = replace(recipe(folder, on_broken="stop", check=False), name="stop")
    with pytest.raises(UserError, match=r"records\.jsonl, line 6"):
        training.train_on(settings, QUIET, cluster="local", workers=2)


def test_distinct_documents_are_the_first_of_their_kind() -> None:
    words = [f"word{number}" for number in range(60)]
    text, near = " ".join(words), " ".join([*words[:-1], "other"])
    other = " ".join(reversed(words))
    given = [Document(text, "a", 1) for text in (text, other, text, near, "short", "short")]
    exact, alike = Distinct(given, "exact"), Distinct(given, "near")
    assert [d.text for d in exact] == [text, other, near, "short"]
    assert [d.text for d in alike] == [text, other, "short"]
    assert (exact.left_out, alike.left_out) == (2, 3)
    assert list(alike) == list(alike), "it can be read again"
