"""The mutation score of `verify`: each bug is seeded into a model that is right, and each must be found.

A bug that moves nothing would prove nothing, so the models are made such that every part matters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bimo import LM, ModelSpec, Tokenizer, load, new
from bimo.core.spec import RopeScaling
from bimo.engine import naive
from bimo.evaluation.certificate import Certificate
from bimo.evaluation.verify import verify
from bimo.model import attention, gpt, layers
from bimo.model.cache import KVCache
from bimo.model.positions import base_frequencies
from bimo.tokenizer.incremental import IncrementalDecoder

SMALL = ModelSpec(context_length=96, n_layers=3, d_model=24, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=40)
SPECS = {
    "qwen": replace(SMALL, window=7, full_layers=(1,), biases="qkv", norm_eps=1e-5),
    "gemma": replace(
        SMALL,
        **{"norm": "rmsnorm_1p", "norm_placement": "sandwich", "feedforward": "geglu", "embedding_scale": 24**0.5},
        **{"attention_softcap": 2.0, "logit_softcap": 1.5, "attention_scale": 0.5, "tied_embeddings": False},
    ),
    "gpt2": replace(
        SMALL, n_kv_heads=4, positions="learned", norm="layernorm", feedforward="gelu", biases="all", qk_norm=False
    ),
    "neox": replace(
        SMALL, n_kv_heads=4, parallel_blocks=True, norm="layernorm", feedforward="gelu_erf", biases="all", rotary_dim=4
    ),
    "moe": replace(SMALL, n_experts=5, n_experts_per_token=2, d_expert=16, normalize_router=False),
    "llama3": replace(
        SMALL, qk_norm=False, rope_scaling=RopeScaling("llama3", 8.0, 16, 1.0, 4.0), unrotated_layers=(1,)
    ),
    "longrope": replace(
        SMALL,
        qk_norm=False,
        rope_scaling=RopeScaling(
            "longrope",
            original_context=40,
            attention_factor=1.2,
            short_factors=(1.0, 1.1, 1.2, 1.3),
            long_factors=(1.0, 2.0, 4.0, 9.0),
        ),
    ),
}

Patch = pytest.MonkeyPatch
Mutate = Callable[[LM, Patch], None]


@dataclass(frozen=True)
class Bug:
    """A bug: which model it is seeded into, how, and what must be pointed at."""

    spec: str
    mutate: Mutate
    where: str


BUGS: dict[str, Bug] = {}


def bug(name: str, spec: str, where: str) -> Callable[[Mutate], Mutate]:
    def keep(mutate: Mutate) -> Mutate:
        assert name not in BUGS, f"there are two bugs called {name}"
        BUGS[name] = Bug(spec, mutate, where)
        return mutate

    return keep


def wrap(module: Any, change: Callable[[Any], Any]) -> None:
    """Change what a module returns."""
    forward = module.forward
    module.forward = lambda *args, **kwargs: change(forward(*args, **kwargs))


def attend_with(lm: LM, change: Callable[..., Any], layer: int = 0) -> None:
    """Put a function (attend, q, k, v, ctx) in the place of a layer's attend."""
    part = lm.model.layers[layer].self_attn
    attend = part.attend
    part.attend = lambda q, k, v, ctx: change(attend, q, k, v, ctx)


def masked(q: torch.Tensor, k: torch.Tensor, shift: int) -> torch.Tensor:
    T, S = q.shape[2], k.shape[2]
    return torch.ones(T, S, dtype=torch.bool).tril(S - T + shift)[None, None]


# Masks and windows


