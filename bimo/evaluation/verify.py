"""Proof instead of hope: is this model the function that its files describe, whoever computes it?

The model under test is compared, layer by layer, with a slow float64 GPT in NumPy (`reference.py`) and, where it is
installed, with transformers, both on weights that are read anew from the model's files; then with itself, by other
ways that must not matter; then with its exports. A test seeds bugs into a model and demands that each is found.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

import bimo
from bimo.core.artifacts import sha256
from bimo.core.errors import UserError
from bimo.core.json_files import read_json
from bimo.core.settings import field_names
from bimo.core.spec import ModelSpec
from bimo.evaluation import exports, probes
from bimo.evaluation.certificate import Certificate, Finding
from bimo.evaluation.comparing import TOLERANCES, compare, finding, left_out, same_tokens, scale_of
from bimo.evaluation.llama_cpp_reference import compare_with_llama_cpp
from bimo.evaluation.parts import clearest, compare_masks, compare_parts, far_parts, n_clear, parts_of
from bimo.evaluation.reference import ReferenceGPT
from bimo.evaluation.seals import compare_files, files_of
from bimo.evaluation.slopes import slopes_of_model, slopes_of_parts
from bimo.evaluation.texts import compare_tokenizers
from bimo.evaluation.transformers_reference import TransformersReference
from bimo.interop import find_model, open_model, save_model
from bimo.interop.families import PLAIN, family_of
from bimo.model.gpt import GPT
from bimo.model.packed import unpack
from bimo.tokenizer import Tokenizer

REFERENCES = ("numpy", "transformers", "llama.cpp")
_GREEDY = 64  # tokens of greedy text
_SLOPE_TOKENS = 12


class Model(Protocol):
    """What is verified: a `bimo.LM`."""

    model: GPT
    source: Path | None

    @property
    def has_tokenizer(self) -> bool:
        """Whether it knows text."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""


def verify(
    lm: Model | str | Path,
    *,
    references: Sequence[str] | None = REFERENCES,
    formats: Sequence[str] | None = exports.FORMATS,
    seed: int = 0,
    on_finding: Callable[[Finding], None] | None = None,
) -> Certificate:
    """Compare a model with its references, with itself and with its exports.

    Args:
        lm: The model, in float32, or where it lies. Packed weights are unpacked.
        references: "numpy"; "transformers" and, for GGUF files, "llama.cpp", which are left out where they are not
            installed or know no such model. Without any, the verdict says that nothing is proven.
        formats: The exports to make and compare: "hf" and names of `interop.gguf_writing.EXPORTS`; those that cannot
            hold this model are left out.
        seed: Of the random ids.
        on_finding: Called with each finding as soon as it is there.

    Returns:
        The certificate; `ok` says whether all is well, `verdict` says it in one line.

    Raises:
        UserError: This is no model, a reference is unknown, the model's files cannot be read any more, or the disk is
            full.
    """
    references, formats = references or (), formats or ()
    unknown = [name for name in references if name not in REFERENCES]
    if unknown:
        raise UserError(f"no reference {unknown[0]!r}", mend=f"Use {', '.join(REFERENCES)}.")
    unknown = [name for name in formats if name not in exports.FORMATS]
    if unknown:
        raise UserError(f"no format {unknown[0]!r}", mend=f"Use {', '.join(exports.FORMATS)}.")
    probes.check_seed(seed)
    lm = _opened_or_given(lm)
    findings = []
    with _as_it_was(lm.model):
        trial = _Trial.of(lm, seed)
        for found in _findings(trial, references, formats):
            findings.append(found)
            if on_finding:
                on_finding(found)
    packages = ["torch", "numpy"]
    packages += ["transformers"] * ("transformers" in references and _installed("transformers"))
    packages += ["llama-cpp-python"] * ("llama.cpp" in references and _installed("llama_cpp"))
    return Certificate(
        model=str(lm.source.parent if lm.source and lm.source.name == "model" else lm.source or "a model in memory"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"bimo": bimo.__version__, **{name: importlib.metadata.version(name) for name in packages}},
        spec=trial.model.spec.to_dict(),
        weights={name: _digest(p) for name, p in trial.model.named_parameters()},
        files={path.name: sha256(path) for path in files_of(lm.source)},
        tolerances=TOLERANCES,
        findings=tuple(findings),
    )


@dataclass(slots=True)
class _Opened:
    """A model that was named by its path."""

    model: GPT
    known: Tokenizer | None
    source: Path | None

    @property
    def has_tokenizer(self) -> bool:
        return self.known is not None

    @property
    def tokenizer(self) -> Tokenizer:
        assert self.known is not None, "has_tokenizer is asked first"
        return self.known


def _opened_or_given(given: Model | str | Path) -> Model:
    """The model, read from its path if that was given; only one that can be verified."""
    if isinstance(given, (str, Path)):
        path = find_model(given)
        return _Opened(*open_model(path), source=path)
    lm: Model = given
    if not isinstance(getattr(lm, "model", None), GPT) or not hasattr(lm, "has_tokenizer"):
        what = f"a model is verified with its tokenizer and files, this is {type(lm).__name__}"
        raise UserError(what, mend="Give a bimo.LM or the path of a model, as in bimo.verify('runs/demo').")
    other = next((p.dtype for p in lm.model.parameters() if p.dtype != torch.float32), None)
    if other is not None:
        kind = str(other).removeprefix("torch.")
        raise UserError(f"verify computes in float32, and this model is {kind}", mend="Convert it: lm.model.float().")
    return lm


