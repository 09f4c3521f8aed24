"""Team: the processes of a run, as each of them sees the others.

What all must decide alike is decided on numbers that all have: `gathered` gives every process the values of every other
one, `told` the value of one. Such plain values travel between CPUs, on a group of their own; tensors of the model are
the affair of `parallel.py`. A run in one process is a team of one, which exchanges nothing.

Processes are counted along a mesh (data, shard, tensor), the last one fastest. Those that differ in the last place only
read the same rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.training.faults import Fault

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Result = TypeVar("Result")
_POLL_S = 0.05


@dataclass(frozen=True)
class Team:
    """The processes of a run.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
        local_size: How many there are on this machine.
        data: Copies of the model.
        shard: Processes that share out the weights of a copy.
        tensor: Processes that share out each layer.
        mesh: The processes along (data, shard, tensor); None for one process.
        control: Group for plain values; None: the default group.
        patient: Group to wait in for hours.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    data: int = 1
    shard: int = 1
    tensor: int = 1
    mesh: DeviceMesh | None = None
    control: dist.ProcessGroup | None = None
    patient: dist.ProcessGroup | None = None

    @property
    def alone(self) -> bool:
        """Whether there is one process only."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that prepares, prints and writes."""
        return self.rank == 0

    @property
    def whole(self) -> bool:
        """Whether each process holds the whole model."""
        return self.shard == self.tensor == 1

    @property
    def data_size(self) -> int:
        """Processes that read different rows."""
        return self.data * self.shard

    @property
    def data_rank(self) -> int:
        """Which of them this one is."""
        return self.rank // self.tensor

    def gathered(self, values: Sequence[float]) -> list[list[float]]:
        """The values of every process, in their order; the same in all of them."""
        if self.alone:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64)
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine, group=self.control)
        return [row.tolist() for row in rows]

    def total(self, *values: float) -> list[float]:
        """Each value summed over the processes that read different rows, in the same order everywhere."""
        return [sum(column) for column in zip(*self.gathered(values)[:: self.tensor], strict=True)]

    def told(self, value: Any, by: int = 0) -> Any:
        """The value of one process, in all of them."""
        if self.alone:
            return value
        box = [value if self.rank == by else None]
        dist.broadcast_object_list(box, src=by, group=self.control, device=torch.device("cpu"))
        return box[0]

    def collected(self, value: Any) -> list[Any]:
        """The value of every process, in all of them."""
        if self.alone:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value, group=self.control)
        return box

    def agreed_word(self, word: str) -> str:
        """The word of the first process that has one, "" where none has."""
        speakers = [rank for rank, (has,) in enumerate(self.gathered([float(bool(word))])) if has]
        return self.told(word, speakers[0]) if speakers else ""

    def agree(self, fault: Fault | None, *values: float) -> list[list[float]]:
        """Raise in all processes the fault that one of them has; else exchange values, as `gathered`.

        Raises:
            Fault: That of the first process that has one.
        """
        rows = self.gathered([float(fault is not None), *values])
        speakers = [rank for rank, row in enumerate(rows) if row[0]]
        if speakers:
            told = self.told(None if fault is None else (fault.kind, fault.what, fault.mend, fault.facts), speakers[0])
            if fault is not None and self.rank == speakers[0]:
                raise fault
            kind, what, mend, facts = told
            raise Fault(kind, what, mend=mend, **facts)
        return [row[1:] for row in rows]

    def by_first(self, work: Callable[[], Result]) -> Result:
        """Let the first process do something, however long it takes; all get its result.

        Raises:
            UserError: The work has raised it; it is raised in all processes.
        """
        if self.alone:
            return work()
        result: Result | None = None
        failure: UserError | None = None
        if self.first:
            try:
                result = work()
            except UserError as error:
                failure = error
        self._wait()
        told = self.told((result, None if failure is None else (failure.what, failure.where, failure.mend)))
        if failure is not None:
            raise failure
        if told[1] is not None:
            what, where, mend = told[1]
            raise UserError(what, where=where, mend=mend)
        return told[0]

    def _wait(self) -> None:
        """Until the first process comes here, too; signals are heard meanwhile."""
        came = dist.barrier(group=self.patient, async_op=True)
        assert came is not None, "an asynchronous barrier has something to wait for"
        while not came.is_completed():
            time.sleep(_POLL_S)
        came.wait()

    def share(self, batch: Batch, together: int = 1) -> Batch:
        """This process's rows of a batch; where there are none left for it, some that are not trained.

        Args:
            batch: Of all processes.
            together: So many neighbouring rows belong to each other, such as the two of a pair, and are not parted.
        """
        if self.data_size == 1:
            return batch
        rows = [row for row in range(batch.n_rows) if row // together % self.data_size == self.data_rank]
        part = batch.part(rows)
        return part if part.n_rows else batch.part(slice(0, together)).without_weight()
