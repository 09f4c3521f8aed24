"""Tokenizers in GGUF files give llama.cpp's ids, in both directions; what llama.cpp would run otherwise is not written.

Where a test says "the control", it shows that llama.cpp, or the same thing without the protection, does it otherwise.
"""

from __future__ import annotations

import importlib.util
import io
import json
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from parity.smollm2 import SMOLLM2, needs_smollm2
from parity.tokenizers_of_others import KINDS, TEXT, strings, trained_pieces, write_vocabulary
from tokenizers import AddedToken

from bimo import ModelSpec, Tokenizer, UserError, new
from bimo.evaluation.llama_cpp_reference import LlamaCpp
from bimo.interop import pretokenizers
from bimo.interop.gguf_file import read_gguf
from bimo.interop.gguf_vocab import read_tokenizer, write_tokenizer

pytest.importorskip("gguf", reason="converters write with it")
needs_llama_cpp = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason='pip install "bimo[llama]"')
EXPORTABLE = ["gpt2", "llama3", "qwen2", "smollm2", "deepseek", "neox", "olmo2", "llama2", "gemma"]
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)


SMALL = ModelSpec(n_layers=1, n_heads=2, d_model=32, context_length=64)


@cache
def made(kind: str) -> str:
    return KINDS[kind]().to_str()


def made_with(kind: str, *added: AddedToken) -> Tokenizer:
    found = tokenizers.Tokenizer.from_str(made(kind))
    found.add_tokens(list(added))
    return Tokenizer(json.loads(found.to_str()))


