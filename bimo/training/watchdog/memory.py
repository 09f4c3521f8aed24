"""Good states of a run in memory: two, so that a fault that crept in before the newer one was taken is undone too.

Where memory is scarce none is kept, and the watchdog goes back to the newest whole checkpoint on disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bimo.core import machine
from bimo.training.callbacks import Callback
from bimo.training.parts import local
from bimo.training.resuming import state_of
from bimo.training.state import Tree, copied, model_state

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer

_SHARE = 0.25  # of the free memory that the copies may take


class GoodStates:
    """The newest good states, newest last."""

    def __init__(self, most: int = 2) -> None:
        self.most = most
        self.states: list[Tree] = []

    def fit_into_memory(self, trainer: Trainer) -> None:
        """Begin a run: nothing is kept yet, and as many states will be as the free memory allows."""
        size = 3 * sum(local(tensor).nbytes for tensor in model_state(trainer.model).values())  # Adam has two moments
        free = torch.cuda.mem_get_info()[0] if trainer.device.startswith("cuda") else machine.available_memory()
        if free:  # 0: unknown
            self.most = min(self.most, int(_SHARE * free // max(size, 1)))
        self.most = int(min(row[0] for row in trainer.team.gathered([self.most])))  # all go back to the same state
        self.states = []

    def take(self, trainer: Trainer, without: Callback) -> None:
        """Keep the state as it is now, in the memory of the oldest; without that of a callback."""
        if not self.most:
            return
        oldest = self.states.pop(0) if len(self.states) == self.most else None
        self.states.append(copied(state_of(trainer, without), oldest))

    def newest(self, back: int) -> Tree | None:
        """The state `back` places before the newest (0: the newest), or the oldest there is; None: there is none."""
        return self.states[max(0, len(self.states) - 1 - back)] if self.states else None

    def forget_after(self, tree: Tree) -> None:
        """Drop what is newer than a state that the run has gone back to."""
        while self.states and self.states[-1] is not tree:
            self.states.pop()