@contextmanager
def _as_it_was(model: GPT) -> Iterator[None]:
    """Put every module back into the mode, training or not, that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass(frozen=True, slots=True)
class _Trial:
    """The model under test, and what it is compared with.

    Attributes:
        model: Under test.
        original: Read anew from the files; the same object where there are none.
        tokenizer: Under test; None where there is none.
        original_tokenizer: Read anew.
        source: The files; None for a model in memory.
        ids: The probe, (2, T).
        notes: What the probe cannot reach.
    """

    model: GPT
    original: GPT
    tokenizer: Tokenizer | None
    original_tokenizer: Tokenizer | None
    source: Path | None
    ids: Tensor
    notes: list[str]

    @classmethod
    def of(cls, lm: Model, seed: int) -> _Trial:
        model = unpack(lm.model).eval()
        if model.lm_head.weight.device.type != "cpu":
            model = copy.deepcopy(model).cpu()
        original, tokenizer = model, lm.tokenizer if lm.has_tokenizer else None
        fresh = tokenizer
        if lm.source is not None:
            original, fresh = open_model(lm.source)
            original = unpack(original).eval()
        ids, notes = probes.probe_ids(original.spec, seed)
        if original.spec.n_experts:
            ids = clearest(ReferenceGPT(original.spec, _weights(original)), seed)
        return cls(model, original, tokenizer, fresh, lm.source, ids, notes)


def _findings(trial: _Trial, references: Sequence[str], formats: Sequence[str]) -> Iterator[Finding]:
    if trial.source is not None:
        sealed = compare_files(trial.source, trial.original_tokenizer)
        if sealed is not None:
            yield sealed
        yield _choices(trial.model.spec, trial.original.spec)
        ours, theirs = (dict(model.named_parameters()) for model in (trial.model, trial.original))
        yield compare("weights", "the files", ours, theirs)
        if trial.model.spec.tied_embeddings and trial.model.lm_head.weight is not trial.model.embed_tokens.weight:
            yield finding("weights", "the spec", math.inf, "lm_head.weight", note="not tied to the embeddings")
    if trial.tokenizer is not None and trial.original_tokenizer is not None:
        yield compare_tokenizers(trial.tokenizer, trial.original_tokenizer)
    found = probes.activations(trial.model, trial.ids)
    if "numpy" in references:
        yield from _against_numpy(trial, found)
    if "transformers" in references:
        yield from _against_transformers(trial, found)
    yield from _against_itself(trial, found["logits"])
    with_llama_cpp = "llama.cpp" in references and _installed("llama_cpp")
    if trial.source is not None and trial.source.is_file() and trial.tokenizer is not None:
        if with_llama_cpp:
            yield from compare_with_llama_cpp(trial.source, trial.model, trial.tokenizer, "quantised")
        elif "llama.cpp" in references:
            yield left_out("everything", "llama.cpp", 'it is not installed: pip install "bimo[llama]"')
    yield from exports.compare_exports(trial.model, trial.tokenizer, formats, with_llama_cpp=with_llama_cpp)


def _choices(ours: ModelSpec, theirs: ModelSpec) -> Finding:
    names = [name for name in field_names(ModelSpec) if getattr(ours, name) != getattr(theirs, name)]
    return finding("choices", "the files", float(len(names)), names[0] if names else "", note=", ".join(names))


def _against_numpy(trial: _Trial, found: dict[str, Tensor]) -> Iterator[Finding]:
    """Activations, logits, loss, parts, far positions, slopes and greedy text."""
    try:
        reference = ReferenceGPT(trial.original.spec, _weights(trial.original))
    except UserError as error:  # a module of the user, which no reference knows
        yield left_out("everything", "NumPy, float64", error.what)
        return
    yield from _outcomes("NumPy, float64", found, _traced(reference, trial.ids), trial)
    parts = list(parts_of(trial.model, reference))
    yield compare_parts(reference, parts)
    yield compare_parts(reference, list(far_parts(trial.model, reference)), "far")
    yield compare_masks(trial.model, reference.spec)
    yield slopes_of_parts(trial.model, reference, parts)
    yield slopes_of_model(trial.model, reference, trial.ids[:1, :_SLOPE_TOKENS])
    yield from _greedy(
        trial, "NumPy, float64", lambda text: torch.from_numpy(reference.trace(np.array(text)).logits[0])
    )


def _weights(model: GPT) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def _traced(reference: ReferenceGPT, ids: Tensor) -> dict[str, Tensor]:
    """What the reference computes for the first tokens, up to one whose experts are not clear."""
    trace = reference.trace(ids.numpy())
    kept = n_clear(trace)
    return {name: torch.from_numpy(values[:, :kept]) for name, values in trace.activations.items()}


def _first(found: dict[str, Tensor], traced: dict[str, Tensor]) -> dict[str, Tensor]:
    """As many tokens of what was found as were traced."""
    return {name: values[:, : traced["logits"].shape[1]] for name, values in found.items()}


def _greedy(trial: _Trial, name: str, logits_of: Callable[[list[int]], Tensor]) -> Iterator[Finding]:
    """The engine's greedy text against a reference's.

    Args:
        trial: What is verified.
        name: The reference.
        logits_of: Its logits of a text, (T, V). Each token of the text under test is the likeliest one after those
            before it: then so is the whole text.
    """
    prompt = trial.ids[0, :16].tolist()
    n_tokens = min(_GREEDY, trial.model.spec.context_length - len(prompt))
    if n_tokens < 1:
        return
    try:
        text = probes.greedy(trial.model, trial.ids[0, :16], n_tokens)
    except UserError as error:
        yield Finding("greedy", name, math.inf, 0.0, "tokens", note=error.what)
        return
    whole = [*prompt, *text[:-1]]
    logits = logits_of(whole)
    # Up to the original context, longrope has other frequencies than beyond it.
    scaling = trial.original.spec.rope_scaling
    if scaling.kind == "longrope" and scaling.original_context < len(whole):
        short = logits_of(whole[: scaling.original_context])
        logits = torch.cat((short, logits[len(short) :]))
    logits = logits[len(prompt) - 1 :]
    tie = 2 * TOLERANCES["logits"].allowed * max(1.0, scale_of([logits]))
    yield same_tokens(name, text, logits.argmax(dim=-1).tolist(), logits, tie)


def _outcomes(name: str, found: dict[str, Tensor], trace: dict[str, Tensor], trial: _Trial) -> Iterator[Finding]:
    found, kept = _first(found, trace), trace["logits"].shape[1]
    inner = {key: values for key, values in trace.items() if key != "logits"}
    yield replace(compare("activations", name, found, inner), note="; ".join(trial.notes))
    yield compare("logits", name, found, {"logits": trace["logits"]}, floor=1.0)
    if kept > 1:
        ours, theirs = (float(probes.loss_of(t["logits"], trial.ids[:, :kept])) for t in (found, trace))
        yield finding("loss", name, abs(ours - theirs) / abs(theirs), "loss")


def _against_transformers(trial: _Trial, found: dict[str, Tensor]) -> Iterator[Finding]:
    """Activations, logits, loss, gradients and greedy text."""
    if not _installed("transformers"):
        yield left_out("everything", "transformers", 'it is not installed: pip install "bimo[hf]"')
        return
    if family_of(trial.original.spec) is None:
        yield left_out("everything", "transformers", "it has no such family")
        return
    with exports.temporary_folder() as temporary:
        try:
            reference, name = _opened(trial, temporary)
        except Exception as error:  # whatever transformers raises; the certificate says so, and the file is not proven
            if exports.is_of_disk(error):
                raise
            short = " ".join(str(error).split())[:160]
            yield finding("activations", "transformers", math.inf, note=f"it cannot open this: {short}")
            return
        yield from _outcomes(name, found, reference.activations(trial.ids), trial)
        ids = trial.ids[:, :_GREEDY]
        (_, ours), (_, theirs) = probes.gradients(trial.model, ids), reference.gradients(ids)
        backward = dict(reversed(theirs.items()))
        yield compare("gradients", name, ours, backward, floor=1e-3 * scale_of(theirs.values()))
        yield from _greedy(trial, name, lambda text: reference.activations(torch.tensor([text]))["logits"][0])


def _opened(trial: _Trial, temporary: Path) -> tuple[TransformersReference, str]:
    """transformers on the model's own files where it reads them, else on a folder that bimo writes; and its name."""
    source, spec = trial.source, trial.original.spec
    if source is not None and source.is_dir() and read_json(source / "config.json")["model_type"] != PLAIN.model_type:
        return TransformersReference(source, spec), "transformers"
    if source is not None and source.is_file() and _installed("gguf") and _installed("accelerate"):
        try:
            return TransformersReference(source, spec), "transformers"
        except (ValueError, KeyError, NotImplementedError, RuntimeError):
            pass  # an architecture that its GGUF reader does not know
    with exports.writing():
        save_model(temporary, trial.original, None)
    return TransformersReference(temporary, spec), "transformers, on a folder that bimo wrote"


def _against_itself(trial: _Trial, logits: Tensor) -> Iterator[Finding]:
    """Ways to the same logits that must not matter."""
    model, ids = trial.model, trial.ids
    ways = {
        "cache": (probes.cached(model, ids), logits),
        "batch": (probes.single(model, ids), logits),
    }
    for side in ("left", "right"):
        result = probes.padded(model, ids, left=side == "left")
        with torch.no_grad():
            ways[f"padding, {side}"] = result, model(ids[:, : result.shape[1]]).float()
    for name, (ours, plain) in ways.items():
        yield compare(name, "the plain way", {"logits": ours}, {"logits": plain}, floor=1.0)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _digest(parameter: Tensor) -> str:
    return hashlib.sha256(parameter.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
