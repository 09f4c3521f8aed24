"""Tokenizer: text to ids and back.

Control tokens (beginning, end, padding, chat roles) are ids that no text can produce: `encode` treats "<|end|>" in a
text like any other characters. The file is Hugging Face's `tokenizer.json`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from bimo.core.errors import UserError
from bimo.core.json_files import read_json
from bimo.tokenizer import bpe, chat
from bimo.tokenizer.first_texts import FirstTexts
from bimo.tokenizer.guarding import GuardedTokenizer, check_growth
from bimo.tokenizer.incremental import IncrementalDecoder
from bimo.tokenizer.special import BEGIN, END, END_OF_TURN, ENDS, PAD, SpecialTokens
from bimo.tokenizer.spelling import Spelling

if TYPE_CHECKING:
    from bimo.tokenizer.pieces import ScoredPieces
    from bimo.tokenizer.template import ChatTemplate

Answer = TypeVar("Answer")
_BYTES, _BYTES_PER_ID = 2**20, 2**9
"""Of the largest tokenizer.json; Gemma's has 130 for each id."""

CONTROL_TOKENS = (PAD, BEGIN, END, *(f"<|{role}|>" for role in chat.ROLES), END_OF_TURN)


class Tokenizer:
    """Subword tokens with control tokens; make one with `Tokenizer.train` or `Tokenizer.load`.

    Args:
        content: The parsed `tokenizer.json`: bimo's own, or any BPE or Unigram tokenizer of Hugging Face's format. Its
            merges may be `bpe.JoinedMerges`.
        where: What to name in errors.
        special: The tokens with a role. None: bimo's own, as far as they are there.
    """

    def __init__(
        self, content: dict[str, Any], where: str = "tokenizer.json", special: SpecialTokens | None = None
    ) -> None:
        self._content, self.where = content, where
        try:
            spelling = Spelling.of(content)
            check_growth(content)
            ranks = bpe.ranks_of(content)
            # The fast encoder wants a token for each byte, and ids without a gap.
            whole = (
                ranks is not None and max(ranks.values()) < len(ranks) and all(bytes([b]) in ranks for b in range(256))
            )
            self._ranks = ranks if whole else None
            self._scored = _scored(content) if "scores" in content["model"] else None
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
            raise UserError(
                f"not a tokenizer that bimo knows ({type(error).__name__}: {error})",
                where=where,
                mend="Give a tokenizer.json that bimo, or Hugging Face tokenizers with BPE or Unigram, wrote.",
            ) from error
        self.control_tokens = spelling.control
        self._bytes, self._drops = spelling.table, spelling.drops
        self.vocab_size = len(self._bytes)
        self.special = special or SpecialTokens.found_in(self.control_tokens, chat.TEMPLATE)

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
    def load(cls, path: str | Path, *, vocab_size: int = 2**18) -> Tokenizer:
        """Read a `tokenizer.json`, or the one in a folder.

        Args:
            path: The file or the folder.
            vocab_size: How many ids the model has; a file that is far too large for them is not read.
        """
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        content = read_json(path, _BYTES + vocab_size * _BYTES_PER_ID)
        tokenizer = cls(content, where=str(path))
        names = {i: name for name, i in tokenizer._ids.items()}
        if not {BEGIN, END_OF_TURN} <= {*names.values()}:
            tokenizer.special = SpecialTokens.beside(path, names) or tokenizer.special
        return tokenizer

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and, for transformers, `tokenizer_config.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config |= self.special.config()
        if self._is_own:
            config.pop("add_bos_token", None)  # bimo puts it before prompts itself, as it does between documents
        text = json.dumps(self.content, ensure_ascii=False, indent=1)
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")

    @property
    def content(self) -> dict[str, Any]:
        """The parsed `tokenizer.json`."""
        model = self._content["model"]
        if not isinstance(model.get("merges"), bpe.JoinedMerges):
            return self._content
        return {**self._content, "model": {**model, "merges": model["merges"].pairs()}}

    @property
    def begin_id(self) -> int | None:
        """Opens every document; None when the tokenizer has no such token."""
        return self._id(self.special.begin)

    @property
    def end_id(self) -> int | None:
        """Ends every document; None when the tokenizer has no such token."""
        return self._id(self.special.end)

    @property
    def pad_id(self) -> int:
        """Fills rows; never trained. Another token does where there is none for it, because padding is masked."""
        return next(i for i in (self._id(self.special.pad), self.end_id, 0) if i is not None)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        names = [self.special.end, *self.special.ends, *(name for name in ENDS if name in self.control_tokens)]
        return frozenset(i for name in names if (i := self._id(name)) is not None)

    @cached_property
    def prefix_ids(self) -> list[int]:
        """Ids that stand before every prompt."""
        begin = self.begin_id
        if self.special.add_begin is not None:
            return [begin] if self.special.add_begin and begin is not None else []
        probe = "a"
        whole = self._asked(lambda: self._slow.library.encode(probe, add_special_tokens=True))
        return whole.ids[: next((n for n, special in enumerate(whole.special_tokens_mask) if not special), 0)]

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer knows how a conversation is written."""
        return bool(self.special.template)

    @property
    def _is_own(self) -> bool:
        """Whether it has all tokens of bimo's chat format."""
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
        if self._scored is not None:
            return np.array(self._scored.encode(text), dtype=np.uint32)
        ids = None if "_slow" in self.__dict__ else self._first.encode(text, marked=False)
        return np.array(self._asked(lambda: self._slow.encode(text)) if ids is None else ids, dtype=np.uint32)

    def encode_batch(self, texts: Sequence[str], threads: int = 0) -> list[np.ndarray]:
        """Ids of many texts, uint32 each, on `threads` threads (0: one per core)."""
        if self._ranks is None and self._scored is None:  # this library brings its own threads
            for text in texts:
                _check_text(text)
            encode = self._slow.library.encode_batch_fast
            encoded = self._asked(lambda: encode(list(texts), add_special_tokens=False))
            return [np.array(e.ids, dtype=np.uint32) for e in encoded]
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            return list(pool.map(self.encode_array, texts))

    def with_template(self, template: str) -> Tokenizer:
        """The same tokenizer, with another chat template."""
        other = copy.copy(self)
        other.special = replace(self.special, template=template)
        other.__dict__.pop("_template", None)  # of the old one
        return other

    def encode_chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation, in the format of `special.template`; no content can forge a control token.

        Raises:
            UserError: A message is malformed, or the tokenizer has no chat template, or the template refuses.
        """
        chat.check_messages(messages)
        if self._is_own and self.special.template == chat.TEMPLATE:
            return chat.encode(messages, self.control_tokens, self.encode, add_generation_prompt)
        if not self.has_chat_template:
            raise UserError(
                "this tokenizer has no chat template", where=self.where, mend="Use generate, or a model made for chat."
            )
        pieces = self._template.pieces(messages, self.control_tokens, add_generation_prompt=add_generation_prompt)
        return chat.encode_rendered(pieces, self)

    def encode_marked(self, text: str) -> list[int]:
        """Ids of a text in which control tokens may stand, written by their names."""
        _check_text(text)
        if self._scored is not None:
            return self._scored.encode(text, marked=True)
        ids = None if "_marking" in self.__dict__ else self._first.encode(text, marked=True)
        return self._asked(lambda: self._marking.encode(text)) if ids is None else ids

    def decode(self, ids: Iterable[int], *, show_control_tokens: bool = False) -> str:
        """The text of ids. Bytes that form no character become U+FFFD; control tokens are left out unless shown."""
        names = {i: name.encode() for name, i in self.control_tokens.items()} if show_control_tokens else {}
        parts: list[bytes] = []
        for i in ids:
            if not 0 <= int(i) < self.vocab_size:
                raise UserError(f"id {int(i)} is not in 0 … {self.vocab_size - 1}", mend="Use this tokenizer's ids.")
            parts.append(names.get(int(i)) or self._bytes[int(i)])
        if self._drops == "spaces of the first token":  # Metaspace drops all that are in it
            first = next((number for number, part in enumerate(parts) if part), 0)
            parts[first : first + 1] = [part.replace(b" ", b"") for part in parts[first : first + 1]]
        text = b"".join(parts).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._drops == "space" else text

    def decoder(self) -> IncrementalDecoder:
        """A decoder for a stream of ids."""
        return IncrementalDecoder(self._bytes)

    @property
    def bytes_of_ids(self) -> Sequence[bytes]:
        """The text bytes that each id stands for; b"" for control tokens."""
        return tuple(self._bytes)

    def token_bytes(self) -> np.ndarray:
        """Number of text bytes that each id stands for, int64 (V,); 0 for control tokens."""
        return np.array([len(token) for token in self._bytes], dtype=np.int64)

    @cached_property
    def _fast(self) -> Any:
        import tiktoken

        assert self._ranks is not None, "only a tokenizer with plain ranks has a fast encoder"
        pattern = self._content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        return tiktoken.Encoding("bimo", pat_str=pattern, mergeable_ranks=self._ranks, special_tokens={})

    @cached_property
    def _first(self) -> FirstTexts:
        return FirstTexts(self._content)

    @cached_property
    def _slow(self) -> GuardedTokenizer:
        twin = self.__dict__.get("_marking")
        return self._asked(lambda: GuardedTokenizer(self._content, marked=False, twin=twin))

    @cached_property
    def _marking(self) -> GuardedTokenizer:
        twin = self.__dict__.get("_slow")
        return self._asked(lambda: GuardedTokenizer(self._content, marked=True, twin=twin))

    def _asked(self, question: Callable[[], Answer]) -> Answer:
        """What `tokenizers` answers. It raises `Exception` itself, or, where it panics, what is not even that."""
        try:
            return question()
        except UserError:
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            short = " ".join(str(error).split())[:300]
            raise UserError(f"not a tokenizer ({short})", where=self.where, mend="Copy the file again.") from error

    @cached_property
    def _template(self) -> ChatTemplate:
        from bimo.tokenizer.template import ChatTemplate

        special = self.special
        tokens = {"bos_token": special.begin, "eos_token": special.end, "pad_token": special.pad}
        return ChatTemplate(special.template, tokens=tokens, where=f"chat template of {self.where}")

    @cached_property
    def _ids(self) -> dict[str, int]:
        """Ids of added tokens by name."""
        return {token["content"]: token["id"] for token in _added(self._content)}

    def _id(self, name: str) -> int | None:
        """The id of a token with a role; it is an added token, or (in SentencePiece) one of the vocabulary."""
        if not name:
            return None
        vocab = self._content["model"]["vocab"]
        return self._ids.get(name, vocab.get(name) if isinstance(vocab, dict) else None)


def _scored(content: dict[str, Any]) -> ScoredPieces:
    from bimo.tokenizer.pieces import ScoredPieces

    return ScoredPieces(content)


def _added(content: dict[str, Any]) -> list[dict[str, Any]]:
    added = content.get("added_tokens")
    return [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []


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
