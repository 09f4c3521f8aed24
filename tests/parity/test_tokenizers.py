"""Tokenizers of others give the ids and texts of Hugging Face's own libraries, and no text forges a control token."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from parity.tokenizers_of_others import CONTROL, KINDS, added_variants, strings

from bimo import Tokenizer, UserError

transformers = pytest.importorskip("transformers", reason="the reference is an extra")
TEMPLATES = Path(__file__).parents[1] / "tokenizer" / "templates"
MARKS = {
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "qwen3": ["<|im_start|>", "<|im_end|>"],
    "smollm2": ["<|im_start|>", "<|im_end|>"],
    "mistral": ["[INST]", "[/INST]"],
    "gemma": ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
}
BASES = {"llama3": "llama3", "qwen3": "qwen2", "smollm2": "smollm2", "mistral": "llama2", "gemma": "gemma"}


@cache
def made(kind: str, variants: bool = False) -> tokenizers.Tokenizer:
    found = KINDS[kind]()
    if variants:
        found.add_tokens(added_variants())
    return found


def reference_of(found: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same; control tokens in a text are ordinary characters."""
    again = tokenizers.Tokenizer.from_str(found.to_str())
    again.encode_special_tokens = True
    return again


def loaded(found: tokenizers.Tokenizer, folder: Path) -> Tokenizer:
    found.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


def check(ours: Tokenizer, theirs: tokenizers.Tokenizer, count: int, seed: int = 0) -> None:
    """Ids and decoded text are the same on so many strings."""
    pieces = [*(ours.decode([i]) for i in range(ours.vocab_size)), *(token.content for token in added_variants())]
    texts = strings(count, seed, pieces)
    if ours.content["model"]["type"] == "Unigram":  # of which the library lets text make control tokens
        texts = [text for text in texts if not any(name in text for name in CONTROL)]
    expected = [encoded.ids for encoded in theirs.encode_batch_fast(texts, add_special_tokens=False)]
    found = [ours.encode(text) for text in texts]
    assert [t for t, ids, wanted in zip(texts, found, expected, strict=True) if ids != wanted] == [], "other ids"
    back = theirs.decode_batch(expected)
    assert [t for t, ids, wanted in zip(texts, found, back, strict=True) if ours.decode(ids) != wanted] == [], "decoded"
    assert [ids.tolist() for ids in ours.encode_batch(texts)] == found, "batches"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text_equal_those_of_the_library(kind: str, tmp_path: Path) -> None:
    check(loaded(made(kind), tmp_path), reference_of(made(kind)), 1500)


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_that_take_spaces_or_stand_alone_are_found_alike(kind: str, tmp_path: Path) -> None:
    found = made(kind, variants=True)
    check(loaded(found, tmp_path), reference_of(found), 500, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_thousand_strings_give_the_same(kind: str, tmp_path: Path) -> None:
    check(loaded(made(kind), tmp_path), reference_of(made(kind)), 100_000, seed=2)


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_control_tokens_are_read_as_the_library_reads_them_when_asked_to(kind: str, tmp_path: Path) -> None:
    found = made(kind, variants=True)
    ours = loaded(found, tmp_path)
    for text in ["<s>the cat</s>", "<|user|> a\n<|stop|>\n<|assistant|>", " <|left|> x <|right|> y", "<s><s> <unk>b"]:
        assert ours.encode_marked(text) == found.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_makes_a_control_token(kind: str, tmp_path: Path) -> None:
    ours = loaded(made(kind), tmp_path)
    control = {i for name, i in ours.control_tokens.items() if name != "<unk>"}  # what is unknown may be in a text
    for text in [*CONTROL, *(f"a {name} b" for name in CONTROL), "".join(CONTROL), "＜s＞", "pad <s"]:
        assert not control & set(ours.encode(text)), text
        assert ours.vocab_size > max(ours.encode(text)), text
    assert control & set(ours.encode_marked("".join(CONTROL))), "the control: marked text does"


@pytest.mark.parametrize("kind", ["unigram", "llama3", "llama2"])
def test_no_piece_of_the_model_makes_a_control_token_where_the_library_lets_it(kind: str) -> None:
    content = json.loads(made(kind).to_str())
    vocab = content["model"]["vocab"]
    name = next(piece for piece in vocab if piece.isalpha() and len(piece) == 4) if kind == "llama2" else "tacot"
    if kind == "unigram":
        vocab[1] = [name, -1.0]
    elif kind == "llama3":  # which takes a word that is a piece as a whole
        vocab[name] = vocab.pop("<s>")
    number = 1 if kind != "llama2" else vocab[name]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    others = [token for token in content["added_tokens"] if token["id"] != number]
    content["added_tokens"] = [*others, {"id": number, "content": name, **plain}]
    theirs = reference_of(tokenizers.Tokenizer.from_str(json.dumps(content)))
    ours = Tokenizer(content)
    assert number in theirs.encode(name, add_special_tokens=False).ids, "the control: theirs does"
    assert number not in ours.encode(name), "characters"
    assert number in ours.encode_marked(name), "by name, where control tokens may stand"
    assert ours.decode(ours.encode(name)).strip() == name, "and nothing is lost"


def test_a_file_whose_added_tokens_have_ids_that_the_library_would_change_is_refused() -> None:
    content = json.loads(made("gpt2").to_str())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    content["added_tokens"].append({"id": 9000, "content": "<far>", **plain})
    with pytest.raises(UserError, match=r"<far>.*9000"):
        Tokenizer(content).encode("a")


def saved_by_transformers(kind: str, folder: Path, names: list[str], template: str = "") -> Any:
    """What `save_pretrained` leaves, and `AutoTokenizer` on it."""
    found = tokenizers.Tokenizer.from_str(made(kind).to_str())
    found.add_special_tokens(names)
    words = {"bos_token": names[0], "eos_token": names[-1]} if names else {"bos_token": "<s>", "eos_token": "</s>"}
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=found, **words)
    if template:
        wrapped.chat_template = template
    wrapped.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_transformers_gives_the_ids_of_autotokenizer(kind: str, tmp_path: Path) -> None:
    theirs, ours = saved_by_transformers(kind, tmp_path, []), Tokenizer.load(tmp_path)
    for text in ["the cat", " 一只猫 in a tree\n\n  x", "Größe ½", ""]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
        assert [*ours.prefix_ids, *ours.encode(text)] == theirs(text)["input_ids"], "what stands in front"
    assert (ours.begin_id, ours.end_id) == (theirs.bos_token_id, theirs.eos_token_id), "roles"


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_json_alone_is_enough(kind: str, tmp_path: Path) -> None:
    theirs = saved_by_transformers(kind, tmp_path, [])
    (tmp_path / "tokenizer_config.json").unlink()
    ours = Tokenizer.load(tmp_path)
    assert [*ours.prefix_ids, *ours.encode("the cat")] == theirs("the cat")["input_ids"], "the same ids"


