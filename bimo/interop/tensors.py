"""Tensors under other names and in other layouts: fused, transposed, one per expert.

`TensorNames` says where each of our parameters lies in a family's checkpoint, and does both directions from one table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from bimo.core.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


class Layout(Protocol):
    """How a checkpoint names and lays out tensors; `families.Family` says what each of these means."""

    @property
    def names(self) -> Mapping[str, str]: ...

    @property
    def prefix(self) -> str: ...

    @property
    def fused(self) -> Mapping[tuple[str, ...], str]: ...

    @property
    def per_head(self) -> bool: ...

    @property
    def transposed(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class PlainLayout:
    """A layout with names of its own and nothing turned."""

    names: Mapping[str, str]
    fused: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    prefix: str = ""
    per_head: bool = False
    transposed: bool = False


class TensorNames:
    """The names and layouts of a family's checkpoint.

    Args:
        family: The family.
        spec: The model.
        shapes: Shape of each of our parameters by name.
    """

    def __init__(self, family: Layout, spec: ModelSpec, shapes: Mapping[str, Sequence[int]]) -> None:
        self.family, self.spec, self.shapes = family, spec, shapes
        self._words: dict[str, str] = {part: theirs for parts, theirs in family.fused.items() for part in parts}
        self._words |= family.names
        self._fused = {part: (parts, theirs) for parts, theirs in family.fused.items() for part in parts}

    def theirs(self, name: str) -> str:
        """Their name of a parameter or module of ours; `*` stands for the number of an expert."""
        family = self.family
        if name.partition(".")[0] == "lm_head":
            return family.names.get("lm_head", "lm_head") + name[len("lm_head") :]
        if not name.startswith("layers."):
            return family.prefix + self._renamed(name)
        _, layer, rest = name.split(".", 2) if name.count(".") > 1 else (*name.split("."), "")
        stem = f"{family.prefix}{family.names.get('layers', 'layers')}.{layer}"
        return f"{stem}.{self._renamed(rest)}" if rest else stem

    def sources(self, name: str) -> list[str]:
        """Names of all their tensors that hold a parameter of ours."""
        theirs = self.theirs(name)
        if "*" not in theirs:
            return [theirs]
        return [theirs.replace("*", str(expert)) for expert in range(self.spec.n_experts)]

    def read(self, name: str, get: Callable[[str], Tensor]) -> Tensor:
        """Our parameter out of their tensors, each of which `get` gives by name; dtypes stay."""
        found = [get(source) for source in self.sources(name)]
        if len(found) > 1 or "*" in self.theirs(name):
            import torch

            return torch.stack(found)  # (E, out, in)
        tensor = self._turned(name, found[0])
        part = name.rpartition(".")[0].split(".", 2)[-1]
        if part not in self._fused or tensor.dim() == 0:
            return tensor
        parts, _ = self._fused[part]
        if sum(self._sizes(name)) != tensor.shape[0]:
            return tensor  # the caller reports the wrong shape
        if self.family.per_head:
            heads = tensor.unflatten(0, (self.spec.n_heads, len(parts), -1))  # (H, 3, D, …)
            return heads[:, parts.index(part)].flatten(0, 1)
        return tensor[self.rows(name)]

    def rows(self, name: str) -> slice:
        """Which rows of their tensor are a parameter of ours, where parts lie one after the other; else all."""
        part = name.rpartition(".")[0].split(".", 2)[-1]
        if part not in self._fused:
            return slice(None)
        sizes, place = self._sizes(name), self._fused[part][0].index(part)
        return slice(sum(sizes[:place]), sum(sizes[: place + 1]))

    def _sizes(self, name: str) -> list[int]:
        """Rows of each part of the fused tensor that holds a parameter."""
        module, _, leaf = name.rpartition(".")
        part = module.split(".", 2)[-1]
        return [self.shapes[f"{module.removesuffix(part)}{p}.{leaf}"][0] for p in self._fused[part][0]]

    def write(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All their tensors out of our parameters."""
        import torch

        tensors: dict[str, Tensor] = {}
        pieces: dict[str, list[Tensor]] = {}
        for name, tensor in parameters.items():
            theirs = self.theirs(name)
            if "*" in theirs:
                tensors |= dict(zip(self.sources(name), tensor.unbind(), strict=True))
            elif name.rpartition(".")[0].split(".", 2)[-1] in self._fused:
                pieces.setdefault(theirs, []).append(tensor)
            else:
                tensors[theirs] = self._turned(name, tensor)
        for theirs, parts in pieces.items():  # in the order of our modules, which is that of the fused tensor
            if self.family.per_head:
                parts = [part.unflatten(0, (self.spec.n_heads, -1)) for part in parts]  # (H, D, …) each
                joined = torch.stack(parts, dim=1).flatten(0, 2)
            else:
                joined = torch.cat(parts)
            tensors[theirs] = self._turned("layers", joined)
        return tensors

    def _renamed(self, rest: str) -> str:
        """A name within a block (or outside of all) in their words: the longest known beginning is replaced."""
        words = self._words
        if rest in words:
            return words[rest]
        fitting = [ours for ours in words if rest == ours or rest.startswith(f"{ours}.")]
        if not fitting:
            return rest
        ours = max(fitting, key=len)
        return words[ours] + rest[len(ours) :]

    def _turned(self, name: str, tensor: Tensor) -> Tensor:
        turn = self.family.transposed and name.startswith("layers") and tensor.dim() == 2
        return tensor.T if turn else tensor
