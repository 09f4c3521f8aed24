"""`bimo verify`: what it says of sound models, of unsound ones, and what it leaves behind."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parity.cases import CASES, case

import bimo
from bimo import LM, ModelSpec, Tokenizer, UserError, load, new
from bimo.cli import main
from bimo.core.artifacts import sha256
from bimo.evaluation import exports
from bimo.evaluation import verify as module
from bimo.evaluation.certificate import Certificate, Finding, check_output
from bimo.evaluation.comparing import TOLERANCES, compare, same_tokens
from bimo.evaluation.parts import far_positions
from bimo.evaluation.reference import ReferenceGPT

ONE_OF_EACH = [*dict.fromkeys(family for family, _ in CASES.values())]


@pytest.fixture(scope="module")
def saved(lm: LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm.save(tmp_path_factory.mktemp("verify") / "model")


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_a_sound_model_of_every_family_is_verified(family: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the reference is an extra")
    name = next(name for name, (other, _) in CASES.items() if other == family)
    case(name).save_pretrained(tmp_path)
    certificate = bimo.verify(load(tmp_path), formats=("hf",))
    assert certificate.ok, list(map(str, certificate.findings))
    assert {"NumPy, float64", "transformers"} <= {found.reference for found in certificate.findings}, "both references"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_sound_model_of_every_shape_is_verified(name: str, tmp_path: Path) -> None:
    case(name).save_pretrained(tmp_path)
    certificate = bimo.verify(load(tmp_path), formats=("hf", "onnx"))
    assert certificate.ok, list(map(str, certificate.findings))


def test_the_command_says_verified_and_leaves_a_certificate_and_a_page(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(saved), "--output", str(tmp_path), "--exports", "[hf,F16,Q8_0]"]) == 0
    assert "VERIFIED" in capsys.readouterr().out.splitlines()[-2], "the verdict ends it, in one line"
    content = json.loads((tmp_path / "certificate.json").read_text(encoding="utf-8"))
    file = hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    assert content["files"]["model.safetensors"] == file, "the hash of the weights' file"
    weights = load(saved).model.norm.weight.detach().numpy().tobytes()
    assert content["weights"]["norm.weight"] == hashlib.sha256(weights).hexdigest(), "and of each tensor"
    page = (tmp_path / "certificate.html").read_text(encoding="utf-8")
    assert content["verdict"].split(":")[0] in page, "the verdict"
    assert all(html in page for html in ("float32 rounds at", "model.safetensors")), "reasons and hashes"


def test_the_command_says_not_equal_with_code_1(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bimo.lm

    def spoiled(name: str) -> LM:
        lm = load(name)
        lm.model.layers[1].mlp.down_proj.weight.data[0, 0] += 0.01
        return lm

    monkeypatch.setattr(bimo.lm, "load", spoiled)
    assert main(["verify", str(saved), "--output", str(tmp_path), "--exports", "[]"]) == 1
    assert "NOT EQUAL" in capsys.readouterr().out, "the verdict"
    findings = json.loads((tmp_path / "certificate.json").read_text(encoding="utf-8"))["findings"]
    first = next(found for found in findings if not found["ok"])
    assert first["tensor"] == "layers.1.mlp.down_proj.weight", "the tensor is named"
    assert first["layer"] == 1, "and its layer"


def test_a_model_in_memory_is_held_against_its_own_weights(lm: LM) -> None:
    fresh = new(lm.model.spec, lm.tokenizer, seed=9)
    certificate = bimo.verify(fresh, references=("numpy",), formats=())
    assert certificate.ok, certificate.verdict
    assert certificate.files == {}, "there are no files to vouch for"


def test_a_model_that_was_trained_on_is_verified_as_it_is_now(saved: Path, texts: list[str], settings) -> None:  # type: ignore[no-untyped-def]
    trained = load(saved).fit(texts[:8], epochs=1, settings=settings)
    certificate = bimo.verify(trained, references=("numpy",), formats=())
    assert certificate.ok, certificate.verdict
    before = bimo.verify(load(saved), references=(), formats=())
    assert certificate.weights["norm.weight"] != before.weights["norm.weight"], "other weights, other hashes"


def test_the_trial_leaves_no_gradients_and_no_frozen_weights(lm: LM) -> None:
    bimo.verify(lm, references=("numpy",), formats=())
    assert all(p.grad is None and p.requires_grad for p in lm.model.parameters()), "as it was"


def test_a_reference_that_is_not_installed_is_left_out(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_installed", lambda package: False)
    certificate = bimo.verify(load(saved), formats=())
    assert certificate.ok, certificate.verdict
    [left_out] = [found for found in certificate.findings if found.left_out]
    assert "bimo[hf]" in str(left_out), "it says how to get it"


def test_an_unknown_reference_is_an_error(lm: LM) -> None:
    with pytest.raises(UserError, match="no reference 'jax'"):
        bimo.verify(lm, references=("jax",))


def test_an_export_that_cannot_hold_the_model_is_left_out_with_the_reason(
    tokenizer: Tokenizer, spec: ModelSpec
) -> None:
    lm = new(replace(spec, window=5), tokenizer)
    certificate = bimo.verify(lm, references=(), formats=("F16",))
    [left_out] = [found for found in certificate.findings if found.check == "export, F16"]
    assert certificate.ok, "not a fault of the model"
    assert "window" in left_out.note, left_out


def test_a_context_of_one_token_can_be_verified(tokenizer: Tokenizer, spec: ModelSpec) -> None:
    lm = new(replace(spec, context_length=1), tokenizer)
    certificate = bimo.verify(lm, references=("numpy",), formats=("hf",))
    assert certificate.ok, list(map(str, certificate.findings))


def test_two_texts_may_part_where_two_tokens_are_equally_likely() -> None:
    logits = torch.tensor([[0.0, 9.0, 1.0], [5.0, 5.0, 0.0]])
    assert same_tokens("x", [1, 1], [1, 0], logits, floor=0.1).ok, "a tie"
    assert not same_tokens("x", [2, 1], [1, 1], logits, floor=0.1).ok, "no tie"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_never_passes(value: float) -> None:
    good, bad = torch.ones(2, 3, 4), torch.ones(2, 3, 4)
    bad[1, 2, 3] = value
    found = compare("logits", "x", {"logits": bad}, {"logits": good})
    assert not found.ok, found
    assert found.position == 2, "its place"


def test_a_certificate_without_comparisons_vouches_for_nothing() -> None:
    assert not Certificate("x", "", {}, {}, {}, {}, TOLERANCES, ()).ok, "nothing was compared"


def test_an_infinite_difference_is_null_in_json(tmp_path: Path) -> None:
    finding = Finding("logits", "x", math.inf, 1e-4, "logits")
    Certificate("x", "", {}, {}, {}, {}, TOLERANCES, (finding,)).save(tmp_path)
    content = json.loads((tmp_path / "certificate.json").read_text(), parse_constant=pytest.fail)
    assert content["findings"][0]["difference"] is None, "JSON knows no infinity"


@pytest.mark.parametrize("context", [1, 2, 31, 32, 33, 500, 131072])
def test_far_positions_grow_and_end_where_the_context_ends(context: int) -> None:
    steps = far_positions(ModelSpec(context_length=context))
    assert (steps[1:] > steps[:-1]).all(), "one after the other"
    assert steps[0] == 0, "from the beginning"
    assert steps[-1] == context - 1, "to the end"


def test_the_reference_generates_as_it_computes(lm: LM) -> None:
    weights = {name: p.detach().numpy() for name, p in lm.model.named_parameters()}
    reference = ReferenceGPT(lm.model.spec, weights)
    prompt = torch.tensor([[5, 6, 7]])
    assert reference.greedy(prompt[0].numpy(), 8) == lm.model.generate(prompt, 8)[0, 3:].tolist(), "greedy text"


def test_the_chat_template_is_among_the_hashed_files(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    certificate = bimo.verify(folder, references=(), formats=())
    assert certificate.files["chat_template.jinja"] == sha256(folder / "chat_template.jinja"), "it settles what is read"


@pytest.mark.parametrize("raised", [OSError(errno.ENOSPC, "No space left on device"), "safetensors", "inside"])
def test_a_full_disk_is_no_export_that_is_left_out(
    raised: OSError | str, lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        if isinstance(raised, OSError):
            raise raised
        if raised == "safetensors":
            raise exports.SafetensorError("I/O error: No space left on device (os error 28)")
        raise UserError("cannot be written (No space left)") from OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(exports, "export", full)
    with pytest.raises(UserError, match=r"cannot be written .*No space left"):
        bimo.verify(lm, references=(), formats=("F32",))


def test_no_folder_for_temporary_files_is_one_sentence(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(exports.tempfile, "TemporaryDirectory", none)
    with pytest.raises(UserError, match="TMPDIR"):
        bimo.verify(lm, references=(), formats=("hf",))


@pytest.mark.parametrize("name", ["plain", "plain/below", "a\0b", "\ud800"])
def test_an_output_that_cannot_be_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("mine", encoding="utf-8")
    certificate = Certificate("x", "", {}, {}, {}, {}, TOLERANCES, ())
    for write in (check_output, certificate.save):
        with pytest.raises(UserError, match=r"cannot be written|no name of a file"):
            write(tmp_path / name)
    assert (tmp_path / "plain").read_text(encoding="utf-8") == "mine", "as it was"


def test_an_output_that_can_be_is_made_and_left_empty(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == [], "the probe is gone"


def test_a_certificate_that_the_disk_has_no_room_for_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *arguments: object, **options: object) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="No space left"):
        Certificate("x", "", {}, {}, {}, {}, TOLERANCES, ()).save(tmp_path)
    assert list(tmp_path.iterdir()) == [], "no certificate of zero bytes"


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 10**40, 1.5])
def test_a_seed_that_torch_does_not_take_is_one_sentence(seed: int, lm: LM) -> None:
    with pytest.raises(UserError, match="seed"):
        bimo.verify(lm, references=(), formats=(), seed=seed)


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63)])
def test_the_outermost_seeds_are_taken(seed: int, tokenizer: Tokenizer, spec: ModelSpec) -> None:
    lm = new(replace(spec, n_experts=4, n_experts_per_token=2, d_expert=16), tokenizer)
    assert bimo.verify(lm, references=(), formats=(), seed=seed).ok, "the seeds beside it are tried, too"


@pytest.mark.parametrize("norm", ["rmsnorm", "rmsnorm_1p", "layernorm"])
@pytest.mark.parametrize("sizes", [{"head_dim": 1, "positions": "learned"}, {"d_model": 1}], ids=["head", "model"])
def test_a_norm_over_one_number_is_verified(sizes: dict, norm: str, tokenizer: Tokenizer, spec: ModelSpec) -> None:  # type: ignore[type-arg]
    lm = new(replace(spec, norm=norm, context_length=24, **sizes), tokenizer)
    certificate = bimo.verify(lm, references=("numpy",), formats=())
    assert certificate.ok, list(map(str, certificate.findings))


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_opened(kind: type, saved: Path) -> None:
    certificate = bimo.verify(kind(saved), references=(), formats=())
    assert certificate.ok, certificate.verdict
    assert "model.safetensors" in certificate.files, "its files"


@pytest.mark.parametrize("what", ["nothing", "its module", "a number"])
def test_what_is_no_model_is_one_sentence(what: str, lm: LM) -> None:
    given = {"nothing": None, "its module": lm.model, "a number": 7}[what]
    with pytest.raises(UserError, match=r"bimo\.LM"):
        bimo.verify(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_dtype_is_one_sentence(dtype: torch.dtype, tokenizer: Tokenizer, spec: ModelSpec) -> None:
    lm = new(spec, tokenizer)
    lm.model.to(dtype)
    with pytest.raises(UserError, match=r"lm\.model\.float\(\)"):
        bimo.verify(lm)


def test_no_formats_and_no_references_may_be_none(lm: LM) -> None:
    assert bimo.verify(lm, references=None, formats=None).ok, "as an empty list"


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_stays_in_the_mode_that_it_was_in(mode: bool, tokenizer: Tokenizer, spec: ModelSpec) -> None:
    lm = new(spec, tokenizer)
    lm.model.train(mode)
    bimo.verify(lm, references=(), formats=())
    assert {module.training for module in lm.model.modules()} == {mode}, "training or not"


def test_without_a_reference_nothing_is_called_verified(saved: Path) -> None:
    alone = bimo.verify(saved, references=(), formats=("hf",)).verdict
    assert alone.startswith("EQUAL TO ITSELF"), alone
    assert "VERIFIED" not in alone, "not even as a part of it"


def test_one_reference_is_enough_to_be_called_verified(saved: Path) -> None:
    verdict = bimo.verify(saved, references=("numpy",), formats=()).verdict
    assert verdict.startswith("VERIFIED"), verdict


def test_a_file_that_its_manifest_does_not_know_is_not_verified(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    with (folder / "config.json").open("a", encoding="utf-8") as file:
        file.write(" ")
    changed, untouched = (bimo.verify(path, references=(), formats=()) for path in (folder, saved))
    assert [found.tensor for found in changed.findings if not found.ok] == ["config.json"], "nothing else can tell"
    assert untouched.ok, untouched.verdict
