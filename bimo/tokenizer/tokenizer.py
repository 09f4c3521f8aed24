"""Tokenizer: text to ids and back.

Control tokens (beginning, end, padding, chat roles) are ids that no text can produce: `encode` treats "<|end|>" in a
text like any other characters. The file is Hugging Face's `tokenizer.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bimo.core.errors import UserError
from bimo.tokenizer import bpe, chat
from bimo.tokenizer.incremental import IncrementalDecoder

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
CONTROL_TOKENS = (PAD, BEGIN, END, *(f"<|{role}|>" for role in chat.ROLES), chat.END_OF_TURN)


class Tokenizer:
    """Byte-level BPE with control tokens; make one with `Tokenizer.train` or `Tokenizer.load`.

    Args:
        content: The parsed `tokenizer.json`.
        where: What to name in errors.
    """

    def __init__(self, content: dict[str, Any], where: str = "tokenizer.json") -> None:
        self.content, self.where = content, where
        letters = {letter: byte for byte, letter in bpe.byte_letters().items()}
        try:
            vocab: dict[str, int] = content["model"]["vocab"]
            added = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
            size = 1 + max([*vocab.values(), *added.values()])
            table = [b""] * size
            for spelled, i in vocab.items():
                if spelled not in added:
                    table[i] = bytes(letters[letter] for letter in spelled)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise UserError(
                f"not a byte-level BPE tokenizer ({type(error).__name__}: {error})",
                where=where,
                mend="Give a tokenizer.json that bimo, or Hugging Face tokenizers with ByteLevel, wrote.",
            ) from error
        self.control_tokens: dict[str, int] = added
        self.vocab_size = size
        self._bytes = table
        self._ranks = bpe.ranks_of(content)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 4096) -> Tokenizer:
        """Learn a tokenizer from text.

        Args:
            texts: Any number of texts; read once.
            vocab_size: Ids in all: 256 bytes, merges and control tokens. Short texts may give fewer.

        Raises:
            UserError: vocab_size leaves no room for bytes and control tokens, or there is no text.
        """
        if isinstance(texts, str):
            texts = [texts]
        if not isinstance(texts, Iterable):
            raise UserError(f"texts must be a list of strings, are {type(texts).__name__}", mend="Give a list.")
        smallest = 256 + len(CONTROL_TOKENS)
        if vocab_size < smallest:
            raise UserError(f"vocab_size must be at least {smallest}, is {vocab_size}", mend="Ask for more ids.")
        seen = _NonEmpty(texts)
        tokens = bpe.train(seen, vocab_size - len(CONTROL_TOKENS))
        if not seen.found:
            raise UserError("there is no text to train a tokenizer on", mend="Give text that is not empty.")
        return cls(json.loads(bpe.to_json(tokens, list(CONTROL_TOKENS))))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.json`, or the one in a folder."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError("no such file", where=str(path), mend="Name a tokenizer.json or its folder.") from error
        except (ValueError, OSError) as error:
            raise UserError(f"cannot be read as JSON ({error})", where=str(path), mend="Copy it again.") from error
        if not isinstance(content, dict):
            raise UserError("not a tokenizer.json", where=str(path), mend="Copy it again.")
        return cls(content, where=str(path))

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and, for transformers, `tokenizer_config.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        names = {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD}
        config |= {key: name for key, name in names.items() if name in self.control_tokens}
        if self.has_chat_template:
            config["chat_template"] = chat.TEMPLATE
        text = json.dumps(self.content, ensure_ascii=False, indent=1)
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")

    @property
    def begin_id(self) -> int:
        """Opens every document."""
        return self._control(BEGIN)

    @property
    def end_id(self) -> int:
        """Ends every document."""
        return self._control(END)

    @property
    def pad_id(self) -> int:
        """Fills rows; never trained and never generated."""
        return self._control(PAD)

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer has the tokens of the chat format."""
        return all(name in self.control_tokens for name in CONTROL_TOKENS)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what settles the ids: equal tokenizers have equal fingerprints."""
        text = json.dumps(self.content, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without begin and end. No text gives a control token.

        Raises:
            UserError: The text is no string, or holds half of a surrogate pair, which no file can hold.
        """
        return self.encode_array(text).tolist()  # type: ignore[no-any-return]  # of an integer array

    def encode_array(self, text: str) -> np.ndarray:
        """Like `encode`, as uint32 (n,)."""
        _check_text(text)
        if self._ranks is not None:
            return self._fast.encode_to_numpy(text, disallowed_special=())
        return np.array(self._slow.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    def encode_batch(self, texts: Sequence[str], threads: int = 0) -> list[np.ndarray]:
        """Ids of many texts, uint32 each, on `threads` threads (0: one per core)."""
        if self._ranks is None:  # this library brings its own threads
            for text in texts:
                _check_text(text)
            encoded = self._slow.encode_batch_fast(list(texts), add_special_tokens=False)
            return [np.array(e.ids, dtype=np.uint32) for e in encoded]
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            return list(pool.map(self.encode_array, texts))

    def encode_chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation; see `tokenizer/chat.py`.

        Raises:
            UserError: A message is malformed, or the tokenizer has no chat tokens.
        """
        if not self.has_chat_template:
            raise UserError(
                "this tokenizer has no chat tokens", where=self.where, mend="Use generate, or a model made for chat."
            )
        return chat.encode(
            messages,
            begin_id=self.begin_id,
            control=self.control_tokens,
            encode_text=self.encode,
            add_generation_prompt=add_generation_prompt,
        )

    def decode(self, ids: Iterable[int], *, show_control_tokens: bool = False) -> str:
        """The text of ids. Bytes that form no character become U+FFFD; control tokens are left out unless shown."""
        names = {i: name.encode() for name, i in self.control_tokens.items()} if show_control_tokens else {}
        parts = []
        for i in ids:
            if not 0 <= int(i) < self.vocab_size:
                raise UserError(f"id {int(i)} is not in 0 … {self.vocab_size - 1}", mend="Use this tokenizer's ids.")
            parts.append(names.get(int(i)) or self._bytes[int(i)])
        return b"".join(parts).decode("utf-8", errors="replace")

    def decoder(self) -> IncrementalDecoder:
        """A decoder for a stream of ids."""
        return IncrementalDecoder(self._bytes)

    def token_bytes(self) -> np.ndarray:
        """Number of text bytes that each id stands for, int64 (V,); 0 for control tokens."""
        return np.array([len(token) for token in self._bytes], dtype=np.int64)

    @cached_property
    def _fast(self) -> Any:
        import tiktoken

        assert self._ranks is not None, "only a tokenizer with plain ranks has a fast encoder"
        return tiktoken.Encoding("bimo", pat_str=bpe.PATTERN, mergeable_ranks=self._ranks, special_tokens={})

    @cached_property
    def _slow(self) -> Any:
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(self.content))
        tokenizer.encode_special_tokens = True  # control tokens in a text are ordinary characters
        return tokenizer

    def _control(self, name: str) -> int:
        if name not in self.control_tokens:
            raise UserError(f"there is no control token {name}", where=self.where, mend="Use a tokenizer of bimo.")
        return self.control_tokens[name]


class _NonEmpty:
    """Passes texts on and remembers whether one of them had a character."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts, self.found = texts, False

    def __iter__(self) -> Any:
        for text in self.texts:
            _check_text(text)
            self.found = self.found or bool(text)
            yield text


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise UserError(f"text must be a string, is {type(text).__name__}", mend="Decode it first.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"character {error.start} is half of a surrogate pair and cannot be written as UTF-8", mend="Remove it."
        ) from error