def exported(tokenizer: Tokenizer, folder: Path) -> Path:
    spec = replace(SMALL, vocab_size=tokenizer.vocab_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say has tests of its own
        return new(spec, tokenizer).export(folder / "model.gguf", "F16")


def opened(path: Path) -> Tokenizer:
    return read_tokenizer(read_gguf(path).metadata, where=str(path))


def texts_for(tokenizer: Tokenizer, count: int, seed: int = 0) -> list[str]:
    """Strings without very long words, on which the regular expressions of llama.cpp run out of stack."""
    pieces = [tokenizer.decode([i]) for i in range(min(tokenizer.vocab_size, 5000))]
    return [text for text in strings(count, seed, pieces) if len(text) < 500]


def unlike(ours: Tokenizer, theirs: LlamaCpp, texts: Sequence[str]) -> list[str]:
    return [text for text in texts if ours.encode(text) != theirs.encode(text)]


@pytest.mark.parametrize("kind", EXPORTABLE)
def test_an_exported_tokenizer_comes_back(kind: str, tmp_path: Path) -> None:
    source = Tokenizer(json.loads(made(kind)))
    again = opened(exported(source, tmp_path))
    texts = [unicodedata.normalize("NFC", text) for text in texts_for(source, 500) if "'ſ" not in text]
    assert [text for text in texts if again.encode(text) != source.encode(text)] == [], "ids"
    assert [text for text in texts if again.decode(source.encode(text)) != source.decode(source.encode(text))] == []
    assert again.prefix_ids == source.prefix_ids, "what stands in front"


@needs_llama_cpp
@pytest.mark.parametrize("kind", EXPORTABLE)
def test_llama_cpp_gives_an_exported_tokenizer_the_same_ids(kind: str, tmp_path: Path) -> None:
    source = Tokenizer(json.loads(made(kind)))
    path = exported(source, tmp_path)
    theirs, texts = LlamaCpp(path, only_vocabulary=True), texts_for(source, 1500)
    assert unlike(opened(path), theirs, texts) == [], "as bimo reads the file"
    told = [unicodedata.normalize("NFC", text) for text in texts if "'ſ" not in text]
    assert unlike(source, theirs, told) == [], "as the source has it"


@needs_llama_cpp
def test_a_tokenizer_of_bimo_is_the_same_in_llama_cpp_on_every_text(tmp_path: Path) -> None:
    source = Tokenizer.train([*TEXT, "Congreſs aſſures 'ſome 'ſtates " * 20], 700)
    theirs = LlamaCpp(exported(source, tmp_path), only_vocabulary=True)
    assert unlike(source, theirs, [*texts_for(source, 1500), "the 'ſtates 'ſome", "e\u0301"]) == []


def vocabulary_of_bytes(path: Path, pre: str) -> Path:
    """A byte-level vocabulary with merges across all borders, so that every cut shows."""
    model = json.loads(made("gpt2"))["model"]
    merging = tokenizers.Tokenizer(tokenizers.models.BPE())
    merging.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = [piece for piece in model["vocab"] if len(piece) == 1]
    merging.train_from_iterator(
        TEXT, tokenizers.trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(merging.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [" ".join(merge) for merge in model["merges"]]
    tokens, types = [*tokens, "<s>", "</s>"], [NORMAL] * len(tokens) + [CONTROL] * 2
    return write_vocabulary(
        path, tokens, types, model="gpt2", pre=pre, merges=merges, bos_token_id=len(tokens) - 2, eos_token_id=0
    )


@needs_llama_cpp
@pytest.mark.parametrize("pre", [known.names[0] for known in pretokenizers.KNOWN])
def test_a_file_is_cut_as_llama_cpp_cuts_it(pre: str, tmp_path: Path) -> None:
    path = vocabulary_of_bytes(tmp_path / "vocabulary.gguf", pre)
    ours = opened(path)
    assert unlike(ours, LlamaCpp(path, only_vocabulary=True), texts_for(ours, 150)) == []


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("pre", [name for known in pretokenizers.KNOWN for name in known.names])
def test_every_name_of_a_cut_is_cut_as_llama_cpp_cuts_it(pre: str, tmp_path: Path) -> None:
    path = vocabulary_of_bytes(tmp_path / "vocabulary.gguf", pre)
    ours = opened(path)
    assert unlike(ours, LlamaCpp(path, only_vocabulary=True), texts_for(ours, 2000, seed=1)) == []


def test_an_unknown_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pre-tokenizer 'of tomorrow' is not supported"):
        opened(vocabulary_of_bytes(tmp_path / "vocabulary.gguf", "of tomorrow"))


def pieces_file(path: Path, scores: str = "tied", extra: Sequence[tuple[str, int]] = (), **words: Any) -> Path:
    """A SentencePiece vocabulary as converters write it.

    Args:
        path: Where to.
        scores: "tied" as in Llama 2, "distinct", or "equal" as a converter without tokenizer.model leaves them.
        extra: More tokens with their types.
        words: Other fields.
    """
    tokens, found, types = trained_pieces()
    if scores != "tied":
        found = [-1000.0 if scores == "equal" else -float(i) for i in range(len(tokens))]
    tokens, types = [*tokens, *(name for name, _ in extra)], [*types, *(kind for _, kind in extra)]
    found = [*found, *(-1000.0 for _ in extra)]
    return write_vocabulary(path, tokens, types, model="llama", pre="default", scores=found, **words)


USERS = [("  ", USER), ("\n" * 7, USER), ("<table>", USER), ("e><t", USER), ("[PAD]", UNUSED), ("<|im_end|>", USER)]


@needs_llama_cpp
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("extra", [[], USERS], ids=["plain", "with added tokens"])
@pytest.mark.parametrize("scores", ["tied", "distinct", "equal"])
def test_pieces_merge_as_in_llama_cpp(scores: str, extra: list[tuple[str, int]], prefix: bool, tmp_path: Path) -> None:
    path = pieces_file(tmp_path / "pieces.gguf", scores, extra, add_space_prefix=prefix)
    ours, theirs = opened(path), LlamaCpp(path, only_vocabulary=True)
    assert unlike(ours, theirs, texts_for(ours, 400 if extra else 1500)) == []
    for text in ["<s>the cat</s> a", "<unk><s><s> x  y", "</s>\n<|im_end|>\n<table><table>", "", "<s>"]:
        assert ours.encode_marked(text) == theirs.encode_marked(text), text


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("scores", ["tied", "distinct", "equal"])
def test_a_hundred_thousand_strings_give_llama_cpps_pieces(scores: str, tmp_path: Path) -> None:
    path = pieces_file(tmp_path / "pieces.gguf", scores)
    ours = opened(path)
    assert unlike(ours, LlamaCpp(path, only_vocabulary=True), texts_for(ours, 100_000, seed=1)) == []


@pytest.mark.parametrize(("scores", "kept"), [("tied", True), ("equal", True), ("distinct", False)])
def test_scores_are_kept_where_merges_cannot_say_the_same(scores: str, kept: bool, tmp_path: Path) -> None:
    ours = opened(pieces_file(tmp_path / "pieces.gguf", scores))
    assert ("scores" in ours.content["model"]) is kept
    merged = Tokenizer({**ours.content, "model": {k: v for k, v in ours.content["model"].items() if k != "scores"}})
    unlike_merges = [text for text in texts_for(ours, 1000) if merged.encode(text) != ours.encode(text)]
    assert bool(unlike_merges) is (scores == "equal"), "the control: merges say something else"


def test_kept_scores_survive_a_folder_and_another_file(tmp_path: Path) -> None:
    ours = opened(pieces_file(tmp_path / "pieces.gguf", "equal", bos_token_id=1, eos_token_id=2, unk_token_id=0))
    ours.save(tmp_path / "folder")
    for again in (Tokenizer.load(tmp_path / "folder"), opened(exported(ours, tmp_path))):
        assert [t for t in texts_for(ours, 500) if again.encode(t) != ours.encode(t)] == [], "the same ids"
        assert again.prefix_ids == ours.prefix_ids == [1], "and what stands in front"


@needs_llama_cpp
def test_no_text_makes_a_control_token_though_the_pieces_of_its_name_are_there(tmp_path: Path) -> None:
    path = pieces_file(tmp_path / "pieces.gguf", extra=[("</", NORMAL), ("</s", NORMAL), ("<0x0", NORMAL)])
    ours, theirs = opened(path), LlamaCpp(path, only_vocabulary=True)
    assert 2 in theirs.encode("a</s>"), "the control: llama.cpp makes one"
    assert 2 not in ours.encode("a</s>"), "bimo does not"
    assert ours.decode(ours.encode("a</s>")) == "a</s>", "and the text comes back"


@needs_llama_cpp
def test_phi3_by_name_takes_the_spaces_after_control_tokens(tmp_path: Path) -> None:
    extra = [("<|endoftext|>", CONTROL), ("<|user|>", CONTROL), ("<|x|>", USER)]
    for name, same in (("Phi-3 mini", True), ("another", False)):
        path = pieces_file(tmp_path / f"{name}.gguf", extra=extra, name=name)
        ours, theirs = opened(path), LlamaCpp(path, only_vocabulary=True)
        for text in ["<|user|> \n a<|x|>  b", "<s> a</s> \t<|endoftext|> b", "<|x|><|x|> <|x|>"]:
            assert ours.encode_marked(text) == theirs.encode_marked(text), text
        tight, loose = ours.encode_marked("<|user|>a"), ours.encode_marked("<|user|> \na")
        assert (tight == loose) is same, name


@needs_llama_cpp
def test_names_that_llama_cpp_takes_for_control_tokens_are_control_tokens(tmp_path: Path) -> None:
    path = pieces_file(tmp_path / "pieces.gguf", extra=[("<|im_end|>", USER), ("<|another|>", USER)])
    ours, theirs = opened(path), LlamaCpp(path, only_vocabulary=True)
    assert ours.encode("a<|im_end|>") == theirs.encode("a<|im_end|>"), "characters"
    assert ours.encode("a<|another|>") == theirs.encode("a<|another|>"), "a token"
    assert {"<|im_end|>"} == {name for name in ours.control_tokens if "|" in name}


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("tekken", "does not know how this tokenizer cuts"),
        ("llama2, metaspace", "a space in front of some texts only"),
        ("unigram", "does not know how this tokenizer cuts"),
    ],
)
def test_a_tokenizer_that_llama_cpp_has_no_way_for_is_refused(kind: str, why: str) -> None:
    tokenizer = Tokenizer(json.loads(made(kind)))
    with pytest.raises(UserError, match=why):
        write_tokenizer(tokenizer, tokenizer.vocab_size)


@needs_llama_cpp
def test_tekken_would_be_cut_otherwise(tmp_path: Path) -> None:
    content = json.loads(made("tekken"))
    content["pre_tokenizer"] = pretokenizers.to_json(
        next(k for k in pretokenizers.KNOWN if "tekken" in k.names).stages, content["model"]["vocab"]
    )
    theirs = LlamaCpp(exported(Tokenizer(content), tmp_path), only_vocabulary=True)
    assert unlike(Tokenizer(json.loads(made("tekken"))), theirs, TEXT), "the control for refusing it"


@pytest.mark.parametrize(
    "added",
    [
        AddedToken("<left>", lstrip=True, normalized=False),
        AddedToken("<right>", rstrip=True, normalized=False),
        AddedToken("alone", single_word=True, normalized=False),
    ],
)
def test_an_added_token_that_llama_cpp_would_look_for_otherwise_is_refused(added: AddedToken, tmp_path: Path) -> None:
    tokenizer = made_with("gpt2", added)
    with pytest.raises(UserError, match=f"added token '{added.content}'"):
        write_tokenizer(tokenizer, tokenizer.vocab_size)
    again = opened(exported(made_with("gpt2", AddedToken(added.content, normalized=False)), tmp_path))
    text = f"a {added.content} b{added.content}b"
    assert again.encode(text) != tokenizer.encode(text), "the control: without those flags, text has other ids"


@needs_llama_cpp
def test_added_tokens_that_overlap_in_another_way_are_refused(tmp_path: Path) -> None:
    tokenizer = made_with("gpt2", AddedToken("<ab", normalized=False), AddedToken("bcd>", normalized=False))
    with pytest.raises(UserError, match="'bcd>'"):
        write_tokenizer(tokenizer, tokenizer.vocab_size)
    path = pieces_file(tmp_path / "pieces.gguf", extra=[("<ab", USER), ("bcd>", USER)])
    ours = opened(path)
    first, second = (ours.content["model"]["vocab"][name] for name in ("<ab", "bcd>"))
    assert first in tokenizer_like(ours).encode("<abcd>").ids, "the control: the library takes the first"
    assert second in LlamaCpp(path, only_vocabulary=True).encode("<abcd>"), "llama.cpp takes the longest"
    assert second in ours.encode("<abcd>"), "and so does bimo, which read the file"


def tokenizer_like(ours: Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(ours.content))


def merged_once() -> Tokenizer:
    """A vocabulary with the piece ▁the, which no pair makes."""
    content = json.loads(made("llama2"))
    pairs = [pair for pair in content["model"]["merges"] if "".join(pair) not in ("▁the", "▁t", "he")]
    assert "▁the" in content["model"]["vocab"], "a piece that no pair makes now"
    content["model"]["merges"] = [*pairs, ["▁", "t"], ["h", "e"]]
    return Tokenizer(content)


@needs_llama_cpp
def test_a_vocabulary_whose_merges_leave_a_token_in_two_is_refused(tmp_path: Path) -> None:
    tokenizer = merged_once()
    with pytest.raises(UserError, match="is a token that its merges do not make"):
        write_tokenizer(tokenizer, tokenizer.vocab_size)
    whole = Tokenizer(json.loads(made("llama2")))
    theirs = LlamaCpp(exported(whole, tmp_path), only_vocabulary=True)
    assert theirs.encode("the") != tokenizer.encode("the"), "the control: llama.cpp makes the token all the same"


def test_a_vocabulary_without_bytes_is_refused() -> None:
    content = json.loads(made("llama2"))
    content["model"]["vocab"]["<0xZZ>"] = content["model"]["vocab"].pop("<0x41>")
    with pytest.raises(UserError, match="lacks the byte <0x41>"):
        write_tokenizer(Tokenizer(content), len(content["model"]["vocab"]))


def test_a_token_with_nul_is_refused() -> None:
    tokenizer = made_with("gpt2", AddedToken("a\0b", normalized=False))
    with pytest.raises(UserError, match="NUL"):
        write_tokenizer(tokenizer, tokenizer.vocab_size)


@pytest.mark.parametrize(
    ("tokenizer", "told", "text"),
    [
        (lambda: made_with("neox"), "into NFC", "e\u0301"),
        (lambda: made_with("llama3"), "the letter ſ", "'ſध"),
        (lambda: made_with("gpt2", AddedToken("</s>a", normalized=False)), None, "</s>a"),
        (
            lambda: made_with("gpt2", AddedToken("<|fim_pad|>", normalized=False)),
            "takes <|fim_pad|> for",
            "<|fim_pad|>",
        ),
    ],
    ids=["normaliser", "long s", "an ordinary name", "a name of a control token"],
)
def test_what_no_ordinary_text_meets_is_told(tokenizer: Any, told: str | None, text: str, tmp_path: Path) -> None:
    source: Tokenizer = tokenizer()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_tokenizer(source, source.vocab_size)
    said = [str(warning.message) for warning in caught]
    assert [told in message for message in said] == [True] if told else said == [], said
    again = opened(exported(source, tmp_path))
    assert (again.encode(text) == source.encode(text)) is (told is None), "and it is true"
    assert again.encode("the cat's tree") == source.encode("the cat's tree"), "ordinary text is the same"


def test_control_tokens_that_take_spaces_are_told() -> None:
    source = made_with("llama2", AddedToken("<|end|>", rstrip=True, special=True))
    with pytest.warns(UserWarning, match=r"keeps the spaces beside <\|end\|>"):
        write_tokenizer(source, source.vocab_size)


@needs_llama_cpp
def test_a_conversation_gives_llama_cpps_ids(tmp_path: Path) -> None:
    template = (Path(__file__).parents[1] / "tokenizer" / "templates" / "smollm2.jinja").read_text(encoding="utf-8")
    source = made_with("smollm2", AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True))
    source.save(tmp_path / "folder")
    config = {"chat_template": template, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": False}
    (tmp_path / "folder" / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    path = exported(Tokenizer.load(tmp_path / "folder"), tmp_path)
    ours, theirs = opened(path), LlamaCpp(path, only_vocabulary=True)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " What is 墨?\n"}]
    rendered = ours._template.render(messages)
    assert ours.encode_chat(messages) == theirs.encode_marked(rendered), "the same ids"
    assert ours.end_id == ours.control_tokens["<|im_end|>"], "and the same end"


