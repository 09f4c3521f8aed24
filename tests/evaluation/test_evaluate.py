"""`bimo evaluate` with real small models: what is asked, what is found, and what is said of it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import sacrebleu.metrics
import torch

import bimo
from bimo import LM, ModelSpec, Tokenizer, TrainingSettings, UserError, evaluate, new
from bimo.core.registry import REGISTRIES
from bimo.evaluation.answer import Answer, Circumstances
from bimo.evaluation.fitting import FittingPrompt, fitting_prompt
from bimo.evaluation.judging import Judge, quality
from bimo.evaluation.outcome import Evaluation, Measure
from bimo.evaluation.scores import make_metric
from bimo.model.heads import LabelHead
from bimo.tasks import TaskExample, make_task
from bimo.tasks.task import asked

PAIRS = [
    ("the cat", "der Hund"),
    ("a mat", "一只 猫"),
    ("the water", "垫子 上"),
    ("an old tree", "schlief"),
    ("and", "der"),
]
ROWS = [{"source": s, "target": t, "origin": f"file {i % 2}"} for i, (s, t) in enumerate(PAIRS * 2)]
QUICK: dict[str, Any] = {"max_tokens": 6, "rounds": 200}


@pytest.fixture(scope="module")
def lm(spec: ModelSpec, tokenizer: Tokenizer, texts: list[str], settings: TrainingSettings) -> LM:
    """A tiny model that has seen some text; in one thread, which is never waited for."""
    return new(spec, tokenizer, seed=1).fit(texts[:120], epochs=2, settings=replace(settings, threads=1))


@pytest.fixture(scope="module")
def found(lm: LM) -> Evaluation:
    """A model that was not made for translation, on rows that are its floors' training rows, too."""
    return evaluate(lm, ROWS, "translation(target='de')", train=ROWS, **QUICK)


def labelled(n: int) -> list[dict[str, object]]:
    """Texts whose language is their label; every one its own."""
    words = {"English": ["the", "cat", "sat", "on", "mat"], "German": ["der", "Hund", "schlief"]}
    random = np.random.default_rng(n)
    names = [list(words)[int(i)] for i in random.integers(0, 2, n)]
    return [{"text": " ".join(random.choice(words[name], 4)), "label": name} for name in names]


@pytest.fixture(scope="module")
def classifier(spec: ModelSpec, tokenizer: Tokenizer, settings: TrainingSettings) -> LM:
    """A tiny model that has learned to say the language of a text."""
    talks = [
        {"messages": [*asked("Classify:", str(row["text"])), {"role": "assistant", "content": str(row["label"])}]}
        for row in labelled(150)
    ]
    return new(spec, tokenizer, seed=2).fit(talks, epochs=8, settings=replace(settings, learning_rate=1e-2, threads=1))


def test_scores_are_those_of_the_answers(found: Evaluation) -> None:
    answers, targets = [str(a) for a in found.ours.answers], [str(row["target"]) for row in ROWS]
    assert found.scores["chrF"] == pytest.approx(sacrebleu.metrics.CHRF().corpus_score(answers, [targets]).score)
    assert found.scores["BLEU"] == pytest.approx(sacrebleu.metrics.BLEU().corpus_score(answers, [targets]).score)
    assert all(np.isfinite(score) for score in found.scores.values())


def test_answers_are_the_greedy_text_of_the_engine(found: Evaluation, lm: LM) -> None:
    example = found.examples[0]
    assert example.messages[0]["content"] == "Translate into German:\nthe cat"
    assert found.ours.answers[0] == lm.chat(example.messages, temperature=0, max_tokens=6).strip()
    assert found.ours.answers[0].how.finish_reason in ("end", "max_tokens")


def test_targets_are_foreseen_as_the_engine_scores_them(found: Evaluation, lm: LM) -> None:
    example, seen = found.examples[1], found.ours.answers[1].how.foresight
    assert seen is not None
    ids = lm.tokenizer.encode_chat(example.messages)
    score = bimo.Engine(lm).score([example.target], [ids])[0]
    assert seen.nats == pytest.approx(-score.total)
    assert (seen.tokens, seen.bytes) == (len(score.tokens), len(example.target.encode()))


