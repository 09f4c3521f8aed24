"""Which parts the state of a run has, and how a run takes a state up again: for checkpoints and for rollbacks alike."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bimo.training import state as checkpoint
from bimo.training.callbacks.protocol import Callback
from bimo.training.randomness import random_state, seed_everything, set_random_state, undisturbed
from bimo.training.streams import Resumable
from bimo.training.team import Team

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer


def state_of(trainer: Trainer, without: Callback | None = None) -> checkpoint.Tree:
    """All that the rest of the run depends on. Tensors are the live ones; a batch that waits counts as unread.

    Args:
        trainer: The run.
        without: A callback whose state is left out.
    """
    waiting = trainer.batch is not None
    callbacks = {name: c.state_dict() for name, c in _named(trainer.callbacks).items() if c is not without}
    return {
        "model": checkpoint.model_state(trainer.model),
        "optimizer": checkpoint.optimizer_state(trainer.optimizer, trainer.model),
        "training": asdict(trainer.state),
        "data": trainer.before["data"] if waiting else position(trainer.data),
        "random": trainer.before["random"] if waiting else random_state(),
        "callbacks": callbacks,
        "identity": identity(trainer),
        "settings": trainer.settings.to_dict(),
    }


def restore(trainer: Trainer, tree: checkpoint.Tree) -> None:
    """Let a run go on from a state; parts that the tree does not have stay as they are."""
    checkpoint.load_optimizer_state(trainer.optimizer, trainer.model, tree["optimizer"])  # may refuse: it comes first
    checkpoint.load_model_state(trainer.model, tree["model"])
    trainer.state = checkpoint.TrainingState(**tree["training"])
    for name, callback in _named(trainer.callbacks).items():
        if tree["callbacks"].get(name):
            callback.load_state_dict(tree["callbacks"][name])
    set_random_state(tree["random"])
    if isinstance(trainer.data, Resumable):
        trainer.data.load_state_dict(tree["data"])
    trainer.batch = None


def own_chance(tree: checkpoint.Tree, team: Team, seed: int) -> dict[str, Any]:
    """The random states out of a checkpoint that this process goes on with.

    Where as many processes go on as have stopped, each has its own. Else Python and NumPy go on everywhere from those
    of the first one, and so does torch in the first; the other processes, which nobody has been before, begin anew.
    """
    ranks = tree.pop("ranks", [tree["random"]])
    if len(ranks) == team.size:
        return ranks[team.rank]
    if team.data_rank == 0:
        return ranks[0]
    with undisturbed():
        seed_everything(seed + tree["training"]["step"], team.data_rank)
        fresh = random_state()
    kept = {name: state for name, state in ranks[0].items() if name in ("python", "numpy")}
    return fresh | kept


def identity(trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint must have been made with: the model's choices, and the tokenizer."""
    spec = getattr(trainer.model, "spec", None)
    tokenizer = "" if trainer.text_model is None else trainer.text_model.fingerprint
    return {"model": spec.to_dict() if spec is not None else {}, "tokenizer": tokenizer}


def position(data: Any) -> dict[str, Any]:
    """Where a stream of batches stands; nothing for one that does not know."""
    return data.state_dict() if isinstance(data, Resumable) else {}


def _named(callbacks: list[Callback]) -> dict[str, Callback]:
    """Callbacks by class and number among those of the class, as they are named in checkpoints."""
    named: dict[str, Callback] = {}
    for callback in callbacks:
        kind = type(callback).__name__
        named[f"{kind}-{sum(type(other).__name__ == kind for other in named.values())}"] = callback
    return named
