"""The encoder: reads a text in both directions and gives it a label; it writes nothing.

ModernBERT of transformers with random weights, all layers with full attention: rotary positions, norms first, gated
feed-forward parts, so that its build is as modern as the GPT's. The label is read off the mean of all states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimo.core.batch import Batch
from bimo.evaluation.answer import Answer
from bimo.examples.task_rows import TaskRows
from bimo.families.encoder_decoder import labelled
from bimo.families.family import Common, in_groups, padded, sides_of
from bimo.families.peer import Peer, matched, need_transformers, seeded
from bimo.tasks.classification import label_request
from bimo.tasks.task import TaskExample

_AT_ONCE = 64  # prompts that are answered together


class Encoder(Peer):
    """A BERT-like encoder with a head of labels.

    Args:
        common: What is the same for all families.
    """

    name = "encoder"

    def __init__(self, common: Common) -> None:
        width, model = seeded(common.training.seed, lambda: matched(self._builder(common), common.n_parameters))
        super().__init__(common, model, self._loss_sum)
        self.numbers = _numbers_of_labels(common)
        self.about = f"{common.spec.n_layers} encoder layers of width {common.spec.d_model}, feed-forward {width}"

    @staticmethod
    def _builder(common: Common) -> Any:
        transformers, spec, tokenizer = need_transformers(), common.spec, common.tokenizer

        def build(width: int) -> nn.Module:
            config = transformers.ModernBertConfig(
                vocab_size=spec.vocab_size, hidden_size=spec.d_model, intermediate_size=width,
                num_hidden_layers=spec.n_layers, num_attention_heads=spec.n_heads,
                layer_types=["full_attention"] * spec.n_layers, max_position_embeddings=spec.context_length,
                rope_parameters={kind: {"rope_theta": spec.rope_theta, "rope_type": "default"} for kind in _ROPES},
                initializer_range=spec.d_model**-0.5, embedding_dropout=spec.dropout, mlp_dropout=spec.dropout,
                attention_dropout=0.0, classifier_dropout=spec.dropout, classifier_pooling="mean",
                num_labels=len(common.labels), attn_implementation="sdpa", pad_token_id=tokenizer.pad_id,
                bos_token_id=tokenizer.begin_id, eos_token_id=tokenizer.end_id, cls_token_id=tokenizer.begin_id,
                sep_token_id=tokenizer.end_id,
            )  # fmt: skip
            return transformers.ModernBertForSequenceClassification(config)

        return build

    def _loss_sum(self, model: Any, batch: Batch) -> tuple[Tensor, int]:
        """Cross-entropy of the labels, summed."""
        device = self.common.device
        sides = sides_of(batch, self.common.tokenizer.pad_id)
        rows = zip(sides.answers.tolist(), sides.said.sum(1).tolist(), strict=True)
        labels = torch.tensor([self.numbers[tuple(row[:length])] for row, length in rows], device=device)
        logits = model(input_ids=sides.prompts.to(device), attention_mask=sides.seen.to(device).long()).logits
        return F.cross_entropy(logits.float(), labels, reduction="sum"), len(labels)

    @torch.no_grad()
    def answer(self, prompts: Sequence[list[int]]) -> list[Answer]:
        """As `Family.answer`."""
        self.model.eval()
        found: list[Answer] = [Answer("")] * len(prompts)
        for places in in_groups(prompts, _AT_ONCE):
            ids, seen = padded([torch.tensor(prompts[place]) for place in places], self.common.tokenizer.pad_id)
            device = self.common.device
            logits = self.model(input_ids=ids.to(device), attention_mask=seen.to(device).long()).logits
            for place, answer in zip(places, labelled(self.common.labels, logits.float().softmax(1)), strict=True):
                found[place] = answer
        return found


_ROPES = ("full_attention", "sliding_attention")


def _numbers_of_labels(common: Common) -> dict[tuple[int, ...], int]:
    """Each label's number, by the ids that the GPT says for it."""
    maker = TaskRows(common.tokenizer, 2**20, "stop", lambda kind, /, **facts: None)
    found = {}
    for number, label in enumerate(common.labels):
        [(ids, marks)] = maker.marked(TaskExample(label_request("a"), label, "a"))
        found[tuple(token for token, said in zip(ids, marks, strict=True) if said)] = number
    return found
