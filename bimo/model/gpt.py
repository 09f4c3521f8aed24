"""The GPT, whole: embeddings → blocks of attention and feed-forward → norm → head.

Every family is this one class, by choices in `ModelSpec`: the default is a small Qwen3 (grouped queries, rotary
positions, RMSNorm before each part, SwiGLU, QK-norm, tied embeddings, no biases); `interop/families.py` says which
choices make GPT-2, Llama, Gemma and the others. The modules are looked up by name, so people can bring their own. The
names of the weights are those of a Hugging Face checkpoint. No training, files or devices in here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from bimo.core.registry import REGISTRIES
from bimo.core.spec import ModelSpec
from bimo.model.backends import BACKENDS, Attend, AttnContext
from bimo.model.cache import KVCache
from bimo.model.experts import Experts, MixtureOfExperts
from bimo.model.layers import make_norm
from bimo.model.positions import Learned
from bimo.model.shapes import BLOCK_NORMS


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)), with the norms where the spec places them."""

    def __init__(self, spec: ModelSpec, layer: int, attend: Attend) -> None:
        super().__init__()
        self.kind = (spec.windowed(layer), spec.rotated(layer))
        self.parallel = spec.parallel_blocks
        self.norm_names = BLOCK_NORMS[spec.norm_placement]
        for name in filter(None, self.norm_names):
            self.add_module(name, make_norm(spec, spec.d_model))
        self.self_attn = REGISTRIES["attention"].get(spec.attention)(spec, layer, attend)
        feedforward = REGISTRIES["feedforward"].get(spec.feedforward)
        self.mlp = MixtureOfExperts(spec) if spec.sparse(layer) else feedforward(spec)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, x: Tensor, ctx: AttnContext) -> Tensor:
        """(B, T, C) in and out."""
        y = self._norm(1, self.self_attn(self._norm(0, x), ctx))
        attended = x + self.dropout(y)
        y = self._norm(3, self.mlp(self._norm(2, x if self.parallel else attended)))
        return attended + self.dropout(y)

    def _norm(self, place: int, x: Tensor) -> Tensor:
        name = self.norm_names[place]
        return getattr(self, name)(x) if name else x


