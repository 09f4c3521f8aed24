"""The model of the transformers library as a reference, in bimo's names.

Weights come from the files that the model under test was read from, by transformers' own loaders. Gradients are brought
into bimo's names by saving them as if they were weights and reading that checkpoint.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimo.core.spec import ModelSpec
from bimo.evaluation.probes import loss_of, module_names, recorded
from bimo.interop.families import FAMILIES
from bimo.interop.huggingface import Weights
from bimo.interop.tensors import TensorNames
from bimo.model.gpt import GPT


class TransformersReference:
    """A model opened by transformers, in float32.

    Args:
        path: A model folder or a .gguf file.
        spec: Its shape.
    """

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        where: dict[str, Any] = {"pretrained_model_name_or_path": str(path)}
        if path.is_file():
            where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        with _quiet() as transformers:
            self.model = transformers.AutoModelForCausalLM.from_pretrained(
                **where, dtype=torch.float32, attn_implementation="eager", local_files_only=True
            ).eval()
        self.model.get_input_embeddings().padding_idx = spec.padding_id if spec.padding_id >= 0 else None
        self.model.hf_quantizer = None  # of a GGUF file, whose weights are plain by now
        if hasattr(self.model, "set_experts_implementation"):  # the fused one takes no odd widths
            self.model.set_experts_implementation("eager")
        self.spec = spec
        # Two families may compute the same function; what counts here is whose class transformers took.
        self.family = next(family for family in FAMILIES if family.model_type == self.model.config.model_type)
        with torch.device("meta"):
            self.shapes = {name: p.shape for name, p in GPT(spec).named_parameters()}
        self.names = TensorNames(self.family, spec, self.shapes)

    @torch.no_grad()
    def activations(self, ids: Tensor) -> dict[str, Tensor]:
        """As `probes.activations`."""
        scaled = self.spec.embedding_scale != 1  # their embedding module scales, ours does not
        ours = [name for name in module_names(self.spec) if not (scaled and name == "embed_tokens")]
        # Mixtral's parts have one name in files and another in memory.
        theirs = {name: self.names.theirs(name).replace("block_sparse_moe", "mlp") for name in ours}
        with recorded({name: self.model.get_submodule(path) for name, path in theirs.items()}) as found:
            logits = self.model(ids, use_cache=False).logits
        return {**found, "logits": logits.float()}

    def gradients(self, ids: Tensor) -> tuple[float, dict[str, Tensor]]:
        """The loss, and its gradient for each of our parameters."""
        with torch.enable_grad():
            loss = loss_of(self.model(ids, use_cache=False).logits, ids)
            loss.backward()
        kept = {}
        for name, parameter in self.model.named_parameters():
            kept[name] = parameter.data
            parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = None
        try:
            with tempfile.TemporaryDirectory() as folder, _quiet():
                self.model.save_pretrained(folder)
                weights = Weights(Path(folder), self.family.prefix)
                found = {name: self.names.read(name, weights.get).float().clone() for name in self.shapes}
        finally:
            for name, parameter in self.model.named_parameters():
                parameter.data = kept[name]
        return float(loss.detach()), found


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """transformers without its progress bars and advice, which would stand among the findings."""
    import transformers

    logging = transformers.logging
    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its GGUF reader has a bar of another library
            yield transformers
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
