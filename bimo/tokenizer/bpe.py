"""Byte-level byte-pair encoding (Sennrich et al. 2016, on bytes as in GPT-2), from text to a `tokenizer.json`.

Training is `rustbpe`'s, about twice as fast as `tokenizers` on the same text; the file is Hugging Face's format, so
that transformers, vLLM and llama.cpp read it. Encoding is `tiktoken`'s, about twice as fast with half the memory, on
ranks that are read back out of the file (`benchmarks/tokenizer.py` measures all of this; tests hold the ids equal).
"""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, overload

import numpy as np

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERN = rf"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|{_WORDS}"
"""Qwen2's pre-tokeniser, which Qwen3 keeps and llama.cpp knows as "qwen2": words with their leading space, digits one
by one, runs of punctuation with the line breaks after them. Chinese runs stay whole and are cut by the merges alone.
In llama.cpp's words, because Qwen's own `(?i:'s|…)` also takes the old letter ſ for an s."""
_QWEN2 = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORDS}"

_LONGEST_PIECE = 4096


def train(texts: Iterable[str], n_tokens: int) -> list[bytes]:
    """Learn a vocabulary: the bytes of each token, in the order of its id.

    Args:
        texts: Text to learn from; read once, never held whole.
        n_tokens: 256 bytes + merges. Fewer come back when the text has no more pairs.
    """
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(_pieces(texts), n_tokens, pattern=PATTERN)
    return [token for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])]


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Texts in pieces of a bounded length, so that one endless line without spaces stays one word of bounded length."""
    for text in texts:
        for start in range(0, len(text), _LONGEST_PIECE):
            yield text[start : start + _LONGEST_PIECE]


def to_json(tokens: list[bytes], control_tokens: list[str]) -> str:
    """The `tokenizer.json` of a vocabulary; the control tokens get the ids after it."""
    letters = byte_letters()
    spelled = ["".join(letters[byte] for byte in token) for token in tokens]
    merges = [[spelled[left], spelled[right]] for left, right in _merges(tokens)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(tokens) + i, "content": name, **plain} for i, name in enumerate(control_tokens)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {name: i for i, name in enumerate(spelled)},
            "merges": merges,
        },
    }
    return json.dumps(content, ensure_ascii=False, indent=1)


def ranks_of(content: dict[str, Any]) -> dict[bytes, int] | None:
    """The token bytes → id table of a `tokenizer.json`, if merging by lowest id gives the file's own result.

    That holds for the files written here: our pre-tokeniser (or Qwen2's own), no normaliser, and merges in the order of
    their ids. For any other file the answer is None, and `tokenizers` has to encode.
    """
    model, pre = content["model"], content.get("pre_tokenizer") or {}
    stages = pre.get("pretokenizers", [])
    plain = (
        model.get("type") == "BPE"
        and all(token.get("special") for token in content.get("added_tokens") or [])
        and content.get("normalizer") is None
        and [stage.get("type") for stage in stages] == ["Split", "ByteLevel"]
        and stages[0].get("pattern") in ({"Regex": PATTERN}, {"Regex": _QWEN2})
        and not stages[1].get("add_prefix_space")
        and not stages[1].get("use_regex")
        and not model.get("ignore_merges")
        and not model.get("byte_fallback")
    )
    if not plain:
        return None
    vocab = model["vocab"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    merged = [vocab.get(left + right, -1) for left, right in pairs]
    if merged != list(range(256, 256 + len(merged))) or len(vocab) != 256 + len(merged):
        return None
    letters = letter_bytes()
    return {bytes(letters[letter] for letter in token): i for token, i in vocab.items()}


class JoinedMerges(Sequence[str]):
    """Merges as "left right", in one piece of memory: a fifth of what so many texts take.

    Whoever makes one has looked: no half holds a space or the end of a line, and all tokens are there.

    Args:
        merges: As a file has them.

    Attributes:
        first_id: Of the token that the first merge makes, where each merge makes the next token; else -1.
    """

    first_id = -1

    def __init__(self, merges: Iterable[str]) -> None:
        self._text = "\n".join([*merges, ""]).encode("utf-8", "surrogatepass")
        self._ends = np.flatnonzero(np.frombuffer(self._text, dtype=np.uint8) == ord("\n")).astype(np.uint32)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return list(self)[place]
        end = range(len(self))[place]
        start = int(self._ends[end - 1]) + 1 if end else 0
        return self._text[start : int(self._ends[end])].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return iter(self._text.decode("utf-8", "surrogatepass").split("\n")[:-1])

    def pairs(self) -> list[list[str]]:
        """The same as pairs."""
        return [merge.split(" ") for merge in self]


Parts = tuple[list[str], list[str]]


def halves(merges: Collection[Any]) -> Parts | None:
    """Left and right parts of merges, all at once; None when they do not come apart so simply."""
    kinds = {*map(type, merges)}
    if kinds == {str}:
        text = "\n".join(merges)
        data = np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
        places = np.flatnonzero((data == ord(" ")) | (data == ord("\n")))
        spaced = len(places) == 2 * len(merges) - 1 and not (data[places[::2]] != ord(" ")).any()
        whole = spaced and np.diff(places, prepend=-1, append=len(data)).min() > 1  # no half is empty
        parts = text.replace("\n", " ").split(" ")
        return (parts[::2], parts[1::2]) if whole else None
    if kinds <= {list, tuple} and {*map(len, merges)} <= {2}:
        return [left for left, _ in merges], [right for _, right in merges]
    return None


def lost_merge(
    merges: Collection[Any], vocab: Mapping[str, int], inner: str = "", parts: Parts | None = None
) -> tuple[str, str] | None:
    """The first merge whose parts and whole are not all in the vocabulary; None when there is none.

    Args:
        merges: Pairs, or texts with a space between the parts.
        vocab: The tokens.
        inner: What the whole lacks of a right part that begins with it.
        parts: What `halves` gave; None: it is asked.
    """
    parts = None if inner else parts or halves(merges)
    if parts is not None and all(all(map(vocab.__contains__, names)) for names in parts):
        made = list(map(operator.add, *parts))
        first = vocab.get(made[0], -1) if made else 0
        in_turn = first >= 0 and made == [*vocab][first : first + len(made)]  # as mostly: nothing has to be looked up
        if isinstance(merges, JoinedMerges) and in_turn and [*vocab.values()] == [*range(len(vocab))]:
            merges.first_id = first
        if in_turn or all(map(vocab.__contains__, made)):
            return None
    for merge in merges:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        whole = left + right[len(inner) :] if right.startswith(inner) else None
        if left not in vocab or right not in vocab or whole not in vocab:
            return left, right
    return None


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte, in which byte-level vocabularies are spelled."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@cache
def letter_bytes() -> dict[str, int]:
    """The byte of each letter of `byte_letters`."""
    return {letter: byte for byte, letter in byte_letters().items()}


@cache
def latin_letters() -> dict[int, int]:
    """For `str.translate`: each letter of `byte_letters` to the character with its byte's number, others to none."""
    none = dict.fromkeys(range(256), 0xFFFD)
    return none | {ord(letter): byte for byte, letter in byte_letters().items()}


def _merges(tokens: list[bytes]) -> Iterator[tuple[int, int]]:
    """The two tokens that each merged token was made of: what its bytes merge to with all earlier tokens."""
    ids = {token: i for i, token in enumerate(tokens)}
    for limit in range(256, len(tokens)):
        parts = [tokens[limit][i : i + 1] for i in range(len(tokens[limit]))]
        while len(parts) > 2:
            joined = [ids.get(left + right, limit) for left, right in itertools.pairwise(parts)]
            best = min(range(len(joined)), key=joined.__getitem__)
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        yield ids[parts[0]], ids[parts[1]]
