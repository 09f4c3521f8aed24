"""Programs that generate greedily, each behind the same two methods: bimo's engine, llama.cpp and transformers.

All are told the same: prompts of equal length, how many new tokens, no end. llama.cpp and transformers are driven by
the leanest loop that their interfaces allow, so that what is measured is theirs. Each lives in a process of its own
(`apart.py`), which imports torch only where a contender needs it: bimo does without for a GGUF file on a CPU.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from bimo.core.errors import UserError, require
from bimo.core.registry import import_modules
from bimo.evaluation.opened import Opened, on_device, set_torch_threads, sizes

if TYPE_CHECKING:
    from bimo.engine import Engine


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done.

    Attributes:
        prompts: Ids, all of the same length.
        new_tokens: For each prompt.
    """

    prompts: tuple[tuple[int, ...], ...]
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """How it went.

    Attributes:
        first_s: Seconds until each prompt had its first new token.
        total_s: Seconds until all were done.
        tokens: New ids of each prompt.
    """

    first_s: tuple[float, ...]
    total_s: float
    tokens: tuple[tuple[int, ...], ...]

    @property
    def decode_per_s(self) -> float:
        """New tokens per second after everyone had the first one."""
        n_tokens = sum(len(tokens) - 1 for tokens in self.tokens)
        return n_tokens / max(self.total_s - max(self.first_s), 1e-9)

    @property
    def total_per_s(self) -> float:
        """New tokens per second, reading the prompts included."""
        return sum(map(len, self.tokens)) / self.total_s


@dataclass(frozen=True, slots=True)
class About:
    """What a contender says about itself.

    Attributes:
        name: What runs the model, and how.
        weight_bytes: Weights as they are stored.
        step_bytes: Those of them that a step for one token reads.
        kv_bytes: Keys and values of one token.
        matrix_flops: Floating-point operations of the matrices for a token inside a prompt.
        head_flops: Those of the last matrix, which only tokens with an output need.
    """

    name: str
    weight_bytes: int
    step_bytes: int
    kv_bytes: int
    matrix_flops: float
    head_flops: float


class Contender(Protocol):
    """Runs works; made once, with its model."""

    def about(self) -> About:
        """What it is."""
        ...

    def run(self, work: Work) -> Run:
        """Do some work and time it."""
        ...


class BimoContender:
    """bimo's engine, as its users get it.

    Args:
        source: A run, a folder, or a .gguf file.
        options: Fields of `EngineSettings`.
        device: Where the weights go.
        modules: What registers the parts that the model was made with.
        with_text: Whether it writes text, as users get it, or ids alone: then no id is an end or forbidden.
    """

    NEEDS: ClassVar = ("bimo.interop", "bimo.engine")
    OURS: ClassVar = True

    def __init__(
        self,
        source: str,
        options: dict[str, Any],
        device: str = "cpu",
        modules: Sequence[str] = (),
        *,
        with_text: bool = True,
    ) -> None:
        from bimo.engine import Engine, EngineSettings
        from bimo.interop import find_model, open_stored

        import_modules(list(modules))
        set_torch_threads(options.get("threads", 0))
        self.lm = Opened(*open_stored(find_model(source)))
        if device != "cpu":
            options = on_device(self.lm, options, device)
        self.tokenizer, self.settings = (self.lm.tokenizer if with_text else None), EngineSettings.from_dict(options)
        self.engine = Engine(self.lm if with_text else self.lm.without_text(), self.tokenizer, self.settings)

    def about(self) -> About:
        """Its runner's name, and its bytes."""
        spec, runner = self.engine.spec, self.engine.runner
        ran: Any = getattr(runner, "model", None) or getattr(runner, "native").stored  # noqa: B009  # of this class
        matrices, total, step = sizes(ran)
        head = 2.0 * spec.vocab_size * spec.d_model
        return About(runner.name, total, step, runner.token_bytes, 2.0 * matrices, head)

    def run(self, work: Work) -> Run:
        """Submit all at once, and step."""
        return _run(self.engine, work)

    def record(self, work: Work, output: str) -> int:
        """Do some work and write where its time went; returns the number of steps."""
        from bimo.engine.tracing import TracedEngine

        engine = TracedEngine(self.lm, self.tokenizer, self.settings)
        _run(engine, Work(work.prompts[:1], 2))  # whatever is settled at the first use
        engine.trace.events.clear()
        _run(engine, work)
        engine.trace.save(Path(output))
        return sum(event["name"] == "step" for event in engine.trace.events)


def _run(engine: Engine, work: Work) -> Run:
    from bimo.engine import SamplingParams
    from bimo.engine.jobs import Generation

    params = SamplingParams(max_tokens=work.new_tokens, min_tokens=work.new_tokens, temperature=0)
    first, now, more = [0.0] * len(work.prompts), 0.0, True
    start = time.perf_counter()
    jobs = [engine.submit(engine.request(prompt, params)) for prompt in work.prompts]
    while more:
        more = engine.step()
        now = time.perf_counter() - start
        for place, job in enumerate(jobs):
            assert isinstance(job, Generation), "a request for new tokens"
            if not first[place] and job.writers[0].tokens:
                first[place] = now
    for job in jobs:
        if job.error is not None:
            raise job.error
    return Run(tuple(first), now, tuple(job.result.tokens for job in jobs))


