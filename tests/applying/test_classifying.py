"""Classification: by the likelihood of whole labels, with probabilities, out of the labels that the model knows."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from applying.conftest import label, sentence

from bimo import LM, ModelSpec, Tokenizer, UserError, classify, new
from bimo.applying import Classified
from bimo.tasks.classification import label_request


def test_labels_come_from_what_the_model_was_trained_for(toy: LM) -> None:
    rng = random.Random(5)
    texts = [sentence(rng) for _ in range(40)]
    found = classify(toy, texts)
    right = sum(answer == label(text) for answer, text in zip(found, texts, strict=True))
    assert right >= 32, "it has learned them"


def test_probabilities_are_those_of_the_model(toy: LM) -> None:
    found = classify(toy, "The cat eats.", report=True)
    assert isinstance(found, Classified)
    assert sum(found.probabilities.values()) == pytest.approx(1)
    prompt = toy.tokenizer.encode_chat(label_request("The cat eats."))
    totals = {}
    for name in ("animal", "thing"):
        messages = [*label_request("The cat eats."), {"role": "assistant", "content": name}]
        ids = toy.tokenizer.encode_chat(messages, add_generation_prompt=False)
        request = toy.engine.request(ids, want="score", n_context=len(prompt))
        job = toy.engine.submit(request)
        while not job.finished.is_set():
            toy.engine.step()
        totals[name] = sum(job.result)
    assert (totals["animal"] > totals["thing"]) == (found.label == "animal")


def test_a_label_that_begins_another_is_told_from_it(toy: LM) -> None:
    found = classify(toy, "The cat eats.", ["animal", "animal thing"], report=True)
    assert found.label == "animal", "its end is judged, too"


def test_a_text_longer_than_the_context_is_judged_by_all_its_parts(toy: LM) -> None:
    found = classify(toy, "The old house. " * 50, report=True)
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert "parts were judged, and averaged" in found.warnings[0].what


def test_shapes_in_are_shapes_out(toy: LM) -> None:
    texts = ["The cat eats.", "The old tree."]
    alone = [classify(toy, text) for text in texts]
    assert classify(toy, tuple(texts)) == alone
    assert list(classify(toy, iter(texts))) == alone


def test_models_without_labels_or_a_way_to_be_asked_are_named(lm: LM) -> None:
    with pytest.raises(UserError, match="no labels are known"):
        classify(lm, "The cat.")
    with pytest.raises(UserError, match="two labels or more"):
        classify(lm, "The cat.", ["one"])
    tokenizer = Tokenizer.train(["abc " * 100], vocab_size=300)
    tokenizer.special = replace(tokenizer.special, template="")
    mute = new(ModelSpec(vocab_size=tokenizer.vocab_size, n_layers=1, n_heads=2, d_model=16), tokenizer)
    with pytest.raises(UserError, match="no chat template and was not trained for classification"):
        classify(mute, "abc", ["a", "b"])
