"""Decode steps of fixed shapes: one new token for each row, on buffers that stay, so that a GPU can replay them.

A step at batch 1 is hundreds of small kernels; launched one by one, their launches take longer than their work. So rows
are filled up to a power of two, and block tables to a length that doubles; for each such shape the step is recorded
once as a CUDA graph, and from then on it is one launch. All that changes from step to step (ids, places, block tables)
is one small array, copied to the device at once; the logits of the wanted rows come back in one copy.

- Rows that fill up write to a block of the cache that belongs to no text.
- A row looks at its own tokens only: places behind its last one mean that last one again, and are masked.
- `compiled`: each block of the model goes through torch's compiler first, which fuses norms, rotations, attention and
  weights' unpacking into few kernels. It takes seconds for each shape when it first comes up.
- What fails to compile or to record goes on without, and says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from bimo.engine.native_model import unknown_part
from bimo.engine.runner import Chunk, Rows
from bimo.model.backends import AttnContext, attend_token
from bimo.model.gpt import GPT, Block
from bimo.model.joining import join
from bimo.model.paged import LayerView, PagedCache
from bimo.model.weight_only import PackedEmbedding, PackedLinear

Way = Literal["static", "graph", "compiled"]
Layer = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
Shape = tuple[int, int]
"""Rows, and blocks in their tables."""

_SHORTEST = 256  # tokens that the tables of the first length cover
_SHAPES = 1024  # more than come up: torch's compiler would stop at 8 of them


def reason_against(model: GPT) -> str:
    """Why a model's steps cannot have fixed shapes; '' when they can."""
    if model.spec.rope_scaling.kind == "longrope":
        return "its rotary frequencies change with the length of a text (longrope)"
    return unknown_part(model, PackedLinear, PackedEmbedding)