@needs_llama_cpp
def test_nothing_merges_across_a_byte_that_the_vocabulary_lacks(tmp_path: Path) -> None:
    content = json.loads(made("smollm2"))
    vocab = content["model"]["vocab"]
    for piece in [piece for piece in vocab if "Ć" in piece]:  # the letter of the byte 6
        number = vocab.pop(piece)
        vocab[f"[GONE {number}]"] = number
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "Ć" not in "".join(pair)]
    for pair in (("'", "'"), ("Ġ", "'")):
        vocab.setdefault("".join(pair), len(vocab))
        content["model"]["merges"] = [list(pair), *(m for m in content["model"]["merges"] if m != list(pair))]
    with pytest.warns(UserWarning, match="a byte that the vocabulary lacks"):
        path = new(SMALL, Tokenizer(content)).export(tmp_path / "model.gguf", "F16")
    ours, theirs = opened(path), LlamaCpp(path, only_vocabulary=True)
    texts = ["a '\6' b", " \6'", "\6", "\6\6 ''", "x\6"]
    assert unlike(ours, theirs, texts) == [], "as llama.cpp reads the file"
    assert unlike(Tokenizer(content), theirs, texts), "the control: without the cut they merge"
    ours.save(tmp_path / "folder")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = new(SMALL, Tokenizer.load(tmp_path / "folder")).export(tmp_path / "again.gguf", "F16")
    assert unlike(opened(again), theirs, texts) == [], "and it stays so"


