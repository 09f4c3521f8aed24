"""A language pack is read whole, or not at all: every file is sealed, bounded, inside, and for this model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from serving.pack_files import write_pack

from bimo import LM, Tokenizer, load, new
from bimo.core.artifacts import sha256
from bimo.core.errors import UserError
from bimo.serving.packs import Fingerprint, PackManifest, fingerprint, read_pack

FILES = {"template": "chat_template.jinja", "guard": "guard.yaml", "evaluation": "evaluation.jsonl"}


@pytest.fixture(scope="module")
def whole(small: LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("packs") / "zh", small, "mandarin", "zh", system="说中文。", **FILES)


@pytest.fixture
def pack(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(whole, tmp_path / "zh"))


def sealed(folder: Path) -> None:
    """Seal a folder as it is now, as somebody does who knows how."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"files": files, "parents": {}}), encoding="utf-8")


def test_a_whole_pack_is_read_with_all_that_it_has(whole: Path, small: LM) -> None:
    found = read_pack(whole, fingerprint(small))
    assert (found.name, found.manifest.language, found.manifest.system) == ("mandarin", "zh", "说中文。")
    assert found.rules == ("personal_data(action='refuse')",)
    assert "[assistant]" in found.template
    assert (found.adapter / "adapter_model.safetensors").is_file()


def flip(folder: Path) -> None:
    path = folder / "adapter" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def outside(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    content["files"]["../other"] = {"sha256": "0" * 64, "bytes": 0}
    (folder / "manifest.json").write_text(json.dumps(content))


def linked(folder: Path) -> None:
    (folder / "guard.yaml").unlink()
    (folder / "guard.yaml").symlink_to("/etc/hostname")


def manifest(old: str, new_text: str) -> Callable[[Path], None]:
    """Change the manifest and seal the pack again."""

    def change(folder: Path) -> None:
        path = folder / "pack.yaml"
        text = path.read_text(encoding="utf-8")
        assert old in text, text
        path.write_text(text.replace(old, new_text), encoding="utf-8")
        sealed(folder)

    return change


def file(name: str, text: str) -> Callable[[Path], None]:
    """Write a file and seal the pack again."""

    def change(folder: Path) -> None:
        (folder / name).write_text(text, encoding="utf-8")
        sealed(folder)

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "adapter_model.safetensors has changed"),
        (outside, "a file outside itself"),
        (linked, "no plain file"),
        (lambda folder: (folder / "guard.yaml").unlink(), "guard.yaml is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "pack.yaml").unlink(), "no language pack"),
        (lambda folder: (folder / "more.json").write_text("{}"), "more.json is not in its manifest"),
        (file("run.py", "print()"), "no file that a pack has"),
        (lambda folder: (folder / "a" / "b").mkdir(parents=True), None),
        (lambda folder: (folder / "a" / "b" / "c").mkdir(parents=True), "more than a pack has"),
        (manifest("language: zh", "language: xx"), "code of a known language"),
        (manifest("name: mandarin", "name: ../up"), "name must be letters"),
        (manifest("format: 1", "format: 2"), "this bimo reads no other"),
        (manifest("guard: guard.yaml", "guard: /etc/passwd.yaml"), "must be a file"),
        (manifest("guard: guard.yaml", "gaurd: guard.yaml"), "did you mean 'guard'"),
        (manifest("format: 1", "format: [1"), "cannot be read as YAML"),
        (file("pack.yaml", "- a"), "not a mapping"),
        (file("pack.yaml", "!!python/object/apply:os.system [x]"), "cannot be read as YAML"),
        (file("guard.yaml", "- no_such_rule"), "no_such_rule"),
        (file("guard.yaml", "a: b"), "not a list"),
        (file("evaluation.jsonl", '{"text": "a"}\n[1]\n'), "no JSON object"),
        (file("chat_template.jinja", "{% for %}"), "template"),
        (file("chat_template.jinja", "{% for i in range(10**9) %}x{% endfor %}"), "chat_template.jinja"),
        (file("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"), "chat_template.jinja"),
        (file("pack.yaml", "x" * 70_000), "larger than 65536 bytes"),
    ],
)
def test_what_is_damaged_is_refused(pack: Path, small: LM, damage: Callable[[Path], None], message: str | None) -> None:
    damage(pack)
    if message is None:
        read_pack(pack, fingerprint(small))  # an empty folder does no harm
        return
    with pytest.raises(UserError, match=message):
        read_pack(pack, fingerprint(small))


def test_a_pack_of_another_model_is_refused(whole: Path, small_tokenizer: Tokenizer, small: LM) -> None:
    spec = small.model.spec
    wider = new(replace(spec, d_model=64), small_tokenizer)
    with pytest.raises(UserError, match="another shape or vocabulary"):
        read_pack(whole, fingerprint(wider))
    other_weights = new(spec, small_tokenizer, seed=99)
    with pytest.raises(UserError, match="other weights"):
        read_pack(whole, fingerprint(other_weights))
    other_words = Tokenizer.train(["completely different words of this text " * 9], vocab_size=spec.vocab_size)
    with pytest.raises(UserError, match="another shape or vocabulary"):
        read_pack(whole, fingerprint(LM(small.model, other_words)))


def test_a_pack_for_any_weights_fits_every_model_of_its_shape(
    small: LM, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    base = Fingerprint(fingerprint(small).shape, "")
    folder = write_pack(tmp_path / "any", small, "any", "de", base=base)
    assert read_pack(folder, fingerprint(new(small.model.spec, small_tokenizer, seed=99))).name == "any"


def test_a_model_has_one_fingerprint_however_it_was_opened(small: LM, tmp_path: Path) -> None:
    opened = load(small.save(tmp_path / "saved"))
    before = fingerprint(opened)
    assert opened.model is not None, "the torch module is made, and the file's form let go"
    assert before == fingerprint(opened) == fingerprint(small)


def test_a_packed_model_has_one_fingerprint_too(small: LM, tmp_path: Path) -> None:
    path = small.export(tmp_path / "small.gguf", "Q8_0")
    opened = load(path)
    before = fingerprint(opened)
    assert opened.model is not None, "the torch module is made"
    assert before == fingerprint(opened)
    assert before.weights != fingerprint(small).weights, "its weights are others"


def test_the_manifest_collects_what_is_wrong() -> None:
    with pytest.raises(UserError, match=r"format must be 1.*name must be.*language must be"):
        PackManifest(format=3, name="a/b", language="gremlin")
    with pytest.raises(UserError, match="sha256"):
        Fingerprint("abc")
