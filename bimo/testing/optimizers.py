"""The contract of an optimizer, which is what the training loop relies on: `check_optimizer(torch.optim.SGD)`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from bimo.testing.promises import Promise, check
from bimo.testing.runs import STEPS, Run, a_run, batches, difference, weights_of
from bimo.testing.subjects import name_of
from bimo.training.optimizers import OptimizerFactory
from bimo.training.streams import repeated


def check_optimizer(optimizer: str | OptimizerFactory, *, skip: Collection[str] = ()) -> list[str]:
    """Whether an optimizer keeps its contract.

    Args:
        optimizer: A function of the parameters that makes it, such as `lambda p: torch.optim.SGD(p, lr=0.1)`, or the
            name that it is registered with.
        skip: Names of promises that shall not be looked at.

    Returns:
        The names of the promises that it keeps.

    Raises:
        ContractError: It breaks some; each is told with how to mend it.
    """
    with a_run(optimizer) as run:
        return check(name_of(optimizer), CONTRACT, {"a run of six steps": run}, skip)


def made(run: Run) -> str:
    """'' when it can be made."""
    run.trainer([])
    return ""


def parameters(run: Run) -> str:
    """'' when it holds every parameter of the model, each once."""
    trainer = run.trainer([])
    held = Counter(id(p) for group in trainer.optimizer.param_groups for p in group["params"])
    named = {id(p): name for name, p in trainer.model.named_parameters() if p.requires_grad}
    for key, name in named.items():
        if held[key] != 1:
            return f"{name} is in its groups {held[key]} times"
    return "" if len(held) == len(named) else "it holds tensors that are not the model's"


def rates(run: Run) -> str:
    """'' when it obeys the rate of its groups: with 0 nothing moves."""
    trainer = run.trainer([])
    trainer.prepare_machine()
    before = weights_of(trainer.model)
    trainer.state.rate_scale = 0.0
    trainer.step(repeated(batches()))
    place = difference(before, weights_of(trainer.model))
    return f"with a rate of 0, {place.strip('/')} changes" if place else ""


def learns(run: Run) -> str:
    """'' when the loss of a batch that is seen again and again falls."""
    trainer = run.trainer([], 5 * STEPS)
    trainer.prepare_machine()
    stream = repeated(batches()[:1])
    losses = [trainer.step(stream).loss for _ in range(5 * STEPS)]
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    return "" if last < first - 0.01 else f"after {len(losses)} updates the loss is {last:.3f}, it was {first:.3f}"


def resume(run: Run) -> str:
    """'' when a run that is resumed in the middle is the unbroken one."""
    expected = weights_of(run.whole([]).model)
    found = weights_of(run.other_half([], run.half([])).model)
    place = difference(expected, found)
    return f"a resumed run ends with other weights ({place.strip('/')})" if place else ""


CONTRACT: tuple[Promise[Run], ...] = (
    Promise("made", made, "Give a torch.optim.Optimizer, or a function of the parameters that makes one."),
    Promise("parameters", parameters, "Give it all parameters that it is handed, and no others.", needs=("made",)),
    Promise("rates", rates, "Multiply every change, decay too, by group['lr'], and read it in every step.", ("made",)),
    Promise("learning", learns, "Look at the sign and the size of its steps, or give it another rate.", ("made",)),
    Promise("resume", resume, "Keep all that it remembers in self.state or in param_groups.", needs=("made",)),
)
