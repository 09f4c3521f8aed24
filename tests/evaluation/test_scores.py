"""Metrics equal those that everybody uses, on any text; and a total of summed rows is the score of the whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sacrebleu.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from sklearn.metrics import f1_score

from bimo import UserError, register
from bimo.core.registry import REGISTRIES
from bimo.evaluation.answer import Answer, Circumstances, Foresight
from bimo.evaluation.scores import make_metric
from bimo.evaluation.scores.rouge import common_subsequence
from bimo.evaluation.scores.texts import loops
from bimo.evaluation.words import first_sentence, shortened, words
from bimo.tasks import TaskExample

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "Mat.", "on", "a", "(so", "so)", "x1"]), max_size=12)
ENGLISH = WORDS.map(" ".join)
ANY = st.text(st.characters(exclude_categories=("Cs",)), max_size=30) | ENGLISH
PAIRS = st.lists(st.tuples(ANY, ANY), min_size=1, max_size=6)
NAMES = list(REGISTRIES["metric"].ours)


def examples_of(targets: list[str], language: str = "") -> list[TaskExample]:
    group = {"language": language} if language else {}
    return [TaskExample((), target, "", group=group) for target in targets]


def score(name: str, answers: list[str], examples: list[TaskExample]) -> float:
    metric = make_metric(name)
    return float(metric.total(metric.rows(answers, examples).sum(axis=0)))


def apart(pairs: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


@pytest.mark.parametrize(("language", "tokenizer"), [("", "13a"), ("en → de", "13a"), ("en → zh", "zh"), ("zh", "zh")])
@given(PAIRS)
@settings(max_examples=40, deadline=None)
def test_bleu_equals_sacrebleu(language: str, tokenizer: str, pairs: list[tuple[str, str]]) -> None:
    answers, targets = apart(pairs)
    theirs = sacrebleu.metrics.BLEU(tokenize=tokenizer).corpus_score(answers, [targets]).score
    assert score("bleu", answers, examples_of(targets, language)) == pytest.approx(theirs, rel=1e-9, abs=1e-9)


@given(PAIRS)
@settings(max_examples=100, deadline=None)
def test_chrf_equals_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    answers, targets = apart(pairs)
    theirs = sacrebleu.metrics.CHRF().corpus_score(answers, [targets]).score
    assert score("chrf", answers, examples_of(targets)) == pytest.approx(theirs, rel=1e-9, abs=1e-9)


def test_chinese_is_not_cut_as_english_is() -> None:
    answers, targets = ["我们今天去公园散步"], ["我们今天去公园跑步"]
    cut, whole = (score("bleu", answers, examples_of(targets, language)) for language in ("en → zh", "en → de"))
    assert whole == 0, "the control: without spaces all is one word"
    assert cut > 50


def test_signatures_name_the_tokenizer_of_each_language() -> None:
    metric = make_metric("bleu")
    both = examples_of(["a"], "zh → en") + examples_of(["b"], "en → zh")
    assert "tok:13a" in metric.signature(both)
    assert "tok:zh" in metric.signature(both)
    japanese = metric.signature(examples_of(["a"], "ja"))
    assert "tok:ja-mecab" in japanese or "tok:char" in japanese, "without MeCab it goes by characters, and says so"
    assert "nc:6" in make_metric("chrf").signature(both)


@pytest.mark.parametrize("name", ["rouge_1", "rouge_2", "rouge_l"])
@given(st.lists(st.tuples(ENGLISH, ENGLISH), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_rouge_equals_rouge_score_on_english(name: str, pairs: list[tuple[str, str]]) -> None:
    answers, targets = apart(pairs)
    theirs_name = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}[name]
    scorer = rouge_scorer.RougeScorer([theirs_name], use_stemmer=False)
    theirs = [scorer.score(target, answer)[theirs_name].fmeasure for answer, target in pairs]
    assert score(name, answers, examples_of(targets)) == pytest.approx(100 * float(np.mean(theirs)), abs=1e-9)


def test_rouge_sees_chinese_that_rouge_score_does_not() -> None:
    answer, target = "今天天气很好", "今天天气不好"
    theirs = rouge_scorer.RougeScorer(["rouge1"]).score(target, answer)["rouge1"].fmeasure
    assert theirs == 0, "the control"
    assert score("rouge_1", [answer], examples_of([target])) == pytest.approx(100 * 5 / 6)
    assert score("rouge_l", [answer], examples_of([target])) == pytest.approx(100 * 5 / 6)


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_the_common_subsequence_is_that_of_the_table(ours: list[str], theirs: list[str]) -> None:
    table = np.zeros((len(ours) + 1, len(theirs) + 1), int)
    for i, a in enumerate(ours):
        for j, b in enumerate(theirs):
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
    assert common_subsequence(ours, theirs) == table[-1, -1]


LABELS = st.sampled_from(["ham", "spam", "eggs"])


@given(st.lists(st.tuples(LABELS | st.just("nonsense"), LABELS), min_size=1, max_size=12))
@settings(deadline=None)
def test_macro_f1_equals_scikit_learn_on_the_labels_that_are_there(pairs: list[tuple[str, str]]) -> None:
    answers, targets = apart(pairs)
    theirs = f1_score(targets, answers, labels=sorted(set(targets)), average="macro", zero_division=0)
    assert score("macro_f1", answers, examples_of(targets)) == pytest.approx(100 * theirs)


def test_a_label_that_is_never_predicted_counts_as_nothing() -> None:
    answers, targets = ["a", "a", "a", "a"], ["a", "a", "b", "b"]
    assert score("accuracy", answers, examples_of(targets)) == 50
    assert score("macro_f1", answers, examples_of(targets)) == pytest.approx(100 * (2 / 3) / 2)


def sure(label: str, probability: float) -> Answer:
    return Answer(label, Circumstances(probabilities={label: probability, "other": 1 - probability}))


def test_calibration_error_is_the_distance_of_confidence_and_accuracy() -> None:
    answers: list[str] = [sure("a", 0.9), sure("a", 0.9), sure("a", 0.6), sure("a", 0.6)]
    targets = examples_of(["a", "a", "a", "b"])
    by_hand = (abs(1.8 - 2) + abs(1.2 - 1)) / 4
    assert score("calibration_error", answers, targets) == pytest.approx(100 * by_hand)
    one_bin = abs(3.0 - 3) / 4
    assert score("calibration_error(bins=1)", answers, targets) == pytest.approx(100 * one_bin, abs=1e-9)
    assert math.isnan(score("calibration_error", ["a"], targets[:1])), "nothing is known of it"


def test_certain_answers_that_are_right_are_calibrated() -> None:
    assert score("calibration_error", [sure("a", 1.0)], examples_of(["a"])) == 0


def test_exact_match_ignores_spaces_and_ways_to_write_a_character() -> None:
    answers = [" Cafe\u0301  noir", "café", ""]
    assert score("exact_match", answers, examples_of(["Café noir", "Café", "x"])) == pytest.approx(100 / 3)


def test_distinct_counts_within_answers() -> None:
    assert score("distinct_1", ["a a b", "c"], examples_of(["", ""])) == 75
    assert score("distinct_2", ["a b a b", ""], examples_of(["", ""])) == pytest.approx(100 * 2 / 3)
    assert score("distinct_2", [""], examples_of([""])) == 0, "nothing was said"


@pytest.mark.parametrize(
    "text",
    [
        "no " * 8,
        "I see. I see. I see. I see. I see.",
        "他说好他说好他说好他说好",
        "Well then: go on and on " + "over there " * 5 + "end",
    ],
)
def test_loops_are_seen(text: str) -> None:
    assert loops(text)


@pytest.mark.parametrize(
    "text",
    ["", "ha ha ha", "-----------------", "a b c d e f g h", "New York, New York", "very, very, very good", "1 2 1 2"],
)
def test_what_people_write_is_no_loop(text: str) -> None:
    assert not loops(text)


def test_cut_answers_are_those_without_an_end() -> None:
    answers = [Answer("x", Circumstances(reason)) for reason in ("end", "max_tokens", "context", "stop")]
    assert score("cut", list(answers), examples_of(["x"] * 4)) == 50
    assert score("cut", ["plain"], examples_of(["x"])) == 0


def test_perplexity_and_bits_per_byte_are_those_of_all_targets_together() -> None:
    seen = [Foresight(2 * math.log(2), 1, 4), Foresight(6 * math.log(2), 3, 4)]
    answers: list[str] = [Answer("", Circumstances(foresight=own)) for own in seen]
    assert score("perplexity", answers, examples_of(["", ""])) == pytest.approx(4)
    assert score("bits_per_byte", answers, examples_of(["", ""])) == pytest.approx(1)
    assert math.isnan(score("perplexity", ["plain"], examples_of([""])))


@pytest.mark.parametrize("name", NAMES)
@given(PAIRS)
@settings(max_examples=15, deadline=None)
def test_every_metric_gives_plain_rows_and_a_score_for_each_line(name: str, pairs: list[tuple[str, str]]) -> None:
    answers, targets = apart(pairs)
    metric = make_metric(name)
    how = Circumstances(probabilities={"": 1.0}, foresight=Foresight(1.0, 1, 1))
    rows = metric.rows([Answer(answer, how) for answer in answers], examples_of(targets))
    assert rows.shape[0] == len(pairs)
    assert np.isfinite(rows).all()
    lines = np.stack((rows.sum(axis=0), rows[0]))
    totals = metric.total(np.stack((lines, lines)))
    assert totals.shape == (2, 2)
    assert totals[0, 0] == pytest.approx(float(metric.total(rows.sum(axis=0))))
    assert np.isfinite(totals).all()


def test_a_metric_of_a_user_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REGISTRIES["metric"], "registered", {})

    @register("metric", "length")
    class Length:
        name, higher_is_better = "length", True

        def rows(self, answers: list[str], examples: list[TaskExample]) -> np.ndarray:
            return np.array([[len(answer), 1] for answer in answers], float)

        def total(self, sums: np.ndarray) -> np.ndarray:
            return sums[..., 0] / sums[..., 1]

    assert score("length", ["ab", "abcd"], examples_of(["", ""])) == 3
    assert make_metric(Length()).name == "length"


@pytest.mark.parametrize("text", ["blue", "bleu(n=3)", "calibration_error(bins=0)", "calibration_error(10)"])
def test_a_metric_that_cannot_be_is_a_sentence(text: str) -> None:
    with pytest.raises(UserError):
        make_metric(text)


def test_an_object_that_is_no_metric_is_a_sentence() -> None:
    with pytest.raises(UserError, match="no metric"):
        make_metric(object())  # type: ignore[arg-type]


def test_answers_survive_being_written_down() -> None:
    answer = Answer("好", Circumstances("max_tokens", {"好": 0.5}, Foresight(1.5, 2, 3)))
    again = Answer.from_dict(answer.to_dict())
    assert (again, again.how) == (answer, answer.how)
    assert Answer("x").to_dict() == {"text": "x"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One. Two.", "One."),
        ("你好。再见。", "你好。"),
        ("v1.2 is here! Yes", "v1.2 is here!"),
        ("no end", "no end"),
        ("", ""),
        ("head\n\nbody", "head"),
    ],
)
def test_the_first_sentence_ends_where_people_end_it(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


def test_words_and_their_number() -> None:
    assert words("Don't stop: 今天 café_2!") == ["don", "t", "stop", "今", "天", "café", "2"]
    assert shortened("one two, three four", 2) == "one two"
    assert shortened("今天天气很好", 2) == "今天"
    assert shortened("one two.", 2) == "one two."
