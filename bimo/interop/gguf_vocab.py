"""Tokenizers inside GGUF files: byte-level BPE ("gpt2") and SentencePiece's BPE ("llama"), to tokenizer.json and back.

A tokenizer that was read gives llama.cpp's ids. One that llama.cpp would run otherwise is refused when writing, not
approximated, but for what llama.cpp does with every tokenizer and ordinary text does not meet; a warning says so: it
brings no text into NFC, takes some names for control tokens whatever the file says, and never the letter ſ for an s.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from bimo.core.errors import UserError
from bimo.interop import pretokenizers
from bimo.interop.gguf_pieces import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER, read_pieces, written_pieces
from bimo.tokenizer import Tokenizer
from bimo.tokenizer.bpe import JoinedMerges, halves, lost_merge
from bimo.tokenizer.pieces import partition
from bimo.tokenizer.special import ENDS, SpecialTokens

_KEY = "tokenizer.ggml."
_MOST_CUTS = 2**27  # characters; 260,000 tokens of Gemma have a tenth of that
_MOST_TRIED = 2000  # texts in which added tokens overlap; runs of spaces and line breaks make some 200 in Gemma
_AGAIN = "Download or export the file again."
_KEEP = ("<unk>", "<s>", "<|endoftext|>")
_ELSEWHERE = "Export a Hugging Face folder instead."
_TAKEN_FOR_CONTROL = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
        *("<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
        *("<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "[e~["),
        *("<｜end▁of▁sentence｜>", "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>"),
        *("▁<PRE>", "<|code_prefix|>", "<|prefix|>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>"),
        *("<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>", "<|suffix|>", "<|fim_middle|>", "<fim-middle>"),
        *("<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>", "<|middle|>", "<|fim_pad|>"),
        *("<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>"),
        *("<reponame>", "<|file_sep|>"),
    )
)
"""Names that llama.cpp takes for control tokens, whatever type the file gives them."""


def read_tokenizer(metadata: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer of a file.

    Raises:
        UserError: It is of a kind that bimo does not know, or damaged.
    """
    kind, tokens = metadata.get(f"{_KEY}model"), metadata.get(f"{_KEY}tokens")
    if kind not in ("gpt2", "llama"):
        raise UserError(f"a tokenizer of kind {kind!r} is not supported", where=where, mend="Known: gpt2, llama.")
    if not isinstance(tokens, list) or {*map(type, tokens)} != {str}:
        raise UserError(f"{_KEY}tokens is no list of texts", where=where, mend=_AGAIN)
    if "" in tokens or "\0" in "".join(tokens):
        tokens = [name.partition("\0")[0] or f"[EMPTY_{i}]" for i, name in enumerate(tokens)]  # as llama.cpp reads them
    types = _numbers(metadata, "token_type", tokens, where) or [NORMAL] * len(tokens)
    if {*map(type, types)} != {int} or not {*types} <= {*range(BYTE + 1)}:
        raise UserError(f"{_KEY}token_type holds what is no type of a token", where=where, mend=_AGAIN)
    vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(vocab) != len(tokens):
        tokens, types = _distinct(tokens, types)
        vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    taken = {vocab[name] for name in _TAKEN_FOR_CONTROL & vocab.keys()}
    kinds = {i: CONTROL if i in taken else kind for i, kind in enumerate(types) if kind != NORMAL or i in taken}
    flags = {"single_word": False, "lstrip": False, "normalized": False}
    strips = any(name in str(metadata.get("general.name")).lower() for name in ("phi-3", "phi3"))  # llama.cpp's rule
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], **flags, "special": k != USER, "rstrip": strips and tokens[i] not in _KEEP}
            for i, k in kinds.items()
            if k in (CONTROL, USER, UNKNOWN)
        ],
        "post_processor": None,
        **(
            _byte_level(metadata, vocab, kinds, where)
            if kind == "gpt2"
            else _sentence_piece(metadata, tokens, kinds, where)
        ),
    }
    return Tokenizer(content, where=where, special=_special(metadata, tokens, where))


