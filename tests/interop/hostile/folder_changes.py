"""Model folders with one thing changed: the configuration, the weights, the tokenizer, or what kind of file it is."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], None]
"""Changes a sound folder, whose config.json is a Qwen3's."""

LAYER = "model.layers.0.self_attn.q_proj.weight"
DEEP = 10_000


def raw(name: str, content: bytes) -> Change:
    """A file of the folder has this content."""
    return lambda folder: void((folder / name).write_bytes(content))


def void(_: object) -> None:
    """So that an expression can be a change."""


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """A JSON file of the folder says something else."""

    def apply(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return apply


def again(name: str, key: str) -> Change:
    """A key of a JSON file stands twice and says the same."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        line = json.dumps({key: content[key]}).removesuffix("}")
        (folder / name).write_text(f"{line}, {json.dumps(content).removeprefix('{')}")

    return change


def config(key: str, value: Any) -> Change:
    """A field of the configuration is another one."""
    return edit("config.json", lambda content: content.update({key: value}))


def several(**fields: Any) -> Change:
    """Some fields of the configuration are other ones."""
    return edit("config.json", lambda content: content.update(fields))


def scaling(**words: Any) -> Change:
    """The configuration stretches rotary positions."""
    return config("rope_scaling", words)


def own(key: str, value: Any) -> Change:
    """bimo's own words in the configuration are other ones."""

    def change(content: dict[str, Any]) -> None:
        words = {**OWN, "vocab_size": content["vocab_size"], key: value}
        content.update({"model_type": "bimo", "bimo": words})

    return edit("config.json", change)


OWN = {"n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "d_model": 64, "d_ff": 192}


def beside(name: str, key: str, value: Any) -> Change:
    """A file beside a tokenizer of others says this; bimo's own tokenizer needs no such file."""

    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(path.read_text(encoding="utf-8").replace("<|begin|>", "<s>"), encoding="utf-8")
        edit(name, lambda content: content.update({key: value}))(folder)

    return change


def vocabulary(change: Callable[[dict[str, Any]], object]) -> Change:
    """The tokenizer.json says something else."""
    return edit("tokenizer.json", change)


def model(**changes: Any) -> Change:
    """The model in the tokenizer.json has other fields."""
    return vocabulary(lambda content: content["model"].update(changes))


def merge(pair: Any) -> Change:
    """The first merge is another one."""
    return vocabulary(lambda content: content["model"]["merges"].__setitem__(0, pair))


def added(**changes: Any) -> Change:
    """The first added token has other fields."""
    return vocabulary(lambda content: content["added_tokens"][0].update(changes))


def header(change: Callable[[dict[str, Any]], object]) -> Change:
    """The header of the weights says something else."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        content = json.loads(data[8 : 8 + length])
        text = json.dumps(change(content) or content).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return apply


def weight(**changes: Any) -> Change:
    """The header says something else of one tensor."""
    return header(lambda content: content[LAYER].update(changes))


def header_text(change: Callable[[bytes], bytes]) -> Change:
    """The header is another text."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        text = change(data[8 : 8 + length])
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return apply


def index(places: Any, keep: bool = False) -> Change:
    """The weights lie in many files, as an index says."""

    def change(folder: Path) -> None:
        if not keep:
            (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))

    return change


def instead(name: str, make: Callable[[Path], object]) -> Change:
    """Something that is no file stands where a file should be."""

    def change(folder: Path) -> None:
        beside("tokenizer_config.json", "bos_token", "<s>")(folder)
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch {folder / 'trap'}'\ntR.".encode())


def remote_code(folder: Path) -> None:
    (folder / "modeling.py").write_text(f"open({str(folder / 'trap')!r}, 'w')")
    names = {"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model"}
    edit("config.json", lambda c: c.update(model_type="magic", auto_map=names, trust_remote_code=True))(folder)


def cut(name: str, share: float) -> Change:
    """A file ends early."""

    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return change


def sparse(name: str, size: int) -> Change:
    """A file of enormous size that takes no room on the disk."""
    return lambda folder: void(os.truncate(folder / name, size))


def both(*changes: Change) -> Change:
    """One change after the other."""

    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change
