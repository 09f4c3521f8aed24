"""A model with matrices of 8 or 4 bits: GGUF's Q8_0 and Q4_0, by rounding that looks at what the model computes.

int8 is rounded to the nearest level: its error is small beside that of the activations, which engines round, too. int4
is rounded by GPTQ (`rounding.py`), block by block, so that later blocks see what the earlier ones have become.

What counts as an error differs from GPTQ in one thing. A token's share in X'X is weighed by how much the block's output
reacts to an error there: the squared gradient of a random projection of the output at the matrix's own output. The key
and the value of a text's first token, on which most heads rest, weigh a hundred times as much as others: counted like
them, they were rounded as if nobody read them, and that was worse than no compensation at all (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from bimo.model.backends import AttnContext
from bimo.model.blocks import quantize
from bimo.model.experts import Experts, MixtureOfExperts
from bimo.model.formats import FORMATS
from bimo.model.gpt import GPT, Block
from bimo.model.packed import PackedTensor, plain, twin, unpack
from bimo.model.rounding import GRIDS, GROUP, Grid, compensated, inverse_factor, searched

MATRICES = {"int8": "Q8_0", "int4": "Q4_0"}
"""What the matrices become, by the word of the command."""

_TOKENS = 2048  # that go through a block together
Progress = Callable[[float], None]


@torch.no_grad()
def quantize_model(model: GPT, to: str, ids: Tensor | None = None, on_progress: Progress = lambda share: None) -> GPT:
    """A copy of a model whose matrices are packed; what is not a matrix is shared with the original.

    Embeddings that are not the head, too, become Q8_0: they cost memory, but hardly any reading. Matrices whose width
    is no multiple of 32 stay as they are, and so do routers of experts.

    Args:
        model: Any GPT; packed weights in it are unpacked first, block by block.
        to: int8 or int4.
        ids: Text to look at, int64, (N, T); int8 needs none.
        on_progress: Told the share that is done, 0 … 1.
    """
    assert to in MATRICES, f"to must be one of {', '.join(MATRICES)}, is {to}"
    assert ids is not None or to == "int8", "int4 needs text to look at"
    grid = GRIDS[MATRICES[to]]
    result = twin(model).eval()
    flow = None if to == "int8" or ids is None else _Flow(result, ids)
    for i, block in enumerate(result.layers):
        assert isinstance(block, Block), f"layers are blocks, this is {type(block).__name__}"
        unpack(block)
        _pack_block(block, grid, flow)
        on_progress((i + 1) / (len(result.layers) + 1))
    _pack_ends(result, grid, flow)
    on_progress(1.0)
    return result


def unquantized(model: GPT) -> list[str]:
    """Names of the matrices that are not packed."""
    matrices = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    return [name for name, p in matrices.items() if not isinstance(p, PackedTensor)]


class _Flow:
    """Text on its way through the blocks: what stands between the last rounded block and the next one.

    Args:
        model: The model.
        ids: (N, T).
    """

    def __init__(self, model: GPT, ids: Tensor) -> None:
        steps = torch.arange(ids.shape[1], device=ids.device)[None]
        self.model, self.contexts = model, model.contexts(0, steps)
        rows = max(1, _TOKENS // ids.shape[1])
        self.pieces = [model.embed(piece, steps) for piece in ids.split(rows)]  # (n, T, C) each
        self.generator = torch.Generator().manual_seed(0)

    def grams(self, block: Block, names: list[str]) -> dict[str, Tensor]:
        """X'X of each of some matrices' inputs, with each token weighed by what an error there does to the output."""
        context, found = self.contexts[block.kind], dict[str, Tensor]()
        for piece in self.pieces:
            for name, (inputs, weights) in _seen(block, piece, context, names, self.generator).items():
                weighed = inputs * weights.sqrt()
                found[name] = found.get(name, 0) + weighed.T @ weighed
        return found

    def advance(self, block: Block) -> None:
        """Go through a block that is rounded."""
        self.pieces = [block(piece, self.contexts[block.kind]) for piece in self.pieces]

    def head_gram(self) -> Tensor:
        """X'X of the head's inputs."""
        hidden = torch.cat([self.model.norm(piece).flatten(0, -2) for piece in self.pieces])
        return hidden.T @ hidden


def _seen(
    block: Block, x: Tensor, context: AttnContext, names: list[str], generator: torch.Generator
) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs of matrices, (n, width), and the weight of each token, (n, 1), 2 on average.

    The weight is 1, for the error itself, plus the squared gradient of one random projection of the output, of which
    each token is taken relative to its size, as the next norm sees it.
    """
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, args, output: kept.__setitem__(name, (args[0].detach(), output))

    hooks = [block.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        with torch.enable_grad():
            output = block(x.detach().requires_grad_(), context)
            size = output.detach().square().mean(dim=-1, keepdim=True).sqrt()
            probe = torch.randn(output.shape, generator=generator) / (size + torch.finfo(size.dtype).tiny)
            outputs = [y for _, y in kept.values()]
            gradients = torch.autograd.grad(
                output, outputs, probe.to(output), allow_unused=True, materialize_grads=True
            )
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for (name, (inputs, _)), gradient in zip(kept.items(), gradients, strict=True):
        reaction = gradient.flatten(0, -2).float().square().sum(dim=-1, keepdim=True)  # (n, 1)
        mean = reaction.mean().clamp(min=torch.finfo(torch.float32).tiny)
        found[name] = (inputs.flatten(0, -2).float(), 1 + reaction / mean)
    return found


def _pack_block(block: Block, grid: Grid, flow: _Flow | None) -> None:
    """Round the matrices of a block, and lead the text through it."""
    linears = {name: module for name, module in block.named_modules() if _is_matrix(block, name, module)}
    grams = flow.grams(block, list(linears)) if flow is not None else {}

    def rows(name: str) -> Tensor:
        return _packed(linears[name].weight.detach(), grid, grams.get(name), gptq=flow is not None)

    for name, packed in zip(linears, _at_once(rows, list(linears)), strict=True):
        linears[name].weight = _parameter(packed, grid, linears[name].in_features)
    for experts in (module for module in block.modules() if isinstance(module, Experts)):
        for name, parameter in list(experts.named_parameters()):
            if parameter.shape[-1] % GROUP == 0:
                packed = _packed(parameter.detach().flatten(0, 1), grid, None, gptq=flow is not None)
                setattr(experts, name, _parameter(packed.view(*parameter.shape[:2], -1), grid, parameter.shape[-1]))
    if flow is not None:
        flow.advance(block)


def _pack_ends(model: GPT, grid: Grid, flow: _Flow | None) -> None:
    """The embeddings and the head."""
    head, tied = model.lm_head.weight, model.lm_head.weight is model.embed_tokens.weight
    width = head.shape[-1]
    if width % GROUP:
        return
    gram = flow.head_gram() if flow is not None else None
    model.lm_head.weight = _parameter(_packed(plain(head.detach()), grid, gram, gptq=flow is not None), grid, width)
    if tied:
        model.embed_tokens.weight = model.lm_head.weight
    else:
        fine = GRIDS["Q8_0"]
        rows = quantize(plain(model.embed_tokens.weight.detach()), FORMATS[fine.format])
        model.embed_tokens.weight = _parameter(rows, fine, width)


def _packed(weight: Tensor, grid: Grid, gram: Tensor | None, *, gptq: bool) -> Tensor:
    """A matrix, (rows, width), as packed rows. Without a Gram matrix (experts, say) only the scales are searched."""
    if not gptq:
        return quantize(weight, FORMATS[grid.format])
    matrix = weight.float().T.contiguous()
    if gram is None:
        return searched(matrix, torch.ones(len(matrix)), grid).packed()
    return compensated(matrix, inverse_factor(gram), grid).packed()


def _is_matrix(block: Block, name: str, module: nn.Module) -> bool:
    if not isinstance(module, nn.Linear) or module.in_features % GROUP:
        return False
    return not isinstance(block.get_submodule(name.rpartition(".")[0]), MixtureOfExperts)  # a router: small and touchy


def _at_once(function: Callable[[str], Tensor], names: list[str]) -> list[Tensor]:
    """A function of several matrices, each in a thread of its own.

    Columns are short: what torch's threads gain within one, they lose ten times over in waiting for each other.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            return list(pool.map(function, names))
        finally:
            torch.set_num_threads(threads)


def _parameter(rows: Tensor, grid: Grid, width: int) -> PackedTensor:
    return PackedTensor(rows, FORMATS[grid.format], width).as_parameter()