@bug("the mask shows one future token", "gemma", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    attend_with(lm, lambda attend, q, k, v, ctx: attend(q, k, v, replace(ctx, mask=masked(q, k, 1))))


@bug("the mask hides the token before", "gemma", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    def attend_less(attend: Any, q: Any, k: Any, v: Any, ctx: Any) -> Any:
        mask = masked(q, k, 0) & ~(masked(q, k, -1) & ~masked(q, k, -2))
        return attend(q, k, v, replace(ctx, mask=mask))

    attend_with(lm, attend_less)


@bug("no mask at all", "llama3", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    attend_with(lm, lambda attend, q, k, v, ctx: attend(q, k, v, replace(ctx, causal=False, mask=None)))


def window_by(difference: int) -> Mutate:
    def mutate(lm: LM, patch: Patch) -> None:
        right = gpt._mask
        patch.setattr(gpt, "_mask", lambda s, e, d, w, device: right(s, e, d, w and w + difference, device))

    return mutate


bug("the window is one token longer", "qwen", "layers.0.self_attn")(window_by(1))
bug("the window is one token shorter", "qwen", "layers.0.self_attn")(window_by(-1))


@bug("the window is in the wrong layers", "qwen", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    for block in lm.model.layers:
        block.kind = (not block.kind[0], block.kind[1])


# Positions


@bug("rotary sign", "qwen", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    right, calls = attention.rotate, [0]

    def rotate(x: Any, cos: Any, sin: Any) -> Any:
        calls[0] += 1
        return right(x, cos, sin if calls[0] % 2 else -sin)  # queries one way, keys the other

    patch.setattr(attention, "rotate", rotate)


@bug("rotary pairs lie side by side", "llama3", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    right = attention.rotate

    def rotate(x: Any, cos: Any, sin: Any) -> Any:
        apart = torch.cat((x[..., ::2], x[..., 1::2]), dim=-1)
        return right(apart, cos, sin)

    patch.setattr(attention, "rotate", rotate)


@bug("theta", "qwen", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    lm.model.embed_positions.frequencies = base_frequencies(9000.0, 8).expand(3, -1)


@bug("rotary scaling is ignored", "llama3", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    lm.model.embed_positions.frequencies = base_frequencies(10000.0, 8).expand(3, -1)


@bug("the layer without positions has them", "llama3", "layers.1.self_attn")
def _(lm: LM, patch: Patch) -> None:
    lm.model.layers[1].kind = lm.model.layers[0].kind


@bug("keys are not turned", "qwen", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    right, calls = attention.rotate, [0]

    def rotate(x: Any, cos: Any, sin: Any) -> Any:
        calls[0] += 1
        return right(x, cos, sin) if calls[0] % 2 else x

    patch.setattr(attention, "rotate", rotate)


@bug("the whole head is turned and not a part", "neox", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    lm.model.embed_positions.frequencies = base_frequencies(10000.0, 8).expand(3, -1)


@bug("positions are off by one", "gpt2", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    part = lm.model.embed_positions
    right = part.forward
    part.forward = lambda x, steps: right(x, (steps + 1) % 96)


# Norms


@bug("norm epsilon", "qwen", "layers.0")
def _(lm: LM, patch: Patch) -> None:
    lm.model.layers[0].input_layernorm.eps = 1e-6


@bug("epsilon of the final norm", "gpt2", "norm")
def _(lm: LM, patch: Patch) -> None:
    lm.model.norm.eps = 1e-3


@bug("the norm's weight does not count from one", "gemma", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    lm.model.layers[0].input_layernorm.offset = 0.0


@bug("the norm takes the mean away", "llama3", "layers.1.self_attn")
def _(lm: LM, patch: Patch) -> None:
    part = lm.model.layers[1].input_layernorm
    right = part.forward
    part.forward = lambda x: right(x - x.mean(dim=-1, keepdim=True))


@bug("the norm keeps the mean", "gpt2", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    part = lm.model.layers[0].input_layernorm
    part.forward = lambda x: F.rms_norm(x, (24,), part.weight, part.eps) + part.bias


@bug("no final norm", "llama3", "norm")
def _(lm: LM, patch: Patch) -> None:
    lm.model.norm.forward = lambda x: x


@bug("no norm of queries", "qwen", "layers.2.self_attn")
def _(lm: LM, patch: Patch) -> None:
    lm.model.layers[2].self_attn.q_norm.forward = lambda x: x


@bug("no norm after attention", "gemma", "layers.1")
def _(lm: LM, patch: Patch) -> None:
    lm.model.layers[1].post_attention_layernorm.forward = lambda x: x


# Scores


@bug("no scale of the scores", "llama3", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    attend_with(lm, lambda attend, q, k, v, ctx: attend(q, k, v, replace(ctx, scale=1.0)))


@bug("the scale is that of the width", "llama3", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    attend_with(lm, lambda attend, q, k, v, ctx: attend(q, k, v, replace(ctx, scale=24**-0.5)))


@bug("scores are not capped", "gemma", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    attend_with(lm, lambda attend, q, k, v, ctx: attend(q, k, v, replace(ctx, softcap=0.0)))


@bug("scores are capped before they are scaled", "gemma", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    def attend_otherwise(attend: Any, q: Any, k: Any, v: Any, ctx: Any) -> Any:
        return attend(q / ctx.scale, k, v, replace(ctx, softcap=ctx.softcap * 1.1, scale=ctx.scale**2))

    attend_with(lm, attend_otherwise)


@bug("logits are not capped", "gemma", "logits")
def _(lm: LM, patch: Patch) -> None:
    lm.model.logits = lambda hidden: lm.model.lm_head(hidden)  # as an attribute, a module would be put elsewhere


@bug("the softmax is in half precision", "qwen", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    attend_with(lm, lambda attend, q, k, v, ctx: attend(q.half(), k.half(), v.half(), ctx).float())


# Heads


@bug("query heads in reverse order", "qwen", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    attend_with(lm, lambda attend, q, k, v, ctx: attend(q.flip(1), k, v, ctx))


@bug("query heads share the wrong keys", "qwen", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    attend_with(lm, lambda attend, q, k, v, ctx: attend(q, k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1), ctx))


@bug("heads are joined in another order", "gpt2", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    attend_with(lm, lambda attend, q, k, v, ctx: attend(q, k, v, ctx).roll(1, dims=1))


# Weights


@bug("the tied head is another matrix", "qwen", "lm_head")
def _(lm: LM, patch: Patch) -> None:
    lm.model.lm_head.weight = torch.nn.Parameter(lm.model.embed_tokens.weight.detach().roll(1, 0))


@bug("the untied head is tied", "gemma", "lm_head")
def _(lm: LM, patch: Patch) -> None:
    lm.model.lm_head.weight = lm.model.embed_tokens.weight


@bug("a missing bias", "qwen", "layers.1.self_attn.k_proj.bias")
def _(lm: LM, patch: Patch) -> None:
    lm.model.layers[1].self_attn.k_proj.bias = None


@bug("a bias that is not added", "gpt2", "layers.1.mlp")
def _(lm: LM, patch: Patch) -> None:
    part = lm.model.layers[1].mlp.down_proj
    part.forward = lambda x: F.linear(x, part.weight)


@bug("a square matrix is transposed", "neox", "layers.0.self_attn.o_proj.weight")
def _(lm: LM, patch: Patch) -> None:
    part = copy.deepcopy(lm.model.layers[0].self_attn.q_proj)
    lm.model.layers[0].self_attn.o_proj.weight.data = part.weight.data[:24].T.contiguous().repeat(1, 2)[:, :32]


@bug("two layers are swapped", "qwen", "layers.0")
def _(lm: LM, patch: Patch) -> None:
    a, b = lm.model.layers[0], lm.model.layers[2]
    lm.model.layers[0], lm.model.layers[2] = b, a


@bug("queries and keys are swapped", "gpt2", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    part = lm.model.layers[0].self_attn
    part.q_proj, part.k_proj = part.k_proj, part.q_proj


def rounded(dtype: torch.dtype, part: str) -> Mutate:
    def mutate(lm: LM, patch: Patch) -> None:
        for name, parameter in lm.model.named_parameters():
            if name.startswith(part):
                parameter.data = parameter.data.to(dtype).float()

    return mutate


bug("one matrix went through float16", "qwen", "layers.1.mlp.up_proj.weight")(rounded(torch.float16, "layers.1.mlp.up"))
bug("all weights went through bfloat16", "gpt2", "embed_tokens.weight")(rounded(torch.bfloat16, ""))


@bug("one number is off by a thousandth", "moe", "layers.2.mlp.experts.down_proj")
def _(lm: LM, patch: Patch) -> None:
    lm.model.layers[2].mlp.experts.down_proj.data[1, 2, 3] += 1e-3


@bug("one number is not a number", "qwen", "layers.1.mlp.down_proj.weight")
def _(lm: LM, patch: Patch) -> None:
    lm.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")


# Feed-forward parts and residuals


@bug("gate and up are swapped", "qwen", "layers.0.mlp")
def _(lm: LM, patch: Patch) -> None:
    part = lm.model.layers[0].mlp
    part.gate_proj, part.up_proj = part.up_proj, part.gate_proj


@bug("GELU in the place of SiLU", "llama3", "layers.0.mlp")
def _(lm: LM, patch: Patch) -> None:
    lm.model.layers[0].mlp.gate = lambda gate, up: F.gelu(gate) * up


@bug("the exact GELU in the place of its tanh form", "gpt2", "layers.0.mlp")
def _(lm: LM, patch: Patch) -> None:
    lm.model.layers[0].mlp.activate = F.gelu


@bug("the tanh form in the place of the exact GELU", "neox", "layers.0.mlp")
def _(lm: LM, patch: Patch) -> None:
    lm.model.layers[0].mlp.activate = lambda x: F.gelu(x, approximate="tanh")


@bug("parallel parts one after the other", "neox", "layers.0")
def _(lm: LM, patch: Patch) -> None:
    lm.model.layers[0].parallel = False


@bug("no residual around a feed-forward part", "qwen", "layers.1")
def _(lm: LM, patch: Patch) -> None:
    block = lm.model.layers[1]
    block.forward = lambda x, ctx: block.mlp(
        block.post_attention_layernorm(x + block.self_attn(block.input_layernorm(x), ctx))
    )


@bug("no scale of the embeddings", "gemma", "layers.0")
def _(lm: LM, patch: Patch) -> None:
    right = lm.model.embed_positions.forward
    lm.model.embed_positions.forward = lambda x, steps: right(x / 24**0.5, steps)


@bug("dropout while it answers", "qwen", "layers.0")
def _(lm: LM, patch: Patch) -> None:
    torch.manual_seed(0)
    wrap(lm.model.layers[0].mlp, lambda x: F.dropout(x, 0.1))


# Experts


@bug("one expert each and not two", "moe", "layers.0.mlp")
def _(lm: LM, patch: Patch) -> None:
    lm.model.layers[0].mlp.k = 1


@bug("shares of experts are normalised", "moe", "layers.0.mlp")
def _(lm: LM, patch: Patch) -> None:
    lm.model.layers[0].mlp.normalize = True


@bug("tokens go to the next expert", "moe", "layers.0.mlp")
def _(lm: LM, patch: Patch) -> None:
    part = lm.model.layers[0].mlp.experts
    right = part.forward
    part.forward = lambda x, expert: right(x, (expert + 1) % 5)


@bug("the worst experts are chosen", "moe", "layers.1.mlp")
def _(lm: LM, patch: Patch) -> None:
    wrap(lm.model.layers[1].mlp.gate, lambda scores: -scores)


# Cache, batches, padding


@bug("the cache forgets where it is", "qwen", "logits")
def _(lm: LM, patch: Patch) -> None:
    part = lm.model.embed_positions
    right = part.rotation
    part.rotation = lambda steps, windowed: right(steps - steps.min(), windowed=windowed)


@bug("the cache counts positions from one too many", "gpt2", "logits")
def _(lm: LM, patch: Patch) -> None:
    part = lm.model.embed_positions
    right = part.forward
    part.forward = lambda x, steps: right(x, steps + (steps.shape[1] == 1).__int__())


@bug("layers share a cache", "qwen", "logits")
def _(lm: LM, patch: Patch) -> None:
    right = KVCache.append
    patch.setattr(KVCache, "append", lambda cache, layer, k, v: right(cache, 0 if cache.length else layer, k, v))


@bug("a piece sees its own future under a cache", "llama3", "logits")
def _(lm: LM, patch: Patch) -> None:
    right = gpt._mask
    patch.setattr(gpt, "_mask", lambda s, e, d, w, device: None if s else right(s, e, d, w, device))


@bug("the window is forgotten under a cache", "qwen", "logits")
def _(lm: LM, patch: Patch) -> None:
    right = gpt._mask
    patch.setattr(gpt, "_mask", lambda s, e, d, w, device: right(s, e, d, 0 if s else w, device))


@bug("rows of a batch leak into each other", "qwen", "logits")
def _(lm: LM, patch: Patch) -> None:
    wrap(lm.model.layers[0].mlp, lambda x: 0.99 * x + 0.01 * x.mean(dim=0, keepdim=True))


@bug("padding is seen", "llama3", "logits")
def _(lm: LM, patch: Patch) -> None:
    right = gpt._mask
    patch.setattr(gpt, "_mask", lambda s, e, d, w, device: right(s, e, None, w, device))


@bug("padding on the left shifts positions", "gpt2", "logits")
def _(lm: LM, patch: Patch) -> None:
    part = lm.model.embed_positions
    right = part.forward
    part.forward = lambda x, steps: right(x, torch.arange(x.shape[1])[None] if len(steps) > 1 else steps)


# Gradients


@bug("the backward of a rotation turns the wrong way", "qwen", "layers")
def _(lm: LM, patch: Patch) -> None:
    def backward(ctx: Any, *grads: Any) -> Any:
        return layers._turn(grads[0], *ctx.saved_tensors, direction=1), None, None

    patch.setattr(layers._Rotation, "backward", staticmethod(backward))


@bug("the backward of a norm forgets that the scale depends on x", "llama3", "layers")
def _(lm: LM, patch: Patch) -> None:
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, scale = ctx.saved_tensors
        return grads[0] * weight * scale, (x * scale * grads[0]).flatten(0, -2).sum(0), None

    patch.setattr(layers._RMSNorm, "backward", staticmethod(backward))


@bug("keys get no gradient", "gpt2", "layers.2")
def _(lm: LM, patch: Patch) -> None:
    wrap(lm.model.layers[2].self_attn.k_proj, lambda k: k.detach())


# Shapes and tokenizers


@bug("the shape says another theta", "qwen", "rope_theta")
def _(lm: LM, patch: Patch) -> None:
    lm.model.spec = replace(lm.model.spec, rope_theta=5000.0)


def tokenizer_of(change: Callable[[dict[str, Any]], None]) -> Mutate:
    def mutate(lm: LM, patch: Patch) -> None:
        content = copy.deepcopy(lm.tokenizer.content)
        change(content)
        lm._tokenizer = Tokenizer(content)

    return mutate


def swap_merges(content: dict[str, Any]) -> None:
    merges = content["model"]["merges"]
    merges[0], merges[3] = merges[3], merges[0]


def change_digits(content: dict[str, Any]) -> None:
    pattern = content["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    pattern["Regex"] = pattern["Regex"].replace(r"|\p{N}|", r"|\p{N}+|")


def swap_letters(content: dict[str, Any]) -> None:
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


@bug("merges happen in another order than the file says", "qwen", "tokenizer")
def _(lm: LM, patch: Patch) -> None:
    ranks = lm.tokenizer._ranks
    assert ranks is not None, "a tokenizer of bimo"
    merged = sorted((token for token in ranks if len(token) > 1), key=lambda token: ranks[token])
    first, second = merged[0], merged[-1]
    patch.setattr(lm.tokenizer, "_ranks", {**ranks, first: ranks[second], second: ranks[first]})


@bug("text can forge a control token", "qwen", "tokenizer")
def _(lm: LM, patch: Patch) -> None:
    patch.setattr(lm.tokenizer, "encode", lm.tokenizer.encode_marked)


@bug("a stream shows half of a character", "qwen", "tokenizer")
def _(lm: LM, patch: Patch) -> None:
    def push(decoder: IncrementalDecoder, token: int) -> str:
        return decoder.token_bytes[token].decode("utf-8", errors="replace")

    patch.setattr(IncrementalDecoder, "push", push)


# The engine


@bug("the engine reads the last token twice", "llama3", "tokens")
def _(lm: LM, patch: Patch) -> None:
    right = gpt.GPT.starting_point
    patch.setattr(gpt.GPT, "starting_point", lambda model, cache, end: max(right(model, cache, end) - 1, 0))


@bug("the engine takes the second best token", "llama3", "tokens")
def _(lm: LM, patch: Patch) -> None:
    patch.setattr(naive, "next_token", lambda logits, tokens, n_prompt, rules: int(logits.argsort()[-2]))


@bug("keys of a short text are kept when it outgrows its frequencies", "longrope", "tokens")
def _(lm: LM, patch: Patch) -> None:
    patch.setattr(gpt.GPT, "starting_point", lambda model, cache, end: cache.length)


@bug("the frequencies of short texts stay for long ones", "longrope", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    lm.model.embed_positions.stretch = lambda length: 0


@bug("the temperature of long texts is forgotten", "longrope", "layers.0.self_attn")
def _(lm: LM, patch: Patch) -> None:
    lm.model.embed_positions.scaling = replace(lm.model.embed_positions.scaling, attention_factor=1.0)


bug("two merges are swapped", "qwen", "tokenizer")(tokenizer_of(swap_merges))
bug("digits are cut otherwise", "qwen", "tokenizer")(tokenizer_of(change_digits))
bug("two letters have each other's ids", "qwen", "tokenizer")(tokenizer_of(swap_letters))
bug("the last merge is lost", "qwen", "tokenizer")(tokenizer_of(lambda content: content["model"]["merges"].pop(0)))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each shape, with weights far enough from their start that every part matters."""
    text = "the cat sat on the mat, 12 345 times; abba and cab 笔墨 " * 40
    tokenizer = Tokenizer.train([text], 300)
    folder, found = tmp_path_factory.mktemp("models"), {}
    for name, spec in SPECS.items():
        lm = new(spec, tokenizer, seed=1)
        generator = torch.Generator().manual_seed(2)
        for key, parameter in lm.model.named_parameters():
            size = 0.03 if key.startswith("embed_tokens") else 0.5 if "proj" in key or "gate" in key else 0.2
            parameter.data += size * torch.randn(parameter.shape, generator=generator)
        found[name] = lm.save(folder / name)
    return found


def certificate_of(lm: LM) -> Certificate:
    return verify(lm, references=("numpy",), formats=())


@pytest.mark.parametrize("name", SPECS)
def test_the_models_without_a_bug_are_verified(name: str, sources: dict[str, Path]) -> None:
    certificate = certificate_of(load(sources[name]))
    assert certificate.ok, [str(found) for found in certificate.findings]


def test_there_are_enough_bugs() -> None:
    assert len(BUGS) >= 60, f"{len(BUGS)} bugs"
    assert len(BUGS) - len(BUGS) // 3 >= 40, "and without those that are slow"


# A minute and a half for all of them: every third one waits for `-m slow`.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if i % 3 == 2 else name for i, name in enumerate(BUGS)]
)
def test_the_bug_is_found_and_pointed_at(name: str, sources: dict[str, Path], monkeypatch: Patch) -> None:
    seeded = BUGS[name]
    lm = load(sources[seeded.spec])
    seeded.mutate(lm, monkeypatch)
    certificate = certificate_of(lm)
    failed = [found for found in certificate.findings if not found.ok]
    print(certificate.verdict)  # shown by -s: which tensor pointed to it
    assert failed, "the bug was missed"
    assert any(seeded.where in found.place for found in failed), [str(found) for found in failed]


@pytest.mark.parametrize(
    "name",
    [
        *("norm epsilon", "epsilon of the final norm", "theta", "scores are not capped", "keys get no gradient"),
        *("the exact GELU in the place of its tanh form", "logits are not capped", "rotary scaling is ignored"),
    ],
)
def test_a_subtle_bug_is_found_in_a_model_that_has_learned_nothing(
    name: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    """In a fresh model, scores and activations are so small that a whole pass shows next to nothing."""
    seeded = BUGS[name]
    tokenizer = Tokenizer.train(["the cat sat on the mat"], 300)
    lm = load(new(SPECS[seeded.spec], tokenizer, seed=1).save(tmp_path / "fresh"))
    assert certificate_of(lm).ok, "without the bug"
    seeded.mutate(lm, monkeypatch)
    assert not certificate_of(lm).ok, "the bug was missed"
