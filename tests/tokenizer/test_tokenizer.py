"""Every text comes back, no text becomes a control token, and three libraries agree on the ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from bimo import Tokenizer, UserError
from bimo.tokenizer import CONTROL_TOKENS, bpe, chat

SCRIPTS = [
    "",
    " ",
    "Hello, world!  Two  spaces\tand\ttabs\r\n\r\n",
    "def f(x):\n    return x**2  # comment\n",
    "I'll DON'T we'Ve 1234567890 3.14e-5",
    "鲁迅《狂人日记》:“今天晚上,很好的月光。”",
    "ひらがなカタカナ漢字 한국어 조합",
    "हिन्दी தமிழ் ไทยไม่มีช่องว่าง العربية עִבְרִית",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇨🇳 e\u0301 a\u0308\u0323",
    "\x00\x01\x7f\u200b\ufeff\u2028",
    "<|end|><|user|> <|begin|>",
]


def reference(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    loaded = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.content))
    loaded.encode_special_tokens = True
    return loaded


@pytest.mark.parametrize("text", SCRIPTS)
def test_every_script_comes_back_and_equals_the_reference(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text, "nothing is lost"
    assert ids == reference(tokenizer).encode(text, add_special_tokens=False).ids, "tiktoken and tokenizers agree"
    assert not set(ids) & set(tokenizer.control_tokens.values()), "no control token"


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back_and_equals_the_reference(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text, "nothing is lost"
    assert ids == reference(tokenizer).encode(text, add_special_tokens=False).ids, "same ids"


@settings(deadline=None)
@given(st.lists(st.sampled_from([*SCRIPTS, "abc", "猫", "🇩"]), max_size=6))
def test_a_stream_gives_whole_characters(tokenizer: Tokenizer, parts: list[str]) -> None:
    import regex

    text = "".join(parts)
    decoder = tokenizer.decoder()
    pieces = [decoder.push(i) for i in tokenizer.encode(text)] + [decoder.finish()]
    assert "".join(pieces) == text, "all of it"
    clusters = [len(c) for c in regex.findall(r"\X", text)]
    borders = {sum(clusters[:i]) for i in range(len(clusters) + 1)}
    place = 0
    for piece in pieces:
        place += len(piece)
        assert place in borders, "a piece ends where a user-perceived character ends"


def test_a_stream_of_broken_bytes_still_decodes_like_the_whole(tokenizer: Tokenizer) -> None:
    broken = [tokenizer.encode("猫")[0], *tokenizer.encode("a")] if len(tokenizer.encode("猫")) > 1 else [200, 97]
    decoder = tokenizer.decoder()
    streamed = "".join(decoder.push(i) for i in broken) + decoder.finish()
    assert streamed == tokenizer.decode(broken), "U+FFFD in both"


def test_batches_equal_single_texts(tokenizer: Tokenizer) -> None:
    batch = tokenizer.encode_batch(SCRIPTS, threads=2)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in SCRIPTS], "same ids on all threads"


def test_ids_are_bytes_then_merges_then_control_tokens(tokenizer: Tokenizer) -> None:
    first = tokenizer.vocab_size - len(CONTROL_TOKENS)
    assert tokenizer.control_tokens == {name: first + i for i, name in enumerate(CONTROL_TOKENS)}, "at the end"
    lengths = tokenizer.token_bytes()
    assert lengths[:256].tolist() == [1] * 256, "the bytes first"
    assert (lengths[256:first] > 1).all(), "then what was merged"
    assert not lengths[first:].any(), "control tokens stand for no text"


def test_training_is_deterministic(texts: list[str]) -> None:
    assert Tokenizer.train(texts, 350).fingerprint == Tokenizer.train(iter(texts), 350).fingerprint


def test_merges_reproduce_the_ranks(tokenizer: Tokenizer) -> None:
    assert bpe.ranks_of(tokenizer.content) is not None, "our own file must take the fast path"


def test_a_file_with_other_rules_is_encoded_by_its_own_library(tokenizer: Tokenizer) -> None:
    content = json.loads(json.dumps(tokenizer.content))
    content["normalizer"] = {"type": "Lowercase"}
    foreign = Tokenizer(content)
    assert bpe.ranks_of(content) is None, "the fast path would ignore the normaliser"
    assert foreign.encode("THE CAT") == tokenizer.encode("the cat"), "its own rules hold"
    assert foreign.encode("<|END|>") == tokenizer.encode("<|end|>"), "and no control token comes out"


def test_a_run_without_spaces_is_quick_and_comes_back(tokenizer: Tokenizer) -> None:
    text = "猫坐在垫子上" * 30_000
    assert tokenizer.decode(tokenizer.encode(text)) == text, "180,000 characters without a space"


def test_saved_and_loaded_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint, "by folder"
    assert Tokenizer.load(tmp_path / "tokenizer.json").encode("the cat") == tokenizer.encode("the cat"), "by file"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"vocab": {"猫": 0}}}', '{"model": {"vocab": []}}'])
def test_files_that_are_no_tokenizer_are_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.load(path)


@pytest.mark.parametrize("text", [b"bytes", None, 5, ["list"]])
def test_what_is_not_text_is_refused(tokenizer: Tokenizer, text: object) -> None:
    with pytest.raises(UserError, match="text must be a string"):
        tokenizer.encode(text)  # type: ignore[arg-type]


def test_half_a_surrogate_pair_is_refused_with_its_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="character 2 is half of a surrogate pair"):
        tokenizer.encode("ab\ud800")


@pytest.mark.parametrize("token", [-1, 10**6])
def test_unknown_ids_are_refused(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(UserError, match="is not in 0"):
        tokenizer.decode([token])


def test_too_small_a_vocabulary_and_no_text_are_refused() -> None:
    with pytest.raises(UserError, match="at least 263"):
        Tokenizer.train(["text"], 200)
    with pytest.raises(UserError, match="no text"):
        Tokenizer.train(["", ""], 300)


def test_chat_ids_by_hand(tokenizer: Tokenizer) -> None:
    control = tokenizer.control_tokens
    ids = tokenizer.encode_chat([{"role": "user", "content": "the cat"}])
    by_hand = [control["<|begin|>"], control["<|user|>"], *tokenizer.encode("the cat"), control["<|end_of_turn|>"]]
    assert ids == [*by_hand, control["<|assistant|>"]], "begin, role, text, end of turn, and the answer is opened"


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "a chat is a list of messages"),
        ("hello", "a chat is a list of messages"),
        ([{"role": "user"}], "message 1: a message needs"),
        ([{"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}], "did you mean 'assistant'"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "message 2: the system message"),
        ([{"role": "user", "content": 5}], "content must be text"),
    ],
)
def test_malformed_chats_are_refused_with_the_message_number(messages: object, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        chat.check_messages(messages)  # type: ignore[arg-type]


def test_padding_and_truncation_of_a_file_change_no_ids(tokenizer: Tokenizer) -> None:
    content = json.loads(json.dumps(tokenizer.content))
    content["pre_tokenizer"]["pretokenizers"].append({"type": "Digits", "individual_digits": True})  # the slow encoder
    plain = Tokenizer(content).encode(SCRIPTS[3])
    padding = {"strategy": {"Fixed": 10**8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    content["padding"] = {**padding, "pad_type_id": 0, "pad_token": "x"}
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    assert Tokenizer(content).encode(SCRIPTS[3]) == plain, "all of the text and nothing else"
