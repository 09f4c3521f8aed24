"""Constrained answers have their form, whatever the model would say and whoever made the tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity.tokenizers_of_others import KINDS

from bimo import LM, SamplingParams, Tokenizer, UserError
from bimo.engine.constraints import Constraint, Forms
from bimo.engine.sampling import Rules, next_token

jsonschema = pytest.importorskip("jsonschema", reason="the extra bimo[test] is not installed")
pytest.importorskip("llguidance", reason="the extra bimo[grammar] is not installed")

PATTERNS = [
    r"(yes|no|maybe), [0-9]{1,3}",
    r"\d{4}-\d{2}-\d{2}",
    r"(?i)cat( dog){2}",
    r"[一-龥]{2,6}。",
    r"(猫|狗)(坐在|睡在)(垫子|树)上",
    r"[a-z]{1,8}@[a-z]{1,8}\.(com|de)",
    r"Größe: [1-9]\d?(\.\d)? m²",
    r"a\nb\t[\"'/\\]+?c",
    r"(a?){3}x|",
    r"🙂{1,2}",
]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 3, "maximum": 120},
        "kind": {"enum": ["cat", "狗", None, 4]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="session")
def forms(lm: LM) -> Forms:
    return Forms(lm.tokenizer, lm.model.spec.vocab_size)


@pytest.fixture(scope="session")
def free(lm: LM) -> str:
    """What the model says without a form."""
    return answer(lm, None, 0)


def answer(lm: LM, constraint: Constraint | None, seed: int, prompt: str = "the cat", temperature: float = 1.5) -> str:
    """What the model says after a prompt."""
    tokenizer, spec = lm.tokenizer, lm.model.spec
    tokens = [*tokenizer.prefix_ids, *tokenizer.encode(prompt)]
    n_prompt = len(tokens)
    barred = np.array(sorted({*tokenizer.control_tokens.values()} - tokenizer.end_ids), dtype=np.int64)
    rules = Rules(SamplingParams(temperature=temperature), seed, tokenizer.end_ids, barred, constraint)
    for _ in range(80 if constraint is None else 250):
        with torch.no_grad():
            logits = lm.model(torch.tensor([tokens[-spec.context_length :]]))[0, -1].numpy()
        token = next_token(logits, tokens, n_prompt, rules)
        if token in tokenizer.end_ids:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[n_prompt:])


def walked(tokenizer: Tokenizer, constraint: Constraint, seed: int) -> str:
    """Any of the allowed tokens, again and again: what a model of no sense would say."""
    generator = np.random.default_rng(seed)
    spelled: list[bytes] = []
    for _ in range(400):
        allowed = np.flatnonzero(constraint.allowed())
        if constraint.finished or not len(allowed):
            break
        ends = [i for i in allowed if int(i) in tokenizer.end_ids]
        token = int(ends[0] if ends and generator.random() < 0.3 else generator.choice(allowed))
        constraint.accept(token)
        if token in tokenizer.end_ids:
            break
        spelled.append(tokenizer.bytes_of_ids[token])
    assert constraint.complete, "the walk is over at an end of the form"
    return b"".join(spelled).decode()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_answers_match_the_pattern_and_without_it_they_do_not(lm: LM, forms: Forms, free: str, pattern: str) -> None:
    for seed in range(2):
        text = answer(lm, forms.regex(pattern), seed)
        assert re.fullmatch(pattern, text), f"{text!r} does not match"
    assert re.fullmatch(pattern, free) is None, "the control: the model would say something else"


@pytest.mark.parametrize(
    "choices", [("positive", "negative"), ("垫子", "老树下的水边", "垫子上"), ('say "no"\n', "\\", "/ |")]
)
def test_answers_are_one_of_the_choices_whole(lm: LM, forms: Forms, choices: tuple[str, ...]) -> None:
    said = {answer(lm, forms.choices(choices), seed, temperature=9.0) for seed in range(6)}
    assert said <= {*choices}, "nothing else"
    assert len(said) > 1, "and the model chooses"
    assert answer(lm, forms.choices(choices), 0, temperature=0) in choices, "greedily too"


def test_answers_are_json_of_the_schema(lm: LM, forms: Forms, free: str) -> None:
    for seed in range(3):
        text = answer(lm, forms.json_schema(SCHEMA), seed)
        jsonschema.validate(json.loads(text), SCHEMA)
    assert isinstance(json.loads(answer(lm, forms.json_schema('{"type": "array", "maxItems": 3}'), 1)), list), "as text"
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(free)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_keeps_the_form(kind: str, tmp_path: Path) -> None:
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    forms = Forms(tokenizer, tokenizer.vocab_size + 7)
    assert forms.regex("a").allowed().shape == (tokenizer.vocab_size + 7,), "ids that only the model has are barred"
    writable = [PATTERNS[0], PATTERNS[2]] if kind == "unigram" else PATTERNS  # it has no bytes to fall back on
    for seed, pattern in enumerate(writable):
        text = walked(tokenizer, forms.regex(pattern), seed)
        assert re.fullmatch(pattern, text), f"{text!r} does not match {pattern!r}"
    jsonschema.validate(json.loads(walked(tokenizer, forms.json_schema(SCHEMA), 1)), SCHEMA)
    barred = [*tokenizer.control_tokens.values()]
    assert not forms.regex(r"(?s).*").allowed()[[i for i in barred if i not in tokenizer.end_ids]].any(), (
        "control tokens"
    )


def test_what_a_tokenizer_cannot_write_is_an_error(tmp_path: Path) -> None:
    KINDS["unigram"]().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="choices"):
        walked(tokenizer, Forms(tokenizer).choices(["☃"]), 0)


def test_an_end_is_allowed_exactly_where_the_form_may_be_over(forms: Forms, lm: LM) -> None:
    constraint = forms.regex("ab?")
    end = lm.tokenizer.end_id
    assert not constraint.allowed()[end], "not before the first letter"
    constraint.accept(lm.tokenizer.encode("a")[0])
    assert constraint.allowed()[end], "after it"
    assert constraint.complete, "and it says so"
    assert not constraint.finished, "more may follow"
    constraint.accept(lm.tokenizer.encode("b")[0])
    assert constraint.finished, "nothing but an end"
    assert set(np.flatnonzero(constraint.allowed())) == set(lm.tokenizer.end_ids), "any end"


def test_forks_are_independent_and_tokens_are_taken_back(forms: Forms, lm: LM) -> None:
    a, b = (lm.tokenizer.encode(letter)[0] for letter in "ab")
    first = forms.regex("a(a|b)c")
    first.accept(a)
    second = first.fork()
    before = second.allowed().copy()
    first.accept(b)
    assert (second.allowed() == before).all(), "the other one does not move"
    second.accept(a)
    second.rollback(1)
    assert (second.allowed() == before).all(), "as if it had not been accepted"
    with pytest.raises(UserError, match="regex"):
        second.accept(lm.tokenizer.encode("c")[0])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("ab(c", "regex: unclosed group at character 3"),
        ("a{2,1}", "at character 2"),
        ("(?=a)b", "look-around.* at character 1"),
        (r"(a)\1", "backreferences are not supported at character 4"),
        (r"\bfoo", "lookarounds not supported"),
        ("a\ud800", "surrogate"),
        ("a" * 300_000, "300000 characters"),
    ],
)
def test_a_bad_pattern_is_refused_with_its_place(forms: Forms, pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        forms.regex(pattern)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ('{"type":', "json_schema: not JSON .*line 1 column 9"),
        ("[1]", "json_schema: a schema is an object"),
        ({"type": "strin"}, "json_schema: Invalid type: strin"),
        (
            {"type": "object", "properties": {"a/b": {"type": "array", "items": {"type": "strin"}}}},
            "json_schema at /properties/a~1b/items: Invalid type: strin",
        ),
        ({"properties": {"x": {"type": "string", "pattern": "("}}}, "at /properties/x: regex parse error"),
        ({"$ref": "#/$defs/nope"}, "json_schema: .*does not exist"),
        ({"$ref": "http://example.com/x"}, "does not fetch"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}, "uniqueItems"),
        ("[" * 100_000, "not JSON"),
        (json.dumps({"a": "b" * 2**18}), "characters are more"),
    ],
)
def test_a_bad_schema_is_refused_with_its_place(forms: Forms, schema: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        forms.json_schema(schema)


@pytest.mark.parametrize("choices", [(), ("",), ("a", ""), "abc", (1,)])
def test_bad_choices_are_refused(forms: Forms, choices: Any) -> None:
    with pytest.raises(UserError, match="choices: there must be texts"):
        forms.choices(choices)


def test_a_form_that_grows_beyond_its_bounds_ends_with_an_error(forms: Forms, lm: LM) -> None:
    constraint, a = forms.regex("((a{1000}){1000}){1000}"), lm.tokenizer.encode("a")[0]

    def go_on() -> None:
        for _ in range(1000):
            constraint.accept(a)
            constraint.allowed()

    with pytest.raises(UserError, match=r"regex: .*too many"):
        go_on()


def test_requests_are_told_apart_and_forms_compiled_once(forms: Forms) -> None:
    assert forms.of(SamplingParams()) is None, "no form"
    for params in (SamplingParams(regex="ab"), SamplingParams(choices=("ab",)), SamplingParams(json_schema="{}")):
        first, second = forms.of(params), forms.of(params)
        assert first is not None, "each is known"
        assert second is not None, "each is known"
        allowed = np.flatnonzero(first.allowed())
        first.accept(int(allowed[-1]))
        assert np.array_equal(np.flatnonzero(second.allowed()), allowed), "answers of one form do not share their place"


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, lm: LM) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(UserError, match=r"bimo\[grammar\]"):
        Forms(lm.tokenizer)