CONVERSATIONS = [
    [{"role": "user", "content": "What is 墨?"}],
    [{"role": "user", "content": " a  b\n"}, {"role": "assistant", "content": "Ink."}, {"role": "user", "content": ""}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the cat's tree"}],
]


def conversing(name: str, folder: Path) -> tuple[Any, Tokenizer]:
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return saved_by_transformers(BASES[name], folder, MARKS[name], template), Tokenizer.load(folder)


@pytest.mark.parametrize("name", MARKS)
@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
def test_a_conversation_gives_the_ids_of_apply_chat_template(name: str, number: int, tmp_path: Path) -> None:
    theirs, ours = conversing(name, tmp_path)
    messages = CONVERSATIONS[number]
    if name == "gemma":  # whose template knows no system message
        messages = [message for message in messages if message["role"] != "system"]
    for prompt in (True, False):
        expected = theirs.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=True, return_dict=True)
        assert ours.encode_chat(messages, add_generation_prompt=prompt) == expected["input_ids"], "the same ids"


@pytest.mark.parametrize("name", MARKS)
def test_a_message_with_the_name_of_a_control_token_stays_text(name: str, tmp_path: Path) -> None:
    _, ours = conversing(name, tmp_path)
    marks = {ours.control_tokens[mark] for mark in MARKS[name]}

    def written(content: str) -> int:
        return sum(i in marks for i in ours.encode_chat([{"role": "user", "content": content}]))

    forged = f"a {MARKS[name][-1]} b{''.join(MARKS[name])}"
    assert written(forged) == written("a b"), "as many control tokens as the template writes"
    assert marks & set(ours.encode_marked(forged)), "the control: as marked text it holds some"


@pytest.mark.parametrize("name", MARKS)
def test_conversations_have_the_ids_of_the_slow_way(name: str, tmp_path: Path) -> None:
    """The slow way: the template runs for each conversation, and its text is encoded as a whole."""
    found = made(BASES[name])
    again = tokenizers.Tokenizer.from_str(found.to_str())
    again.add_special_tokens(MARKS[name])
    ours = loaded(again, tmp_path)
    text = (TEMPLATES / f"{name}.jinja").read_text()
    ours.special = replace(ours.special, template=text, begin="<s>", end="</s>")
    texts = iter(strings(900, seed=3))
    checked = 0
    for contents in zip(texts, texts, texts, strict=True):
        roles = ("user", "assistant", "user")
        for count, prompt in itertools.product((1, 2, 3), (True, False)):
            messages = [{"role": r, "content": text} for r, text in zip(roles[:count], contents, strict=False)]
            pieces = ours._template.pieces(messages, ours.control_tokens, add_generation_prompt=prompt)
            if len(pieces) > 1:
                continue  # a name of a control token stands in it
            whole = ours._template.render(messages, add_generation_prompt=prompt)
            assert ours.encode_chat(messages, add_generation_prompt=prompt) == ours._asked(
                lambda text=whole: ours._marking._whole(text)
            )
            checked += 1
    assert checked > 1200
    assert ours._template._frames.found, "and the fast way was taken"
