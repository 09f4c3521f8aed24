"""Rounding matrices to GGUF's block formats with less loss than to the nearest level.

- `searched`: the scale of each group of 32 by a search, weighted by how much each input matters.
- `compensated`: GPTQ (Frantar et al. 2022). Columns are rounded one after the other, and the columns behind make up for
  the error of each, as far as the inputs of the layer, seen through X'X, allow. The groups are those of the format, a
  group's scale is searched when its turn comes, and columns keep their order: the blocks lie as the format wants them.

A matrix is held transposed, (width, rows): so a column lies in one piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bimo.model.blocks import assemble
from bimo.model.formats import FORMATS

GROUP = 32
"""Numbers that share a scale, in each of the formats."""

_PIECE = 2**20  # numbers that are searched together: what fits into the cache
_REACH = torch.arange(0.70, 1.101, 0.025).tolist()
"""Where the largest number of a group may lie, over the outermost level: clipping it can be worth a finer scale."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The levels of a format; a number is scale * level.

    Attributes:
        format: Its name.
        lowest: The first level.
        highest: The last one.
    """

    format: str
    lowest: int
    highest: int


GRIDS = {grid.format: grid for grid in (Grid("Q8_0", -127, 127), Grid("Q4_0", -8, 7))}


@dataclass(frozen=True, slots=True)
class Levels:
    """A rounded matrix.

    Attributes:
        levels: Whole numbers as float32, (width, rows).
        scales: Float32 numbers that a half can hold, (width / 32, rows).
        grid: What the levels are.
    """

    levels: Tensor
    scales: Tensor
    grid: Grid

    def numbers(self) -> Tensor:
        """What they stand for, (width, rows)."""
        return (self.levels.unflatten(0, (-1, GROUP)) * self.scales[:, None]).flatten(0, 1)

    def packed(self) -> Tensor:
        """The matrix as blocks of the format, uint8, (rows, bytes of a row)."""
        return assemble(self.levels.T, self.scales.T, FORMATS[self.grid.format])


def fitted(group: Tensor, importance: Tensor, grid: Grid) -> Tensor:
    """The scale of each column of a group of 32 numbers that loses least.

    Args:
        group: (…, 32, rows).
        importance: Weight of each squared error, broadcasting to `group`.
        grid: The levels.

    Returns:
        (…, 1, rows), float32 numbers that a half can hold.
    """
    largest = group.abs().amax(dim=-2, keepdim=True)
    best, scale = torch.full_like(largest, torch.inf), torch.zeros_like(largest)
    # The outermost level of a lopsided grid is a negative one: either sign of the scale may make use of it.
    ends = (grid.lowest, -grid.lowest) if grid.highest != -grid.lowest else (grid.highest,)
    for outermost in (reach / end for end in ends for reach in _REACH):
        trial = (largest * outermost).half().float()
        errors = nearest(group, trial, grid).mul_(trial).sub_(group).square_().mul_(importance)
        found = errors.sum(dim=-2, keepdim=True)
        better = found < best
        best, scale = torch.where(better, found, best), torch.where(better, trial, scale)
    return scale


def nearest(numbers: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """The level nearest to each number."""
    return (numbers * _inverse(scale)).round_().clamp_(grid.lowest, grid.highest)


def searched(matrix: Tensor, importance: Tensor, grid: Grid) -> Levels:
    """Round a matrix to the nearest levels of searched scales.

    Args:
        matrix: (width, rows).
        importance: Mean square of each input, (width,).
        grid: The levels.
    """
    weights = importance.view(-1, GROUP, 1)
    levels, scales = [], []
    for piece in matrix.split(max(1, _PIECE // len(matrix)), dim=1):
        groups = piece.unflatten(0, (-1, GROUP))  # (groups, 32, rows)
        scale = fitted(groups, weights, grid)  # (groups, 1, rows)
        levels.append(nearest(groups, scale, grid).flatten(0, 1))
        scales.append(scale.squeeze(1))
    return Levels(torch.cat(levels, dim=1), torch.cat(scales, dim=1), grid)


def compensated(matrix: Tensor, factor: Tensor, grid: Grid) -> Levels:
    """Round a matrix so that the outputs of its layer change least: GPTQ.

    Args:
        matrix: (width, rows); is left as it is.
        factor: Of the layer's inputs, from `inverse_factor`, (width, width).
        grid: The levels.
    """
    left = matrix.clone()
    width, rows = left.shape
    levels, scales = torch.empty_like(left), left.new_empty(width // GROUP, rows)
    for start in range(0, width, GROUP):
        here, behind = slice(start, start + GROUP), slice(start + GROUP, width)
        group, local = left[here], factor[here, here]
        # Once the columns behind have made up for it, an error in column j costs its square over U_jj².
        scale = fitted(group, local.diagonal().square().reciprocal()[:, None], grid)[0]  # (rows,)
        scales[start // GROUP], inverse = scale, _inverse(scale)
        errors = torch.empty_like(group)
        for j in range(GROUP):
            level = torch.mul(group[j], inverse, out=levels[start + j]).round_().clamp_(grid.lowest, grid.highest)
            torch.mul(level, scale, out=errors[j]).sub_(group[j]).div_(-local[j, j])
            group[j + 1 :].addr_(local[j, j + 1 :], errors[j], alpha=-1)
        left[behind].addmm_(factor[here, behind].T, errors, alpha=-1)
    return Levels(levels, scales, grid)


def inverse_factor(gram: Tensor, damping: float = 0.01) -> Tensor:
    """The upper Cholesky factor U of the inverse of X'X, up to its size, so that U'U is that inverse, float32.

    Args:
        gram: X'X, (width, width).
        damping: Added to the diagonal, as a share of its mean: X may not span all directions.
    """
    gram = gram.double()
    mean, unit = gram.diagonal().mean(), torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    # The size of X does not matter; inputs that are all zero say nothing, and no column then makes up for another.
    damped = gram / mean + damping * unit if mean > 0 else unit
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _inverse(x: Tensor) -> Tensor:
    """1 / x, 0 for 0."""
    return torch.where(x == 0, 0.0, 1.0 / x)