@needs_llama_cpp
@needs_smollm2
@pytest.mark.parametrize("count", [1500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_smollm2_gives_llama_cpps_ids(count: int) -> None:
    assert SMOLLM2 is not None, "skipped otherwise"
    ours, theirs = opened(SMOLLM2), LlamaCpp(SMOLLM2, only_vocabulary=True)
    assert unlike(ours, theirs, texts_for(ours, count)) == []


@needs_llama_cpp
def test_a_vocabulary_that_sentencepiece_trained_gives_its_ids(tmp_path: Path) -> None:
    library = pytest.importorskip("sentencepiece", reason="the reference for its own files")
    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in TEXT for line in text.split("\n")),
        **{"model_writer": model, "model_type": "bpe", "vocab_size": 800, "byte_fallback": True, "split_digits": True},
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "minloglevel": 2},
        **{"character_coverage": 0.98, "allow_whitespace_only_pieces": True},
    )
    pieces = library.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(pieces.vocab_size())
    kinds = [
        (pieces.is_unknown, UNKNOWN),
        (pieces.is_control, CONTROL),
        (pieces.is_unused, UNUSED),
        (pieces.is_byte, BYTE),
    ]
    types = [next((kind for asks, kind in kinds if asks(i)), NORMAL) for i in ids]
    path = write_vocabulary(
        tmp_path / "pieces.gguf",
        [pieces.id_to_piece(i) for i in ids],
        types,
        **{"model": "llama", "pre": "default", "scores": [pieces.get_score(i) for i in ids]},
    )
    ours = opened(path)
    texts = [text for text in texts_for(ours, 1500) if "\0" not in text]  # which ends a text for sentencepiece
    assert unlike(ours, LlamaCpp(path, only_vocabulary=True), texts) == [], "llama.cpp's"
    assert [text for text in texts if ours.encode(text) != pieces.encode(text)] == [], "sentencepiece's"
    assert [text for text in texts if ours.decode(ours.encode(text)) != pieces.decode(pieces.encode(text))] == []


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen2", "smollm2"])
@pytest.mark.parametrize("reachable", [False, True])
def test_tables_handed_over_in_memory_give_the_ids_of_the_file_as_json(
    kind: str, reachable: bool, tmp_path: Path
) -> None:
    made_of = json.loads(made(kind))
    if reachable:  # a control token whose name the merges make out of text
        vocab = made_of["model"]["vocab"]
        left, right = next(tuple(m) for m in reversed(made_of["model"]["merges"]) if "".join(m).isascii())
        made_of["added_tokens"].append(json.loads(_added(left + right, vocab[left + right])))
    ours = opened(exported(Tokenizer(made_of), tmp_path))
    as_json = Tokenizer(json.loads(json.dumps(ours.content)), special=ours.special)
    assert ours.fingerprint == as_json.fingerprint, "the file is the same"
    names = " ".join(ours.control_tokens)
    for text in (*TEXT, names, " ".join(TEXT) + names + "\n  ſ 𝒳 \u0301é"):
        assert ours.encode(text) == as_json.encode(text), "ids of text"
        assert ours.encode_marked(text) == as_json.encode_marked(text), "ids of text with control tokens"
    assert ours.bytes_of_ids == as_json.bytes_of_ids, "bytes"


def _added(name: str, i: int) -> str:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return json.dumps({"id": i, "content": name, **flags, "special": True})
