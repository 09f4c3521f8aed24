"""No text makes a control token: what `tokenizers` promises for added tokens only, kept for the model's pieces, too.

`tokenizers` can be told to read the names of control tokens as ordinary text. Yet such a name is often a piece of the
vocabulary as well, and the model itself then makes the token: Unigram takes any piece, BPE whatever its merges make,
and with `ignore_merges` every word that is a piece as a whole. Under names that no text holds, these pieces are out of
reach.

What is done to a text before the model sees it may make it longer: `check_growth` refuses files that do so without end.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from collections.abc import Iterator
from typing import Any

from bimo.tokenizer.bpe import JoinedMerges, halves

MOST_GROWTH, MOST_STEPS, LONGEST_INSERT = 128.0, 32, 64
"""The longest known text becomes 18 times as long, by T5's and XLM-R's table of characters."""
_KEPT_PARTS, _LONGEST_PART = 512, 2**14
"""Texts between control tokens whose ids are kept, and their characters."""
_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


class GuardedTokenizer:
    """`tokenizers` on a `tokenizer.json`; its model makes no control token.

    Args:
        content: The parsed file.
        marked: Whether control tokens may stand in a text by name; their ids come from there alone.
        twin: Made from the same content; where nothing has to be renamed, the two share one vocabulary in memory.
    """

    def __init__(self, content: dict[str, Any], *, marked: bool, twin: GuardedTokenizer | None = None) -> None:
        import secrets

        content = {**content, "padding": None, "truncation": None}  # a text has all its ids, and no more
        reachable = _reachable(content)
        names = {name: f" \ue0f0{secrets.token_hex(8)} {number}" for number, name in enumerate(sorted(reachable))}
        guarded = _renamed(content, names, marked=marked) if names else content
        self.library: Any = _library(guarded, None if twin is None or names else twin.library.model)
        self.library.encode_special_tokens = not marked
        # The library numbers added tokens that are no pieces anew, in the order of the file.
        added = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
        found = {name: self.library.token_to_id(names.get(name, name) if not marked else name) for name in added}
        moved = next((name for name, i in found.items() if i != added[name]), None)
        self._ids = {found[name]: i for name, i in added.items()} if names and marked else {}
        self._borders = _borders(content) if marked else None
        self._part = functools.lru_cache(_KEPT_PARTS)(self._whole)
        if moved is not None and not self._ids:
            raise ValueError(f"the added token {moved!r} has the id {added[moved]}, where {found[moved]} would follow")

    def encode(self, text: str) -> list[int]:
        """Ids of a text.

        Between control tokens nothing depends on what is beyond them, and a template writes the same texts there again
        and again: their ids are kept.
        """
        if self._borders is None:
            return self._whole(text)
        ids: list[int] = []
        for part in filter(None, self._borders.split(text)):
            ids += self._part(part) if len(part) < _LONGEST_PART else self._whole(part)
        return ids

    def _whole(self, text: str) -> list[int]:
        ids: list[int] = self.library.encode(text, add_special_tokens=False).ids
        return [self._ids.get(i, i) for i in ids] if self._ids else ids


def _borders(content: dict[str, Any]) -> re.Pattern[str] | None:
    """Finds the tokens that `tokenizers` cuts out of a text before anything else is done to it: from the left, the
    longest that begins there.

    None: they reach beyond themselves, or the first piece of a text is treated otherwise than one behind a token.
    """
    added = [token for token in content.get("added_tokens") or [] if not token.get("normalized")]
    reaching = any(token.get(flag) for token in added for flag in ("single_word", "lstrip", "rstrip"))
    first = [step for step in _steps(content.get("pre_tokenizer")) if step["type"] == "Metaspace"]
    if not added or reaching or any(step.get("prepend_scheme", "always") == "first" for step in first):
        return None
    names = sorted((token["content"] for token in added if token["content"]), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, names))})")


def check_growth(content: dict[str, Any]) -> None:
    """Raise ValueError where a text could become very long before the model cuts it into tokens."""
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        _check_insert(content["model"].get(key) or "", key)
    steps = [*_steps(content.get("normalizer")), *_steps(content.get("pre_tokenizer"))]
    if len(steps) > MOST_STEPS:
        raise ValueError(f"{len(steps)} steps before the model, more than {MOST_STEPS}")
    growth, forms = 1.0, 0
    for step in steps:
        growth *= max(1.0, _growth(step))
        if step["type"] in _FORMS:  # what the first has written out, the next leaves alone, unless it was put there
            forms += 1
            growth *= 18 if forms > 1 else 1
        if growth > MOST_GROWTH:
            raise ValueError(f"a text could become more than {MOST_GROWTH:.0f} times as long")


def _steps(stage: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, one after the other."""
    if stage is None:
        return
    if stage["type"] == "Sequence":
        for step in stage["normalizers"] if "normalizers" in stage else stage["pretokenizers"]:
            yield from _steps(step)
    else:
        yield stage