def write_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The fields of a GGUF file for a tokenizer.

    Args:
        tokenizer: The tokenizer.
        vocab_size: Ids of the model; those beyond the tokenizer are marked as unused.

    Raises:
        UserError: llama.cpp has no such tokenizer.
    """
    content, where = tokenizer.content, tokenizer.where
    added = {token["content"]: token for token in content.get("added_tokens") or []}
    vocab = content["model"]["vocab"] if content["model"].get("type", "BPE") == "BPE" else {}
    names = {i: name for name, i in vocab.items()} | {token["id"]: name for name, token in added.items()}
    tokens = [names.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    if any("\0" in name or not name for name in tokens):
        raise UserError(
            "a token is empty or holds a NUL character, which llama.cpp cannot read",
            where=where,
            mend=_ELSEWHERE,
        )
    _check_added(content, where)

    def kind(i: int, token: str) -> int:
        if token in added:
            return CONTROL if added[token].get("special") or token in _TAKEN_FOR_CONTROL else USER
        return NORMAL if i in names else UNUSED

    types = [kind(i, token) for i, token in enumerate(tokens)]
    if pretokenizers.stages_of(content.get("pre_tokenizer")) is not None and vocab:
        words = _written_merges(content, where)
    elif vocab and content["model"].get("byte_fallback"):
        words, types = written_pieces(content, tokens, types, where)
    else:
        raise _unknown_cut(where)
    return _named({"tokens": tokens, "token_type": types, **words, **_roles(tokenizer)}, tokenizer.special.template)


def _written_merges(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a byte-level BPE vocabulary."""
    model, cut = content["model"], content.get("pre_tokenizer")
    known = pretokenizers.recognised(cut, bool(model.get("ignore_merges")))
    normalizer = content.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    if known is None or any(step.get("type") != "NFC" for step in steps):
        raise _unknown_cut(where)
    apart, lacking = pretokenizers.cut_of_bytes(cut), pretokenizers.lacking(model["vocab"])
    if apart and apart != lacking:
        raise _unknown_cut(where)
    if lacking and not apart:
        _warn("llama.cpp merges nothing across a byte that the vocabulary lacks, as this tokenizer does", where)
    joined = pretokenizers.joins_long_s(cut, model["vocab"])
    if joined:
        _warn("llama.cpp does not take the letter ſ for an s after an apostrophe: there 'ſ may get other ids", where)
    if steps:
        _warn("llama.cpp does not bring text into NFC as this tokenizer does: other text gets other ids there", where)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return {"model": "gpt2", "pre": known.names[0], "merges": merges}


def _check_added(content: Mapping[str, Any], where: str) -> None:
    """Refuse added tokens that llama.cpp would find elsewhere in a text."""
    added = [token for token in content.get("added_tokens") or [] if not token.get("special")]
    odd = next((t["content"] for t in added if t.get("lstrip") or t.get("rstrip") or t.get("single_word")), None)
    normalized = next(
        (t["content"] for t in added if t.get("normalized") and "Replace" in str(content["normalizer"])), None
    )
    odd = odd or normalized or _overlapping([token["content"] for token in added])
    if odd is not None:
        raise UserError(
            f"llama.cpp would look for the added token {odd!r} in another way than this tokenizer",
            where=where,
            mend=_ELSEWHERE,
        )
    stripping = [t["content"] for t in content.get("added_tokens") or [] if t.get("lstrip") or t.get("rstrip")]
    if stripping:
        _warn(f"llama.cpp keeps the spaces beside {', '.join(stripping)}: conversations may get other ids there", where)
    taken = sorted(token["content"] for token in added if token["content"] in _TAKEN_FOR_CONTROL)
    if taken:
        _warn(
            f"llama.cpp takes {', '.join(taken)} for control tokens: in a text they are ordinary characters there",
            where,
        )


def _overlapping(names: list[str]) -> str | None:
    """A token that may stand half inside another one, where llama.cpp takes the longer and others the first."""
    if sum(len(name) ** 2 for name in names) > _MOST_CUTS:
        return names[0]  # too much to try; no tokenizer that is published has so much
    begun: dict[str, list[str]] = {}
    for name in names:
        for length in range(1, len(name)):
            begun.setdefault(name[:length], []).append(name)
    ids = {name: i for i, name in enumerate(names)}
    tried: set[str] = set()
    for name in names:
        for start in range(1, len(name)):
            for other in begun.get(name[start:], []):
                text = name[:start] + other
                if other == name or text in tried:
                    continue
                tried.add(text)
                if len(tried) > _MOST_TRIED:
                    return other
                inside = {text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)} & ids.keys()
                longest_first = sorted(inside, key=lambda name: len(name.encode()), reverse=True)
                as_there = partition(text, [(name, ids[name], False) for name in longest_first])
                if len(name.encode()) == len(other.encode()) or as_there != _first_come(text, ids):
                    return other
    return None


