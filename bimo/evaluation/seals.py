"""The files of a model against the manifests that were written beside them: has anybody changed them since?

What is read anew from a changed file agrees with itself, so no other comparison can tell: two weights that were
exchanged are a sound model, only not the one that was trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from bimo.core import artifacts
from bimo.core.artifacts import MANIFEST, sha256
from bimo.core.errors import UserError
from bimo.core.json_files import read_json
from bimo.evaluation.certificate import Finding
from bimo.evaluation.comparing import finding
from bimo.tokenizer import Tokenizer

_CHECK, _REFERENCE = "files", "the manifest"
_WEIGHTS, _TOKENIZER = "model.safetensors", "tokenizer.json"


def files_of(source: Path | None) -> list[Path]:
    """The files that a model and its tokenizer are made of; none for a model in memory."""
    if source is None or source.is_file():
        return [] if source is None else [source]
    kinds = ("*.safetensors", "*.json", "*.jinja")
    return sorted(path for kind in kinds for path in source.glob(kind) if path.is_file())


def compare_files(source: Path, tokenizer: Tokenizer | None) -> Finding | None:
    """A model's files against its folder's manifest and, in a run, the run's; None where there is neither.

    Args:
        source: The model's folder or file.
        tokenizer: As it was read from there.
    """
    run = source.parent if source.name == "model" and (source.parent / "run.yaml").is_file() else None
    of_run = run is not None and (run / MANIFEST).exists()
    if not source.is_dir() or not ((source / MANIFEST).exists() or of_run):
        return None
    problems: list[tuple[str, str]] = []
    try:
        # A run's model is always sealed: one without a manifest has lost it.
        sealed = read_json(source / MANIFEST)
        if not of_run and not {"files", "parents"} & set(sealed):
            return None  # another tool's file of this name
        problems += _against_folder(source, sealed)
    except UserError as error:
        problems.append((MANIFEST, f"{MANIFEST}: {error.what}"))
    if of_run and run is not None:
        try:
            problems += _against_run(source, tokenizer, read_json(run / MANIFEST))
        except UserError as error:
            problems.append((f"../{MANIFEST}", f"the run's {MANIFEST}: {error.what}"))
    note = "; ".join(dict.fromkeys(what for _, what in problems)) or "as they were written"
    return finding(_CHECK, _REFERENCE, float(len(problems)), problems[0][0] if problems else MANIFEST, note=note)


def _against_folder(folder: Path, sealed: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The name of each file that is not as it was sealed, and what is wrong with it."""
    files = sealed.get("files")
    for name in files if isinstance(files, dict) else ():
        # A manifest of a stranger may name anything: a device that never ends, a file of somebody else.
        path = PurePosixPath(name)
        if "\0" in name or path.is_absolute() or ".." in path.parts:
            yield name, f"{name!r} is no name of a file in this folder"
            return
        if (folder / name).exists() and not (folder / name).is_file():
            yield name, f"{name} is no file any more"
            return
    for what in artifacts.verify(folder):
        named = (name for name in files or () if what.startswith(f"{name} "))
        yield max(named, key=len, default=MANIFEST), what


def _against_run(folder: Path, tokenizer: Tokenizer | None, lineage: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The same, of what the run's manifest knows: the weights and the tokenizer that the training ended with."""
    if not (folder / _WEIGHTS).is_file():
        yield _WEIGHTS, f"{_WEIGHTS} is missing"
    elif sha256(folder / _WEIGHTS) != lineage.get("model"):
        yield _WEIGHTS, f"{_WEIGHTS} is not what the run ended with"
    if tokenizer is None:
        yield _TOKENIZER, f"{_TOKENIZER} is missing"
    elif tokenizer.fingerprint != lineage.get("tokenizer"):
        yield _TOKENIZER, f"{_TOKENIZER} is not what the run ended with"
