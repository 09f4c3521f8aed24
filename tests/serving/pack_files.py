"""Packs on disk for tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import yaml
from model.test_lora import adapter_of

from bimo import LM
from bimo.core.artifacts import write_folder
from bimo.interop import save_adapter
from bimo.serving.packs import ADAPTER, PACK, PackManifest, fingerprint

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "


def write_pack(folder: Path, lm: LM, name: str, language: str, seed: int = 1, **about: object) -> Path:
    """A pack with a random adapter; `about` are fields of the manifest; files that they name are written."""
    manifest = PackManifest(name=name, language=language, base=fingerprint(lm))
    manifest = replace(manifest, **about)  # type: ignore[arg-type]  # the test knows the fields
    with write_folder(folder) as target:
        save_adapter(target / ADAPTER, lm.model, adapter_of(lm.model, name, 2, seed))
        (target / ADAPTER / "manifest.json").unlink()  # the pack has one seal
        manifest.save(target / PACK)
        if manifest.template:
            (target / manifest.template).write_text(TEMPLATE, encoding="utf-8")
        if manifest.guard:
            (target / manifest.guard).write_text(yaml.safe_dump(["personal_data(action='refuse')"]), encoding="utf-8")
        if manifest.evaluation:
            (target / manifest.evaluation).write_text(json.dumps({"text": "a"}) + "\n", encoding="utf-8")
    return folder
