"""Short rows first: a model learns nearby words before it can use far ones, and short rows cost less attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.training.callbacks.protocol import Callback

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer


class ShortRows(Callback):
    """Cuts the rows of the first steps into pieces, which then know nothing of each other (Li et al. 2022).

    For pretraining: a piece of an answer without its question teaches little. The number of tokens stays the same.

    Args:
        share: Of the steps of the run, from its beginning.
        parts: Pieces of a row.
        least: Rows whose pieces would have fewer tokens stay whole.
    """

    def __init__(self, share: float = 0.3, parts: int = 4, least: int = 64) -> None:
        if not 0 <= share <= 1 or parts < 1:
            raise UserError(
                f"share must lie in 0 … 1 and parts be at least 1, are {share} and {parts}", where="ShortRows"
            )
        self.share, self.parts, self.least = share, parts, least

    def on_start(self, trainer: Trainer) -> None:
        if trainer.rows_together > 1:
            mend = "Leave short_rows out: it is for pretraining."
            raise UserError("pieces of an answer are no pairs to compare", where="training.callbacks", mend=mend)

    def on_batch(self, trainer: Trainer, batch: Batch) -> Batch | None:
        T = batch.ids.shape[1]
        if trainer.state.step >= self.share * trainer.settings.steps or T % self.parts or self.parts * self.least > T:
            return None
        return batch.cut(T // self.parts)