def test_floors_stand_beside_the_model_and_the_verdict_names_them(found: Evaluation) -> None:
    assert [c.name for c in found.contenders] == ["model", "copy", "word table", "nearest"]
    nearest = found.contenders[3]
    assert nearest.scores["chrF"].value == 100, "it has seen these rows"
    assert nearest.differences["chrF"].p < 0.05
    assert re.search(r"^chrF [\d.]+ \(95 %: .* on 10 examples: .*is beaten by .*nearest", found.verdict), found.verdict
    assert "nearest" not in found.beaten


def test_rows_that_were_trained_on_are_called_a_leak(found: Evaluation, lm: LM) -> None:
    assert any("10 of 10 examples stand in the training rows" in note for note in found.notes)
    apart = evaluate(lm, ROWS[:3], "translation", train=ROWS[3:5], **QUICK)
    assert not any("leak" in note for note in apart.notes), "the control"


def test_groups_have_figures_of_their_own(found: Evaluation) -> None:
    assert found.sizes["origin"] == {"file 0": 5, "file 1": 5}
    assert "language" not in found.sizes, "there is one only"
    own = found.ours.groups["origin"]["file 1"]["chrF"].value
    places = [i for i, row in enumerate(ROWS) if row["origin"] == "file 1"]
    answers, targets = [found.ours.answers[i] for i in places], [str(ROWS[i]["target"]) for i in places]
    assert own == pytest.approx(sacrebleu.metrics.CHRF().corpus_score(answers, [targets]).score)


def test_a_model_does_not_differ_from_itself(lm: LM) -> None:
    found = evaluate(lm, ROWS, "translation", against=lm, floors=[], **QUICK)
    assert [c.kind for c in found.contenders] == ["model", "other model"]
    assert {d.p for d in found.contenders[1].differences.values()} == {1.0}
    assert "no floor was measured" in found.verdict
    assert "does not differ significantly from model (2) (p = 1)" in found.verdict


def test_an_earlier_evaluation_is_compared_with(found: Evaluation, lm: LM, tmp_path: Path) -> None:
    found.save(tmp_path)
    path = tmp_path / "evaluation.json"
    again = evaluate(lm, ROWS[:4], "translation", against=path, **QUICK)
    assert again.contenders[-1].answers == found.ours.answers[:4]
    assert again.contenders[-1].name == "model, earlier"
    with pytest.raises(UserError, match="did not answer 1 of the 1 examples"):
        evaluate(lm, [{"source": "new", "target": "neu"}], "translation", against=path, **QUICK)
    path.write_text('{"model": "x"}')
    with pytest.raises(UserError, match="no evaluation"):
        evaluate(lm, ROWS, "translation", against=path, **QUICK)


def test_labels_are_chosen_by_likelihood_and_a_model_that_has_learned_them_beats_the_majority(classifier: LM) -> None:
    found = evaluate(classifier, labelled(61), "classification", train=labelled(40), rounds=200)
    assert found.scores["accuracy"] > 90
    assert "majority" in found.beaten
    assert found.verdict.startswith("macro F1 ")
    answer = found.ours.answers[0]
    assert sum(answer.how.probabilities.values()) == pytest.approx(1)
    assert 0 <= found.scores["calibration error"] <= 50
    assert list(found.ours.groups["label"]["German"]) == ["accuracy"], "macro F1 within one label would mislead"


def test_labels_that_are_never_predicted_and_one_example_give_sane_figures(lm: LM) -> None:
    task = "classification(labels=['one', 'two', 'three'])"
    found = evaluate(lm, [{"text": "the cat", "label": "two"}], task, train=[{"text": "a", "label": "one"}], **QUICK)
    assert found.scores["accuracy"] in (0, 100)
    assert any("no intervals" in note for note in found.notes)
    assert "majority (p = 1)" in found.verdict
    assert "nan" not in found.verdict


def test_texts_that_are_too_long_are_shortened_and_told(lm: LM) -> None:
    rows = [{"text": "the cat " * 200, "label": "a"}, {"text": "mat", "label": "b"}]
    found = evaluate(lm, rows, "classification", floors=[], **QUICK)
    written = evaluate(lm, [{"source": "the cat " * 200, "target": "x"}, ROWS[0]], "translation", floors=[], **QUICK)
    for one in (found, written):
        assert [answer.how.shortened for answer in one.ours.answers] == [True, False]
        assert any("1 of 2 prompts do not fit the model's context of 64" in note for note in one.notes), one.notes
    assert found.ours.answers[0] in ("a", "b")


