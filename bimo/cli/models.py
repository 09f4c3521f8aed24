"""Verbs for a model that is there: let it write, prove it, hand it on."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from bimo.cli.options import add_model, generation, load_model, make_console, make_parser, print_now, show_stage
from bimo.core.errors import UserError
from bimo.core.registry import import_modules

if TYPE_CHECKING:
    from bimo.flags import Parser


def generate(arguments: list[str]) -> int:
    """Continue a text with a model."""

    def add(parser: Parser) -> None:
        parser.add_argument("prompt", type=str, nargs="?", default="", help="How the text begins.")

    _check_prompt(arguments)
    options, sampling, lm = generation("generate", generate, arguments, add)
    for piece in lm.stream(options.prompt, **sampling):
        print(piece, end="", flush=True)
    print()
    return 0


def _check_prompt(arguments: list[str]) -> None:
    """A text that begins with - is taken for a flag, and flags of one letter there are none."""
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    before = ["", *flags]  # what follows a flag may be a number below 0
    odd = next((a for b, a in zip(before, flags, strict=False) if _is_text(a) and not b.startswith("--")), None)
    if odd is not None:
        raise UserError(
            f"{odd!r} begins like a flag, and there is none of that name",
            where="prompt",
            mend=f"A prompt that begins with - stands behind two: bimo generate MODEL -- {shlex.quote(odd)}",
        )


def _is_text(argument: str) -> bool:
    return argument.startswith("-") and not argument.startswith("--") and argument not in ("-h", "-")


def verify(arguments: list[str]) -> int:
    """Prove that a model computes what its files say: against references, itself and its exports."""
    parser = make_parser("verify", verify)
    add_model(parser)
    parser.add_argument("--output", type=str, default="", help="Where the certificate goes. Default: verify/MODEL.")
    names = "numpy (always there); transformers and, for GGUF files, llama.cpp (where installed)."
    known = ["numpy", "transformers", "llama.cpp"]
    parser.add_argument("--references", type=list[str], default=known, help=names)
    formats = ["hf", "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "onnx"]
    parser.add_argument("--exports", type=list[str], default=formats, help="Exports to make and compare; [] for none.")
    parser.add_argument("--seed", type=int, default=0, help="Of the random text that the models read.")
    options = parser.parse_args(arguments)
    lm = load_model(options)
    output = Path(options.output or Path("verify") / Path(options.model).name)
    from bimo.evaluation.certificate import check_output
    from bimo.evaluation.verify import verify as run

    check_output(output)
    print(f"verifying {options.model}: {lm.model.n_parameters():,} parameters", flush=True)
    certificate = run(
        lm, references=options.references, formats=options.exports, seed=options.seed, on_finding=print_now
    )
    certificate.save(output)
    print(f"\n{certificate.verdict}\nThe page: {output / 'certificate.html'}  The data: {output / 'certificate.json'}")
    return 0 if certificate.ok else 1


def bench(arguments: list[str]) -> int:
    """Measure a model on this machine: speed, memory, shares of the machine's limits, and peers beside it."""
    parser = make_parser("bench", bench)
    add_model(parser)
    parser.add_argument("--output", type=str, default="", help="A file for the figures, as JSON.")
    from bimo.evaluation.bench import BenchSettings
    from bimo.evaluation.bench import bench as run
    from bimo.flags import add_settings, settings_values

    add_settings(parser, BenchSettings)
    options = parser.parse_args(arguments)
    import_modules(options.modules)
    settings = BenchSettings.from_dict(settings_values(options, BenchSettings))
    report = run(options.model, settings, modules=options.modules, say=print_now)
    print("\n" + "\n".join(report.lines()))
    if options.output:
        report.save(Path(options.output))
    return 0