def _growth(step: dict[str, Any]) -> float:
    """How many characters may come of one."""
    kind = step["type"]
    if kind == "Replace":
        content, pattern = step["content"], step["pattern"].get("String")
        _check_insert(content, kind)
        if pattern == "":
            raise ValueError("a Replace of nothing")
        # An expression may match one character, or the nothing before it.
        return len(content) / len(pattern) if pattern is not None else len(content)
    if kind == "Prepend":
        _check_insert(step["prepend"], kind)
        return len(step["prepend"])
    if kind == "Metaspace":
        if len(step.get("replacement", "▁")) != 1:
            raise ValueError("a Metaspace replacement that is not one character")
        return 2
    if kind == "Precompiled":
        return _longest_entry(step["precompiled_charsmap"])
    return 4 if kind == "ByteLevel" else 1  # a letter for each byte


def _check_insert(text: Any, what: str) -> None:
    if not isinstance(text, str) or len(text) > LONGEST_INSERT:
        raise ValueError(f"{what} puts in something other than a text of at most {LONGEST_INSERT} characters")


def _longest_entry(table: str | None) -> int:
    """Characters of the longest replacement in SentencePiece's table: a search tree, then texts that end with a 0."""
    try:
        data = base64.b64decode(table or "", validate=True)
    except binascii.Error as error:
        raise ValueError("a table of characters that is no base64") from error
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max(len(text.decode(errors="replace")) for text in texts.split(b"\0"))


def _library(content: dict[str, Any], model: Any) -> Any:
    """The library's tokenizer.

    Args:
        content: The file.
        model: One that was made of the same vocabulary; None: it is made here.
    """
    import json

    import tokenizers

    added, words = content.get("added_tokens") or [], content["model"]
    sound = (
        isinstance(words.get("merges"), JoinedMerges) and {token["content"] for token in added} <= words["vocab"].keys()
    )
    if not sound:
        return tokenizers.Tokenizer.from_str(json.dumps(content, default=list))
    # The tables are handed over as they are: as JSON they take five times as long, and four times the memory.
    empty = {**words, "vocab": {}, "merges": [], "unk_token": None}
    library = tokenizers.Tokenizer.from_str(json.dumps({**content, "added_tokens": [], "model": empty}))
    if model is None:
        tables = {"vocab": words["vocab"], "merges": list(zip(*(halves(words["merges"]) or ((), ())), strict=True))}
        model = tokenizers.models.BPE(**{key: value for key, value in words.items() if key != "type"} | tables)
    library.model = model
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for token in added:
        one = tokenizers.AddedToken(token["content"], **{flag: token[flag] for flag in flags})
        (library.add_special_tokens if token["special"] else library.add_tokens)([one])
    return library


def _reachable(content: dict[str, Any]) -> set[str]:
    """Names of control tokens that the model could make out of text."""
    model = content["model"]
    control = {token["content"] for token in content.get("added_tokens") or [] if token.get("special")}
    if model.get("type", "BPE") == "Unigram":
        return control & {piece for piece, _ in model["vocab"]}
    control = {name for name in control if len(name) > 1 and name in model["vocab"]}
    if model.get("ignore_merges") or not control:
        return control
    if isinstance(model["merges"], JoinedMerges):  # looked for, so that nothing is made of all the others
        made = {f"{name[:n]} {name[n:]}": name for name in control for n in range(1, len(name))}
        return {made[merge] for merge in made.keys() & {*model["merges"]}}
    return control & {left + right for left, right in _pairs(model)}


def _pairs(model: dict[str, Any]) -> list[list[str]]:
    return [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]


def _renamed(content: dict[str, Any], names: dict[str, str], *, marked: bool) -> dict[str, Any]:
    """The file with pieces under other names."""
    model = dict(content["model"])
    if model.get("type", "BPE") == "Unigram":
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
        model["merges"] = [[a, b] for a, b in _pairs(model) if not names.keys() & {a, b, a + b}]
        model["unk_token"] = names.get(model.get("unk_token") or "", model.get("unk_token"))
    if marked:
        return {**content, "model": model}
    added = [{**token, "content": names.get(token["content"], token["content"])} for token in content["added_tokens"]]
    return {**content, "model": model, "added_tokens": added}
