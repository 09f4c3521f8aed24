"""The command line: verbs in the order of a model's life; each loads only what it needs.

A `UserError` becomes one sentence and exit code 2; an interrupted run exits with 130, as shells expect.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bimo.core.errors import UserError, nearest
from bimo.core.registry import import_modules

if TYPE_CHECKING:
    from rich.console import Console

    from bimo.flags import Parser
    from bimo.lm import LM

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _end_on_sigterm()
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_overview())
            return 0
        if arguments[0] == "--version":
            import bimo

            print(f"bimo {bimo.__version__}")
            return 0
        verb, *rest = arguments
        if verb not in VERBS:
            raise UserError(f"no command {verb!r}{nearest(verb, VERBS)}", mend="See bimo --help.")
        return VERBS[verb][1](rest)
    except UserError as error:
        print(f"bimo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bimo: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, for example `head`
        sys.stderr.close()
        return 0


def doctor(arguments: list[str]) -> int:
    """Test this machine, or a model of yours, and say how to mend what is wrong."""
    parser = _parser("doctor", doctor)
    parser.add_argument("--model", type=str, default="", help="A run or model folder to examine.")
    _add_modules(parser)
    parser.add_argument("--seconds", type=float, default=10.0, help="How long to measure the machine's speed.")
    options = parser.parse_args(arguments)
    from bimo.core.doctor import Check, environment_checks

    failed = 0

    def show(check: Check) -> None:
        nonlocal failed
        failed += check.ok is False
        mark = {True: "ok  ", False: "BAD ", None: "    "}[check.ok]
        print(
            f"{mark}{check.name}: {check.finding}" + (f"\n    mend: {check.mend}" if check.ok is False else ""),
            flush=True,
        )

    if options.model:
        from bimo.evaluation.health import model_checks

        for check in model_checks(_load(options).model):
            show(check)
    else:
        for check in environment_checks(Path.cwd(), options.seconds):
            show(check)
    print(f"{failed} to mend" if failed else "all is well")
    return 1 if failed else 0


def demo(arguments: list[str]) -> int:
    """The whole path in three minutes: find text, train a tokenizer and a small GPT, measure it, let it write."""
    parser = _parser("demo", demo)
    parser.add_argument("text", type=str, nargs="*", help="Files, folders or globs; none: Python's documentation.")
    parser.add_argument("--seconds", type=float, default=100.0, help="Time to train.")
    parser.add_argument("--folder", type=str, default="runs", help="Where runs are kept.")
    options = parser.parse_args(arguments)
    if options.seconds <= 0:
        raise UserError(f"--seconds must be positive, is {options.seconds}", mend="Give a time.")
    from bimo.demo import demo as run

    outcome = run(options.text, _console(), seconds=options.seconds, folder=options.folder)
    return INTERRUPTED if outcome.trainer.interrupted else 0


def check(arguments: list[str]) -> int:
    """Say what is wrong with data, with file, row and mend; --fix FOLDER writes a cleaned copy."""
    from bimo.core.config import CheckSettings
    from bimo.data.checkup.report_lines import lines_of
    from bimo.flags import add_settings, settings_values

    parser = _parser("check", check)
    parser.add_argument("paths", type=str, nargs="+", help="Files, folders or globs, of text or records.")
    parser.add_argument("--valid", type=str, nargs="+", default=[], help="Validation text: shared rows are leaks.")
    parser.add_argument("--fix", type=str, default="", help="A new folder for a cleaned copy.")
    parser.add_argument("--mask_personal_data", type=bool, default=False, help="With --fix: <EMAIL> for an address, …")
    parser.add_argument(
        "--tokenizer", type=str, default="", help="A run, a model folder or tokenizer.json: count tokens."
    )
    parser.add_argument("--output", type=str, default="", help="Where the whole report goes, as JSON.")
    add_settings(parser, CheckSettings)
    options = parser.parse_args(arguments)
    settings = CheckSettings.from_dict(settings_values(options, CheckSettings))
    tokenizer = _tokenizer(options.tokenizer) if options.tokenizer else None
    if options.fix:
        from bimo.data.checkup.clean import clean, lines_of_cleaning

        done = clean(
            options.paths, Path(options.fix), valid=options.valid, settings=settings,
            mask_personal_data=options.mask_personal_data, on_progress=_show_share,
        )  # fmt: skip
        _print_now("\n".join(lines_of_cleaning(done, options.fix)))
        assert done.after is not None, "the copy was checked"
        return 0 if done.after.ok else 1
    from bimo.data.checkup import check as run

    report = run(options.paths, valid=options.valid, settings=settings, tokenizer=tokenizer, on_progress=_show_share)
    if options.output:
        report.save(Path(options.output))
    _print_now("\n".join(lines_of(report)))
    return 0 if report.ok else 1


def prepare(arguments: list[str]) -> int:
    """Train the tokenizer of a recipe and turn its text into token shards, without training a model."""
    settings, _ = _settings("prepare", prepare, arguments)
    from bimo import recipes

    run = recipes.open_run(settings, resume=False)
    recipes.prepare(settings, recipes.open_text(settings.data, run.path), _console())
    print(f"prepared in {run.path}; train with the same recipe and name")
    return 0


def train(arguments: list[str]) -> int:
    """Train a model by a recipe: text in, a run directory out. Ctrl-C saves; --resume RUN goes on."""
    settings, resume = _settings("train", train, arguments)
    from bimo import recipes

    run = recipes.open_run(settings, resume=resume)
    console = _console()
    text = recipes.open_text(settings.data, run.path)
    outcome = recipes.train(settings, text, console, resume=resume)
    stopped = outcome.trainer.stop_requested
    if stopped:
        print(f"\nstopped ({stopped}) and saved at step {outcome.trainer.state.step}.")
    if outcome.trainer.interrupted:
        print(f"Go on with: bimo train --resume {run.path}")
        return INTERRUPTED
    print(f"done: {outcome.figures['bits_per_byte']:.4f} bits per byte on held-out text. The model is in {run.model}")
    print(f"Try: bimo generate {run.path} 'Once upon a time'")
    return 0


def generate(arguments: list[str]) -> int:
    """Continue a text with a model."""
    options, sampling, lm = _generation("generate", generate, arguments, with_prompt=True)
    for piece in lm.stream(options.prompt, **sampling):
        print(piece, end="", flush=True)
    print()
    return 0


def chat(arguments: list[str]) -> int:
    """Talk with a model that was made for chat; an empty line ends the conversation."""
    options, sampling, lm = _generation("chat", chat, arguments, with_prompt=False)
    messages = [{"role": "system", "content": options.system}] if options.system else []
    if not lm.tokenizer.has_chat_template:
        raise UserError("this model has no chat template", where=options.model, mend="Use bimo generate.")
    while True:
        try:
            line = input("you> " if sys.stdin.isatty() else "")
        except EOFError:
            return 0
        except UnicodeDecodeError as error:
            raise UserError(f"the input is not UTF-8 ({error})", where="standard input", mend="Convert it.") from error
        if not line.strip():
            return 0
        messages.append({"role": "user", "content": line})
        answer = ""
        for piece in lm.stream_chat(messages, **sampling):
            answer += piece
            print(piece, end="", flush=True)
        print()
        messages.append({"role": "assistant", "content": answer})


def verify(arguments: list[str]) -> int:
    """Prove that a model computes what its files say: against references, itself and its exports."""
    parser = _parser("verify", verify)
    _add_model(parser)
    parser.add_argument("--output", type=str, default="", help="Where the certificate goes. Default: verify/MODEL.")
    names = "numpy (always there); transformers and, for GGUF files, llama.cpp (where installed)."
    known = ["numpy", "transformers", "llama.cpp"]
    parser.add_argument("--references", type=list[str], default=known, help=names)
    formats = ["hf", "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "onnx"]
    parser.add_argument("--exports", type=list[str], default=formats, help="Exports to make and compare; [] for none.")
    parser.add_argument("--seed", type=int, default=0, help="Of the random text that the models read.")
    options = parser.parse_args(arguments)
    lm = _load(options)
    output = Path(options.output or Path("verify") / Path(options.model).name)
    from bimo.evaluation.certificate import check_output
    from bimo.evaluation.verify import verify as run

    check_output(output)
    print(f"verifying {options.model}: {lm.model.n_parameters():,} parameters", flush=True)
    certificate = run(
        lm, references=options.references, formats=options.exports, seed=options.seed, on_finding=_print_now
    )
    certificate.save(output)
    print(f"\n{certificate.verdict}\nThe page: {output / 'certificate.html'}  The data: {output / 'certificate.json'}")
    return 0 if certificate.ok else 1


def export(arguments: list[str]) -> int:
    """Write a model for other tools: a Hugging Face folder, or a GGUF file for llama.cpp; then compare it."""
    parser = _parser("export", export)
    _add_model(parser)
    parser.add_argument("output", type=str, help="A folder for hf, a file for everything else.")
    formats = "hf (a Hugging Face folder); F32, F16, BF16, Q8_0, Q4_0 or Q4_K (a GGUF file); onnx (needs bimo[onnx])."
    parser.add_argument("--format", type=str, default="", help=f"{formats} Default: by the output's name.")
    parser.add_argument("--dtype", type=str, default="float32", help="Of hf: float32, float16 or bfloat16.")
    options = parser.parse_args(arguments)
    lm = _load(options)
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
        _print_now(found)
    return 0 if all(found.ok for found in findings) else 1


VERBS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    verb.__name__: ((verb.__doc__ or "").strip(), verb)
    for verb in (doctor, demo, check, prepare, train, generate, chat, verify, export)
}


def _end_on_sigterm() -> None:
    """SIGTERM ends a command like Ctrl-C: what is half written is cleared away, and a sentence is said."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _print_now(line: object) -> None:
    print(line, flush=True)


