"""The seams: parts of a model or a training that are chosen by name, ours and those that people bring.

A part is found by its name in three places: here, among what `register` was called with in this process, and in the
entry points of installed packages (group `bimo.attention` and so on). Nothing is imported before it is asked for, and a
name out of a file never makes Python import a module that the user did not install or name.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from bimo.core.errors import UserError, nearest

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
        return {entry.name: entry for entry in entry_points(group=f"bimo.{self.kind}")}

    def names(self) -> list[str]:
        """All names, ours first."""
        return [*self.ours, *sorted({*self.registered, *self.installed} - self.ours.keys())]

    def problem(self, name: str) -> str:
        """'' when there is a part of that name, else what is wrong."""
        if name in self.ours or name in self.registered or name in self.installed:
            return ""
        known = ", ".join(map(repr, self.names()))
        return f"{self.kind} must be one of {known}, is {name!r}{nearest(name, self.names())}"

    def get(self, name: str) -> Any:
        """The part of that name.

        Raises:
            UserError: There is none.
        """
        if name in self.registered:
            return self.registered[name]
        if name in self.ours:
            module, _, attribute = self.ours[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        if name in self.installed:
            return self.installed[name].load()
        raise UserError(self.problem(name), mend="Register it, or name the file that does with --modules FILE.py.")


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
        Registry("loss", {"cross_entropy": "bimo.training.losses:cross_entropy"}),
    )
}


def register(kind: str, name: str) -> Callable[[Part], Part]:
    """Give a part of your own a name that settings and recipes can use.

        @bimo.register("attention", "talking_heads")
        class TalkingHeads(torch.nn.Module): ...

    Args:
        kind: attention, feedforward, norm, positions or loss.
        name: Its name; one that bimo or an installed package already uses is refused.
    """
    registry = _registry(kind)

    def keep(part: Part) -> Part:
        if name in registry.ours or name in registry.installed:
            raise UserError(f"there is already a {kind} module called {name!r}", mend="Choose another name.")
        registry.registered[name] = part
        return part

    return keep


def import_modules(names: list[str]) -> None:
    """Run Python files (`parts.py`) or import modules (`my_package.parts`) that register parts.

    Raises:
        UserError: A file or module is not there.
    """
    for name in names:
        if not name.endswith(".py"):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                raise UserError(f"no module {name!r} ({error})", mend="Install it, or name a .py file.") from error
            continue
        path = Path(name).resolve()
        if not path.is_file():
            raise UserError("no such file", where=name, mend="Name the file that registers your modules.")
        if path.stem not in sys.modules:
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None, "a .py file can always be described"
            assert spec.loader is not None, "a .py file can always be loaded"
            module = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = module  # dataclasses and pickling look a class's module up here
            spec.loader.exec_module(module)


def _registry(kind: str) -> Registry:
    if kind not in REGISTRIES:
        raise UserError(f"unknown kind {kind!r}{nearest(kind, REGISTRIES)}", mend=f"Known: {', '.join(REGISTRIES)}.")
    return REGISTRIES[kind]