def _first_come(text: str, ids: Mapping[str, int]) -> list[str | int]:
    """A text cut at added tokens as Hugging Face does it: from the left, the longest that begins there."""
    parts: list[str | int] = []
    start = place = 0
    while place < len(text):
        name = next((text[place:end] for end in range(len(text), place, -1) if text[place:end] in ids), None)
        if name is None:
            place += 1
            continue
        parts += [text[start:place], ids[name]] if start < place else [ids[name]]
        start = place = place + len(name)
    return [*parts, text[start:]] if start < len(text) else parts


def _unknown_cut(where: str) -> UserError:
    return UserError("llama.cpp does not know how this tokenizer cuts a text", where=where, mend=_ELSEWHERE)


def _warn(what: str, where: str) -> None:
    warnings.warn(f"{where}: {what}", stacklevel=3)


def _named(words: dict[str, Any], template: str) -> dict[str, Any]:
    named = {_KEY + key: value for key, value in words.items()}
    return {**named, "tokenizer.chat_template": template} if template else named


def _roles(tokenizer: Tokenizer) -> dict[str, Any]:
    """Ids of the tokens with a role."""
    special = tokenizer.special
    ids = {name: i for i, name in enumerate_names(tokenizer)}
    turn = next((name for name in (*special.ends, *ENDS) if name in ids and name != special.end), "")
    prefix = tokenizer.prefix_ids
    begin = next((name for i, name in enumerate_names(tokenizer) if prefix == [i]), special.begin)
    if prefix and [ids.get(begin)] != prefix:
        raise UserError("texts begin with more than one token", where=tokenizer.where, mend=_ELSEWHERE)
    roles = {"bos": begin, "eos": special.end, "padding": special.pad, "eot": turn}
    found = {f"{role}_token_id": ids[name] for role, name in roles.items() if name in ids}
    return {**found, "add_bos_token": bool(prefix), "add_eos_token": False}


def enumerate_names(tokenizer: Tokenizer) -> list[tuple[int, str]]:
    """(id, name) of every added token and, in SentencePiece, of the tokens that may have a role."""
    vocab = tokenizer.content["model"]["vocab"]
    special = tokenizer.special
    found = [(token["id"], token["content"]) for token in tokenizer.content.get("added_tokens") or []]
    roles = {special.begin, special.end, special.pad, *special.ends} - {name for _, name in found}
    return found + [(vocab[name], name) for name in roles if isinstance(vocab, dict) and name in vocab]


def _byte_level(
    metadata: Mapping[str, Any], vocab: dict[str, int], kinds: Mapping[int, int], where: str
) -> dict[str, Any]:
    """What a byte-level BPE vocabulary needs beside its added tokens; kinds: of tokens that are not normal."""
    name = metadata.get(f"{_KEY}pre", "default")
    known = pretokenizers.named(name)
    if known is None:
        names = ", ".join(known.names[0] for known in pretokenizers.KNOWN)
        raise UserError(f"the pre-tokenizer {name!r} is not supported", where=where, mend=f"Known: {names}.")
    overlapping = _overlapping(_ordinary([*vocab], kinds))
    if overlapping is not None:
        raise UserError(
            f"the added token {overlapping!r:.60} overlaps with another one, which is not supported",
            where=where,
            mend="Mark one of them as a control token.",
        )
    merges = metadata.get(f"{_KEY}merges")
    if not isinstance(merges, list) or {*map(type, merges)} - {str}:
        raise UserError(f"{_KEY}merges is no list of pairs", where=where, mend=_AGAIN)
    parts = halves(merges) if merges else None
    if parts is None and not all(merge.find(" ", 1) > 0 for merge in merges):
        raise UserError(f"{_KEY}merges is no list of pairs", where=where, mend=_AGAIN)
    pairs = (
        [[m[: m.index(" ", 1)], m[m.index(" ", 1) + 1 :]] for m in merges] if parts is None else JoinedMerges(merges)
    )
    lost = lost_merge(pairs, vocab, parts=parts)
    if lost is not None:
        raise UserError(f"the merge {' '.join(lost)!r} is of tokens that are not there", where=where, mend=_AGAIN)
    return {
        "normalizer": None,
        "pre_tokenizer": pretokenizers.to_json(known.stages, vocab),
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            **{"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False},
            **{"continuing_subword_prefix": "", "end_of_word_suffix": "", "ignore_merges": known.ignore_merges},
            "vocab": vocab,
            "merges": pairs,
        },
    }


