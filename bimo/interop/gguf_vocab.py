"""Tokenizers inside GGUF files: byte-level BPE ("gpt2") and SentencePiece's BPE ("llama"), to tokenizer.json and back.

What llama.cpp would cut in another way than the tokenizer does is refused when writing, not approximated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bimo.core.errors import UserError
from bimo.interop import pretokenizers
from bimo.tokenizer import Tokenizer
from bimo.tokenizer.special import ENDS, SpecialTokens

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)  # llama.cpp's types of tokens
_KEY = "tokenizer.ggml."
_AGAIN = "Download or export the file again."
_SPACE = "▁"


def read_tokenizer(metadata: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer of a file.

    Raises:
        UserError: It is of a kind that bimo does not know, or damaged.
    """
    kind, tokens = metadata.get(f"{_KEY}model"), metadata.get(f"{_KEY}tokens")
    if kind not in ("gpt2", "llama"):
        raise UserError(f"a tokenizer of kind {kind!r} is not supported", where=where, mend="Known: gpt2, llama.")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens) or not tokens:
        raise UserError(f"{_KEY}tokens is no list of texts", where=where, mend=_AGAIN)
    types = _numbers(metadata, "token_type", tokens, where) or [_NORMAL] * len(tokens)
    if len(set(tokens)) != len(tokens):
        tokens, types = _distinct(tokens, types)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags, "special": types[i] == _CONTROL}
            for i, token in enumerate(tokens)
            if types[i] in (_CONTROL, _USER) and token
        ],
        "post_processor": None,
        **(_byte_level if kind == "gpt2" else _sentence_piece)(metadata, tokens, types, where),
    }
    return Tokenizer(content, where=where, special=_special(metadata, tokens))


