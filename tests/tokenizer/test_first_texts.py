"""The first short texts get the ids that the library gives, or none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.tokenizers_of_others import KINDS

from bimo import Tokenizer
from bimo.interop import pretokenizers
from bimo.tokenizer.bpe import JoinedMerges, to_json, train
from bimo.tokenizer.first_texts import FirstTexts, _for_ascii

WORDS = "the cat's cat CAT 12 1234 don't DON'T I'LL  two\n\nlines\r\n\ttab () {'a': [1]} x.y/z?a=b --- <|end|> <|user|>"
ALPHABET = st.sampled_from([*WORDS.split(" "), " ", "  ", "\n", "\x0b", "\x1c", "\x7f", "é", "<|end|>"])
TEXTS = st.lists(ALPHABET, max_size=12).map("".join) | st.text(st.characters(codec="ascii"), max_size=40)


def content_of(stages: tuple[str, ...]) -> dict[str, object]:
    content = json.loads(to_json(train([WORDS * 3], 256 + 80), ["<|end|>", "<|user|>"]))
    content["pre_tokenizer"] = pretokenizers.to_json(stages, content["model"]["vocab"])
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    content["model"]["merges"] = JoinedMerges(merges)
    return content


CONTENTS = {known.names[0]: content_of(known.stages) for known in pretokenizers.KNOWN}
SLOW = {name: Tokenizer(content) for name, content in CONTENTS.items()}


@pytest.mark.parametrize("name", CONTENTS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_ids_are_those_of_the_library_or_none(name: str, text: str) -> None:
    first, slow = FirstTexts(CONTENTS[name]), SLOW[name]
    assert first.encode(text, marked=False) in (None, slow._slow.encode(text)), "of text"
    assert first.encode(text, marked=True) in (None, slow._marking.encode(text)), "with control tokens by name"


def test_ordinary_prompts_are_read_without_the_library() -> None:
    plain = [name for name in CONTENTS if FirstTexts(CONTENTS[name]).encode("the cat's 12 words.", marked=False)]
    assert {"qwen2", "llama-bpe", "gpt-2", "smollm", "deepseek-v3"} <= {*plain}, "the most common cuts"
    tokenizer = Tokenizer(CONTENTS["smollm"])
    assert tokenizer.encode("the cat") == SLOW["smollm"]._slow.encode("the cat")
    assert "_slow" not in tokenizer.__dict__, "nothing was made"
    for text in ("é", "the cat " * 400, "x" * 65):
        assert FirstTexts(CONTENTS["smollm"]).encode(text, marked=False) is None, "left to the library"


def test_a_control_token_that_merges_make_is_left_to_the_library() -> None:
    content = content_of(pretokenizers.KNOWN[0].stages)
    model = content["model"]
    assert isinstance(model, dict), "of a tokenizer.json"
    name = "".join(model["merges"][-1].split(" "))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [{"id": model["vocab"][name], "content": name, "special": True, **flags}]
    assert FirstTexts(content).encode("the", marked=False) is None


@pytest.mark.parametrize("expression", ["a$", "^a", "a++", "[a[b]]", r"\p{Han}", "[a&&b]"])
def test_expressions_that_differ_between_the_languages_are_not_translated(expression: str) -> None:
    assert _for_ascii(expression) is None
    assert _for_ascii(r"\p{L}+|[^\s\p{N}]") is not None, "the control"


def test_files_that_say_more_than_merging_are_left_to_the_library() -> None:
    for kind in ("llama2", "gemma"):
        assert FirstTexts(json.loads(KINDS[kind]().to_str())).encode("the", marked=False) is None, kind
