"""Which tokens open and end a text, and how a conversation is written: what stands beside a `tokenizer.json`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bimo.core.errors import UserError
from bimo.core.json_files import read_json

Value = TypeVar("Value")
_AGAIN = "Copy the model's folder again."
_LONGEST_TEMPLATE = 2**20  # bytes
BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
END_OF_TURN = "<|end_of_turn|>"
ENDS = (END_OF_TURN, "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|endoftext|>", "<|end|>")
"""Control tokens that end an answer wherever they exist: our own, and those of ChatML, Llama 3, Gemma, GPT-2, Phi."""


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The tokens with a role, by name; '' when there is none.

    Attributes:
        begin: Opens a document.
        end: Ends a document.
        pad: Fills rows.
        ends: Also end an answer.
        add_begin: Whether prompts start with `begin`. None: as the tokenizer's own post-processor does.
        template: How a conversation is written, in Jinja; '' when there is none.
    """

    begin: str = ""
    end: str = ""
    pad: str = ""
    ends: tuple[str, ...] = ()
    add_begin: bool | None = None
    template: str = ""

    @classmethod
    def beside(cls, tokenizer: Path, names: dict[int, str]) -> SpecialTokens | None:
        """What the files beside a `tokenizer.json` say; None when there are none.

        Args:
            tokenizer: The path of the tokenizer.json.
            names: Names of its added tokens by id.
        """
        folder = tokenizer.parent
        config = _read(folder / "tokenizer_config.json")
        named = _read(folder / "special_tokens_map.json")
        ids = _read(folder / "config.json") | _read(folder / "generation_config.json")
        if not config and not named and not ids:
            return None

        def name(role: str) -> str:
            for source in (config, named):
                value = source.get(f"{role}_token")
                value = value.get("content") if isinstance(value, dict) else value
                if value is not None:
                    return _checked(value, str, f"{role}_token", folder)
            if f"{role}_token" in config:  # null there says that there is none
                return ""
            return next((names.get(i, "") for i in _numbers(ids, f"{role}_token_id", folder)), "")

        add_begin = config.get("add_bos_token")
        return cls(
            begin=name("bos"),
            end=name("eos"),
            pad=name("pad"),
            ends=tuple(names[i] for i in _numbers(ids, "eos_token_id", folder) if i in names),
            add_begin=None if add_begin is None else _checked(add_begin, bool, "add_bos_token", folder),
            template=_template(folder, config),
        )

    @classmethod
    def found_in(cls, control: Iterable[str], template: str) -> SpecialTokens:
        """bimo's own tokens, as far as a tokenizer has them."""
        begin, end, pad = (name if name in control else "" for name in (BEGIN, END, PAD))
        template = template if END_OF_TURN in control else ""
        return cls(begin, end, pad, add_begin=True if begin else None, template=template)

    def config(self) -> dict[str, Any]:
        """The same as a tokenizer_config.json, without empty entries."""
        words: dict[str, Any] = {"bos_token": self.begin, "eos_token": self.end, "pad_token": self.pad}
        words["chat_template"] = self.template
        found = {key: value for key, value in words.items() if value}
        return found if self.add_begin is None else {**found, "add_bos_token": self.add_begin}


def _template(folder: Path, config: dict[str, Any]) -> str:
    """The chat template: a file of its own, or in the configuration, where it may be one of several."""
    path = folder / "chat_template.jinja"
    if os.path.lexists(path):
        return _read_template(path)
    template = config.get("chat_template") or _read(folder / "chat_template.json").get("chat_template") or ""
    if isinstance(template, list):
        entries = [_checked(entry, dict, "chat_template", folder) for entry in template]
        template = next((entry.get("template") for entry in reversed(entries) if entry.get("name") == "default"), "")
    return _checked(template, str, "chat_template", folder)


def _read_template(path: Path) -> str:
    try:
        if not path.is_file():
            raise UserError("no such file", where=str(path), mend=_AGAIN)
        with path.open("rb") as file:
            data = file.read(_LONGEST_TEMPLATE + 1)
    except OSError as error:
        raise UserError(f"cannot be read ({error})", where=str(path), mend=_AGAIN) from error
    if len(data) > _LONGEST_TEMPLATE:
        raise UserError(f"longer than a template can be ({_LONGEST_TEMPLATE} bytes)", where=str(path), mend=_AGAIN)
    return data.decode(errors="replace")


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, {} when there is none: these files are optional."""
    return read_json(path) if os.path.lexists(path) else {}


def _numbers(words: dict[str, Any], key: str, folder: Path) -> list[int]:
    """One or many ids; null means none. They may be beyond the vocabulary, as in many published files."""
    value = words.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [_checked(number, int, key, folder) for number in values]


def _checked(value: Any, kind: type[Value], key: str, folder: Path) -> Value:
    if type(value) is not kind:
        raise UserError(f"{key} beside tokenizer.json is {value!r:.50}", where=str(folder), mend=_AGAIN)
    return value
