"""Language packs: one folder with all that a model needs for one more language, made and checked.

    zh/
      pack.yaml          what it is (`PackManifest`)
      adapter/           a LoRA adapter, in peft's format
      chat_template.jinja, guard.yaml, evaluation.jsonl, gain.json     where the manifest names them
      manifest.json      size and sha256 of every file

A pack is data from strangers: nothing of it runs but its template, in the sandbox; its files are sealed, of bounded
size, inside the folder, and no links. It belongs to one model: shape, tokenizer and weights are known by digests.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from bimo.core.artifacts import MANIFEST, verify
from bimo.core.errors import UserError
from bimo.core.json_files import read_json
from bimo.core.settings import Settings
from bimo.engine.choosing import as_it_lies
from bimo.model.stored import StoredModel, StoredTensor
from bimo.tasks.languages import LANGUAGES

if TYPE_CHECKING:
    from bimo.lm import LM

PACK = "pack.yaml"
ADAPTER = "adapter"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_FILES = 64
_MOST_BYTES = {PACK: 2**16, ".jinja": 2**18, ".yaml": 2**16, ".json": 2**22, ".jsonl": 2**26, ".safetensors": 2**33}
_ROW_BYTES = 2**20
_AGAIN = "Copy the pack again, or make it again with bimo pack make."


@dataclass(frozen=True)
class Fingerprint(Settings):
    """Which model an adapter belongs to."""

    shape: str = ""
    """Digest of the model's shape and its tokenizer's vocabulary."""
    weights: str = ""
    """Digest of one row of each of its matrices, and of its vectors; empty: any weights of this shape will do."""

    def problems(self) -> list[str]:
        wrong = [name for name in ("shape", "weights") if not re.fullmatch(r"[0-9a-f]{64}|", getattr(self, name))]
        return [f"{name} must be a sha256 sum" for name in wrong]


@dataclass(frozen=True)
class PackManifest(Settings):
    """What a pack is; `pack.yaml`."""

    format: int = 1
    """Version of this file."""
    name: str = ""
    """What requests call it."""
    language: str = ""
    """Code of its language, as zh."""
    base: Fingerprint = field(default_factory=Fingerprint)
    """The model that it belongs to."""
    template: str = ""
    """A file with the chat template that its adapter was trained with, where that is not the model's own."""
    system: str = ""
    """What a conversation begins with that has no system message of its own."""
    guard: str = ""
    """A file with a list of rules, as `bimo serve --guard` takes them, for its requests, beside the server's."""
    evaluation: str = ""
    """A file of rows to measure it on."""
    task: str = ""
    """What the rows are, such as translation(target='de')."""
    gain: str = ""
    """A file with what it gains over its model on those rows."""
    license: str = ""
    """Under which it may be used."""
    notes: str = ""
    """For people."""

    def problems(self) -> list[str]:
        found = [] if self.format == 1 else [f"format must be 1, is {self.format}: this bimo reads no other"]
        if not _NAME.fullmatch(self.name):
            found.append(f"name must be letters, digits, '.', '_', '-', at most 64, is {self.name[:80]!r}")
        if self.language not in LANGUAGES:
            found.append(f"language must be the code of a known language, is {self.language[:40]!r}")
        for name, ending in (("template", ".jinja"), ("guard", ".yaml"), ("evaluation", ".jsonl"), ("gain", ".json")):
            file = getattr(self, name)
            if file and (not _NAME.fullmatch(file) or not file.endswith(ending) or file == PACK):
                found.append(f"{name} must be a file *{ending} beside {PACK}, is {file[:80]!r}")
        if len(self.system) > 8192:
            found.append("system must have at most 8192 characters")
        return found


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack that was checked.

    Attributes:
        folder: Where it lies.
        manifest: What it is.
        template: Its chat template; "": the model's.
        rules: Its guard's rules.
    """

    folder: Path
    manifest: PackManifest
    template: str = ""
    rules: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.manifest.name

    @property
    def adapter(self) -> Path:
        """The folder of its adapter."""
        return self.folder / ADAPTER


def read_pack(folder: Path, base: Fingerprint | None = None) -> Pack:
    """Read a pack and check all of it.

    Args:
        folder: Its folder.
        base: The model that it is for; None: not checked.

    Raises:
        UserError: A file is missing, changed, too large, beside the folder or unknown, or it belongs to another model.
    """
    folder, where = Path(folder), str(folder)
    if not (folder / PACK).is_file():
        raise UserError(f"this is no language pack: there is no {PACK}", where=where, mend="Check the path.")
    _check_files(folder)
    problems = verify(folder)
    if problems:
        raise UserError("; ".join(problems[:3]), where=where, mend=_AGAIN)
    try:
        manifest = PackManifest.from_dict(_yaml(folder / PACK, dict))
    except UserError as error:
        raise UserError(error.what, where=str(folder / PACK), mend=error.mend or _AGAIN) from error
    needed = (f"{ADAPTER}/adapter_config.json", f"{ADAPTER}/adapter_model.safetensors")
    named = (manifest.template, manifest.guard, manifest.evaluation, manifest.gain)
    missing = next((name for name in (*needed, *filter(None, named)) if not (folder / name).is_file()), None)
    if missing is not None:
        raise UserError(f"{missing} is missing", where=where, mend=_AGAIN)
    if base is not None:
        _check_base(manifest.base, base, where)
    if manifest.evaluation:
        _check_rows(folder / manifest.evaluation)
    return Pack(folder, manifest, _template(folder, manifest), _rules(folder, manifest))


def fingerprint(lm: LM) -> Fingerprint:
    """Which model this is: its shape, its vocabulary and a part of every matrix; other weights have another one."""
    spec = {key: value for key, value in as_it_lies(lm).spec.to_dict().items() if key != "dropout"}
    shape = hashlib.sha256(json.dumps(spec, sort_keys=True, default=str).encode())
    if lm.has_tokenizer:
        for token in lm.tokenizer.bytes_of_ids:
            shape.update(len(token).to_bytes(4, "little") + token)
    weights = hashlib.sha256()
    model: Any = as_it_lies(lm)
    stored = model if isinstance(model, StoredModel) else None
    names = sorted(stored.tensors) if stored else sorted(name for name, _ in model.named_parameters())
    parameters = {} if stored else dict(model.named_parameters())
    for name in names:
        if name == "lm_head.weight" and spec.get("tied_embeddings"):
            continue
        tensor = stored.tensors[name] if stored else _stored_row(parameters[name])
        weights.update(name.encode() + _first_row(tensor).tobytes())
    return Fingerprint(shape.hexdigest(), weights.hexdigest())


def _first_row(tensor: StoredTensor) -> np.ndarray:
    """Its first row as float32: the same for a file and for the module made of it."""
    rows = tensor.rows.reshape(-1, tensor.rows.shape[-1])[:1]
    return StoredTensor(np.ascontiguousarray(rows), tensor.format).floats()


def _stored_row(parameter: Any) -> StoredTensor:
    """The first row of a torch parameter, on whatever device."""
    from bimo.model.formats import FORMATS
    from bimo.model.packed import PackedTensor

    if isinstance(parameter, PackedTensor):
        rows = parameter.rows.reshape(-1, parameter.rows.shape[-1])[:1]
        return StoredTensor(rows.cpu().contiguous().numpy(), parameter.format)
    row = parameter.detach().reshape(-1, parameter.shape[-1])[:1].float().cpu().contiguous()
    return StoredTensor(row.numpy().view(np.uint8), FORMATS["F32"])


def _check_files(folder: Path) -> None:
    """Whether the folder holds files alone that a pack has, none too large, and all of them sealed."""
    found = list(_walk(folder))
    listed = read_json(folder / MANIFEST).get("files") if (folder / MANIFEST).is_file() else None
    if not isinstance(listed, dict):
        raise UserError(f"{MANIFEST} is missing or damaged", where=str(folder), mend=_AGAIN)
    for name in listed:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise UserError(f"it names a file outside itself, {name[:100]!r}", where=str(folder), mend=_AGAIN)
    extra = next((name for name in found if name != MANIFEST and name not in listed), None)
    if extra is not None:
        raise UserError(f"{extra} is not in its {MANIFEST}", where=str(folder), mend=_AGAIN)


def _walk(folder: Path) -> Iterator[str]:
    """Names of all files, with the folder's own path left out."""
    count = 0
    for path in sorted(folder.rglob("*")):
        name, count = path.relative_to(folder).as_posix(), count + 1
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise UserError(f"{name[:100]} is no plain file", where=str(folder), mend="A pack holds no links.")
        if count > _MOST_FILES or len(path.relative_to(folder).parts) > 2:
            raise UserError("it holds more than a pack has", where=str(folder), mend=_AGAIN)
        if path.is_dir():
            continue
        largest = _MOST_BYTES.get(path.name) or _MOST_BYTES.get(path.suffix)
        if largest is None:
            raise UserError(f"{name[:100]} is no file that a pack has", where=str(folder), mend="Take it out.")
        if path.stat().st_size > largest:
            raise UserError(f"{name[:100]} is larger than {largest} bytes", where=str(folder), mend="Make it smaller.")
        yield name