def _sentence_piece(
    metadata: Mapping[str, Any], tokens: list[str], kinds: Mapping[int, int], where: str
) -> dict[str, Any]:
    """What a SentencePiece vocabulary needs beside its added tokens; kinds: of tokens that are not normal."""
    types = [kinds.get(i, NORMAL) for i in range(len(tokens))]
    scores = _numbers(metadata, "scores", tokens, where)
    if scores is None:
        raise UserError(f"{_KEY}scores is missing", where=where, mend=_AGAIN)
    if not all(type(score) in (int, float) and math.isfinite(score) for score in scores):
        raise UserError(f"{_KEY}scores holds what is no finite number", where=where, mend=_AGAIN)
    if sum(len(token) ** 2 for token in tokens) > _MOST_CUTS:  # each is cut in two at every place
        raise UserError(f"{_KEY}tokens holds tokens that are too long", where=where, mend=_AGAIN)
    prefix = _truth(metadata, f"{_KEY}add_space_prefix", True, where)
    overlap = _overlapping(_ordinary(tokens, kinds)) is not None
    return read_pieces(tokens, types, scores, prefix=prefix, overlap=overlap)


def _ordinary(tokens: list[str], kinds: Mapping[int, int]) -> list[str]:
    return [tokens[i] for i, kind in kinds.items() if kind == USER]


def _special(metadata: Mapping[str, Any], tokens: list[str], where: str) -> SpecialTokens:
    def name(role: str) -> str:
        key = f"{_KEY}{role}_token_id"
        i = metadata.get(key)
        if i is None:
            return ""
        if type(i) is int and 0 <= i < len(tokens):
            return tokens[i]
        if type(i) is int and role == "padding":  # as published files have it, and llama.cpp passes over it
            _warn(f"{key} is {i}, which is no id of this tokenizer: there is no such token", where)
            return ""
        raise UserError(f"{key} is {i!r:.50}, which is no id of its {len(tokens)} tokens", where=where, mend=_AGAIN)

    known = pretokenizers.named(metadata.get(f"{_KEY}pre", "default"))
    usual = metadata.get(f"{_KEY}model") == "llama" or (known is not None and known.add_begin)
    add_begin = _truth(metadata, f"{_KEY}add_bos_token", usual, where)
    template = metadata.get("tokenizer.chat_template", "")
    if not isinstance(template, str):
        raise UserError("tokenizer.chat_template is no text", where=where, mend=_AGAIN)
    return SpecialTokens(
        begin=name("bos"),
        end=name("eos"),
        pad=name("padding"),
        ends=tuple(filter(None, (name("eot"), name("eom")))),
        add_begin=add_begin and bool(name("bos")),
        template=template,
    )


def _truth(metadata: Mapping[str, Any], key: str, usual: bool, where: str) -> bool:
    value = metadata.get(key, usual)
    if not isinstance(value, bool):
        raise UserError(f"{key} is {value!r:.50}, neither true nor false", where=where, mend=_AGAIN)
    return value


def _numbers(metadata: Mapping[str, Any], key: str, tokens: list[str], where: str) -> list[Any] | None:
    values = metadata.get(_KEY + key)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != len(tokens) or isinstance(values[0], str):
        raise UserError(
            f"{_KEY}{key} does not have a number for each of {len(tokens)} tokens", where=where, mend=_AGAIN
        )
    return values


def _distinct(tokens: list[str], types: list[int]) -> tuple[list[str], list[int]]:
    """Tokens that stand twice keep their first id; the others become unused under a name of their own."""
    first: dict[str, int] = {}
    for i, token in enumerate(tokens):
        first.setdefault(token, i)
    again = [first[token] != i for i, token in enumerate(tokens)]
    names = [f"[PAD{i}]" if twice else token for i, (token, twice) in enumerate(zip(tokens, again, strict=True))]
    return names, [UNUSED if twice else kind for kind, twice in zip(types, again, strict=True)]
