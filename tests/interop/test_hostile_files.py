"""Files that lie are refused in one sentence, soon, and before they fill the memory; whatever opens also works."""

from __future__ import annotations

import copy
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from interop.hostile import folder_changes, gguf_draft
from interop.hostile.config_cases import CONFIG, FILES
from interop.hostile.gguf_cases import LAYOUT, MEANING, VOCABULARY
from interop.hostile.gguf_draft import Draft
from interop.hostile.tokenizer_cases import BESIDE, TEMPLATES, TOKENIZER
from interop.hostile.watching import Outcome, Watcher
from interop.hostile.weight_cases import WEIGHTS

from bimo import LM, ModelSpec, Tokenizer, UserError, load, new
from bimo.cli import main

SECONDS, MEGABYTES = 2.0, 100.0
SLACK_S = 0.5  # a template may compute for two seconds
GGUF = {
    f"{group}/{name}": case
    for group, cases in (("layout", LAYOUT), ("meaning", MEANING), ("vocabulary", VOCABULARY))
    for name, case in cases.items()
}
TABLES = (("config", CONFIG), ("files", FILES), ("weights", WEIGHTS), ("tokenizer", TOKENIZER), ("beside", BESIDE))
ODDITIES: dict[str, gguf_draft.Change] = {
    "padding_beyond_the_tokens": gguf_draft.put("tokenizer.ggml.padding_token_id", 32000),
    "tokens_twice": gguf_draft.items("tokenizer.ggml.tokens", -2, "a"),
    "an_unused_field": gguf_draft.put("someone.else", [1, 2]),
    "version_2": gguf_draft.make(version=2),
}
ODD_FOLDERS: dict[str, folder_changes.Change] = {
    "ids_beyond_the_tokens": folder_changes.beside("generation_config.json", "eos_token_id", [50256, -1]),
    "a_key_twice_with_one_value": folder_changes.again("config.json", "hidden_size"),
    "a_role_of_null": folder_changes.beside("tokenizer_config.json", "bos_token", None),
}
FOLDERS = {f"{group}/{name}": case for group, cases in TABLES for name, case in cases.items()}


@pytest.fixture(scope="module")
def small(tokenizer: Tokenizer) -> LM:
    spec = ModelSpec(context_length=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_model=64, d_ff=192)
    return new(spec, tokenizer, seed=1)


@pytest.fixture(scope="module")
def draft(small: LM, tmp_path_factory: pytest.TempPathFactory) -> Draft:
    return Draft.of(small, tmp_path_factory.mktemp("sound") / "sound.gguf")