def _show_share(share: float) -> None:
    """How far the reading is, on a line that the next one overwrites; only where somebody looks."""
    if sys.stderr.isatty():
        print(f"\r\033[Kreading: {share:.0%}" if share < 1 else "\r\033[K", end="", file=sys.stderr, flush=True)


def _tokenizer(path: str) -> Any:
    """A tokenizer out of a run, a model folder, or a file."""
    from bimo import Tokenizer

    folder = Path(path) / "model" if (Path(path) / "model").is_dir() else Path(path)
    return Tokenizer.load(folder)


def _overview() -> str:
    lines = [
        "usage: bimo COMMAND [OPTIONS]",
        "",
        "From raw text to a GPT that you can trust. In the order of its life:",
        "",
    ]
    lines += [f"  {verb:10} {text}" for verb, (text, _) in VERBS.items()]
    return "\n".join([*lines, "", "bimo COMMAND --help says more. Start with: bimo demo"])


def _parser(verb: str, command: Callable[..., int]) -> Parser:
    from bimo.flags import Parser

    return Parser(prog=f"bimo {verb}", description=command.__doc__, allow_abbrev=False)


def _console() -> Console:
    from rich.console import Console

    return Console()


def _settings(verb: str, command: Callable[..., int], arguments: list[str]) -> tuple[Any, bool]:
    """The run's settings out of recipe, flags or the run that is resumed."""
    from jsonargparse import ActionConfigFile

    from bimo.core.config import RunSettings
    from bimo.flags import add_settings, settings_values

    parser = _parser(verb, command)
    parser.usage = f"bimo {verb} [RECIPE.yaml] [--resume RUN] [--PART.SETTING VALUE ...]"
    parser.add_argument("--config", action=ActionConfigFile, help="A recipe; the same as naming it first.")
    parser.add_argument("--resume", type=str, default="", help="A run to go on with, for example runs/mine.")
    add_settings(parser, RunSettings)
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        _check_readable(Path(arguments[0]))
        arguments = ["--config", *arguments]
    if "--resume" in arguments[:-1]:
        run = Path(arguments[arguments.index("--resume") + 1])
        if not (run / "run.yaml").exists():
            raise UserError("no run to resume", where=str(run), mend="See which runs there are: ls runs")
        own = ["--name", run.name, "--folder", str(run.parent)]  # the folder may have been moved or renamed
        arguments = ["--config", str(run / "run.yaml"), *arguments, *own]
    options = parser.parse_args(arguments)
    values = settings_values(options, RunSettings)
    import_modules(values["modules"])  # before the settings are checked: they may name parts of the user
    # A run is resumed from any folder.
    values["modules"] = [str(Path(name).resolve()) if name.endswith(".py") else name for name in values["modules"]]
    return RunSettings.from_dict(values), bool(options.resume)