class LlamaCppContender:
    """llama.cpp through its C interface: one batch per step, the likeliest token by NumPy.

    Args:
        path: A .gguf file.
        threads: Of its own.
    """

    NEEDS: ClassVar = ("llama_cpp", "numpy")

    def __init__(self, path: str, threads: int) -> None:
        self.api: Any = require("llama_cpp", "llama")
        self._log = self.api.llama_log_callback(lambda level, text, data: None)
        self.api.llama_log_set(self._log, None)
        self.api.llama_backend_init()
        self.model = self.api.llama_model_load_from_file(path.encode(), self.api.llama_model_default_params())
        if not self.model:
            raise UserError("llama.cpp refuses the file")
        self.threads = threads
        self.vocab_size = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))

    def about(self) -> About:
        """The weights' size; the rest is not known."""
        size = int(self.api.llama_model_size(self.model))
        return About(f"llama.cpp, llama-cpp-python {self.api.__version__}", size, size, 0, 0.0, 0.0)

    def run(self, work: Work) -> Run:
        """A context that fits the work, which is not timed, then one `llama_decode` per step."""
        api, streams = self.api, len(work.prompts)
        length = len(work.prompts[0])
        options = api.llama_context_default_params()
        options.n_ctx = streams * (-(-(length + work.new_tokens) // 256) * 256)
        options.n_batch, options.n_ubatch, options.n_seq_max = max(512, streams * length), 512, streams
        options.n_threads = options.n_threads_batch = self.threads
        context = api.llama_init_from_model(self.model, options)
        if not context:
            raise UserError("llama.cpp has no room for this work")
        batch = api.llama_batch_init(streams * length, 0, 1)
        try:
            return self._run(work, context, batch)
        finally:
            api.llama_batch_free(batch)
            api.llama_free(context)

    def _run(self, work: Work, context: Any, batch: Any) -> Run:
        length = len(work.prompts[0])
        tokens: list[list[int]] = [[] for _ in work.prompts]
        start = time.perf_counter()
        outputs = self._fill(batch, [(0, prompt) for prompt in work.prompts])
        self._step(context, batch, outputs, tokens)
        first = time.perf_counter() - start
        for place in range(length, length + work.new_tokens - 1):
            outputs = self._fill(batch, [(place, (written[-1],)) for written in tokens])
            self._step(context, batch, outputs, tokens)
        total = time.perf_counter() - start
        return Run((first,) * len(tokens), total, tuple(map(tuple, tokens)))

    @staticmethod
    def _fill(batch: Any, pieces: Sequence[tuple[int, Sequence[int]]]) -> list[int]:
        """Put (first place, ids) of each sequence into the batch; returns the rows whose output is wanted."""
        row, outputs = 0, []
        for sequence, (place, ids) in enumerate(pieces):
            for offset, token in enumerate(ids):
                batch.token[row], batch.pos[row] = token, place + offset
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
                batch.logits[row] = offset == len(ids) - 1
                row += 1
            outputs.append(row - 1)
        batch.n_tokens = row
        return outputs

    def _step(self, context: Any, batch: Any, outputs: Sequence[int], tokens: list[list[int]]) -> None:
        import numpy as np

        code = self.api.llama_decode(context, batch)
        if code:
            raise UserError(f"llama_decode failed ({code})")
        for row, written in zip(outputs, tokens, strict=True):
            address = self.api.llama_get_logits_ith(context, row)
            floats = ctypes.cast(address, ctypes.POINTER(ctypes.c_float * self.vocab_size)).contents
            written.append(int(np.frombuffer(floats, dtype=np.float32).argmax()))


class TransformersContender:
    """transformers, eager, with its own cache, without the overhead of its `generate`.

    Args:
        folder: A Hugging Face folder.
        threads: Of torch.
        device: Where the weights go.
        dtype: float32 or bfloat16.
    """

    NEEDS: ClassVar = ("torch", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama")

    def __init__(self, folder: str, threads: int, device: str = "cpu", dtype: str = "float32") -> None:
        import torch

        transformers: Any = require("transformers", "hf")
        transformers.utils.logging.disable_progress_bar()
        if threads:
            torch.set_num_threads(threads)
        kind = getattr(torch, dtype)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=kind, local_files_only=True)
        self.model.to(device).eval()
        self.device, self.name = device, f"transformers {transformers.__version__}, {dtype}, eager"

    def about(self) -> About:
        """The weights' size."""
        size = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return About(self.name, size, size, 0, 0.0, 0.0)

    def run(self, work: Work) -> Run:
        """The prompts as one batch, then one forward pass per token."""
        import torch

        with torch.inference_mode():
            start = time.perf_counter()
            ids, cache, found = torch.tensor(work.prompts, device=self.device), None, []
            first = 0.0
            for _ in range(work.new_tokens):
                done = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, ids = done.past_key_values, done.logits[:, -1:].argmax(dim=-1)  # (B, 1)
                found.append(ids)
                if not first:
                    ids.tolist()  # waits for the device
                    first = time.perf_counter() - start
            tokens = torch.cat(found, dim=1).tolist()
            total = time.perf_counter() - start
        return Run((first,) * len(tokens), total, tuple(map(tuple, tokens)))

    def check(self, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]) -> tuple[int, int, float]:
        """Whether given answers are the greedy ones: tokens that are the likeliest, all tokens, and the largest gap.

        The gap is by how much the likeliest logit is above that of the token that was chosen.
        """
        import torch

        right = count = 0
        gap = 0.0
        with torch.inference_mode():
            for prompt, answer in zip(prompts, tokens, strict=True):
                ids = torch.tensor([[*prompt, *answer]], device=self.device)
                logits = self.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()  # (n, V)
                chosen = logits.gather(1, ids[0, len(prompt) :, None])
                gaps = (logits.amax(dim=1, keepdim=True) - chosen).flatten()
                right, count, gap = right + int((gaps == 0).sum()), count + len(gaps), max(gap, float(gaps.max()))
        return right, count, gap


Maker = tuple[Callable[..., object], tuple[Any, ...]]
"""A contender's class and its arguments."""