def evaluate(arguments: list[str]) -> int:
    """Measure how well a model does a task, beside floors that it must beat and beside other models."""
    parser = make_parser("evaluate", evaluate)
    add_model(parser)
    parser.add_argument("data", type=str, nargs="+", help="Files, folders or globs of rows with the task's fields.")
    task = "Such as translation(target='de'), summarization, classification. Default: what the model was trained for."
    parser.add_argument("--task", type=str, default="", help=task)
    parser.add_argument("--train", type=str, nargs="+", default=[], help="Training rows, which floors learn from.")
    against = "Models, or evaluation.json files of earlier runs, to compare with."
    parser.add_argument("--against", type=str, nargs="+", default=[], help=against)
    parser.add_argument(
        "--output", type=str, default="", help="A folder for the page and the data. Default: evaluate/…"
    )
    from bimo.engine.settings import EngineSettings
    from bimo.evaluation.certificate import check_output
    from bimo.evaluation.evaluate import EvaluationSettings
    from bimo.evaluation.evaluate import evaluate as run
    from bimo.evaluation.outcome_table import tables_of
    from bimo.flags import add_settings, settings_values

    add_settings(parser, EvaluationSettings)
    add_settings(parser, EngineSettings, "engine.")
    options = parser.parse_args(arguments)
    import_modules(options.modules)
    values = EvaluationSettings.from_dict(settings_values(options, EvaluationSettings)).to_dict()
    output = Path(options.output or Path("evaluate") / Path(options.model).name)
    check_output(output)
    found = run(
        options.model, options.data, options.task, train=options.train, against=options.against,
        on_progress=show_stage, engine=EngineSettings.from_dict(options.engine.as_dict()), **values,
    )  # fmt: skip
    page = found.save(output)
    console = make_console()
    for table in tables_of(found):
        console.print(table)
    for note in found.notes:
        print(note)
    print_now(f"\n{found.verdict}\nThe page: {page}  The data: {page.with_suffix('.json')}")
    return 0


def export(arguments: list[str]) -> int:
    """Write a model for other tools: a Hugging Face folder, or a GGUF file for llama.cpp; then compare it."""
    parser = make_parser("export", export)
    add_model(parser)
    parser.add_argument("output", type=str, help="A folder for hf, a file for everything else.")
    formats = "hf (a Hugging Face folder); F32, F16, BF16, Q8_0, Q4_0 or Q4_K (a GGUF file); onnx (needs bimo[onnx])."
    parser.add_argument("--format", type=str, default="", help=f"{formats} Default: by the output's name.")
    parser.add_argument("--dtype", type=str, default="float32", help="Of hf: float32, float16 or bfloat16.")
    options = parser.parse_args(arguments)
    lm = load_model(options)
    from bimo.evaluation.exports import compare_export
    from bimo.interop import format_by_name, formats_in

    format = options.format or format_by_name(Path(options.output))
    output = lm.export(options.output, format, dtype=options.dtype)
    size = sum(file.stat().st_size for file in ([output] if output.is_file() else output.iterdir()))
    inside = formats_in(output) if output.is_file() and output.suffix == ".gguf" else {}
    tensors = ", ".join(f"{count} {name}" for name, count in inside.items())
    print(f"wrote {output}: {size / 1e6:.1f} MB" + (f"; tensors: {tensors}" if tensors else ""))
    tokenizer = lm.tokenizer if lm.has_tokenizer else None
    findings = list(compare_export(lm.model, tokenizer, output, format, options.dtype))
    for found in findings:
        print_now(found)
    return 0 if all(found.ok for found in findings) else 1


def quantize(arguments: list[str]) -> int:
    """Make a model of 8 or 4 bits, measure what that costs, and write its folder."""
    parser = make_parser("quantize", quantize)
    add_model(parser)
    parser.add_argument("--to", type=str, required=True, help="int8 or int4.")
    parser.add_argument("--output", type=str, default="", help="The new folder. Default: MODEL-int4, here.")
    texts = "Files to look at and to measure on, like what the model is for. Default: the model writes its own text."
    parser.add_argument("--text", type=str, nargs="+", default=[], help=texts)
    limit = "Nats per token (KL) beyond which nothing is written. Default: 0.02 for int8, 0.2 for int4."
    parser.add_argument("--limit", type=float, default=None, help=limit)
    parser.add_argument("--force", action="store_true", help="Write it whatever it costs.")
    parser.add_argument("--seed", type=int, default=0, help="Of the text that the model writes.")
    options = parser.parse_args(arguments)
    lm = load_model(options)
    from bimo.quantizing import quantize as run

    output = Path(options.output or f"{Path(options.model).name.removesuffix('.gguf')}-{options.to}")
    print(f"quantising {options.model} to {options.to}: {lm.model.n_parameters():,} parameters", flush=True)
    found = run(lm, options.to, text=options.text, limit=options.limit, seed=options.seed, on_progress=show_stage)
    print_now(found)
    found.save(output, force=options.force)
    print_now(f"wrote {output}")
    return 0
