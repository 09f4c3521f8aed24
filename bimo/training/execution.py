"""How the blocks of a training step are run: eager or compiled, and with or without keeping their activations.

On a GPU a third of an eager step goes to the small operations between the matrix products; torch.compile fuses them.
Only the blocks are compiled, once for all layers, and the arithmetic of the loss: a run starts after seconds, where
compiling the whole model takes minutes, and what lies between two blocks is too little to be worth it. The choice is
made on the first batch by trying, never by hope; it is kept in the checkpoint, so that a resumed run goes on alike.
Nothing of the model changes: its blocks get another `forward` for the length of a pass, below hooks and wrappers.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from bimo.core.batch import Batch
from bimo.core.config import TrainingSettings
from bimo.core.spec import ModelSpec
from bimo.model.gpt import Block
from bimo.model.recompute import kept_is_little, recompute
from bimo.training.callbacks.stopping import updates_left
from bimo.training.faults import is_out_of_memory
from bimo.training.inputs import Tell
from bimo.training.losses.chunks import COMPILED

if TYPE_CHECKING:
    from bimo.training.backward import Passes

_MOST_SHAPES = 4  # batches of yet other shapes are run eagerly: each shape is compiled anew
_WORTH = 0.97  # of the eager time; a smaller gain is noise
_LONG_S = 1800.0  # on CPU compiling takes up to a minute and gains up to a tenth: only a run of half an hour repays it
_LOOK = 20  # updates after which a CPU run knows how long it takes
_AGREE = 0.02  # how far two attention kernels may differ, of the largest number


class Execution:
    """The way in which a run's blocks are computed.

    Args:
        settings: What is asked for.
        device: Where.
        precision: fp32 or bf16.
        tell: Told of the choice and its reason.

    Attributes:
        compiled: Whether blocks are compiled.
        keeps_activations: Whether a block's activations are kept for the backward pass, or computed again there.
        settled: Whether the choice has been made.
    """

    def __init__(self, settings: TrainingSettings, device: str, precision: str, tell: Tell) -> None:
        self.settings, self.device, self.precision, self.tell = settings, device, precision, tell
        self.compiled = self.settled = False
        self.keeps_activations = settings.checkpoint_activations != "blocks"
        self.attention: list[SDPBackend] = []  # in the order of their speed; empty: torch's own order
        self.shapes: set[tuple[int, ...]] = set()

    @contextlib.contextmanager
    def running(self, model: nn.Module, batch: Batch) -> Iterator[None]:
        """Within it, forward and backward passes of this (micro-)batch run as chosen."""
        compiled = self.compiled and self._is_known(batch)
        with contextlib.ExitStack() as stack:
            if self.attention:
                stack.enter_context(sdpa_kernel(self.attention, set_priority=True))
            if compiled:
                stack.callback(COMPILED.reset, COMPILED.set(True))
            if compiled or not self.keeps_activations:
                stack.enter_context(_other_forwards(model, compiled, self.keeps_activations))
            yield

    def forgetting(self, model: nn.Module, batch: Batch) -> contextlib.AbstractContextManager[object]:
        """For the forward pass: what autograd need not keep. The compiler decides that itself."""
        little = kept_is_little(getattr(model, "spec", None), batch.n_tokens)
        return contextlib.nullcontext() if self.compiled or little else recompute()

    def keep_less(self) -> bool:
        """After used-up memory with one row at once: compute activations again from now on, if that is still open."""
        if self.settings.checkpoint_activations != "auto" or not self.keeps_activations:
            return False
        self.keeps_activations = False
        what = "one row's activations do not fit into memory: each block's are computed again in the backward pass"
        self.tell("activations are not kept", what=what)
        return True

    def settle(self, passes: Passes, batch: Batch) -> None:
        """Choose, once in a run, before the pass of a (micro-)batch.

        Raises:
            RuntimeError: Memory does not suffice; nothing has been chosen then.
        """
        state = passes.state
        if self.settled:
            state.execution = self.name  # a run that went back to its beginning stood where nothing was chosen
            return
        if self.device.startswith("cuda") and self.precision == "bf16" and batch.documents is None:
            self.attention = quickest_attention(passes.model.spec, batch, self.device)
        way, reason = state.execution, "as the run began"
        if not way:
            if self.settings.execution == "auto" and self.device == "cpu" and state.step < _LOOK:
                return
            left_s = state.seconds / max(state.step, 1) * updates_left(passes, state.step)
            way, reason = self._chosen(lambda: passes.attempt(batch), left_s)
        self.compiled, self.settled, state.execution = way == "compiled", True, way
        names = ", ".join(backend.name.lower().removesuffix("_attention") for backend in self.attention[:1])
        if reason and (way == "compiled" or self.device != "cpu" or self.settings.execution != "auto"):
            self.tell("execution", what=f"{way}: {reason}" + (f"; attention by {names}" if names else ""))

    @property
    def name(self) -> str:
        """eager or compiled."""
        return "compiled" if self.compiled else "eager"

    def _chosen(self, attempt: Callable[[], None], left_s: float) -> tuple[str, str]:
        """eager or compiled, and why ("" where there was nothing to weigh).

        Args:
            attempt: Computes the gradient of a (micro-)batch and drops it again.
            left_s: What the run still takes; known only on CPU.
        """
        asked, cuda = self.settings.execution, self.device.startswith("cuda")
        if asked == "eager":
            return "eager", "asked for"
        if asked == "auto" and torch.distributed.is_available() and torch.distributed.is_initialized():
            return ("compiled" if cuda else "eager"), "several processes must choose alike, so none of them tries"
        if asked == "auto" and not cuda and left_s < _LONG_S:
            return "eager", ""
        eager_s = float("inf") if asked == "compiled" else self._eager_seconds(attempt)
        try:
            first_s, compiled_s = self._compiled_seconds(attempt)
        except Exception as error:  # whatever a compiler stumbles over, the run goes on without it
            if is_out_of_memory(error):
                raise
            why = (str(error).strip().splitlines() or [""])[0][:200]
            return "eager", f"compiling failed ({type(error).__name__}: {why})"
        finally:
            self.compiled = False
        if asked == "compiled":
            return "compiled", f"asked for; compiling took {first_s:.0f} s"
        figures = f"{compiled_s * 1e3:.0f} ms compiled, {eager_s * 1e3:.0f} ms eager, {first_s:.0f} s to compile"
        return ("compiled" if compiled_s < eager_s * _WORTH else "eager"), figures

    def _eager_seconds(self, attempt: Callable[[], None]) -> float:
        """Of a micro-batch; infinite where memory does not suffice, which compiled blocks need less of."""
        self.compiled = False
        try:
            return self._seconds(attempt)[1]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not self.device.startswith("cuda"):
                raise
        torch.cuda.empty_cache()
        return float("inf")

    def _compiled_seconds(self, attempt: Callable[[], None]) -> tuple[float, float]:
        self.compiled = True
        try:
            return self._seconds(attempt)
        except Exception as error:
            if is_out_of_memory(error) or self.attention[:1] != [SDPBackend.CUDNN_ATTENTION]:
                raise
        self.attention = [way for way in self.attention if way is not SDPBackend.CUDNN_ATTENTION]
        torch._dynamo.reset()  # else what was compiled for the other kernel is used again
        return self._seconds(attempt)

    def _seconds(self, attempt: Callable[[], None]) -> tuple[float, float]:
        """Of the first pass, and the least of two more."""
        waits = torch.cuda.synchronize if self.device.startswith("cuda") else lambda: None
        times = []
        for _ in range(3):
            waits()
            start = time.perf_counter()
            attempt()
            waits()
            times.append(time.perf_counter() - start)
        return times[0], min(times[1:])

    def _is_known(self, batch: Batch) -> bool:
        shape = (*batch.ids.shape, batch.positions is None, batch.documents is None)
        if len(self.shapes) < _MOST_SHAPES:
            self.shapes.add(shape)
        return shape in self.shapes


@contextlib.contextmanager
def _other_forwards(model: nn.Module, compiled: bool, keeps_activations: bool) -> Iterator[None]:
    """Within it, the model's blocks are run otherwise."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        kind: Any = type(block)  # nn.Module says of its classes that they cannot be hashed
        forward: Callable[..., Any] = compiled_forward(kind) if compiled else kind.forward
        forward = functools.partial(forward, block)
        if not keeps_activations:
            random = any(isinstance(part, nn.Dropout) and part.p > 0 for part in block.modules())
            forward = functools.partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=random)
        block.__dict__["forward"] = forward
    try:
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