@pytest.fixture(scope="module")
def sound(small: LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it, without bimo's own words."""
    folder = small.save(tmp_path_factory.mktemp("sound") / "model")
    folder_changes.edit("config.json", lambda config: config.pop("bimo"))(folder)
    return folder


@pytest.fixture(scope="module")
def watcher(sound: Path) -> Iterator[Watcher]:
    watcher = Watcher()
    for opener in ("use", "chat"):  # imports take time and memory once
        warm = watcher.open(sound, opener)
        assert warm.kind == "ran", warm
    yield watcher
    watcher.close()


def gguf_file(draft: Draft, name: str, folder: Path) -> Path:
    """The file of a case."""
    changed = copy.deepcopy(draft)
    data = GGUF[name][0](changed)
    path = folder / "hostile.gguf"
    path.write_bytes(changed.bytes() if data is None else data)
    return path


def copied(sound: Path, folder: Path) -> Path:
    return Path(shutil.copytree(sound, folder / "hostile"))


def check_refusal(outcome: Outcome, path: Path, words: str, seconds: float = SECONDS) -> None:
    assert outcome.kind == "UserError", outcome
    assert str(path) in outcome.text, f"the file is named: {outcome.text}"
    assert re.search(words, outcome.text), f"{words!r} is said: {outcome.text}"
    assert outcome.mend, "there is something to do about it"
    assert len(outcome.text) < 1200, "one sentence"
    assert "\n" not in outcome.text, "one line"
    assert outcome.seconds < seconds, "soon"
    assert outcome.megabytes < MEGABYTES, "in little memory"


@pytest.mark.parametrize("name", GGUF)
def test_a_hostile_gguf_file_is_refused(name: str, draft: Draft, watcher: Watcher, tmp_path: Path) -> None:
    path = gguf_file(draft, name, tmp_path)
    check_refusal(watcher.open(path), path, GGUF[name][1])
    path.unlink()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_hostile_folder_is_refused(name: str, sound: Path, watcher: Watcher, tmp_path: Path) -> None:
    folder = copied(sound, tmp_path)
    change, words = FOLDERS[name]
    change(folder)
    check_refusal(watcher.open(folder), folder, words)
    assert not (folder / "trap").exists(), "nothing out of the folder has run"
    shutil.rmtree(folder)


@pytest.mark.parametrize("place", range(0, 100, 4))
def test_a_gguf_file_that_ends_anywhere_is_refused(place: int, draft: Draft, watcher: Watcher, tmp_path: Path) -> None:
    data, path = draft.bytes(), tmp_path / "cut.gguf"
    path.write_bytes(data[: len(data) * place // 100])
    check_refusal(watcher.open(path), path, "cut off|not a GGUF|more than")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_hostile_chat_template_is_refused(name: str, draft: Draft, watcher: Watcher, tmp_path: Path) -> None:
    changed, path = copy.deepcopy(draft), tmp_path / "hostile.gguf"
    changed.fields["tokenizer.chat_template"] = TEMPLATES[name]
    path.write_bytes(changed.bytes())
    check_refusal(watcher.open(path, "chat"), path, "chat template", SECONDS + SLACK_S)


@pytest.mark.parametrize(("opener", "limit"), [("believe", "megabytes"), ("dawdle", "seconds")])
def test_a_careless_reader_is_caught(opener: str, limit: str, sound: Path, watcher: Watcher, tmp_path: Path) -> None:
    folder = copied(sound, tmp_path)
    folder_changes.raw("config.json", b'{"a":[' + b"[]," * 2_500_000 + b"[]]}")(folder)
    outcome = watcher.open(folder, opener)
    assert outcome.kind == "ran", outcome
    assert getattr(outcome, limit) > {"megabytes": MEGABYTES, "seconds": SECONDS}[limit], "the control must be caught"


def test_what_is_sound_opens(draft: Draft, watcher: Watcher, tmp_path: Path) -> None:
    pieces, path = copy.deepcopy(draft), tmp_path / "sound.gguf"
    gguf_draft.pieces()(pieces)
    for changed in (draft, pieces):
        path.write_bytes(changed.bytes())
        assert watcher.open(path).kind == "ran", "only what is wrong is refused"


@pytest.mark.parametrize("name", ODDITIES)
def test_odd_files_that_were_published_open(name: str, draft: Draft, watcher: Watcher, tmp_path: Path) -> None:
    changed, path = copy.deepcopy(draft), tmp_path / "odd.gguf"
    ODDITIES[name](changed)
    path.write_bytes(changed.bytes())
    outcome = watcher.open(path)
    assert outcome.kind == "ran", outcome


@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_odd_folders_that_were_published_open(name: str, sound: Path, watcher: Watcher, tmp_path: Path) -> None:
    folder = copied(sound, tmp_path)
    ODD_FOLDERS[name](folder)
    outcome = watcher.open(folder)
    assert outcome.kind == "ran", outcome


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300 + ".gguf", "a\0b", "a\0b.gguf"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(UserError):
        load(name)


def damaged(data: bytes, header: int, rng: random.Random) -> bytes:
    """The bytes with something wrong at random, mostly in the first `header` of them."""
    content = bytearray(data)
    if rng.random() < 0.1:
        return data[: rng.randrange(len(data))]
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(header if rng.random() < 0.9 else len(content))
        content[place] = rng.choice((rng.randrange(256), content[place] ^ 1 << rng.randrange(8), 0, 255))
    return bytes(content)


def check_damage(kind: str, seeds: range, draft: Draft, sound: Path, watcher: Watcher, folder: Path) -> None:
    """Damage of one kind of file: it is refused, or what opens works."""
    path = folder / "damaged.gguf" if kind == "gguf" else copied(sound, folder) / kind
    data = draft.bytes() if kind == "gguf" else path.read_bytes()
    header = len(draft.header()) if kind == "gguf" else len(data)
    if kind.endswith(".safetensors"):
        header = 8 + int.from_bytes(data[:8], "little")
    ran = 0
    for seed in seeds:
        path.write_bytes(damaged(data, header, random.Random(seed)))
        outcome = watcher.open(path if kind == "gguf" else path.parent)
        assert outcome.kind in ("UserError", "ran"), (seed, outcome)
        assert outcome.seconds < SECONDS, (seed, outcome)
        ran += outcome.kind == "ran"
    assert ran < len(seeds), "the damage is seen at all"


KINDS = ("gguf", "model.safetensors", "config.json", "tokenizer.json")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_at_random_is_refused_or_harmless(
    kind: str, draft: Draft, sound: Path, watcher: Watcher, tmp_path: Path
) -> None:
    check_damage(kind, range(250), draft, sound, watcher, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_much_damage_at_random_is_refused_or_harmless(
    kind: str, draft: Draft, sound: Path, watcher: Watcher, tmp_path: Path
) -> None:
    check_damage(kind, range(1000, 11_000), draft, sound, watcher, tmp_path)


@pytest.mark.parametrize("name", ["layout/a_list_of_2_64", "layout/overlapping", "vocabulary/bos_out_of_range"])
def test_a_command_ends_with_one_sentence(
    name: str, draft: Draft, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = gguf_file(draft, name, tmp_path)
    assert main(["generate", str(path), "x"]) == 2, "the exit code for what a person can mend"
    said = capsys.readouterr()
    assert said.err.startswith(f"bimo: {path}: "), said.err
    assert said.err.count("\n") == 1, "one line"
    assert not said.out, "nothing was generated"


def test_a_command_shows_no_traceback(sound: Path, tmp_path: Path) -> None:
    folder = copied(sound, tmp_path)
    FOLDERS["config/nested_10000_deep"][0](folder)
    command = [sys.executable, "-m", "bimo.cli", "generate", str(folder), "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