class Decoder:
    """Runs decode steps of one model.

    Args:
        model: A model that `reason_against` has nothing against.
        cache: Its last block is no text's: rows that fill up are written there.
        way: static: plain calls, on any device; graph: recorded, on CUDA; compiled: by torch's compiler, and recorded
            on CUDA.
        most: Rows of a step, at most.

    Attributes:
        way: What it does now.
        reasons: Why it does less than it was told.
        scratch: The block that belongs to no text.
    """

    def __init__(self, model: GPT, cache: PagedCache, way: Way, most: int) -> None:
        self.model, self.cache, self.way = join(model), cache, way
        for block in self.model.blocks():
            block.self_attn.attend = attend_token  # type: ignore[assignment]  # a twin's own
        self.device, self.most, self.reasons = cache.keys.device, most, list[str]()
        self.scratch = cache.keys.shape[1] // cache.block_size - 1
        self._longest = -(-model.spec.context_length // cache.block_size)  # blocks
        self._steps: dict[Shape, _Step] = {}
        self._pool: Any = None

    def takes(self, chunk: Chunk) -> bool:
        """Whether a chunk is one that it can run."""
        return len(chunk.tokens) == 1 == chunk.n_outputs and not chunk.adapter

    @torch.no_grad()
    def logits(self, chunks: Sequence[Chunk]) -> Rows:
        """Logits after each chunk's token, float32, (n, V)."""
        parts = [chunks[start : start + self.most] for start in range(0, len(chunks), self.most)]
        found = [self._part(part) for part in parts]
        return found[0] if len(found) == 1 else torch.cat([torch.from_numpy(rows) for rows in found]).numpy()

    def _part(self, chunks: Sequence[Chunk]) -> Rows:
        shape = self.shape(len(chunks), max(chunk.start for chunk in chunks) + 1)
        step = self._steps.get(shape)
        if step is None:
            step = self._steps[shape] = self._made(shape)
        step.fill(chunks, self.cache.block_size)
        return to_host(step.run()[: len(chunks)])

    def shape(self, n_rows: int, length: int) -> Shape:
        """The shape of a step for so many rows, of which the longest has `length` tokens, the new one included."""
        size, blocks = self.cache.block_size, -(-_SHORTEST // self.cache.block_size)
        while blocks * size < length:
            blocks *= 2
        return 1 << (n_rows - 1).bit_length(), min(blocks, self._longest)

    def _made(self, shape: Shape) -> _Step:
        """A step of a new shape; in a plainer way, when this one fails."""
        while True:
            step = _Step(shape, self.scratch, self.device)
            try:
                compiled = torch.compile if self.way == "compiled" else None
                step.run = self._run_of(step.numbers, compiled)
                if self.device.type == "cuda" and self.way != "static":
                    self._pool = self._pool or torch.cuda.graph_pool_handle()
                    step.run = recorded(step.run, self._pool)
                elif compiled:
                    step.run()  # compiles
                return step
            except Exception as error:  # the compiler and the recorder fail in many ways: the user is told, and goes on
                if self.way == "static":
                    raise
                self._step_down(error)

    def _step_down(self, error: Exception) -> None:
        plainer: Way = "graph" if self.way == "compiled" and self.device.type == "cuda" else "static"
        words = " ".join(str(error).split())[:200] or "no reason given"
        self.reasons.append(f"not {self.way} ({type(error).__name__}: {words})")
        warnings.warn(f"decode steps are {plainer} from now on, {self.reasons[-1]}", stacklevel=2)
        self.way = plainer
        self._steps.clear()

    def _run_of(self, numbers: Tensor, compiler: Callable[..., Any] | None) -> Callable[[], Tensor]:
        """What computes logits, (rows, V), out of what `numbers` holds then."""
        model, cache = self.model, self.cache
        kinds = list(dict.fromkeys(block.kind for block in model.blocks()))
        layers = [(block, kinds.index(block.kind), cache.layer(n)) for n, block in enumerate(model.blocks())]
        front, through, head = _front, _through, _head
        if compiler is not None:
            # One kernel for a product with a single row, and its best tiles by trial.
            tuned = {"coordinate_descent_tuning": True} if self.device.type == "cuda" else None
            front, through, head = (
                compiler(part, fullgraph=True, dynamic=False, options=tuned) for part in (front, through, head)
            )

        def run() -> Tensor:
            with torch._dynamo.config.patch(recompile_limit=_SHAPES, accumulated_recompile_limit=_SHAPES * 8):
                return once()

        scores = model.spec.attention_scale or None, model.spec.attention_softcap

        def once() -> Tensor:
            x, new, contexts = front(model, numbers, kinds, cache.block_size)
            for block, kind, layer in layers:
                x = through(block, x, new, contexts[kind], layer, scores)
            logits: Tensor = head(model, x)
            return logits

        return once if compiler is None else run


class _Step:
    """A shape's buffers, and what runs on them.

    Args:
        shape: Of the step.
        scratch: What rows that fill up are told to read and write.
        device: Of the numbers.
    """

    run: Callable[[], Tensor]

    def __init__(self, shape: Shape, scratch: int, device: torch.device) -> None:
        rows, blocks = shape
        self.scratch = scratch
        self.there = torch.empty(rows, 2 + blocks, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.there[:, :2], self.there[:, 2:] = 0, scratch
        self.numbers = self.there.to(device, copy=True)
        self._array = self.there.numpy()

    def fill(self, chunks: Sequence[Chunk], block_size: int) -> None:
        """Tell the step what to do: id, place and block table of each row."""
        array = self._array
        array[: len(chunks), 2:] = self.scratch
        for row, chunk in enumerate(chunks):
            array[row, 0], array[row, 1] = chunk.tokens[0], chunk.start
            count = chunk.start // block_size + 1
            array[row, 2 : 2 + count] = chunk.blocks[:count]
        array[len(chunks) :, :2], array[len(chunks) :, 2:] = 0, self.scratch
        self.numbers.copy_(self.there, non_blocking=True)


def _front(model: GPT, numbers: Tensor, kinds: list[tuple[bool, bool]], block_size: int) -> Any:
    """What the first block reads, the new tokens' slots, and what attention needs in each kind of block."""
    ids, steps, tables = numbers[:, :1], numbers[:, 1:2], numbers[:, 2:]  # (B, 1), (B, 1), (B, blocks)
    x = model.embed(ids, steps)  # (B, 1, C)

    def slots(places: Tensor) -> Tensor:
        return tables.gather(1, places // block_size) * block_size + places % block_size

    contexts = []
    for windowed, rotated in kinds:
        length, window = tables.shape[1] * block_size, model.spec.window
        first = torch.zeros_like(steps)
        if windowed and window < length:
            length = -(-window // 16) * 16  # fused kernels want masks of whole lines
            first = (steps - window + 1).clamp_min(0)
        places = first + torch.arange(length, device=numbers.device)  # (B, S)
        mask = places <= steps
        turn = model.embed_positions.rotation(steps, windowed=windowed) if rotated else None
        cos, sin = (None, None) if turn is None else (part.to(x.dtype) for part in turn)
        contexts.append((cos, sin, slots(places.minimum(steps)), mask[:, None, None]))  # mask (B, 1, 1, S)
    return x, slots(steps).flatten(), contexts


def _through(
    block: Block, x: Tensor, new: Tensor, context: tuple[Any, ...], layer: Layer, scores: tuple[Any, float]
) -> Tensor:
    """One block; scores: their scale and cap."""
    cos, sin, seen, mask = context
    view = LayerView(*layer, new, seen)
    ctx = AttnContext(
        cos=cos, sin=sin, mask=mask, causal=False, cache=view, scale=scores[0], softcap=scores[1]
    )  # fmt: skip
    y: Tensor = block(x, ctx)
    return y


def _head(model: GPT, x: Tensor) -> Tensor:
    """(B, 1, C) to (B, V), float32."""
    return model.logits(model.norm(x[:, 0])).float()


def recorded(run: Callable[[], Tensor], pool: Any) -> Callable[[], Tensor]:
    """A CUDA graph of what a function launches; what it reads and writes stays in its place.

    Args:
        run: It is run some times first: libraries settle what they need, compilers compile.
        pool: Memory that graphs share, which are never replayed at the same time.
    """
    side, now = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(now)
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    now.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def to_host(rows: Tensor) -> Rows:
    """Numbers of a device as an array: from CUDA through memory that it can write on its own."""
    if rows.device.type != "cuda":
        return rows.cpu().numpy()
    there = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    there.copy_(rows, non_blocking=True)
    torch.cuda.current_stream(rows.device).synchronize()
    return there.numpy()
