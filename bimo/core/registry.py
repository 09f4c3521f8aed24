"""The seams: parts of a model or a training that are chosen by name, ours and those that people bring.

A part is found by its name in three places: here, among what `register` was called with in this process, and in the
entry points of installed packages (group `bimo.attention` and so on). Nothing is imported before it is asked for, and a
name out of a file never makes Python import a module that the user did not install or name. What a part must offer
stands in `model/contracts.py`, for a loss in `training/losses/chunks.py`; `bimo.testing` looks whether it does.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bimo.core.errors import UserError, nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Part = TypeVar("Part")


class Registry:
    """The parts of one kind.

    Args:
        kind: What they are, for example "attention"; also the name of the entry point group, `bimo.attention`.
        ours: Name → "module:attribute" of what bimo brings.
    """

    def __init__(self, kind: str, ours: dict[str, str]) -> None:
        self.kind, self.ours = kind, ours
        self.registered: dict[str, Any] = {}

    @cached_property
    def installed(self) -> dict[str, EntryPoint]:
        """What installed packages bring; read once."""
        from importlib.metadata import entry_points  # here: most names are ours, and it brings much

        return {entry.name: entry for entry in entry_points(group=f"bimo.{self.kind}")}

    def names(self) -> list[str]:
        """All names, ours first."""
        return [*self.ours, *sorted({*self.registered, *self.installed} - self.ours.keys())]

    def problem(self, name: str) -> str:
        """'' when there is a part of that name, else what is wrong."""
        if name in self.ours or name in self.registered or name in self.installed:
            return ""
        known = ", ".join(map(repr, self.names()))
        own = "one of your own is known as soon as --modules names its file"
        return f"{self.kind} must be one of {known}, is {name!r}{nearest(name, self.names())}; {own}"

    def get(self, name: str) -> Any:
        """The part of that name.

        Raises:
            UserError: There is none, or the package that offers it cannot be imported.
        """
        if name in self.registered:
            return self.registered[name]
        if name in self.ours:
            module, _, attribute = self.ours[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        if name in self.installed:
            return self._load(self.installed[name])
        raise UserError(self.problem(name), mend="Register it with bimo.register, or name the file that does.")

    def refusal(self, name: str, part: Any) -> str:
        """'' when the name may be given to a part of the user, else who has it; the same file may register it again."""
        if name in self.ours:
            return "bimo"
        entry = self.installed.get(name)
        own = (getattr(part, "__module__", ""), getattr(part, "__qualname__", ""))
        if entry is not None and (entry.module, entry.attr) != own:
            return f"the package {package_of(entry)!r}"
        there = self.registered.get(name, part)
        return "" if home_of(there) == home_of(part) else home_of(there)

    def _load(self, entry: EntryPoint) -> Any:
        try:
            return entry.load()
        except Exception as error:  # whatever is wrong in it, the user learns which package it is
            raise UserError(
                f"the {self.kind} module {entry.name!r} comes from the package {package_of(entry)!r}, which cannot be "
                f"imported ({type(error).__name__}: {error})",
                mend="Mend or uninstall this package.",
            ) from error


REGISTRIES = {
    registry.kind: registry
    for registry in (
        Registry("attention", {"multi_head": "bimo.model.attention:Attention"}),
        Registry(
            "feedforward",
            {
                name: f"bimo.model.feedforward:{factory}"
                for name, factory in {
                    "swiglu": "SwiGLU",
                    "geglu": "GEGLU",
                    "geglu_erf": "GEGLUErf",
                    "reglu": "ReGLU",
                    "gelu": "GELU",
                    "gelu_erf": "GELUErf",
                    "relu": "ReLU",
                }.items()
            },
        ),
        Registry(
            "norm",
            {
                "rmsnorm": "bimo.model.layers:RMSNorm",
                "rmsnorm_1p": "bimo.model.layers:RMSNorm1p",
                "layernorm": "bimo.model.layers:LayerNorm",
            },
        ),
        Registry(
            "positions",
            {
                "rotary": "bimo.model.positions:Rotary",
                "learned": "bimo.model.positions:Learned",
                "none": "bimo.model.positions:NoPositions",
            },
        ),
        Registry("optimizer", {"muon": "bimo.training.muon:muon", "adamw": "bimo.training.optimizers:adamw"}),
        Registry(
            "loss",
            {
                "cross_entropy": "bimo.training.losses:CrossEntropy",
                "label_smoothing": "bimo.training.losses:LabelSmoothing",
                "z_loss": "bimo.training.losses:ZLoss",
                "focal": "bimo.training.losses:Focal",
                "unlikelihood": "bimo.training.losses:Unlikelihood",
                "distillation": "bimo.training.losses:Distillation",
                "dpo": "bimo.training.losses:DirectPreference",
                "simpo": "bimo.training.losses:SimplePreference",
            },
        ),
        Registry(
            "callback",
            {
                "early_stopping": "bimo.training.callbacks:EarlyStopping",
                "time_budget": "bimo.training.callbacks:TimeBudget",
                "short_rows": "bimo.training.callbacks:ShortRows",
                "growing_depth": "bimo.training.callbacks:GrowingDepth",
                "best_checkpoint": "bimo.training.callbacks:BestCheckpoint",
                "weight_average": "bimo.training.callbacks:WeightAverage",
                "rate_finder": "bimo.training.callbacks:RateFinder",
                "sampling": "bimo.training.callbacks:Sampling",
                "progress": "bimo.training.callbacks:Progress",
                "tensorboard": "bimo.training.callbacks:TensorBoard",
                "gradient_statistics": "bimo.training.callbacks:GradientStatistics",
                "activation_statistics": "bimo.training.callbacks:ActivationStatistics",
            },
        ),
        Registry(
            "task",
            {
                "completion": "bimo.tasks.completion:Completion",
                "translation": "bimo.tasks.translation:Translation",
                "summarization": "bimo.tasks.summarization:Summarization",
                "dialogue": "bimo.tasks.dialogue:Dialogue",
                "classification": "bimo.tasks.classification:Classification",
                "preference": "bimo.tasks.preference:PreferredAnswer",
            },
        ),
        Registry(
            "metric",
            {
                name: f"bimo.evaluation.scores:{factory}"
                for name, factory in {
                    "bleu": "BLEU",
                    "chrf": "CHRF",
                    "rouge_1": "Rouge1",
                    "rouge_2": "Rouge2",
                    "rouge_l": "RougeL",
                    "accuracy": "Accuracy",
                    "macro_f1": "MacroF1",
                    "calibration_error": "CalibrationError",
                    "exact_match": "ExactMatch",
                    "distinct_1": "Distinct1",
                    "distinct_2": "Distinct2",
                    "repetition": "Repetition",
                    "cut": "Cut",
                    "perplexity": "Perplexity",
                    "bits_per_byte": "BitsPerByte",
                }.items()
            },
        ),
        Registry(
            "floor",
            {
                name: f"bimo.evaluation.floors:{factory}"
                for name, factory in {
                    "copy": "Copy",
                    "lead": "Lead",
                    "word_table": "WordTable",
                    "n_gram": "NextBytes",
                    "nearest": "Nearest",
                    "majority": "Majority",
                    "bag_of_words": "BagOfWords",
                }.items()
            },
        ),
        Registry(
            "guard",
            {
                "length": "bimo.guard.rules:Length",
                "hidden_characters": "bimo.guard.rules:HiddenCharacters",
                "forged_words": "bimo.guard.rules:ForgedWords",
                "personal_data": "bimo.guard.rules:PersonalData",
            },
        ),
    )
}


def register(kind: str, name: str) -> Callable[[Part], Part]:
    """Give a part of your own a name that settings and recipes can use.

        @bimo.register("attention", "talking_heads")
        class TalkingHeads(torch.nn.Module): ...

    Args:
        kind: attention, feedforward, norm, positions, optimizer, loss, callback, task, metric, floor or guard.
        name: Its name; one that bimo, an installed package or another file already uses is refused.
    """
    if kind not in REGISTRIES:
        raise UserError(f"unknown kind {kind!r}{nearest(kind, REGISTRIES)}", mend=f"Known: {', '.join(REGISTRIES)}.")
    registry = REGISTRIES[kind]

    def keep(part: Part) -> Part:
        owner = registry.refusal(name, part)
        if owner:
            raise UserError(f"{owner} already has a {kind} module called {name!r}", mend="Choose another name.")
        registry.registered[name] = part
        return part

    return keep


def name_and_parameters(text: str) -> tuple[str, dict[str, Any]]:
    """Take `focal(gamma=3)` apart, without running anything: its name, and its parameters, which are plain values.

    Raises:
        UserError: It is not written like that.
    """
    name, parenthesis, rest = text.partition("(")
    if not parenthesis:
        return text.strip(), {}
    try:
        call = ast.parse("f(" + rest.strip(), mode="eval").body
        keywords = call.keywords if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else []
        parameters = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in keywords}
        # Written anew from what was understood, it is the same: no value without a name, no name that is there twice.
        understood = f"f({', '.join(f'{k.arg}={ast.unparse(k.value)}' for k in keywords)})"
        if ast.unparse(call) == understood and len(parameters) == len(keywords):
            return name.strip(), parameters
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass  # told below, as what else is not written like that
    raise UserError(
        f"{text!r} must look like {name.strip()}(size=0.1): names with numbers, texts in quotes or lists",
        mend="Write it like that.",
    )


def made_part(kind: str, text: str, part: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:
    """What a class or function of the registry makes with these parameters.

    Args:
        kind: Of the registry.
        text: What the user wrote, for errors.
        part: Makes it.
        parameters: What it is given, by name.

    Raises:
        UserError: It has no such parameter, misses one, or refuses a value.
    """
    signature = inspect.signature(part).parameters.values()
    known = [p.name for p in signature if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    mend = f"Known: {', '.join(known) or 'none'}."
    if all(p.kind is not p.VAR_KEYWORD for p in signature):
        for key in parameters:
            if key not in known:
                what = f"there is no parameter {key!r}{nearest(key, known)}"
                raise UserError(what, where=f"{kind}: {text}", mend=mend)
    for p in signature:
        if p.name in known and p.default is p.empty and p.name not in parameters:
            raise UserError(f"{p.name} is missing", where=f"{kind}: {text}", mend=mend)
    try:
        return part(**parameters)
    except (TypeError, ValueError, AttributeError) as error:  # a value that the part refuses
        raise UserError(f"cannot be made ({error})", where=f"{kind}: {text}", mend="Change its parameters.") from error


def import_modules(names: list[str]) -> None:
    """Run Python files (`parts.py`) or import modules (`my_package.parts`) that register parts; each once.

    Raises:
        UserError: A file or module is not there, or fails; file and line are named.
    """
    for name in names:
        if name.endswith(".py"):
            _run_file(name)
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # it is the user's code that fails, and the user who reads it
            if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
                raise UserError(f"no module {name!r}", mend="Install it, or name a .py file.") from error
            raise _failure(error, name) from error


def package_of(entry: EntryPoint) -> str:
    """The name of the installed package that an entry point belongs to."""
    return entry.module if entry.dist is None else entry.dist.name


def home_of(part: Any) -> str:
    """The file in which a part is defined; a notebook and a prompt have none."""
    module = sys.modules.get(getattr(part, "__module__", ""))
    return getattr(module, "__file__", None) or "the prompt"


def _run_file(name: str) -> None:
    path = Path(name).resolve()
    if not path.is_file():
        raise UserError(
            "no such file", where=name, mend=f"Name the file that registers your modules, as seen from {Path.cwd()}."
        )
    module_name = _free_name(path)
    if module_name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None, "a .py file can always be described"
    assert spec.loader is not None, "a .py file can always be loaded"
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look a class's module up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is the user's code that fails, and the user who reads it
        del sys.modules[module_name]
        raise _failure(error, name) from error


def _free_name(path: Path) -> str:
    """The file's own name as a module, made longer where another module of this Python is called so."""
    there = sys.modules.get(path.stem) or (importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None)
    file = getattr(there, "__file__", None) or getattr(there, "origin", None)
    if there is None or (file and Path(file).resolve() == path):
        return path.stem
    return f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"


def _failure(error: Exception, name: str) -> UserError:
    """What went wrong in a file or module of the user, with the last line of it that was reached."""
    stem = Path(name).stem if name.endswith(".py") else name.rpartition(".")[2]
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).stem == stem]
    where = f"{name}, line {lines[-1]}" if lines else name
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{name if Path(error.filename).stem == stem else error.filename}, line {error.lineno}"
    if isinstance(error, UserError):
        return UserError(error.what, where=where, mend=error.mend)
    return UserError(f"cannot be imported ({type(error).__name__}: {error})", where=where, mend="Mend this line.")