def test_prompts_keep_the_instruction_and_the_newest_turns(tokenizer: Tokenizer) -> None:
    talk = [{"role": r, "content": f"{i} the cat sat"} for i, r in enumerate(["user", "assistant"] * 3 + ["user"])]
    whole = tokenizer.encode_chat(talk)
    example = TaskExample(tuple(talk), "x", talk[-1]["content"])
    assert fitting_prompt(example, tokenizer, len(whole)) == FittingPrompt(whole)
    fitting = fitting_prompt(example, tokenizer, len(whole) - 1)
    assert fitting == FittingPrompt(tokenizer.encode_chat(talk[2:]), cut=True)
    long = TaskExample(asked("Translate into German:", "mat " * 90), "x", "mat " * 90)
    found = fitting_prompt(long, tokenizer, 50)
    assert found.cut
    assert found.ids is not None
    assert 45 < len(found.ids) <= 50
    assert "Translate into German:\nmat mat" in tokenizer.decode(found.ids)
    assert fitting_prompt(long, tokenizer, 6).ids is None, "an instruction alone asks nothing"


def test_examples_that_cannot_be_asked_are_empty_answers_and_are_told(lm: LM) -> None:
    rows = [{"text": "the", "label": "xyz " * 60}, {"text": "mat", "label": "b"}]  # a label that leaves no room
    found = evaluate(lm, rows, "classification", **QUICK)
    assert [answer.how.finish_reason for answer in found.ours.answers] == ["error", "error"]
    assert any("could not answer 2 of 2 examples" in note for note in found.notes)
    assert found.scores["accuracy"] == 0


def test_a_head_of_labels_answers_where_there_is_one(lm: LM) -> None:
    one = copy.copy(lm)
    one.tasks = [make_task("classification(labels=['a', 'b', 'c'])")]
    one.label_head = LabelHead(torch.randn((3, 48), generator=torch.Generator().manual_seed(1)), torch.zeros(3))
    rows = [{"text": text, "label": "a"} for text in ("the cat", "der Hund", "mat")]
    found = evaluate(one, rows, floors=[], **QUICK)
    for answer, example in zip(found.ours.answers, found.examples, strict=True):
        with torch.no_grad():
            states = lm.model.hidden(torch.tensor([lm.tokenizer.encode_chat(example.messages)]))[0, -1]
        expected = one.label_head.probabilities(states)
        assert list(answer.how.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-4)
        assert answer == "abc"[int(expected.argmax())]
    other = evaluate(one, rows, "classification(labels=['a', 'x'])", floors=[], **QUICK)
    assert set(other.ours.answers[0].how.probabilities) == {"a", "x"}, "other labels are said as text"


def test_completion_is_judged_by_bits_beside_an_n_gram_model(lm: LM, texts: list[str]) -> None:
    held_out = [{"text": text} for text in texts[:6]]
    found = evaluate(lm, held_out, "completion", train=[{"text": text} for text in texts[6:60]], **QUICK)
    assert found.measures[0].name == "bits per byte"
    assert [c.name for c in found.contenders] == ["model", "n-gram", "nearest"]
    assert all(0 < c.scores["bits per byte"].value < 9 for c in found.contenders[:2])
    assert "cannot be compared with nearest" in found.verdict


def test_beams_answer_too(lm: LM) -> None:
    found = evaluate(lm, ROWS[:2], "translation", floors=[], beams=2, length_penalty=0.5, **QUICK)
    assert len(found.ours.answers) == 2


@dataclass(frozen=True)
class Reverse:
    """A task of a user, with a metric of theirs."""

    max_tokens: int = 4
    name = "reverse"
    fields = ("word",)
    floors = ("copy",)

    @property
    def metrics(self) -> Sequence[Any]:
        return (Length(), "exact_match")

    def examples(self, record: Mapping[str, object], where: str) -> list[TaskExample]:
        word = str(record["word"])
        return [TaskExample(asked("Reverse:", word), word[::-1], word, where)]

    def answer(self, text: str) -> str:
        return text.upper()

    def settled(self, examples: Sequence[TaskExample]) -> Reverse:
        return self


class Length:
    """Mean number of characters; knows nothing of empty answers."""

    name, higher_is_better = "length", True

    def rows(self, answers: Sequence[str], examples: Sequence[TaskExample]) -> np.ndarray:
        return np.array([[len(answer), bool(answer)] for answer in answers], float)

    def total(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]