class GPT(nn.Module):
    """A generative pretrained transformer: token ids in, logits of the next token out.

    Args:
        spec: The shape.
        backend: How attention is computed: "sdpa" (fused) or "math" (the oracle).

    Attributes:
        depth: Layers that run, from the first on, while a run lets the others wait; None: all.
        untrained: Whether the weights are still those that were drawn.
    """

    def __init__(self, spec: ModelSpec, backend: str = "sdpa") -> None:
        super().__init__()
        self.spec = spec
        self.depth: int | None = None
        self.untrained = False
        padding = spec.padding_id if spec.padding_id >= 0 else None
        # Drawn below; torch's own draw of a model that waits for its weights would import its compiler.
        blank = torch.empty(spec.vocab_size, spec.d_model)
        self.embed_tokens = nn.Embedding.from_pretrained(blank, freeze=False, padding_idx=padding)
        self.embed_positions = REGISTRIES["positions"].get(spec.positions)(spec)
        self.dropout = nn.Dropout(spec.dropout)
        self.layers = nn.ModuleList(Block(spec, layer, BACKENDS[backend]) for layer in range(spec.n_layers))
        self.norm = make_norm(spec, spec.d_model)
        self.lm_head = nn.Linear(spec.d_model, spec.vocab_size, bias=False)
        if spec.tied_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        if not self.lm_head.weight.is_meta:  # a model that waits for its weights
            self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw initial weights: the logits start near zero, so the first loss is near ln V.

        Those of the blocks keep the size of what goes through them, whatever the width; an embedding of its own starts
        at the size that the norms give to everything, a tied one as small as the head (docs/experiments.md).

        Parameters that a module of the user holds directly keep the values which that module gave them.
        """
        self.untrained = True
        for name, parameter in self.named_parameters():
            owner = self.get_submodule(name.rpartition(".")[0])
            if (parameter.dim() == 1 and isinstance(owner, (nn.Linear, nn.LayerNorm))) or hasattr(owner, "offset"):
                one = 1.0 - getattr(owner, "offset", 0.0)
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else one)
            elif isinstance(owner, (nn.Linear, nn.Embedding, Experts, Learned)):
                nn.init.normal_(parameter, std=self._initial_std(name, parameter.shape[-1]), generator=generator)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """As of any module; the weights are no longer those that were drawn."""
        self.untrained = False
        return super().load_state_dict(*args, **options)

    def _initial_std(self, name: str, inputs: int) -> float:
        spec = self.spec
        std = spec.initializer_range or (inputs**-0.5 if name.startswith("layers.") else 0.02)
        if "o_proj" in name or "down_proj" in name:
            std /= math.sqrt(2 * spec.n_layers)  # 2 n_layers outputs add up in the residual stream
        if name.startswith(("embed_tokens", "lm_head")):
            std = min(std, 0.5 / math.sqrt(spec.d_model))  # logits of a wide model would start too far apart
        if name.startswith("embed_tokens"):
            std = 1.0 if not (spec.tied_embeddings or spec.initializer_range) else std
            std /= spec.embedding_scale
        return std

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
        return self.logits(self.hidden(ids, positions=positions, documents=documents, cache=cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """The head: last hidden states, (…, C), to logits, (…, V)."""
        logits = self.lm_head(hidden)
        cap = self.spec.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

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
        steps = torch.arange(start, end, device=ids.device)[None] if positions is None else positions
        x = self.dropout(self.embed(ids, steps))
        if x.is_cuda and torch.is_autocast_enabled("cuda"):
            x = x.to(torch.get_autocast_dtype("cuda"))  # what flows from block to block is half of the memory traffic
        contexts = self.contexts(start, steps, documents, cache)
        for layer in self.blocks():
            x = layer(x, contexts[layer.kind])
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.norm(x)

    def embed(self, ids: Tensor, steps: Tensor) -> Tensor:
        """What the first block reads: ids, (B, T), at their places, (B or 1, T), to (B, T, C)."""
        x = self.embed_tokens(ids)  # (B, T, C)
        if self.spec.embedding_scale != 1:
            x = x * self.spec.embedding_scale
        embedded: Tensor = self.embed_positions(x, steps)
        return embedded

    def starting_point(self, cache: KVCache, length: int) -> int:
        """Where to read on in a text that has grown to `length` tokens: behind those in the cache.

        With longrope, a text that outgrows the original context has other frequencies: then the cache is emptied, and
        the text is read again from its beginning.
        """
        if self.embed_positions.stretch(cache.length) != self.embed_positions.stretch(length):
            cache.clear()
        return cache.length

    def contexts(
        self, start: int, steps: Tensor, documents: Tensor | None = None, cache: KVCache | None = None
    ) -> dict[tuple[bool, bool], AttnContext]:
        """What attention needs for the tokens from `start` on, for each kind of block: with a window, rotated.

        Args:
            start: Tokens before these.
            steps: Places of these, (B or 1, T).
            documents: As in `forward`.
            cache: Holds the keys and values of the tokens before these.
        """
        assert documents is None or cache is None, "documents and a cache do not go together: cache one text per row"
        spec, T = self.spec, steps.shape[1]
        contexts = {}
        for windowed, rotated in {layer.kind for layer in self.blocks()}:
            cos = sin = None
            rotation = self.embed_positions.rotation(steps, windowed=windowed) if rotated else None
            if rotation is not None:
                cos, sin = rotation
            contexts[windowed, rotated] = AttnContext(
                cos=cos,
                sin=sin,
                mask=_mask(start, start + T, documents, spec.window if windowed else 0, steps.device),
                causal=T > 1,
                cache=cache,
                scale=spec.attention_scale or None,
                softcap=spec.attention_softcap,
            )
        return contexts

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

    def blocks(self) -> Iterator[Block]:
        """The blocks that run, in order."""
        return (cast(Block, layer) for layer in itertools.islice(self.layers, self.depth))

    def n_parameters(self) -> int:
        """Number of weights, a tied matrix counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, context: int | None = None) -> float:
        """Floating-point operations to train on one token: 6 per weight of a matrix product, and attention.

        As in PaLM (Chowdhery et al. 2022, appendix B), with the causal half of attention only: 6 L H D T instead of 12.
        Layers that wait are not counted.
        """
        spec = self.spec
        blocks = list(self.blocks())
        weights = [p for block in blocks for p in block.parameters()]
        matrices = float(sum(p.numel() for p in weights if p.dim() == 2))
        if spec.n_experts:
            experts = sum(p.numel() for p in weights if p.dim() == 3)
            matrices += experts * spec.n_experts_per_token / spec.n_experts
        head = spec.vocab_size * spec.d_model
        attention = len(blocks) * spec.n_heads * spec.head_dim * (context or spec.context_length)
        return 6.0 * (matrices + head + attention)


def without_weights(spec: ModelSpec) -> GPT:
    """A GPT without memory for its weights, which others bring; buffers are real.

    Raises:
        RuntimeError, ArithmeticError, ValueError: There is no such model.
    """
    with torch.device("meta"):
        model = GPT(spec)
    if any(buffer.is_meta for buffer in model.buffers()):  # of a module of the user
        model = GPT(spec)
    model.untrained = False
    return model


def _mask(start: int, end: int, documents: Tensor | None, window: int, device: torch.device) -> Tensor | None:
    """Which of the tokens 0 … end-1 the tokens start … end-1 may see, (B or 1, 1, T, S); None: plain causal."""
    if documents is None and (window == 0 or end <= window):
        if start == 0 or end - start == 1:
            return None
        return torch.ones(end - start, end, dtype=torch.bool, device=device).tril(start)[None, None]
    keys = torch.arange(end, device=device)
    behind = keys[start:, None] - keys  # (T, S): how far a key lies behind the query
    seen = behind >= 0 if window == 0 else (behind >= 0) & (behind < window)
    if documents is None:
        return seen[None, None]
    return (seen & (documents[:, :, None] == documents[:, None, :]))[:, None]
