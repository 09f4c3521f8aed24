"""Short rows first: what a batch becomes, when, and that nothing of it is lost."""

from __future__ import annotations

import pytest
import torch

from bimo import GPT, ModelSpec, Trainer, TrainingSettings
from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.training import Callback, ShortRows

SPEC = ModelSpec(n_layers=1, n_heads=2, d_model=16, vocab_size=32, context_length=16)


class Shapes(Callback):
    """The shapes of the batches that are trained on."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def on_batch(self, trainer: Trainer, batch: Batch) -> None:
        self.shapes.append(tuple(batch.ids.shape))


def shapes_of(short: ShortRows, steps: int = 5) -> list[tuple[int, ...]]:
    ids = torch.randint(32, (2, 17))
    seen = Shapes()
    settings = TrainingSettings(steps=steps, evaluate_every=0)
    Trainer(GPT(SPEC), settings, callbacks=[short, seen]).fit([Batch(ids[:, :-1], ids[:, 1:], torch.ones(2, 16))])
    return seen.shapes


def test_rows_are_cut_in_the_first_steps_only() -> None:
    assert shapes_of(ShortRows(0.4, 4, least=4)) == [(8, 4), (8, 4), (2, 16), (2, 16), (2, 16)]


@pytest.mark.parametrize("short", [ShortRows(0.4, 4, least=5), ShortRows(0.4, 3, least=1), ShortRows(0.0, 4, least=1)])
def test_rows_stay_whole_where_pieces_would_be_short_or_uneven(short: ShortRows) -> None:
    assert set(shapes_of(short)) == {(2, 16)}


def test_pieces_hold_every_token_with_its_target_place_and_document() -> None:
    tensors = {name: torch.arange(24).reshape(2, 12) + i for i, name in enumerate(("ids", "targets"))}
    places = {"positions": torch.arange(12).repeat(2, 1), "documents": torch.arange(2)[:, None].repeat(1, 12)}
    cut = Batch(**tensors, weights=torch.ones(2, 12), **places).cut(4)
    assert torch.equal(cut.ids.flatten(), torch.arange(24))
    assert torch.equal(cut.targets, cut.ids + 1)
    assert cut.positions is not None
    assert cut.positions[1].tolist() == [4, 5, 6, 7], "distances are what counts"
    assert cut.documents is not None
    assert cut.documents[:, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_a_share_beyond_one_is_refused() -> None:
    with pytest.raises(UserError, match="share must lie in 0 … 1"):
        ShortRows(1.5)