def _check_base(wanted: Fingerprint, base: Fingerprint, where: str) -> None:
    if wanted.shape != base.shape:
        what, mend = "it belongs to a model of another shape or vocabulary", "Use the model that it was trained on."
        raise UserError(what, where=where, mend=mend)
    if wanted.weights and wanted.weights != base.weights:
        mend = "Use the model that it was trained on; of a quantised one, make the pack with --any_weights."
        raise UserError("it was trained on a model with other weights", where=where, mend=mend)


def _check_rows(path: Path) -> None:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line) if len(line) <= _ROW_BYTES else None
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UserError("this is no JSON object", where=f"{path}, line {number}", mend=_AGAIN)


def _template(folder: Path, manifest: PackManifest) -> str:
    """The text of its template, which is tried once."""
    if not manifest.template:
        return ""
    from bimo.tokenizer.template import ChatTemplate

    path = folder / manifest.template
    try:
        source = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise UserError("it is not UTF-8", where=str(path), mend=_AGAIN) from error
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    ChatTemplate(source, tokens=tokens, where=str(path)).render([{"role": "user", "content": "a"}])
    return source


def _rules(folder: Path, manifest: PackManifest) -> tuple[str, ...]:
    """Its guard's rules, each of which can be made."""
    if not manifest.guard:
        return ()
    from bimo.guard import made_chain

    path = folder / manifest.guard
    rules = _yaml(path, list)
    if not all(isinstance(rule, str) for rule in rules) or len(rules) > _MOST_FILES:
        mend = 'For example: - personal_data(action="mask").'
        raise UserError("it must be a list of rules", where=str(path), mend=mend)
    try:
        made_chain(rules)
    except UserError as error:
        raise UserError(error.what, where=str(path), mend=error.mend) from error
    return tuple(rules)


def _yaml(path: Path, kind: type) -> Any:
    """What a YAML file holds."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError("cannot be read as YAML", where=str(path), mend=_AGAIN) from error
    if not isinstance(content, kind):
        what = "a list" if kind is list else "a mapping"
        raise UserError(f"it is not {what}", where=str(path), mend=_AGAIN)
    return content