def write_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The fields of a GGUF file for a tokenizer.

    Args:
        tokenizer: The tokenizer.
        vocab_size: Ids of the model; those beyond the tokenizer are marked as unused.

    Raises:
        UserError: llama.cpp has no such tokenizer.
    """
    model = tokenizer.content["model"]
    added = {token["content"]: token for token in tokenizer.content.get("added_tokens") or []}
    vocab: dict[str, int] = model["vocab"] if isinstance(model["vocab"], dict) else {}
    names = {i: name for name, i in vocab.items()} | {token["id"]: name for name, token in added.items()}
    tokens = [names.get(i, f"[PAD{i}]") for i in range(vocab_size)]

    def kind(i: int, token: str) -> int:
        if token in added:
            return _CONTROL if added[token].get("special") else _USER
        return _NORMAL if i in names else _UNUSED

    types = [kind(i, token) for i, token in enumerate(tokens)]
    stages = pretokenizers.stages_of(tokenizer.content.get("pre_tokenizer"))
    known = pretokenizers.recognised(tokenizer.content.get("pre_tokenizer"), bool(model.get("ignore_merges")))
    normalizer = (tokenizer.content.get("normalizer") or {}).get("type")
    if known is not None and normalizer in (None, "NFC") and model.get("type") == "BPE":
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        words: dict[str, Any] = {"model": "gpt2", "pre": known.names[0], "merges": merges}
    elif stages is None and model.get("type") == "BPE" and model.get("byte_fallback"):
        words, types = _written_pieces(tokenizer.content, tokens, types)
    else:
        raise UserError(
            "llama.cpp does not know how this tokenizer cuts a text",
            where=tokenizer.where,
            mend="Export a Hugging Face folder instead.",
        )
    return _named({"tokens": tokens, "token_type": types, **words, **_roles(tokenizer)}, tokenizer.special.template)


def _named(words: dict[str, Any], template: str) -> dict[str, Any]:
    named = {_KEY + key: value for key, value in words.items()}
    return {**named, "tokenizer.chat_template": template} if template else named


def _roles(tokenizer: Tokenizer) -> dict[str, Any]:
    """Ids of the tokens with a role."""
    special = tokenizer.special
    ids = {name: i for i, name in enumerate_names(tokenizer)}
    turn = next((name for name in (*special.ends, *ENDS) if name in ids and name != special.end), "")
    roles = {"bos": special.begin, "eos": special.end, "padding": special.pad, "eot": turn}
    found = {f"{role}_token_id": ids[name] for role, name in roles.items() if name in ids}
    return {**found, "add_bos_token": bool(tokenizer.prefix_ids), "add_eos_token": False}


def enumerate_names(tokenizer: Tokenizer) -> list[tuple[int, str]]:
    """(id, name) of every added token and, in SentencePiece, of the tokens that may have a role."""
    vocab = tokenizer.content["model"]["vocab"]
    special = tokenizer.special
    found = [(token["id"], token["content"]) for token in tokenizer.content.get("added_tokens") or []]
    roles = {special.begin, special.end, special.pad, *special.ends} - {name for _, name in found}
    return found + [(vocab[name], name) for name in roles if isinstance(vocab, dict) and name in vocab]


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], types: list[int], where: str) -> dict[str, Any]:
    """What a byte-level BPE vocabulary needs beside its added tokens."""
    name = metadata.get(f"{_KEY}pre", "default")
    known = pretokenizers.named(name)
    if known is None:
        names = ", ".join(known.names[0] for known in pretokenizers.KNOWN)
        raise UserError(f"the pre-tokenizer {name!r} is not supported", where=where, mend=f"Known: {names}.")
    merges = metadata.get(f"{_KEY}merges")
    if not isinstance(merges, list) or not all(isinstance(m, str) and m.find(" ", 1) > 0 for m in merges):
        raise UserError(f"{_KEY}merges is no list of pairs", where=where, mend=_AGAIN)
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [[m[: m.index(" ", 1)], m[m.index(" ", 1) + 1 :]] for m in merges]
    lost = next((pair for pair in pairs if not {*pair, "".join(pair)} <= vocab.keys()), None)
    if lost:
        raise UserError(f"the merge {' '.join(lost)!r} is of tokens that are not there", where=where, mend=_AGAIN)
    return {
        "normalizer": None,
        "pre_tokenizer": pretokenizers.to_json(known.stages),
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            **{"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False},
            **{"continuing_subword_prefix": "", "end_of_word_suffix": "", "ignore_merges": known.ignore_merges},
            "vocab": vocab,
            "merges": pairs,
        },
    }


def _sentence_piece(metadata: Mapping[str, Any], tokens: list[str], types: list[int], where: str) -> dict[str, Any]:
    """SentencePiece's BPE merges the pair that makes the token with the best score: merges in the order of scores."""
    scores = _numbers(metadata, "scores", tokens, where)
    if scores is None:
        raise UserError(f"{_KEY}scores is missing", where=where, mend=_AGAIN)
    vocab = {token: i for i, token in enumerate(tokens)}
    plain = {token for token, kind in zip(tokens, types, strict=True) if kind in (_NORMAL, _USER, _UNUSED)}
    ranked = []
    for i, token in enumerate(tokens):
        if token in plain and len(token) > 1:
            cuts = [(token[:n], token[n:]) for n in range(1, len(token))]
            ranked += [(-scores[i], vocab[a], vocab[b], a, b) for a, b in cuts if a in plain and b in plain]
    ranked.sort()
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    prefix = metadata.get(f"{_KEY}add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    front = [{"type": "Prepend", "prepend": _SPACE}, replace] if prefix else [replace]
    return {
        "normalizer": {"type": "Sequence", "normalizers": front},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": {
            **{"type": "BPE", "dropout": None, "unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
            **{"continuing_subword_prefix": None, "end_of_word_suffix": None, "ignore_merges": False},
            "vocab": vocab,
            "merges": [[a, b] for _, _, _, a, b in ranked],
        },
    }


def _written_pieces(
    content: Mapping[str, Any], tokens: list[str], types: list[int]
) -> tuple[dict[str, Any], list[int]]:
    """SentencePiece's fields, and the types of its tokens: bytes and the unknown token have types of their own."""
    model = content["model"]
    best: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        best.setdefault(left + right, rank)
    scores = [-float(best.get(token, len(best) + i)) for i, token in enumerate(tokens)]
    special = {model.get("unk_token"): _UNKNOWN} | {f"<0x{byte:02X}>": _BYTE for byte in range(256)}
    types = [special.get(token, kind) for token, kind in zip(tokens, types, strict=True)]
    text = str(content.get("normalizer")) + str(content.get("pre_tokenizer"))
    prefix = "'Prepend'" in text or ("'Metaspace'" in text and "'never'" not in text)
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefix}, types


def _special(metadata: Mapping[str, Any], tokens: list[str]) -> SpecialTokens:
    def name(role: str) -> str:
        i = metadata.get(f"{_KEY}{role}_token_id")
        return tokens[i] if isinstance(i, int) and 0 <= i < len(tokens) else ""

    known = pretokenizers.named(metadata.get(f"{_KEY}pre", "default"))
    usual = metadata.get(f"{_KEY}model") == "llama" or (known is not None and known.add_begin)
    add_begin = metadata.get(f"{_KEY}add_bos_token", usual)
    template = metadata.get("tokenizer.chat_template")
    return SpecialTokens(
        begin=name("bos"),
        end=name("eos"),
        pad=name("padding"),
        ends=tuple(filter(None, (name("eot"), name("eom")))),
        add_begin=bool(add_begin) and bool(name("bos")),
        template=template if isinstance(template, str) else "",
    )


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
    return names, [_UNUSED if twice else kind for kind, twice in zip(types, again, strict=True)]
