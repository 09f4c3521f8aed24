"""The GPT, whole: embeddings → blocks of attention and feed-forward → norm → head.

Notable choices, all in `ModelSpec`: the default is a small Qwen3 (grouped queries, rotary positions, RMSNorm before
each part, SwiGLU, QK-norm, tied embeddings, no biases); with learned positions, LayerNorm, GELU and biases it is GPT-2.
The names of the weights are those of a Hugging Face checkpoint. No training, files or devices in here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bimo.core.config import ModelSpec
from bimo.model.attention import Attention
from bimo.model.backends import BACKENDS, Attend, AttnContext
from bimo.model.cache import KVCache
from bimo.model.feedforward import FEEDFORWARDS
from bimo.model.layers import make_norm, rotary_table


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)): (B, T, C) in and out."""

    def __init__(self, spec: ModelSpec, layer: int, attend: Attend) -> None:
        super().__init__()
        self.input_layernorm = make_norm(spec, spec.d_model)
        self.self_attn = Attention(spec, layer, attend)
        self.post_attention_layernorm = make_norm(spec, spec.d_model)
        self.mlp = FEEDFORWARDS[spec.feedforward](spec)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, x: Tensor, ctx: AttnContext) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), ctx))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class GPT(nn.Module):
    """A generative pretrained transformer: token ids in, logits of the next token out.

    Args:
        spec: The shape.
        backend: How attention is computed: "sdpa" (fused) or "math" (the oracle).
    """

    rotary: Tensor

    def __init__(self, spec: ModelSpec, backend: str = "sdpa") -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.d_model)
        learned = spec.positions == "learned"
        self.embed_positions = nn.Embedding(spec.context_length, spec.d_model) if learned else None
        self.dropout = nn.Dropout(spec.dropout)
        self.layers = nn.ModuleList(Block(spec, layer, BACKENDS[backend]) for layer in range(spec.n_layers))
        self.norm = make_norm(spec, spec.d_model)
        self.lm_head = nn.Linear(spec.d_model, spec.vocab_size, bias=False)
        if spec.tied_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        if not learned:
            self.register_buffer("rotary", rotary_table(spec), persistent=False)  # (2, context_length, D/2)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw initial weights (GPT-2's scheme): the logits start near zero, so the first loss is near ln V."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
                continue
            std = self.spec.initializer_range
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * self.spec.n_layers)  # 2 n_layers outputs add up in the residual stream
            if name.startswith(("embed_tokens", "lm_head")):
                std = min(std, 0.5 / math.sqrt(self.spec.d_model))  # logits of a wide model would start too far apart
            nn.init.normal_(parameter, std=std, generator=generator)

    def forward(
        self,
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits of the next token at every position.

        Args:
            ids: Token ids, int64, (B, T).
            positions: Place of each token in its document, (B, T). None: counted on from the cache's length, or from 0.
            documents: Number of each token's document, (B, T); tokens attend only within it. None: one per row.
            cache: Keys and values of the tokens before these; these are added to it.

        Returns:
            (B, T, V), in the dtype of the weights.
        """
        return self.lm_head(self.hidden(ids, positions=positions, documents=documents, cache=cache))

    def hidden(
        self,
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """The last hidden states, normalised: `forward` without the head. (B, T, C)."""
        assert ids.dim() == 2, f"ids must be (B, T), have shape {tuple(ids.shape)}"
        start = cache.length if cache is not None else 0
        end = start + ids.shape[1]
        limit = self.spec.context_length
        assert end <= limit, f"the text has {end} tokens, the model sees at most {limit} (context_length)"
        x = self.embed_tokens(ids)  # (B, T, C)
        if self.embed_positions is not None:
            steps = torch.arange(start, end, device=ids.device) if positions is None else positions
            x = x + self.embed_positions(steps)
        ctx = self._context(start, end, positions, documents, cache)
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x, ctx)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.norm(x)

    def _context(
        self, start: int, end: int, positions: Tensor | None, documents: Tensor | None, cache: KVCache | None
    ) -> AttnContext:
        """What every layer's attention needs for the tokens start … end-1."""
        cos = sin = mask = None
        if self.embed_positions is None:
            cos, sin = self.rotary[:, start:end, None] if positions is None else self.rotary[:, positions, None]
            if positions is None:
                cos, sin = cos[None], sin[None]  # (1, T, 1, D/2); with positions it is (B, T, 1, D/2)
        device = self.embed_tokens.weight.device
        if documents is not None:
            assert cache is None, "documents and a cache do not go together: cache one document per row"
            same = documents[:, :, None] == documents[:, None, :]  # (B, T, T)
            mask = same.tril()[:, None]  # (B, 1, T, T)
        elif start > 0 and end - start > 1:
            mask = torch.ones(end - start, end, dtype=torch.bool, device=device).tril(start)[None, None]  # (1, 1, T, S)
        return AttnContext(cos=cos, sin=sin, mask=mask, causal=end - start > 1, cache=cache)

    @torch.inference_mode()
    def generate(
        self, ids: Tensor, max_tokens: int, *, temperature: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Continue ids, (B, T), by max_tokens: the slow, obvious way without a cache, which the engine is held against.

        Returns:
            (B, T + max_tokens). The model sees the last context_length tokens of it.
        """
        was_training = self.training
        self.eval()
        for _ in range(max_tokens):
            logits = self(ids[:, -self.spec.context_length :])[:, -1].float()  # (B, V)
            if temperature == 0:
                next_id = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
            else:
                next_id = torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)
            ids = torch.cat((ids, next_id), dim=1)
        self.train(was_training)
        return ids

    def n_parameters(self) -> int:
        """Number of weights, a tied matrix counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, context: int | None = None) -> float:
        """Floating-point operations to train on one token: 6 per weight of a matrix product, and attention.

        As in PaLM (Chowdhery et al. 2022, appendix B), with the causal half of attention only: 6 L H D T instead of 12.
        """
        spec = self.spec
        matrices = sum(p.numel() for name, p in self.layers.named_parameters() if p.dim() == 2)
        head = spec.vocab_size * spec.d_model
        attention = spec.n_layers * spec.n_heads * spec.head_dim * (context or spec.context_length)
        return 6.0 * (matrices + head + attention)
