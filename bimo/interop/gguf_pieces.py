"""SentencePiece's BPE ("llama") in GGUF files: scores of tokens there, merges of pairs in a tokenizer.json.

By scores, any two neighbours merge that make a token together. By merges, only the listed pairs do. The two give the
same ids on every text when the scores follow the merges and no token is exactly two tokens to the merges: in any text,
the neighbours that become a token are the same two as in the token alone, because what stands around takes no part.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from bimo.core.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
"""llama.cpp's types of tokens."""
_SPACE = "▁"
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}


def read_pieces(
    tokens: list[str], types: list[int], scores: list[float], *, prefix: bool, overlap: bool
) -> dict[str, Any]:
    """What stands in a tokenizer.json beside the added tokens.

    Args:
        tokens: All tokens by id.
        types: Their types.
        scores: Their scores.
        prefix: Whether a text gets a space in front.
        overlap: Whether ordinary added tokens may overlap in a text, which llama.cpp solves in its own way.
    """
    vocab = {token: i for i, token in enumerate(tokens)}
    plain = {token for token, kind in zip(tokens, types, strict=True) if kind in (NORMAL, USER, UNUSED)}
    ranked = []
    for i, token in enumerate(tokens):
        if token in plain and len(token) > 1:
            cuts = [(token[:n], token[n:]) for n in range(1, len(token))]
            ranked += [(-scores[i], i, vocab[a], vocab[b]) for a, b in cuts if a in plain and b in plain]
    ranked.sort()
    made = [i for i, _ in itertools.groupby(ranked, key=lambda merge: merge[1])]
    tied = len({scores[i] for i in made}) < len(made)
    back = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [_PREPEND, _REPLACE] if prefix else [_REPLACE]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": {
            **{"type": "BPE", "dropout": None, "unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
            **{"continuing_subword_prefix": None, "end_of_word_suffix": None, "ignore_merges": False},
            "vocab": vocab,
            "merges": [[tokens[a], tokens[b]] for _, _, a, b in ranked],
            **({"scores": list(scores)} if tied or overlap else {}),
        },
    }


def written_pieces(
    content: Mapping[str, Any], tokens: list[str], types: list[int], where: str
) -> tuple[dict[str, Any], list[int]]:
    """The fields of a GGUF file, and the types of its tokens: bytes and the unknown token have types of their own.

    Raises:
        UserError: llama.cpp would give other ids.
    """
    model = content["model"]
    prefix = _prefix(content, where)
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    lost = next((name for name in sorted(_BYTES) if name not in model["vocab"]), None)
    if lost is not None:
        raise _refusal(f"its vocabulary lacks the byte {lost}", where, "Add the 256 byte tokens.")
    if "scores" in model:
        scores = [*model["scores"], *(-1e9 for _ in tokens[len(model["scores"]) :])]
    else:
        scores = _scores(tokens, merges)
        _check_pairs(model, where)
    special = {model.get("unk_token"): UNKNOWN} | dict.fromkeys(_BYTES, BYTE)
    made = {left + right for left, right in merges}
    # Runs of spaces are added tokens in Gemma's files; their merges make them, and llama.cpp shows them as spaces then.
    types = [
        NORMAL if kind == USER and _SPACE in token and token in made else kind
        for token, kind in zip(tokens, types, strict=True)
    ]
    types = [special.get(token, kind) for token, kind in zip(tokens, types, strict=True)]
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefix}, types


def _prefix(content: Mapping[str, Any], where: str) -> bool:
    """Whether a text gets a space in front; llama.cpp knows two ways of treating spaces."""
    normalizer, before = content.get("normalizer") or {}, content.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    split = {"type": "Split", "pattern": {"String": " "}}  # Gemma's, which finds no space after the replacement
    nothing = not before or {key: before.get(key) for key in split} == split
    never = before.get("type") == "Metaspace" and before.get("prepend_scheme") == "never" and not before.get("split")
    if steps == [_PREPEND, _REPLACE] and nothing:
        return True
    if (steps == [_REPLACE] and nothing) or (not steps and never and before.get("replacement") == _SPACE):
        return False
    if before.get("type") == "Metaspace":
        raise _refusal("it puts a space in front of some texts only (Metaspace)", where, _ELSEWHERE)
    raise _refusal("its normalizer or pre_tokenizer is not known there", where, _ELSEWHERE)


_ELSEWHERE = "Export a Hugging Face folder instead."


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """Scores that put tokens in the order in which the merges make them."""
    ranks = {(left, right): rank for rank, (left, right) in enumerate(merges)}
    made = [token for token, _ in itertools.groupby(left + right for left, right in merges)]
    apart = {token for token, times in Counter(made).items() if times > 1}
    order: dict[str, int] = {}
    for (left, right), rank in ranks.items():
        if left + right not in apart:
            order.setdefault(left + right, rank)
    for token in apart:  # only the pair that the token alone ends in is ever met
        order[token] = ranks.get(_last_pair(token, ranks), len(ranks))
    return [-float(order.get(token, len(ranks) + i)) for i, token in enumerate(tokens)]


def _last_pair(token: str, ranks: Mapping[tuple[str, str], int]) -> tuple[str, str]:
    """The two pieces of a token before they become one."""
    parts = list(token)
    while len(parts) > 2:
        rank, place = min((ranks.get((a, b), len(ranks)), i) for i, (a, b) in enumerate(itertools.pairwise(parts)))
        if rank == len(ranks):
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], "".join(parts[1:])


def _check_pairs(model: Mapping[str, Any], where: str) -> None:
    """Refuse a vocabulary with a token that is exactly two tokens to the merges: only scores would make one of it."""
    import tokenizers

    words: dict[str, Any] = {
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "decoder": None,
        "post_processor": None,
    }
    merging = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", **words, "model": dict(model)}))
    names = [name for name in model["vocab"] if len(name) > 1]
    characters = {name for name in model["vocab"] if len(name) == 1}
    for name, encoding in zip(names, merging.encode_batch(names, add_special_tokens=False), strict=True):
        further_bytes = sum(len(character.encode()) - 1 for character in name if character not in characters)
        if len(encoding.ids) - further_bytes == 2:
            raise _refusal(f"{name!r} is a token that its merges do not make", where, _ELSEWHERE)


def _refusal(why: str, where: str, mend: str) -> UserError:
    return UserError(f"llama.cpp would cut texts otherwise than this tokenizer: {why}", where=where, mend=mend)
