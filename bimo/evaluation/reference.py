"""A slow, obvious GPT in NumPy and float64, written from the papers' formulas: the oracle for the torch model.

It shares no code and no tricks with `bimo/model`: heads, pairs of a rotation and experts of a token are loops. Only the
description of a model (`ModelSpec`) and the names of its weights are common. No torch, no cache, no gradients.
Everything is float64, but for the rotary angles, whose rounding to float32 is part of every published model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bimo.core.errors import UserError
from bimo.core.spec import GATED, ModelSpec, RopeScaling

KNOWN = {
    "attention": ("multi_head",),
    "norm": ("rmsnorm", "rmsnorm_1p", "layernorm"),
    "positions": ("rotary", "learned", "none"),
}


@dataclass(frozen=True)
class Trace:
    """What a model computed on the way from ids to logits.

    Attributes:
        activations: What came out of each module, float64, (B, T, C), in order of computation: "embed_tokens" (before
            scale and learned positions); for each layer N "layers.N.self_attn" and "layers.N.mlp" (before a norm that
            follows) and "layers.N" (the residual stream after the block); "norm"; and "logits", (B, T, V).
        margins: How clear the choice of experts was at each token, (B, T): see `ReferenceGPT.router_margin`; the least
            of all layers.
    """

    activations: dict[str, np.ndarray]
    margins: np.ndarray

    @property
    def logits(self) -> np.ndarray:
        """Logits of the next token at every position, (B, T, V)."""
        return self.activations["logits"]


class ReferenceGPT:
    """The GPT that a spec describes, with the given weights.

    Args:
        spec: The shape; all its modules must be bimo's own.
        weights: Arrays under the names of bimo's parameters; each is converted to float64 when it is used.

    Raises:
        UserError: The spec names a module that somebody registered.
    """

    def __init__(self, spec: ModelSpec, weights: Mapping[str, np.ndarray]) -> None:
        for kind, known in {**KNOWN, "feedforward": tuple(ACTIVATIONS)}.items():
            if getattr(spec, kind) not in known:
                what = f"the reference knows only bimo's own modules, not {kind} {getattr(spec, kind)!r}"
                raise UserError(what, mend=f"Compare a model whose {kind} is one of {', '.join(known)}.")
        self.spec, self.weights = spec, weights

    def trace(self, ids: np.ndarray, positions: np.ndarray | None = None, documents: np.ndarray | None = None) -> Trace:
        """Everything from embeddings to logits.

        Args:
            ids: Token ids, (B, T), or (T,) for one row.
            positions: Place of each token in its document, (B, T) or (T,). None: counted from 0.
            documents: Number of each token's document; tokens attend only within it. None: one per row.
        """
        spec, ids = self.spec, np.atleast_2d(np.asarray(ids))
        assert ids.shape[1] <= spec.context_length, f"{ids.shape[1]} tokens, the model sees {spec.context_length}"
        assert 0 <= ids.min() <= ids.max() < spec.vocab_size, f"ids must lie in 0 … {spec.vocab_size - 1}"
        positions = np.broadcast_to(np.arange(ids.shape[1]) if positions is None else positions, ids.shape)
        documents = np.broadcast_to(0 if documents is None else documents, ids.shape)
        embedded = self._weight("embed_tokens.weight", ids)  # (B, T, C)
        trace = Trace({"embed_tokens": embedded}, np.full(ids.shape, np.inf))
        x = self.place(embedded * spec.embedding_scale, positions)
        for layer in range(spec.n_layers):
            x = self._block(x, layer, positions, documents, trace)
        hidden = self.norm(x, "norm")
        trace.activations.update(norm=hidden, logits=self.head(hidden))
        return trace

    def greedy(self, ids: np.ndarray, max_tokens: int) -> list[int]:
        """The max_tokens likeliest next ids after one text, (T,); each step computes everything again."""
        text = np.asarray(ids).tolist()
        start = len(text)
        for _ in range(max_tokens):
            seen = self.trace(np.array(text[-self.spec.context_length :]))
            text.append(int(seen.logits[0, -1].argmax()))
        return text[start:]

    @staticmethod
    def loss(logits: np.ndarray, targets: np.ndarray) -> float:
        """Mean cross entropy in nats: logits (…, V), targets (…)."""
        shifted = logits - logits.max(axis=-1, keepdims=True)
        log_sums = np.log(np.exp(shifted).sum(axis=-1))  # (…)
        chosen = np.take_along_axis(shifted, np.asarray(targets)[..., None], axis=-1)[..., 0]
        return float((log_sums - chosen).mean())

    def _block(
        self, x: np.ndarray, layer: int, positions: np.ndarray, documents: np.ndarray, trace: Trace
    ) -> np.ndarray:
        """The residual stream, (B, T, C), after a block.

        Norms before the parts: GPT-2 (Radford et al. 2019). After them: OLMo 2 (2025). Both: Gemma 2 (2024). Both parts
        side by side: GPT-J (Wang & Komatsuzaki 2021).
        """
        name, placement, parallel = f"layers.{layer}", self.spec.norm_placement, self.spec.parallel_blocks
        before, after = placement in ("pre", "sandwich"), placement in ("post", "sandwich")
        second = "post_attention_layernorm" if placement == "pre" else "pre_feedforward_layernorm"

        def norm(values: np.ndarray, which: str, wanted: bool) -> np.ndarray:
            return self.norm(values, f"{name}.{which}") if wanted else values

        attention = self.attention(norm(x, "input_layernorm", before), layer, positions, documents)
        attended = x + norm(attention, "post_attention_layernorm", after)
        inner = norm(x if parallel else attended, second, before)
        feedforward = self.feedforward(inner, layer)
        result = attended + norm(feedforward, "post_feedforward_layernorm", after)
        trace.activations.update({f"{name}.self_attn": attention, f"{name}.mlp": feedforward, name: result})
        np.minimum(trace.margins, self.router_margin(inner, layer), out=trace.margins)
        return result

    def attention(self, x: np.ndarray, layer: int, positions: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Multi-head attention (Vaswani et al. 2017, section 3.2) with grouped queries (Ainslie et al. 2023).

        Queries and keys normalised: Henry et al. 2020. Scores bounded: Gemma 2. (B, T, C) in and out.
        """
        spec, name = self.spec, f"layers.{layer}.self_attn"
        D, scale = spec.head_dim, spec.attention_scale or 1 / math.sqrt(spec.head_dim)
        q, k, v = (self.linear(x, f"{name}.{part}_proj") for part in "qkv")  # (B, T, H D), (B, T, K D) twice
        if spec.qk_norm and spec.qk_norm_across_heads:
            q, k = self.norm(q, f"{name}.q_norm"), self.norm(k, f"{name}.k_norm")
        mixed = np.zeros_like(q)  # (B, T, H D)
        for row in range(len(x)):
            angles = rotary_angles(spec, layer, positions[row], documents[row])  # (T, pairs)
            seen = visible(documents[row], spec.window if spec.windowed(layer) else 0)  # (T, T)
            for head in range(spec.n_heads):
                group = head // (spec.n_heads // spec.n_kv_heads)
                own, shared = slice(head * D, (head + 1) * D), slice(group * D, (group + 1) * D)
                query, key, value = q[row, :, own], k[row, :, shared], v[row, :, shared]  # (T, D) each
                if spec.qk_norm and not spec.qk_norm_across_heads:
                    query, key = self.norm(query, f"{name}.q_norm"), self.norm(key, f"{name}.k_norm")
                if spec.positions == "rotary" and spec.rotated(layer):
                    factor = attention_factor(spec, layer)
                    query, key = rotate(query, angles) * factor, rotate(key, angles) * factor
                scores = _softcapped(query @ key.T * scale, spec.attention_softcap)
                mixed[row, :, own] = softmax(np.where(seen, scores, -np.inf)) @ value
        return self.linear(mixed, f"{name}.o_proj")

    def feedforward(self, x: np.ndarray, layer: int) -> np.ndarray:
        """The position-wise part (Vaswani et al. 2017, section 3.3), gated (Shazeer 2020) or of experts."""
        name = f"layers.{layer}.mlp"
        if self.spec.sparse(layer):
            return self._experts(x, name)
        activation, gated = ACTIVATIONS[self.spec.feedforward], self.spec.feedforward in GATED
        up = self.linear(x, f"{name}.up_proj")  # (B, T, F)
        inner = activation(self.linear(x, f"{name}.gate_proj")) * up if gated else activation(up)
        return self.linear(inner, f"{name}.down_proj")

    def _experts(self, x: np.ndarray, name: str) -> np.ndarray:
        """A mixture of experts (Shazeer et al. 2017), chosen after the softmax as in Mixtral (Jiang et al. 2024)."""
        spec, activation = self.spec, ACTIVATIONS[self.spec.feedforward]
        gate, up, down = (self._weight(f"{name}.experts.{part}_proj") for part in ("gate", "up", "down"))
        probabilities = softmax(self.linear(x, f"{name}.gate"))  # (B, T, E)
        result = np.zeros_like(x)
        for row, token in np.ndindex(*x.shape[:2]):
            share, vector = probabilities[row, token], x[row, token]  # (E,), (C,)
            chosen = np.argsort(-share, kind="stable")[: spec.n_experts_per_token]
            total = share[chosen].sum() if spec.normalize_router else 1.0
            for expert in chosen:
                inner = activation(gate[expert] @ vector) * (up[expert] @ vector)  # (F,)
                result[row, token] += share[expert] / total * (down[expert] @ inner)
        return result

    def place(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Embeddings, (B, T, C), with learned positions added (Radford et al. 2018), where the model has them."""
        return x + self._weight("embed_positions.weight", positions) if self.spec.positions == "learned" else x

    def router_margin(self, x: np.ndarray, layer: int) -> np.ndarray:
        """By how much the last chosen expert is likelier than the first one left out, as a share, (B, T, C) to (B, T).

        Where it is as small as the rounding of float32, either of the two may be chosen. Infinite without a choice.
        """
        k = self.spec.n_experts_per_token
        if not self.spec.sparse(layer) or k == self.spec.n_experts:
            return np.full(x.shape[:2], np.inf)
        ordered = -np.sort(-softmax(self.linear(x, f"layers.{layer}.mlp.gate")))  # (B, T, E)
        return 1 - ordered[..., k] / ordered[..., k - 1]

    def head(self, hidden: np.ndarray) -> np.ndarray:
        """Normalised hidden states, (…, C), to logits, (…, V)."""
        matrix = self._weight("embed_tokens.weight" if self.spec.tied_embeddings else "lm_head.weight")
        return _softcapped(hidden @ matrix.T, self.spec.logit_softcap)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        """RMSNorm (Zhang & Sennrich 2019), or LayerNorm (Ba et al. 2016), over the last dimension."""
        weight, centre = self._weight(f"{name}.weight"), self.spec.norm == "layernorm"
        x = x - x.mean(axis=-1, keepdims=True) if centre else x
        scaled = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.spec.norm_eps)
        return scaled * (1 + weight if self.spec.norm == "rmsnorm_1p" else weight) + self._bias(name)

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        """(…, in) to (…, out)."""
        return x @ self._weight(f"{name}.weight").T + self._bias(name)

    def _bias(self, name: str) -> np.ndarray | float:
        return self._weight(f"{name}.bias") if f"{name}.bias" in self.weights else 0.0

    def _weight(self, name: str, rows: np.ndarray | None = None) -> np.ndarray:
        """A weight, or the given rows of it, in float64."""
        if name not in self.weights:
            raise UserError(
                f"there is no weight {name!r}", mend="Give all weights under the names of bimo's parameters."
            )
        weight = self.weights[name]
        return np.asarray(weight if rows is None else weight[rows], dtype=np.float64)


def visible(documents: np.ndarray, window: int) -> np.ndarray:
    """Which key (column) each query (row) may see, bool, (T, T).

    Not the future (Vaswani et al. 2017, section 3.2.3); of the past only the last `window` tokens, itself included, if
    there is a window (Mistral 7B, Jiang et al. 2023); nothing of another document.
    """
    query, key = np.arange(len(documents))[:, None], np.arange(len(documents))[None, :]
    seen = (key <= query) & (documents[:, None] == documents[None, :])
    return seen & (query - key < window) if window > 0 else seen


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities over the last dimension."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _softcapped(values: np.ndarray, cap: float) -> np.ndarray:
    """Bounded by c tanh(x / c) (Gemma 2, section 2); 0: as they are."""
    return cap * np.tanh(values / cap) if cap > 0 else values


def rotate(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Rotary positions (RoFormer, Su et al. 2021, equation 34): each pair of dimensions is turned by its own angle.

    Args:
        x: Queries or keys of one head, (T, D). Pair i is (i, i + pairs), as in Hugging Face checkpoints.
        angles: In radians, (T, pairs); dimensions beyond 2 pairs are not turned (GPT-NeoX, Black et al. 2022).
    """
    turned, pairs = x.copy(), angles.shape[1]
    for i in range(pairs):
        cos, sin = np.cos(angles[:, i]), np.sin(angles[:, i])  # (T,)
        first, second = x[:, i], x[:, i + pairs]  # (T,)
        turned[:, i] = cos * first - sin * second
        turned[:, i + pairs] = sin * first + cos * second
    return turned


def rotary_angles(spec: ModelSpec, layer: int, positions: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Position x frequency of each token of one row, (T,) to (T, pairs).

    Frequencies and angles are rounded to float32 where the published code (transformers' modeling_rope_utils.py) rounds
    them. At position 100,000 a float32 angle is off by up to 0.004 radians; the weights were trained with that, so an
    exact angle would be the wrong one. Cosines and sines of the rounded angle are exact.
    """
    angles = np.zeros((len(positions), (spec.rotary_dim + 1) // 2))
    for document in np.unique(documents):
        own = documents == document
        length = int(positions[own].max()) + 1  # longrope: the length of the text up to its last token
        turns = frequencies(spec, layer, length)
        angles[own] = positions[own].astype(np.float32)[:, None] * turns[None, :]
    return angles


def attention_factor(spec: ModelSpec, layer: int) -> float:
    """What multiplies cosines and sines, and so queries and keys: YaRN (section 3.4) and LongRoPE only."""
    scaled = spec.rope_scaling.kind in ("yarn", "longrope") and not _has_own_theta(spec, layer)
    return spec.rope_scaling.attention_factor if scaled else 1.0


def frequencies(spec: ModelSpec, layer: int, length: int) -> np.ndarray:
    """Radians per token of each pair in a layer, for a text of `length` tokens, float32, (pairs,)."""
    scaling, one = spec.rope_scaling, np.float32(1)
    if _has_own_theta(spec, layer):  # layers with a window keep a base of their own (Gemma 3, 2025)
        return one / _wavelengths(spec.window_rope_theta, spec.rotary_dim)
    powers = _wavelengths(spec.rope_theta, spec.rotary_dim)
    if scaling.kind == "linear":  # position interpolation (Chen et al. 2023)
        return one / powers / np.float32(scaling.factor)
    if scaling.kind == "llama3":
        return _llama3(one / powers, scaling)
    if scaling.kind == "yarn":
        return _yarn(powers, scaling, spec)
    if scaling.kind == "longrope":  # Ding et al. 2024
        factors = scaling.long_factors if length > scaling.original_context else scaling.short_factors
        return one / (np.array(factors, dtype=np.float32) * powers)
    assert scaling.kind == "none", f"the reference does not know rope_scaling {scaling.kind!r}"
    return one / powers


def _has_own_theta(spec: ModelSpec, layer: int) -> bool:
    return spec.windowed(layer) and spec.window_rope_theta > 0


def _wavelengths(theta: float, dim: int) -> np.ndarray:
    """theta^(2i / dim) for each pair (Su et al. 2021, section 3.2.2), float32: wavelengths over 2 pi."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    # NumPy's float32 power is off by one unit in the last place in a tenth of all cases, torch's in a hundredth; the
    # float64 power, rounded once, is what both of them approximate.
    return (np.float64(np.float32(theta)) ** exponents.astype(np.float64)).astype(np.float32)


def _llama3(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Llama 3.1's reference code (Dubey et al. 2024): long waves slowed down, short ones kept, a mixture between."""

    def over(number: float, x: np.ndarray) -> np.ndarray:  # torch divides a number by a tensor in two roundings
        return np.float32(number) * (np.float32(1) / x)

    context, low, high = scaling.original_context, scaling.low_freq_factor, scaling.high_freq_factor
    wavelengths = over(2 * math.pi, plain)
    kept = (over(context, wavelengths) - np.float32(low)) / np.float32(high - low)
    mixed = (1 - kept) * plain / np.float32(scaling.factor) + kept * plain
    slowed = np.where(wavelengths > context / low, plain / np.float32(scaling.factor), mixed)
    return np.where(wavelengths < context / high, plain, slowed)


def _yarn(powers: np.ndarray, scaling: RopeScaling, spec: ModelSpec) -> np.ndarray:
    """YaRN (Peng et al. 2023, section 3.2): dimensions that turn often are kept, slow ones interpolated."""

    def dimension(turns: float) -> float:
        """The dimension that turns so often within the original context: the wavelength's formula solved for i."""
        wavelength = scaling.original_context / turns / (2 * math.pi)
        return spec.rotary_dim * math.log(wavelength) / (2 * math.log(spec.rope_theta))

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, spec.rotary_dim - 1)
    last = last + 0.001 if first == last else last
    ramp = (np.arange(len(powers), dtype=np.float32) - np.float32(first)) / np.float32(last - first)
    kept = 1 - np.clip(ramp, np.float32(0), np.float32(1))
    interpolated = np.float32(1) / (np.float32(scaling.factor) * powers)
    return interpolated * (1 - kept) + np.float32(1) / powers * kept


def _silu(x: np.ndarray) -> np.ndarray:
    """x times the logistic function of x (Elfwing et al. 2017), by a tanh that cannot overflow."""
    return x * (1 + np.tanh(x / 2)) / 2


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    """The approximation of Hendrycks & Gimpel 2016, section 2."""
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def _gelu_erf(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution function of x (Hendrycks & Gimpel 2016)."""
    return x * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))) / 2


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{"swiglu": _silu, "geglu": _gelu_tanh, "geglu_erf": _gelu_erf, "reglu": lambda x: np.maximum(x, 0)},
    **{"gelu": _gelu_tanh, "gelu_erf": _gelu_erf, "relu": lambda x: np.maximum(x, 0)},
}
