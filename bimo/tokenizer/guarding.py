"""No text makes a control token: what `tokenizers` promises for added tokens only, kept for the model's pieces, too.

`tokenizers` can be told to read the names of control tokens as ordinary text. Yet such a name is often a piece of the
vocabulary as well, and the model itself then makes the token: Unigram takes any piece, BPE whatever its merges make,
and with `ignore_merges` every word that is a piece as a whole. Under names that no text holds, these pieces are out of
reach.
"""

from __future__ import annotations

import secrets
from typing import Any


class GuardedTokenizer:
    """`tokenizers` on a `tokenizer.json`; its model makes no control token.

    Args:
        content: The parsed file.
        marked: Whether control tokens may stand in a text by name; their ids come from there alone.
    """

    def __init__(self, content: dict[str, Any], *, marked: bool) -> None:
        import json

        import tokenizers

        reachable = _reachable(content)
        names = {name: f" \ue0f0{secrets.token_hex(8)} {number}" for number, name in enumerate(sorted(reachable))}
        guarded = _renamed(content, names, marked=marked) if names else content
        self.library: Any = tokenizers.Tokenizer.from_str(json.dumps(guarded))
        self.library.encode_special_tokens = not marked
        # The library numbers added tokens that are no pieces anew, in the order of the file.
        added = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
        found = {name: self.library.token_to_id(names.get(name, name) if not marked else name) for name in added}
        moved = next((name for name, i in found.items() if i != added[name]), None)
        self._ids = {found[name]: i for name, i in added.items()} if names and marked else {}
        if moved is not None and not self._ids:
            raise ValueError(f"the added token {moved!r} has the id {added[moved]}, where {found[moved]} would follow")

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ids: list[int] = self.library.encode(text, add_special_tokens=False).ids
        return [self._ids.get(i, i) for i in ids] if self._ids else ids


def _reachable(content: dict[str, Any]) -> set[str]:
    """Names of control tokens that the model could make out of text."""
    model = content["model"]
    control = {token["content"] for token in content.get("added_tokens") or [] if token.get("special")}
    if model.get("type", "BPE") == "Unigram":
        return control & {piece for piece, _ in model["vocab"]}
    control &= {name for name in model["vocab"] if len(name) > 1}
    return control if model.get("ignore_merges") else control & {left + right for left, right in _pairs(model)}


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
