"""A search as it lies on disk: Optuna's study in one SQLite file, which the same command goes on with.

Trials are compared at equal seconds: each trains as long as every other, reports its held-out loss at the same shares
of that time, and is ended early when it is worse there than the median of those before. The first trial is the recipe
itself. What every session needs (the space, the seconds of a trial, the time that was spent) lies in the same file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bimo.core.config import RunSettings
from bimo.core.errors import UserError, require
from bimo.training.space import Choice, Space

POINTS = 6
"""How often a trial reports its held-out loss, its end included: at equal shares of its time."""
_FIRST_TRIALS = 4  # are never ended early: the median is of these at least
_FIRST_LOOK = POINTS // 2  # earlier losses favour low rates and small batches (measured: 18 of 21 ended at 1/6)
_FULL_TRIALS = 16  # that a budget is divided by where no number of trials is given


@dataclass(frozen=True)
class Curve:
    """What a trial came to.

    Attributes:
        loss: Held-out loss at its end, in nats per token; infinite when it could not be trained.
        seconds: Time that it took, evaluations included; see `trial.undisturbed_time`.
        steps: Updates made.
        tokens: Tokens read.
        ended: Why it ended early; "" for a trial that trained to its end.
    """

    loss: float
    seconds: float
    steps: int = 0
    tokens: int = 0
    ended: str = ""


@dataclass(frozen=True)
class Row:
    """A trial as a person reads it."""

    number: int
    choice: Choice
    loss: float | None
    seconds: float
    steps: int
    state: str
    ended: str
    curve: dict[int, float] = field(default_factory=dict)


class Search:
    """Asks for choices, takes their losses, remembers both.

    Args:
        file: The SQLite file; made, or gone on with.
        settings: The recipe.
        seed: Of the choices.
    """

    def __init__(self, file: Path, settings: RunSettings, seed: int = 0) -> None:
        self.optuna = require("optuna", "tune")
        logging.getLogger("optuna").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=self.optuna.exceptions.ExperimentalWarning)
        self.file, self.settings = file, settings
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.study = self.optuna.create_study(
                storage=f"sqlite:///{file}", study_name="tune", direction="minimize", load_if_exists=True,
                pruner=self.optuna.pruners.MedianPruner(_FIRST_TRIALS, _FIRST_LOOK, n_min_trials=3),
            )  # fmt: skip
        except Exception as error:  # SQLAlchemy's and SQLite's own, told to the user
            reason = str(error).partition("\n")[0]
            mend = "Choose another --name, or delete the file."
            raise UserError(f"this is no file of a search ({reason})", where=str(file), mend=mend) from error
        self._check_recipe()
        done = len(self.study.trials)
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed + done, n_startup_trials=_FIRST_TRIALS + 1)

    @property
    def begun(self) -> bool:
        """Whether the space is settled: the search was begun in an earlier session."""
        return "space" in self.study.user_attrs

    def begin(self, space: Space, trial_s: float) -> None:
        """Settle what is searched, and how long each trial trains; the recipe itself comes first."""
        self.study.set_user_attr("space", space.to_dict())
        self.study.set_user_attr("trial_s", trial_s)
        self.study.enqueue_trial(dict(space.default(self.settings)), user_attrs={"default": True})

    @property
    def space(self) -> Space:
        return Space.from_dict(self.study.user_attrs["space"])

    @property
    def trial_s(self) -> float:
        """Seconds of every trial."""
        return float(self.study.user_attrs["trial_s"])

    def remembered(self, name: str, default: Any = None) -> Any:
        """A plain value that an earlier session has left."""
        return self.study.user_attrs.get(name, default)

    def remember(self, name: str, value: Any) -> None:
        """Leave a plain value for later sessions."""
        self.study.set_user_attr(name, value)

    def take_back_unfinished(self) -> int:
        """Trials that a signal or a crash cut off are put in line again; returns how many."""
        states = self.optuna.trial.TrialState
        cut = [trial for trial in self.study.trials if trial.state == states.RUNNING]
        for trial in cut:
            self.study.tell(trial.number, state=states.FAIL)
            if trial.params:
                marks = {"default": True} if trial.user_attrs.get("default") else {}
                self.study.enqueue_trial(trial.params, user_attrs=marks)
        return len(cut)

    def ask(self) -> tuple[Any, Choice]:
        """The next trial and what it chooses."""
        trial, space = self.study.ask(), self.space
        return trial, {
            "learning_rate": trial.suggest_float("learning_rate", space.low_rate, space.high_rate, log=True),
            "batch_size": trial.suggest_categorical("batch_size", space.batch_sizes),
            "shape": trial.suggest_categorical("shape", list(space.shapes)),
        }

    def report(self, trial: Any, point: int, loss: float) -> bool:
        """Take a loss on the way; True: the trial shall end, because it is worse than most were there."""
        trial.report(loss if math.isfinite(loss) else math.inf, point)
        if trial.user_attrs.get("default") or point >= POINTS:
            return False
        return bool(trial.should_prune())

    def tell(self, trial: Any, curve: Curve) -> None:
        """A trial has ended."""
        states = self.optuna.trial.TrialState
        for name in ("seconds", "steps", "tokens", "ended"):
            trial.set_user_attr(name, getattr(curve, name))
        if not math.isfinite(curve.loss) and not curve.ended:
            trial.set_user_attr("ended", "its loss is not a number")
        whole = math.isfinite(curve.loss) and not curve.ended
        if whole:
            self.study.tell(trial, curve.loss)
        else:
            if not math.isfinite(curve.loss):  # so that the search knows how bad it was
                trial.report(math.inf, POINTS)
            self.study.tell(trial, state=states.PRUNED)

    def rows(self) -> list[Row]:
        """All trials that have ended, in order; those that were cut off and put in line again are left out."""
        states = self.optuna.trial.TrialState
        ended = [trial for trial in self.study.trials if trial.state in (states.COMPLETE, states.PRUNED)]
        return [
            Row(
                number=trial.number,
                choice=dict(trial.params),
                loss=trial.value if trial.state == states.COMPLETE else None,
                seconds=float(trial.user_attrs.get("seconds", 0.0)),
                steps=int(trial.user_attrs.get("steps", 0)),
                state="whole" if trial.state == states.COMPLETE else "ended early",
                ended=str(trial.user_attrs.get("ended", "")),
                curve={point: loss for point, loss in trial.intermediate_values.items() if math.isfinite(loss)},
            )
            for trial in ended
        ]

    def default(self) -> Row | None:
        """The trial of the recipe itself, once it has ended."""
        own = self.space.default(self.settings)
        return next((row for row in self.rows() if row.choice == own), None)

    def best(self) -> Row | None:
        """The trial with the lowest loss among those that trained to their end."""
        whole = [row for row in self.rows() if row.loss is not None]
        return min(whole, key=lambda row: float(row.loss or 0.0), default=None)

    def _check_recipe(self) -> None:
        """A search goes on with the recipe that it was begun with; name and folder do not count."""
        values = {name: value for name, value in self.settings.to_dict().items() if name not in ("name", "folder")}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        if self.study.user_attrs.setdefault("recipe", digest) != digest:
            raise UserError(
                "this search was begun with another recipe",
                where=str(self.file),
                mend="Give that recipe, choose another --name, or delete the file to begin anew.",
            )
        self.study.set_user_attr("recipe", digest)


def trial_seconds(budget_s: float, trials: int, seeds: int, at_once: int = 1) -> float:
    """How long each trial trains, so that all of them and the comparison at the end fit into a time.

    Of the trials after the first ones some 40 % of the time is saved by ending the poor ones.
    """
    count = trials or _FULL_TRIALS
    whole = min(count, _FIRST_TRIALS) + 0.6 * max(0, count - _FIRST_TRIALS)
    return budget_s / (whole / at_once + 2 * seeds)
