"""The watchdog: sees a fault before the weights change, mends it, and says what it did.

- A loss or gradient that is not finite, a spike of the whole or of one layer, a layer without a gradient: the step is
  tried once more with the same chance. A fault of the machine is gone then, and nothing is lost. Else the last good
  batches are asked whether the model is sound: if so the new batch is set aside, if not the run goes back.
- Weights or the optimizer's memory that have changed between two updates: the run goes back to the last good state, in
  memory or on disk.
- An empty batch, one without targets, ids that the model does not know: set aside, with its text.
- Memory that is used up: half the rows in a forward pass; the update stays the same.
- A training loss that falls while the held-out one rises: the run ends with the weights that were best.
- A step that does not end: it says where the program stands.

A fault that comes back at the same place after the run went back lowers the learning rate. After a bounded number of
tries without progress it gives up, with a report.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from bimo.core.artifacts import write_text
from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.training import state as checkpoint
from bimo.training.callbacks import Callback, Gradient, StepResult
from bimo.training.callbacks.stopping import OVERFITTING
from bimo.training.faults import Fault
from bimo.training.resuming import restore
from bimo.training.streams import Resumable
from bimo.training.watchdog.memory import GoodStates
from bimo.training.watchdog.overfitting import Overfitting
from bimo.training.watchdog.senses import STILL, Senses
from bimo.training.watchdog.stall import StallWatch

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer

Decode = Callable[[Sequence[int]], str]

SKIPPED = "set aside before"
_OF_THE_BATCH = {"nothing to train on", "bad weights", "unreadable batch", "ids outside the vocabulary"}
_OF_THE_STATE = {"damaged weights", "damaged optimizer", "rising loss"}
_SPIKES = {"loss spike", "gradient spike", "exploding layer"}
_PROBES = 3  # good batches that are remembered to ask the model about
_CALM = 20  # sound steps after which earlier tries no longer count
_IN_A_ROW = 4  # batches set aside in a row, while the model is sound, after which the data are taken to have changed
_MOST_ASIDE = 20  # batches set aside within 200 steps
_SHOWN = 400  # characters of a set-aside text in events.jsonl


@dataclass
class Tries:
    """What was tried since the last calm.

    Attributes:
        made: Mends without progress.
        returns: How often the run went back.
        in_a_row: Batches set aside since the last sound step.
        skips: Batches passed over since the last sound step.
        last: Step of the last fault.
        asides: Steps at which batches were set aside.
        kinds: Faults by kind, over the whole run.
    """

    made: int = 0
    returns: int = 0
    in_a_row: int = 0
    skips: int = 0
    last: int = 0
    asides: list[int] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)


class Watchdog(Callback):
    """Watches a run, and mends it.

    Args:
        set_aside: Folder for batches that were set aside; None: only their events tell of them.
        decode: Ids to text, for people; None: the trainer's tokenizer, where it has one.
        snapshot_every: Steps between good states in memory.
        tries: Mends without progress after which it gives up.
        stall_s: Seconds that a step may take in any case; ten times the usual are always allowed.
    """

    def __init__(
        self,
        set_aside: Path | None = None,
        decode: Decode | None = None,
        *,
        snapshot_every: int = 25,
        tries: int = 8,
        stall_s: float = 60.0,
    ) -> None:
        self.folder, self.decode = set_aside, decode
        self.snapshot_every, self.most_tries, self.stall_s = snapshot_every, tries, stall_s
        self.senses, self.good, self.overfitting = Senses(), GoodStates(), Overfitting()
        self.probes: deque[tuple[Batch, float]] = deque(maxlen=_PROBES)  # and what the model made of them: inf: unknown
        self.seconds: deque[float] = deque(maxlen=32)
        self.skipped: list[str] = []  # fingerprints of batches that were set aside
        self.tries = Tries()
        self.fault: Fault | None = None  # the newest that was not passed over
        self.retried = ""  # kind of the fault whose step is tried once more
        self.again = False  # whether the batch that comes is the one that a fault has kept
        self.seen: Gradient | None = None
        self.told_still = False
        self.stall: StallWatch | None = None

    def on_start(self, trainer: Trainer) -> None:
        self.good.fit_into_memory(trainer)

        def stalled(seconds: float, stack: str) -> None:
            what = f"step {trainer.state.step + 1} has taken {seconds:.0f} s; the program stands at {stack}"
            trainer.event("stall", what=what)

        self.stall = StallWatch(stalled)
        self._expect_step()

    def on_batch(self, trainer: Trainer, batch: Batch) -> None:
        if not self.good.states:  # not at the start: other callbacks may have changed something there
            self.good.take(trainer, self)
        name = trainer.name_of(batch)
        if name in self.skipped:
            raise Fault(SKIPPED, "this batch was set aside before")
        again, self.again = self.again, False
        if not again:
            self.senses.look_at_batch(name, trainer.state.step + 1)

    def on_gradient(self, trainer: Trainer, gradient: Gradient) -> None:
        self.senses.look_at_state(trainer)
        self.senses.look_at_gradient(gradient, trainer.state.step + 1)
        self.seen = gradient
        still = self.senses.still >= STILL and gradient.norm > 0
        if still and not self.told_still:
            what = f"the last {STILL} updates have changed no weight, though there is a gradient: look at the optimizer"
            trainer.event(
                "weights stand still", what=f"{what} and its rate ({trainer.optimizer.param_groups[0]['lr']:g})"
            )
        self.told_still = still

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if self.stall is not None:
            self.stall.step_ends()
        self.seconds.append(result.seconds)
        if self.retried:
            trainer.event("passed", what=f"{self.retried}: the same step went well when it was tried once more")
        assert self.seen is not None, "a step has a gradient"
        self.senses.add(self.seen)
        self.probes.append((self.seen.batch, result.loss))
        self.seen, self.retried = None, ""
        self.tries.in_a_row = self.tries.skips = 0
        if result.step >= self.tries.last + _CALM:
            self.tries.made = self.tries.returns = 0

    def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        wrong = [name for name, figure in metrics.items() if not math.isfinite(figure)]
        if wrong:
            trainer.event("bad evaluation", what=f"{', '.join(wrong)} after step {trainer.state.step} is no number")
        what = self.overfitting.look(metrics, self.senses.loss.level, trainer.model)
        if what:
            trainer.event(OVERFITTING, what=what)
            trainer.stop_requested = OVERFITTING

    def on_settled(self, trainer: Trainer) -> None:
        step, settings = trainer.state.step, trainer.settings
        saved = settings.checkpoint_every and step % settings.checkpoint_every == 0
        if step % self.snapshot_every == 0 or saved or step >= settings.steps:
            self.senses.look_at_state(trainer)  # what is kept is known to be sound
        if step % self.snapshot_every == 0:
            self.good.take(trainer, self)
        self._expect_step()

    def on_changed(self, trainer: Trainer) -> None:
        self.senses.forget_state()
        self.senses.forget_spikes()
        self.probes = deque(((batch, math.inf) for batch, _ in self.probes), maxlen=_PROBES)

    def on_fault(self, trainer: Trainer, fault: Fault) -> bool:
        kind, tries = fault.kind, self.tries
        if kind in (SKIPPED, "repeated batch"):
            self._pass_over(trainer, fault)
            return True
        self.fault = fault
        tries.kinds[kind] = tries.kinds.get(kind, 0) + 1
        tries.last = max(tries.last, trainer.state.step + 1)
        again, self.retried = self.retried, ""
        if kind == "out of memory":
            self._halve(trainer, fault)
        elif kind in _OF_THE_STATE:
            self._go_back(trainer, fault)
        elif kind in _OF_THE_BATCH:
            self._set_aside(trainer, fault)
        elif not again:
            self.retried = kind
            trainer.event("trying again", fault=kind, what=fault.what)
        elif not self._is_sound(trainer):
            self._go_back(trainer, fault)
        elif tries.in_a_row < _IN_A_ROW:
            self._set_aside(trainer, fault)
        elif not self.senses.loss.added:
            self._give_up(trainer, fault, f"the first {tries.in_a_row} batches could not be trained on")
        elif kind in _SPIKES:
            self.senses.forget_spikes()
            what = f"{tries.in_a_row} batches in a row were unlike those before, and the model is sound: the data have "
            trainer.event("other data", what=what + "changed, and these batches are trained on from here")
        else:
            self._go_back(trainer, fault)
        self.again = trainer.batch is not None
        return True

    def on_end(self, trainer: Trainer) -> None:
        self._close()

    def on_result(self, trainer: Trainer) -> None:
        if trainer.stop_requested == OVERFITTING:
            self.overfitting.put_back(trainer.model)

    def on_error(self, trainer: Trainer) -> None:
        self._close()

    def state_dict(self) -> dict[str, Any]:
        return {
            "senses": self.senses.state_dict(),
            "overfitting": self.overfitting.state_dict(),
            "skipped": list(self.skipped),
            "tries": {**vars(self.tries)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.senses.load_state_dict(state["senses"])
        self.overfitting.load_state_dict(state["overfitting"])
        self.skipped, self.tries = list(state["skipped"]), Tries(**state["tries"])

    def _halve(self, trainer: Trainer, fault: Fault) -> None:
        """Half the rows at once; gradients add up to the same update."""
        rows = fault.facts["rows"]
        if rows <= 1:
            self._give_up(trainer, fault, "one row alone does not fit into memory")
        trainer.state.most_rows = rows // 2
        if trainer.device.startswith("cuda"):
            torch.cuda.empty_cache()
        what = f"{fault.what}; from here on {rows // 2} row(s) at once, with the same batch per update"
        trainer.event("out of memory", what=what)

    def _pass_over(self, trainer: Trainer, fault: Fault) -> None:
        """Read on, as long as there is reason to hope for another batch."""
        self.tries.skips += 1
        if fault.kind != SKIPPED and self.tries.skips == 1:
            trainer.event(fault.kind, what=f"{fault.what}; it is passed over")
        if self.tries.skips > len(self.skipped) + 64:
            self._give_up(trainer, fault, "the data give nothing but batches that cannot be used")
        trainer.drop_batch()

    def _set_aside(self, trainer: Trainer, fault: Fault) -> None:
        """Leave the batch out from here on, and keep it with its text for a person to look at."""
        batch, tries, step = trainer.batch, self.tries, trainer.state.step + 1
        assert batch is not None, "a fault of a batch has a batch"
        tries.in_a_row += 1
        tries.asides = [at for at in tries.asides if at > step - 200] + [step]
        if len(tries.asides) > _MOST_ASIDE:
            self._give_up(trainer, fault, f"{len(tries.asides)} batches within 200 steps could not be trained on")
        self.skipped.append(trainer.name_of(batch))
        texts = self._texts(trainer, batch)
        facts: dict[str, Any] = {"texts": [text[:_SHOWN] for text in texts[:4]]}
        if self.folder is not None:
            part = f"-part{trainer.team.rank}" if trainer.team.rank else ""  # each process has rows of its own
            path = self.folder / f"step-{step:08d}-{len(self.skipped)}{part}.json"
            rows = [batch.ids.tolist(), batch.targets.tolist(), batch.weights.tolist()]
            names = ("ids", "targets", "weights")
            record = {"step": step, "kind": fault.kind, "what": fault.what, "texts": texts}
            write_text(path, json.dumps(record | dict(zip(names, rows, strict=True)), ensure_ascii=False))
            facts["file"] = f"{path.parent.name}/{path.name}"
        trainer.event("batch set aside", fault=fault.kind, what=fault.what, **facts)
        trainer.drop_batch()

    def _texts(self, trainer: Trainer, batch: Batch) -> list[str]:
        """What stands in each row; '' where nobody can read ids."""
        decode = self.decode
        if decode is None and trainer.text_model is not None and trainer.text_model.fingerprint:
            decode = trainer.text_model.show
        if decode is None:
            return []
        size = trainer.model.embed_tokens.num_embeddings
        ends = [int(row.nonzero().max()) + 1 if row.any() else len(row) for row in batch.weights]  # then comes padding
        rows = [row[:end] for row, end in zip(batch.ids.tolist(), ends, strict=True)]
        return [decode([i for i in row if 0 <= i < size]) for row in rows]

    def _is_sound(self, trainer: Trainer) -> bool:
        """Whether the model still knows what it knew of the last good batches."""
        normal = self.senses.loss
        allowed = max(normal.bar, 0.5) if math.isfinite(normal.bar) else 1.0
        now = [trainer.loss_of(batch) for batch, _ in self.probes]
        rises = [loss - before for loss, (_, before) in zip(now, self.probes, strict=True)]
        return all(map(math.isfinite, now)) and (not rises or statistics.median(rises) <= allowed)

    def _go_back(self, trainer: Trainer, fault: Fault) -> None:
        """To the last good state; to an older one, with a lower rate, when that was not enough."""
        self._count(trainer, fault)
        self.tries.returns += 1
        tree = self.good.newest(back=min(1, self.tries.returns - 1)) or self._from_disk(trainer)
        if tree is None:
            self._give_up(trainer, fault, "there is no good state to go back to")
        now = trainer.state
        self._restore(trainer, tree)
        trainer.state.rate_scale = now.rate_scale * (0.5 if self.tries.returns > 1 else 1.0)
        self.good.forget_after(tree)
        self.senses.forget_state()
        self.senses.loss.lowest = math.inf
        self.probes.clear()
        lower = f", with {trainer.state.rate_scale:g} of the planned rate" if trainer.state.rate_scale != 1 else ""
        lost = "" if isinstance(trainer.data, Resumable) else "; the batches in between cannot be read again"
        what = f"{fault.what}; back from step {now.step} to step {trainer.state.step}{lower}{lost}"
        trainer.event("went back", fault=fault.kind, what=what)
        self._expect_step()

    def _restore(self, trainer: Trainer, tree: checkpoint.Tree) -> None:
        """The state of the tree, but for what was learned since."""
        now = trainer.state
        kept = {name: state for name, state in tree["callbacks"].items() if not name.startswith("Watchdog")}
        restore(trainer, {**tree, "callbacks": kept})
        trainer.state.most_rows, trainer.state.seconds = now.most_rows, now.seconds

    def _from_disk(self, trainer: Trainer) -> checkpoint.Tree | None:
        """The newest checkpoint that is whole."""
        for folder in sorted(trainer.folder.glob("step-*"), reverse=True) if trainer.folder else ():
            try:
                return checkpoint.read(folder, trainer.model, trainer.team)
            except UserError as error:
                trainer.event("damaged checkpoint", what=str(error))
        return None

    def _count(self, trainer: Trainer, fault: Fault) -> None:
        self.tries.made += 1
        if self.tries.made > self.most_tries:
            self._give_up(trainer, fault, f"{self.most_tries} tries brought no progress")

    def _give_up(self, trainer: Trainer, fault: Fault, why: str) -> NoReturn:
        """End the run with good weights in memory, and say what was tried."""
        tree = self.good.newest(back=0)
        if tree is not None:
            self._restore(trainer, tree)
        fault = self.fault or fault
        kinds = ", ".join(f"{kind} ({count})" for kind, count in Counter(self.tries.kinds).most_common())
        what = (
            f"the watchdog gives up at step {trainer.state.step + 1}: {why}. Last: {fault.what}. Seen so far: {kinds}"
        )
        trainer.event("gave up", fault=fault.kind, what=what)
        saved = "The weights are those of the last good state. "
        raise UserError(what, mend=saved + (fault.mend or "Look at events.jsonl.")) from fault

    def _expect_step(self) -> None:
        if self.stall is not None:
            usual = statistics.median(self.seconds) if self.seconds else 0.0
            self.stall.step_begins(max(self.stall_s, 10 * usual))

    def _close(self) -> None:
        if self.stall is not None:
            self.stall.close()
            self.stall = None
