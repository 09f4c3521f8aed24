"""The encoder-decoder: reads all of the text in both directions, then writes.

Pegasus of transformers with random weights: the Transformer of Vaswani et al. (2017) with its norms first, so that it
needs no long warm-up, sinusoidal positions, and one matrix for both embeddings and the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimo.core.batch import Batch
from bimo.evaluation.answer import Answer, Circumstances
from bimo.families.family import Common, in_groups, padded, sides_of
from bimo.families.peer import Peer, matched, need_transformers, seeded

_AT_ONCE = 64  # prompts that are answered together


class EncoderDecoder(Peer):
    """Half of the layers read, the other half writes.

    Args:
        common: What is the same for all families.
    """

    name = "encoder-decoder"

    def __init__(self, common: Common) -> None:
        width, model = seeded(common.training.seed, lambda: matched(self._builder(common), common.n_parameters))
        super().__init__(common, model, self._loss_sum)
        encoder, decoder = _layers(common.spec.n_layers)
        self.about = (
            f"{encoder} encoder and {decoder} decoder layers of width {common.spec.d_model}, feed-forward {width}"
        )

    @staticmethod
    def _builder(common: Common) -> Any:
        transformers, spec = need_transformers(), common.spec
        encoder, decoder = _layers(spec.n_layers)

        def build(width: int) -> nn.Module:
            config = transformers.PegasusConfig(
                vocab_size=spec.vocab_size, d_model=spec.d_model,
                encoder_layers=encoder, decoder_layers=decoder,
                encoder_attention_heads=spec.n_heads, decoder_attention_heads=spec.n_heads,
                encoder_ffn_dim=width, decoder_ffn_dim=width, activation_function="gelu",
                max_position_embeddings=spec.context_length + 8, init_std=spec.d_model**-0.5,
                scale_embedding=True, dropout=spec.dropout, attention_dropout=0.0, activation_dropout=0.0,
                encoder_layerdrop=0.0, decoder_layerdrop=0.0, attn_implementation="sdpa",
                pad_token_id=common.tokenizer.pad_id, bos_token_id=common.tokenizer.begin_id,
                eos_token_id=sorted(common.tokenizer.end_ids), decoder_start_token_id=common.tokenizer.begin_id,
            )  # fmt: skip
            return transformers.PegasusForConditionalGeneration(config)

        return build

    def _loss_sum(self, model: Any, batch: Batch) -> tuple[Tensor, int]:
        """Cross-entropy of the answers, their end among them, summed."""
        pad, device = self.common.tokenizer.pad_id, self.common.device
        sides = sides_of(batch, pad)
        answers, said = sides.answers.to(device), sides.said.to(device)
        logits = model(
            input_ids=sides.prompts.to(device),
            attention_mask=sides.seen.to(device).long(),
            decoder_input_ids=self._shifted(answers),
            use_cache=False,
        ).logits
        losses = F.cross_entropy(logits.flatten(0, 1).float(), answers.flatten(), reduction="none")
        return (losses * said.flatten()).sum(), int(sides.said.sum())

    def _shifted(self, answers: Tensor) -> Tensor:
        """What the decoder reads: the beginning, then each token of the answer but the last."""
        return torch.cat([torch.full_like(answers[:, :1], self.common.tokenizer.begin_id or 0), answers[:, :-1]], dim=1)

    @torch.no_grad()
    def answer(self, prompts: Sequence[list[int]]) -> list[Answer]:
        """As `Family.answer`; with labels, the one whose words are likeliest."""
        self.model.eval()
        found: list[Answer] = [Answer("")] * len(prompts)
        for places in in_groups(prompts, _AT_ONCE):
            ids, seen = padded([torch.tensor(prompts[place]) for place in places], self.common.tokenizer.pad_id)
            ids, mask = ids.to(self.common.device), seen.to(self.common.device).long()
            answers = self._labelled(ids, mask) if self.common.labels else self._written(ids, mask)
            for place, answer in zip(places, answers, strict=True):
                found[place] = answer
        return found

    def _written(self, ids: Tensor, mask: Tensor) -> list[Answer]:
        model: Any = self.model
        made = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=self.common.answer_tokens,
            num_beams=self.common.beams, length_penalty=1.0, do_sample=False, early_stopping=False,
        )  # fmt: skip
        return [self._answer(row) for row in made[:, 1:].tolist()]

    def _answer(self, row: list[int]) -> Answer:
        ends = self.common.tokenizer.end_ids
        end = next((place for place, token in enumerate(row) if token in ends), None)
        text = self.common.tokenizer.decode(row[:end])
        return Answer(self.common.task.answer(text), Circumstances("max_tokens" if end is None else "end"))

    def _labelled(self, ids: Tensor, mask: Tensor) -> list[Answer]:
        """The likeliest label for each text, as the engine finds it for the GPT: by the likelihood of its words."""
        model: Any = self.model
        read, columns = model.get_encoder()(input_ids=ids, attention_mask=mask), []
        for label in self.common.labels:
            words = torch.tensor([self.common.tokenizer.encode(label)], device=ids.device).expand(len(ids), -1)
            logits = model(
                encoder_outputs=read, attention_mask=mask, decoder_input_ids=self._shifted(words), use_cache=False
            ).logits
            chosen = logits.float().log_softmax(-1).gather(2, words[..., None])[..., 0]
            columns.append(chosen.sum(1))
        shares = torch.stack(columns, dim=1).softmax(1)  # (B, labels)
        return labelled(self.common.labels, shares)


def labelled(labels: Sequence[str], shares: Tensor) -> list[Answer]:
    """The likeliest label of each row of probabilities, (B, labels)."""
    rows = [dict(zip(labels, row, strict=True)) for row in shares.tolist()]
    return [Answer(max(row, key=lambda label: row[label]), Circumstances(probabilities=row)) for row in rows]


def _layers(total: int) -> tuple[int, int]:
    """Of encoder and decoder; of an odd number the encoder, which is cheaper, gets more."""
    return total - total // 2, total // 2