def test_tasks_and_metrics_of_a_user_are_used(lm: LM) -> None:
    found = evaluate(lm, [{"word": "mat"}, {"word": "tree"}], Reverse(), **QUICK)
    assert [measure.name for measure in found.measures[:2]] == ["length", "exact match"]
    assert found.ours.answers[0] == found.ours.answers[0].upper()
    assert found.contenders[1].scores["length"].value == 3.5


def test_what_cannot_be_computed_is_said_and_written_as_null(tmp_path: Path) -> None:
    examples = [TaskExample((), "x", "x") for _ in range(3)]
    judge = Judge([Length()], examples, rounds=200)
    contenders = (judge.judge("model", "model", ["", "", ""]), judge.judge("copy", "floor", ["x", "x", "x"]))
    found = outcome(examples, contenders, Measure("length", True))
    assert found.verdict == "length – on 3 examples: cannot be compared with copy"
    found.save(tmp_path)
    text = (tmp_path / "evaluation.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail)["contenders"][0]["scores"]["length"]["value"] is None


def outcome(examples: Sequence[TaskExample], contenders: tuple[Any, ...], *measures: Measure) -> Evaluation:
    return Evaluation(
        "m <i>&", "task", ("<data>",), "now", {"bimo": "0"}, {}, measures, tuple(examples), contenders,
        {}, tuple(range(len(examples))), ("a <note>",),
    )  # fmt: skip


HOSTILE = "<script>alert('x')</script> & \"]]>\x00\x1b\ud800\ufffe 好"


def test_the_page_is_well_formed_and_escapes_what_people_and_models_write(tmp_path: Path) -> None:
    examples = [TaskExample((), HOSTILE, HOSTILE, HOSTILE, {HOSTILE: HOSTILE if i else "other"}) for i in range(4)]
    judge = Judge(["accuracy", "calibration_error"], examples, rounds=200)
    sure = [Answer(HOSTILE, Circumstances("max_tokens", {HOSTILE: 0.9})) for _ in examples]
    contenders = judge.judge(HOSTILE, "model", sure), judge.judge(HOSTILE + "2", "floor", [""] * 4)
    found = outcome(examples, contenders, Measure("accuracy", True, HOSTILE), Measure("calibration error", False))
    page = bimo.evaluation.outcome_page.page_of(found)
    page.encode("utf-8")
    tree = ElementTree.fromstring(page.removeprefix("<!doctype html>\n"))
    assert not list(tree.iter("script"))
    assert not re.search(r"https?://(?!www\.w3\.org)|<link|<img|<iframe", page), "nothing from elsewhere"
    shown = "".join(tree.itertext())
    assert shown.count("<script>alert('x')</script> & \"]]>\ufffd\ufffd\ufffd\ufffd 好") > 10, "all as text"
    assert len(list(tree.iter("{http://www.w3.org/2000/svg}svg"))) == 1, "a chart of the metric that both have"
    with pytest.raises(ElementTree.ParseError):
        ElementTree.fromstring(page.replace("&lt;script&gt;", "<script>", 1).removeprefix("<!doctype html>\n"))


def test_what_is_written_holds_every_answer(found: Evaluation, tmp_path: Path) -> None:
    page = found.save(tmp_path / "new" / "folder")
    content = json.loads((page.parent / "evaluation.json").read_text(encoding="utf-8"))
    assert content["verdict"] == found.verdict
    assert [row["answers"]["model"]["text"] for row in content["examples"]] == list(found.ours.answers)
    assert "tok:13a" in content["metrics"][1]["signature"]
    text = page.read_text(encoding="utf-8")
    ElementTree.fromstring(text.removeprefix("<!doctype html>\n"))
    assert "By origin" in text


def test_best_and_worst_are_in_order(found: Evaluation) -> None:
    scores = quality(make_metric("chrf"), found.ours.answers, found.examples)
    assert sorted(found.order) == list(range(10))
    assert [scores[i] for i in found.order] == sorted(scores, reverse=True)
    label, other = (TaskExample((), target, "") for target in ("a", "b"))
    answers = [Answer("a", Circumstances(probabilities={"a": p})) for p in (0.6, 0.9, 0.6, 0.9)]
    placed = quality(make_metric("accuracy"), answers, [label, label, other, other])
    assert list(np.argsort(-placed)) == [1, 0, 2, 3], "surely wrong is worst"


def test_progress_is_told_by_stages(lm: LM) -> None:
    told: list[tuple[str, float]] = []
    evaluate(lm, ROWS[:2], "translation", on_progress=lambda *now: told.append(now), **QUICK)
    assert {"answering", "scoring the targets", "comparing"} <= {stage for stage, _ in told}
    assert all(0 <= share <= 1 for _, share in told)
    assert ("answering", 1.0) in told


def test_rows_that_cannot_be_used_are_counted_and_named(lm: LM, tmp_path: Path) -> None:
    rows = [*ROWS[:2], {"source": "", "target": "x"}, {"source": "half \ud800", "target": "y"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = evaluate(lm, path, "translation", floors=[], **QUICK)
    assert len(found.examples) == 2
    assert any(re.search(r"2 rows of the data left out; the first: .*rows.jsonl, line 3", note) for note in found.notes)


def test_the_limit_is_spread_over_the_data(lm: LM) -> None:
    found = evaluate(lm, ROWS, "translation", floors=[], limit=3, **QUICK)
    assert [example.source for example in found.examples] == [ROWS[i]["source"] for i in (0, 3, 6)]
    assert any("3 of 10 examples" in note for note in found.notes)


@pytest.mark.parametrize(
    ("task", "options", "sentence"),
    [
        ("", {}, "which task"),
        ("translate", {}, "translation"),
        ("translation", {"metrics": ["blue"]}, "did you mean 'bleu'"),
        ("translation", {"floors": ["cellar"]}, "floor must be one of"),
        ("translation", {"beams": 0}, "beams must be at least 1"),
        ("translation", {"fields": {"sauce": "x"}}, "no field 'sauce'"),
        ("translation", {"limits": 3}, "did you mean 'limit'"),
        ("translation", {"against": "nowhere.json"}, "no such file"),
        ("translation", {"train": "nowhere.jsonl"}, "nowhere.jsonl"),
        ("classification", {}, "'text'"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(
    lm: LM, tmp_path: Path, task: str, options: dict[str, Any], sentence: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    with pytest.raises(UserError, match=re.escape(sentence)):
        evaluate(lm, path, task, **options)


def test_a_model_without_text_and_no_model_are_refused(lm: LM, spec: ModelSpec) -> None:
    with pytest.raises(UserError, match="without a tokenizer"):
        evaluate(LM(lm.model, None), ROWS, "translation")
    with pytest.raises(UserError, match="this is int"):
        evaluate(3, ROWS, "translation")  # type: ignore[arg-type]


def test_the_command_uses_the_task_that_the_model_was_trained_for(
    classifier: LM, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bimo.cli import main

    monkeypatch.chdir(tmp_path)
    trained = copy.copy(classifier)
    trained.tasks = [make_task("classification(labels=['English', 'German'])")]
    trained.save("mine")
    for name, n in (("valid", 21), ("train", 40)):
        rows = [{"words": row["text"], "label": row["label"]} for row in labelled(n)]
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--fields", '{"text": "words"}', "--rounds", "200"]
    assert main(["evaluate", "mine", "valid.jsonl", "--train", "train.jsonl", *flags]) == 0
    out = capsys.readouterr().out
    assert "majority" in out
    assert "The page: evaluate/mine/evaluation.html" in out
    assert Path("evaluate/mine/evaluation.json").exists()
    assert main(["evaluate", "mine", "valid.jsonl"]) == 2, "the columns have other names"
    assert "--fields '{text: COLUMN}'" in capsys.readouterr().err
    assert main(["evaluate", "mine", "nowhere.jsonl"]) == 2
    assert main(["evaluate", "mine", "valid.jsonl", "--task", "classify"]) == 2
    assert main(["evaluate", "mine", "valid.jsonl", "--beans", "3"]) == 2
    Path("file").write_text("")
    assert main(["evaluate", "mine", "valid.jsonl", "--output", "file/in"]) == 2


def test_the_parts_that_the_page_of_the_documents_shows_are_used(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("metric", "floor"):
        monkeypatch.setattr(REGISTRIES[kind], "registered", {})
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "register" in block)
    exec(compile(code, "evaluation.md", "exec"), {"__name__": "evaluation_page"})
    found = evaluate(lm, ROWS, "translation", metrics=["brevity"], floors=["last_line"], **QUICK)
    assert found.contenders[1].name == "last line"
    assert np.isfinite(found.scores["brevity"])


def test_the_page_of_the_documents_names_every_metric_and_floor() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    names = [*REGISTRIES["metric"].ours, *REGISTRIES["floor"].ours]
    assert not [name for name in names if f"`{name}`" not in page]