def _check_readable(recipe: Path) -> None:
    try:
        recipe.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read as text ({error})", where=str(recipe), mend="Name a YAML file.") from error


def _generation(
    verb: str, command: Callable[..., int], arguments: list[str], *, with_prompt: bool
) -> tuple[Any, dict[str, Any], Any]:
    """Options, sampling parameters and the model of a command that generates."""
    from bimo.engine.request import SamplingParams
    from bimo.flags import add_settings, settings_values

    parser = _parser(verb, command)
    _add_model(parser)
    if with_prompt:
        parser.add_argument("prompt", type=str, nargs="?", default="", help="How the text begins.")
    else:
        parser.add_argument("--system", type=str, default="", help="Instructions that come first.")
    add_settings(parser, SamplingParams)
    options = parser.parse_args(arguments)
    sampling = SamplingParams.from_dict(settings_values(options, SamplingParams)).to_dict()
    return options, sampling, _load(options)


def _add_model(parser: Parser) -> None:
    """The model that a command works with, and the parts that it may need."""
    text = "A run (runs/demo), a Hugging Face folder or hub name, or a .gguf file."
    parser.add_argument("model", type=str, help=text)
    _add_modules(parser)


def _add_modules(parser: Parser) -> None:
    text = "Python files or modules that register parts which the model was made with."
    parser.add_argument("--modules", type=list[str], default=[], help=text)


def _load(options: Any) -> LM:
    import_modules(options.modules)
    from bimo.lm import load

    return load(options.model)


if __name__ == "__main__":
    sys.exit(main())