@functools.cache
def compiled_forward(kind: type[Block]) -> Callable[..., Any]:
    """The forward pass of a kind of block, compiled when it is first called with tensors of new shapes."""
    import torch._dynamo  # here, because it takes a second and most runs on CPU do without

    # A program may train several models, each with its shapes; beyond the limit torch would run eagerly without a word.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    forward: Callable[..., Any] = torch.compile(kind.forward, dynamic=False)
    return forward


def quickest_attention(spec: ModelSpec, batch: Batch, device: str) -> list[SDPBackend]:
    """torch's attention kernels for a CUDA GPU, the quickest first, timed on shapes of this batch.

    Which one that is depends on GPU, head size and version: on Hopper cuDNN's is mostly quicker than FlashAttention 2.
    """
    rows, length = batch.ids.shape
    shapes = [(rows, length, heads, spec.head_dim) for heads in (spec.n_heads, spec.n_kv_heads, spec.n_kv_heads)]
    tensors = [torch.randn(s, device=device, dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for s in shapes]
    times: dict[SDPBackend, float] = {}
    reference: torch.Tensor | None = None
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        try:
            with sdpa_kernel(backend):
                seconds, result = _attention_seconds(tensors, spec)
        except RuntimeError:  # not for this GPU, head size or version
            continue
        reference = result if reference is None else reference
        if float((result - reference).abs().max()) <= _AGREE * float(reference.abs().max()):
            times[backend] = seconds
    return [*sorted(times, key=times.__getitem__), SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _attention_seconds(tensors: list[torch.Tensor], spec: ModelSpec) -> tuple[float, torch.Tensor]:
    """Of a forward and a backward pass, the least of three; and the gradient of the queries."""
    q, k, v = tensors
    times = []
    for _ in range(4):  # the first one loads the kernel
        torch.cuda.synchronize()
        start = time.perf_counter()
        y = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1], scale=spec.attention_scale or None
        )
        gradient = torch.autograd.grad(y, tensors, torch.ones_like(y))[0]
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:]), gradient.float()
