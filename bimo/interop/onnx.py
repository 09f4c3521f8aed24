"""ONNX: the model as one graph, ids in and logits out, for runtimes that know no Python. Needs the extra `onnx`."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
import warnings
from pathlib import Path

import torch

from bimo.core.errors import UserError, require
from bimo.model.gpt import GPT
from bimo.model.packed import unpack

_MOST_ROWS = 4096


def save_onnx(path: Path, model: GPT) -> None:
    """Write a graph with the input "ids", int64, (rows, tokens), and the output "logits", float32, (rows, tokens, V).

    It has no cache: texts of 2 tokens up to the model's context. Weights of more than 2 GB lie in a file beside it.

    Raises:
        UserError: A package is missing, or the model chooses its way while it computes, which a graph cannot.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "onnx")
    spec = model.spec
    if spec.n_experts or spec.rope_scaling.kind == "longrope":
        what = "a mixture of experts" if spec.n_experts else "longrope positions, which depend on the text's length,"
        raise UserError(f"{what} cannot be written as a graph", where="ONNX", mend="Export a Hugging Face folder.")
    if spec.context_length < 2:
        raise UserError("a model that sees one token has no graph", where="ONNX", mend="Use a longer context_length.")
    plain = GPT(spec, backend="math").eval().requires_grad_(False)
    plain.load_state_dict(unpack(model).state_dict())
    # The example is longer than the window, so that the window becomes part of the graph.
    length = min(spec.context_length, spec.window + 3 if spec.window else 11)
    ids = torch.zeros(2, max(2, length), dtype=torch.long)
    shapes = {0: torch.export.Dim("rows", min=1, max=_MOST_ROWS)}
    if spec.context_length > 2:
        shapes[1] = torch.export.Dim("tokens", min=2, max=spec.context_length)
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                plain,
                (ids,),
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=["ids"],
                output_names=["logits"],
                verbose=False,
            )
            assert program is not None, "the exporter returns a program unless it is told to write a file"
            # A folder first: large weights lie in a file of their own, and nothing half written gets the final name.
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as aside:
                program.save(Path(aside) / path.name)
                for file in Path(aside).iterdir():
                    file.replace(path.with_name(file.name))
    except torch.onnx.errors.OnnxExporterError as error:
        _interrupt_again(error)
        first = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()[0]
        raise UserError(f"torch cannot write this model as a graph ({first})", where="ONNX") from error
    finally:
        logging.getLogger("torch.onnx").setLevel(level)


def _interrupt_again(error: BaseException) -> None:
    """Let Ctrl-C be Ctrl-C, which torch takes for one more failure."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        cause = cause.__cause__ or cause.__context__
