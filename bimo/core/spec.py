"""The shape of a GPT, by choices alone: every family that bimo computes is one `ModelSpec`.

Loads no torch. Names of modules (attention, feed-forward, norm, positions) are looked up in `core/registry.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bimo.core.registry import REGISTRIES
from bimo.core.settings import Settings

GATED = ("swiglu", "geglu", "geglu_erf", "reglu")


@dataclass(frozen=True)
class RopeScaling(Settings):
    """How rotary frequencies were stretched to reach a longer context than the one first trained with."""

    kind: Literal["none", "linear", "llama3", "yarn", "longrope"] = "none"
    """none; linear (Chen et al. 2023); llama3 (Llama 3.1); yarn (Peng et al. 2023); longrope (Ding et al. 2024)."""
    factor: float = 1.0
    """By how much low frequencies are slowed down."""
    original_context: int = 0
    """The context first trained with; llama3, yarn and longrope count from it."""
    low_freq_factor: float = 1.0
    """llama3: waves longer than original_context / this are slowed down in full."""
    high_freq_factor: float = 4.0
    """llama3: waves shorter than original_context / this stay as they are."""
    beta_fast: float = 32.0
    """yarn: frequencies that turn more often than this in the original context stay as they are."""
    beta_slow: float = 1.0
    """yarn: frequencies that turn less often than this are slowed down in full."""
    truncate: bool = True
    """yarn: round the two bounds to whole dimensions."""
    attention_factor: float = 1.0
    """yarn and longrope: multiplies cosines and sines."""
    short_factors: tuple[float, ...] = ()
    """longrope: divides each frequency while the text fits the original context."""
    long_factors: tuple[float, ...] = ()
    """longrope: divides each frequency as soon as the text is longer."""

    def problems(self) -> list[str]:
        found = [] if self.factor > 0 else [f"factor must be positive, is {self.factor}"]
        if self.kind in ("llama3", "yarn", "longrope") and self.original_context < 1:
            found.append(f"original_context must be at least 1 for {self.kind}, is {self.original_context}")
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            found.append("high_freq_factor must be above low_freq_factor")
        if self.kind == "longrope" and len(self.short_factors) != len(self.long_factors):
            found.append("short_factors and long_factors must be equally many")
        return found


@dataclass(frozen=True)
class ModelSpec(Settings):
    """The shape of a GPT. The defaults are a small Qwen3: grouped queries, rotary, RMSNorm, SwiGLU, QK-norm, tied."""

    vocab_size: int = 4096
    """Number of token ids (V). A recipe takes it from the tokenizer."""
    context_length: int = 256
    """The longest text, in tokens, that the model sees at once."""
    n_layers: int = 6
    """Number of blocks."""
    d_model: int = 384
    """Width of the residual stream (C)."""
    n_heads: int = 6
    """Query heads (H)."""
    n_kv_heads: int = 0
    """Key/value heads (K); n_heads must be a multiple. 0 means n_heads."""
    head_dim: int = 0
    """Size of one head (D). 0 means d_model / n_heads."""
    d_ff: int = 0
    """Width inside the feed-forward part. 0 means 4 x d_model for plain and 8/3 x d_model for gated parts (equal
    parameters), rounded up to a multiple of 64."""
    attention: str = "multi_head"
    """The attention module: multi_head, or one that you registered."""
    attention_scale: float = 0.0
    """Multiplies the attention scores. 0 means 1 / sqrt(head_dim)."""
    attention_softcap: float = 0.0
    """Bounds attention scores by c tanh(score / c) (Gemma 2). 0: no bound."""
    window: int = 0
    """How many tokens a layer sees, itself included (sliding window, Mistral). 0: all."""
    full_layers: tuple[int, ...] = ()
    """Layers, counted from 0, that see all tokens although there is a window."""
    qk_norm: bool = True
    """Normalise queries and keys per head (Henry et al. 2020): keeps attention logits bounded."""
    qk_norm_across_heads: bool = False
    """With qk_norm: normalise over all heads together (OLMo 2) instead of per head."""
    positions: str = "rotary"
    """How a token knows its place: rotary embedding (RoFormer), a learned vector per position (GPT-2), none, or a
    module that you registered."""
    rotary_dim: int = 0
    """How many dimensions of a head rotary positions turn (GPT-NeoX: a quarter). 0: all."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    window_rope_theta: float = 0.0
    """Base of the rotary frequencies, unscaled, in layers with a window (Gemma 3). 0: as in all layers."""
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    """How the rotary frequencies were stretched for a longer context."""
    unrotated_layers: tuple[int, ...] = ()
    """Layers, counted from 0, without rotary positions (NoPE; SmolLM3)."""
    norm: str = "rmsnorm"
    """Normalisation: rmsnorm, rmsnorm_1p (its weight counts from 1, Gemma), layernorm, or one that you registered."""
    norm_eps: float = 1e-6
    """Added to the variance inside the normalisation."""
    norm_placement: Literal["pre", "post", "sandwich"] = "pre"
    """Where a block normalises: before each part, after it but inside the residual branch (OLMo 2), or both (Gemma)."""
    parallel_blocks: bool = False
    """Attention and feed-forward read the same input and are added together (GPT-J, GPT-NeoX)."""
    feedforward: str = "swiglu"
    """Feed-forward part: gated (swiglu, geglu, geglu_erf, reglu; Shazeer 2020), plain (gelu as in GPT-2, gelu_erf,
    relu), or one that you registered."""
    n_experts: int = 0
    """Experts per layer, each a feed-forward part of its own (Shazeer et al. 2017). 0: one dense part."""
    n_experts_per_token: int = 2
    """How many experts a token is sent to."""
    d_expert: int = 0
    """Width inside one expert. 0 means d_ff."""
    dense_layers: tuple[int, ...] = ()
    """Layers, counted from 0, that have one dense part although there are experts."""
    normalize_router: bool = True
    """Let the weights of the chosen experts add up to 1."""
    biases: Literal["none", "qkv", "attention", "feedforward", "all"] = "none"
    """Biases in linear layers: none (Llama, Qwen3), query/key/value (Qwen2), all of attention, the feed-forward part
    (and LayerNorm), or everywhere (GPT-2)."""
    tied_embeddings: bool = True
    """Share one matrix between the input embedding and the output head."""
    padding_id: int = -1
    """Id whose embedding is not trained where it is read, as transformers treats padding. -1: none."""
    embedding_scale: float = 1.0
    """Multiplies the embeddings (Gemma: sqrt(d_model))."""
    logit_softcap: float = 0.0
    """Bounds logits by c tanh(logit / c) (Gemma 2). 0: no bound."""
    dropout: float = 0.0
    """Share of activations that training zeroes after embedding, attention and feed-forward."""
    initializer_range: float = 0.0
    """Standard deviation of the initial weights. 0: by width, 1 / sqrt(inputs) for the matrices of the blocks, so that
    one rate fits every width. Outputs of a block are scaled down by sqrt(2 n_layers)."""

    def __post_init__(self) -> None:
        sizes = (self.n_heads, self.d_model, self.n_kv_heads, self.head_dim, self.d_ff, self.d_expert)
        if all(isinstance(size, int) for size in sizes) and self.n_heads >= 1:
            set_derived = object.__setattr__  # frozen: derived sizes are settled once, here
            set_derived(self, "n_kv_heads", self.n_kv_heads or self.n_heads)
            set_derived(self, "head_dim", self.head_dim or self.d_model // self.n_heads)
            set_derived(self, "rotary_dim", self.rotary_dim or self.head_dim)
            set_derived(self, "d_ff", self.d_ff or self._default_d_ff())
            set_derived(self, "d_expert", self.d_expert or self.d_ff)
        super().__post_init__()

    def _default_d_ff(self) -> int:
        width = 8 * self.d_model / 3 if self.feedforward in GATED else 4 * self.d_model
        return max(64, -int(-width // 64) * 64)

    def windowed(self, layer: int) -> bool:
        """Whether a layer sees only the last `window` tokens."""
        return self.window > 0 and layer not in self.full_layers

    def rotated(self, layer: int) -> bool:
        """Whether a layer turns queries and keys by their positions, where the position module does so at all."""
        return layer not in self.unrotated_layers

    def sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return self.n_experts > 0 and layer not in self.dense_layers

    def has_bias(self, part: Literal["qkv", "o", "feedforward"]) -> bool:
        """Whether the linear layers of a part have a bias."""
        return (
            self.biases
            in {
                "qkv": ("qkv", "attention", "all"),
                "o": ("attention", "all"),
                "feedforward": ("feedforward", "all"),
            }[part]
        )

    def problems(self) -> list[str]:
        sizes = ("vocab_size", "context_length", "n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff")
        found = [f"{n} must be at least 1, is {getattr(self, n)}" for n in sizes if getattr(self, n) < 1]
        not_negative = ("window", "rotary_dim", "n_experts", "attention_scale", "attention_softcap", "logit_softcap")
        found += [f"{n} must not be negative, is {getattr(self, n)}" for n in not_negative if getattr(self, n) < 0]
        if not 0 <= self.dropout <= 1:
            found.append(f"dropout must lie in 0 … 1, is {self.dropout}")
        if found:
            return found
        if not -1 <= self.padding_id < self.vocab_size:
            found.append(f"padding_id must be -1 or below vocab_size ({self.vocab_size}), is {self.padding_id}")
        kinds = ("attention", "positions", "norm", "feedforward")
        found += [problem for k in kinds if (problem := REGISTRIES[k].problem(getattr(self, k)))]
        if self.n_heads % self.n_kv_heads:
            found.append(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.norm_eps <= 0 or self.rope_theta <= 0 or self.window_rope_theta < 0:
            found.append("norm_eps and rope_theta must be positive")
        if self.parallel_blocks and self.norm_placement != "pre":
            found.append("parallel_blocks go with norm_placement 'pre' only")
        return found + self._layer_problems() + self._rotary_problems() + self._expert_problems()

    def _layer_problems(self) -> list[str]:
        lists = {n: getattr(self, n) for n in ("full_layers", "unrotated_layers", "dense_layers")}
        return [
            f"{name} must name layers 0 … {self.n_layers - 1}, has {layer}"
            for name, layers in lists.items()
            for layer in layers
            if not 0 <= layer < self.n_layers
        ]

    def _rotary_problems(self) -> list[str]:
        if self.positions != "rotary":
            return []
        turned = 2 * -(-self.rotary_dim // 2)  # an odd number is rounded up to pairs, as GPT-NeoX does
        found = []
        if turned > self.head_dim:
            found.append(f"head_dim must be even for rotary positions, and hold rotary_dim, is {self.head_dim}")
        scaling = self.rope_scaling
        if scaling.kind == "longrope" and len(scaling.long_factors) != turned // 2:
            found.append(f"rope_scaling.long_factors must have {turned // 2} numbers, has {len(scaling.long_factors)}")
        return found

    def _expert_problems(self) -> list[str]:
        if not self.n_experts:
            return []
        found = []
        if not 1 <= self.n_experts_per_token <= self.n_experts:
            found.append(f"n_experts_per_token must lie in 1 … {self.n_experts}, is {self.n_experts_per_token}")
        if self.d_expert < 1:
            found.append(f"d_expert must be at least 1, is {self.d_expert}")
        if self.feedforward not in GATED:
            found.append(f"experts must be gated, one of {', '.join(GATED)}; feedforward is {self.feedforward!r}")
        return found
