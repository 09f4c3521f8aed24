"""One door for every model that a person may have: a run, a Hugging Face folder or hub name, a GGUF file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from bimo.core.errors import UserError, require
from bimo.interop.gguf import read_model
from bimo.model.stored import StoredModel
from bimo.tokenizer import Tokenizer

if TYPE_CHECKING:
    from bimo.model.gpt import GPT

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LONGEST_CLAUSE = 400  # characters
_NEEDED = ("*.json", "*.safetensors", "*.jinja")


def find_model(name: str | Path) -> Path:
    """The folder or file that a name means: a run's model, a model folder, a .gguf file, or a hub name's local copy.

    Raises:
        UserError: There is nothing; it says what was looked for.
    """
    try:
        return _found(name, Path(name))
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise UserError(f"cannot be opened ({error})", where=str(name)[:300], mend="Check the name.") from error


def _found(name: str | Path, path: Path) -> Path:
    if path.suffix == ".gguf" and not path.is_dir():
        if not path.is_file():
            raise UserError("no such file", where=str(path), mend="Give a .gguf file, a run or a model folder.")
        return path
    folder = path / "model" if (path / "model" / "config.json").exists() else path
    if (folder / "config.json").exists():
        return folder
    if (path / "run.yaml").exists():
        raise UserError("this run has no model yet", where=str(path), mend=f"Finish it: bimo train --resume {path}")
    # Two words with a slash may be a path that was mistyped: only a folder that is not there is asked for.
    if _HUB_NAME.fullmatch(str(name)) and not path.exists() and not path.parent.exists():
        return _from_hub(str(name))
    raise UserError("no run and no model folder", where=str(path), mend="See which runs there are: ls runs")


def open_model(path: Path) -> tuple[GPT, Tokenizer | None]:
    """The model and tokenizer at a path that `find_model` gave; None when a folder holds no tokenizer.

    Raises:
        UserError: A file is missing, damaged or not supported; it names the file, in few words whatever stands in it.
    """
    model, tokenizer = open_stored(path)
    return model.build() if isinstance(model, StoredModel) else model, tokenizer


def open_stored(path: Path) -> tuple[GPT | StoredModel, Tokenizer | None]:
    """As `open_model`; the model of a GGUF file as it lies there, without torch.

    Raises:
        UserError: As `open_model`; all that is wrong with a file is said now.
    """
    try:
        return _opened(path)
    except UserError as error:
        where = error.where if str(path) in error.where else str(path)
        raise UserError(_short(error.what), where=_short(where), mend=error.mend) from error


def _short(words: str) -> str:
    """Words that a file may have a part in, so that they fit one sentence and any terminal."""
    words = " ".join(words.split()).encode(errors="backslashreplace").decode()
    return words if len(words) <= _LONGEST_CLAUSE else words[:_LONGEST_CLAUSE] + " …"


def _opened(path: Path) -> tuple[GPT | StoredModel, Tokenizer | None]:
    if path.is_file():
        return read_model(path)
    from bimo.interop.huggingface import load_model  # here: it brings torch

    model, file = load_model(path), path / "tokenizer.json"
    if not os.path.lexists(file):
        return model, None
    size = model.spec.vocab_size
    tokenizer = Tokenizer.load(file, vocab_size=size)
    if tokenizer.vocab_size > size:
        what = f"the tokenizer has {tokenizer.vocab_size} ids, the model only {size}"
        raise UserError(what, where=str(file), mend="Use the tokenizer that the model was trained with.")
    return model, tokenizer


def _from_hub(name: str) -> Path:
    """A hub model's local folder: fetched where there is a network, else out of the local cache."""
    hub = require("huggingface_hub", "hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(_NEEDED)))
    except Exception as first:  # the hub's errors have many classes; the user learns what the last one said
        try:
            return Path(hub.snapshot_download(name, allow_patterns=list(_NEEDED), local_files_only=True))
        except Exception:
            short = " ".join(str(first).split())[:200]
            raise UserError(
                f"no run, no model folder, and no model of the hub that can be had ({type(first).__name__}: {short})",
                where=name,
                mend="Check the name; without a network, only models in the local cache can be opened.",
            ) from first
