"""auto packs records where that is less work, and says why."""

from __future__ import annotations

import numpy as np
import pytest

from bimo.batching import with_batches
from bimo.core.config import AdaptSettings, RunSettings, TrainingSettings
from bimo.core.spec import ModelSpec
from bimo.materials import Rows
from bimo.model.gpt import GPT
from bimo.training.rows import RowWriter


@pytest.mark.parametrize(
    ("length", "context", "chosen"),
    [(10, 64, "packed"), (10, 1024, "grouped"), (33, 64, "grouped")],
    ids=["10 tokens would be padded to 16", "attention would go over 1024", "only one fits into a row"],
)
def test_auto_counts_the_work(length: int, context: int, chosen: str) -> None:
    spec = ModelSpec(vocab_size=300, context_length=context, n_layers=2, n_heads=4, head_dim=32, d_model=128)
    writer = RowWriter(0, context)
    for number in range(200):
        writer.add(np.arange(length), b"\1" * length, str(number))
    settings = RunSettings(model=spec, training=TrainingSettings(batch_size=4))
    found, why = with_batches(settings, Rows([writer.rows()], []), GPT(spec))
    assert found.adapt.batches == chosen
    assert why.startswith(f"{chosen}: packing would take ")
    asked = RunSettings(model=spec, adapt=AdaptSettings(batches="packed"))
    assert with_batches(asked, Rows([writer.rows()], []), GPT(spec))[0].adapt.batches == "packed", "as it was asked"
