"""What the verbs share: parsers, the settings of a run, the model that a command works with, and lines for a person."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bimo.core.errors import UserError
from bimo.core.registry import import_modules

if TYPE_CHECKING:
    from rich.console import Console

    from bimo.flags import Parser
    from bimo.lm import LM

INTERRUPTED = 130


def make_parser(verb: str, command: Callable[..., int]) -> Parser:
    from bimo.flags import Parser

    return Parser(prog=f"bimo {verb}", description=command.__doc__, allow_abbrev=False)


def run_settings(verb: str, command: Callable[..., int], arguments: list[str]) -> tuple[Any, bool]:
    """The run's settings out of recipe, flags or the run that is resumed."""
    settings, options = run_options(verb, command, arguments)
    return settings, bool(options.resume)


def run_options(
    verb: str, command: Callable[..., int], arguments: list[str], add: Callable[[Parser], None] | None = None
) -> tuple[Any, Any]:
    """The run's settings, and all that was parsed; `add` gives the parser the command's own flags."""
    from jsonargparse import ActionConfigFile

    from bimo.core.config import RunSettings
    from bimo.flags import add_settings, settings_values

    parser = make_parser(verb, command)
    parser.usage = f"bimo {verb} [RECIPE.yaml] [--resume RUN] [--PART.SETTING VALUE ...]"
    parser.add_argument("--config", action=ActionConfigFile, help="A recipe; the same as naming it first.")
    parser.add_argument("--resume", type=str, default="", help="A run to go on with, for example runs/mine.")
    if add is not None:
        add(parser)
    add_settings(parser, RunSettings)
    arguments = _named(arguments)
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
    return RunSettings.from_dict(values), options


def duration_s(text: str) -> float:
    """Seconds of a time such as 30m, 1h30m, 90s or 900."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip().lower())
    seconds = (
        sum(float(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else 0
    )
    if seconds <= 0:
        raise UserError(f"{text!r} is no time", where="--budget", mend="Give for example 30m, 1h30m or 900s.")
    return seconds


def memory_bytes(text: str) -> float:
    """Bytes of an amount such as 8GB, 500MB or 8e9; '' is 0."""
    found = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    if text and not found:
        raise UserError(f"{text!r} is no amount of memory", where="--memory", mend="Give for example 8GB.")
    return float(found[1]) * 1000.0 ** " kmgt".index(found[2] or " ") if found else 0.0


def _named(arguments: list[str]) -> list[str]:
    """A recipe and texts that are named first, without a flag, as flags."""
    count = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    named, rest = arguments[:count], arguments[count:]
    recipes = [name for name in named if name.endswith((".yaml", ".yml"))]
    for recipe in recipes:
        _check_readable(Path(recipe))
    texts = [name for name in named if name not in recipes]
    config = [word for recipe in recipes for word in ("--config", recipe)]
    return [*config, *(["--data.paths", json.dumps(texts)] if texts else []), *rest]


def _check_readable(recipe: Path) -> None:
    try:
        recipe.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read as text ({error})", where=str(recipe), mend="Name a YAML file.") from error


def generation(
    verb: str, command: Callable[..., int], arguments: list[str], add: Callable[[Parser], None]
) -> tuple[Any, dict[str, Any], Any]:
    """Options, sampling parameters and the model of a command that generates; `add` gives it its own flags."""
    from bimo.engine.request import SamplingParams
    from bimo.engine.settings import EngineSettings
    from bimo.flags import add_settings, settings_values

    parser = make_parser(verb, command)
    add_model(parser)
    add(parser)
    add_settings(parser, SamplingParams)
    add_settings(parser, EngineSettings, "engine.")
    if "--" in arguments:  # what stands behind it, and what before any flag, have to stand together
        named, flags = _apart(parser, arguments)
        arguments = [*flags, "--", *named]
    options = parser.parse_args(arguments)
    sampling = SamplingParams.from_dict(settings_values(options, SamplingParams)).to_dict()
    engine = EngineSettings.from_dict(options.engine.as_dict())
    lm = load_model(options)
    lm.engine_settings = engine
    return options, sampling, lm


def positionals_first(parser: Parser, arguments: list[str]) -> list[str]:
    """The arguments with those that are no flags, nor belong to one, in front: `MODEL --to de FILE` works, too."""
    named, flags = _apart(parser, arguments)
    return [*named, *flags]


def _apart(parser: Parser, arguments: list[str]) -> tuple[list[str], list[str]]:
    """Arguments that are no flags, nor belong to one, and the others."""
    without_value = {flag for action in parser._actions if action.nargs == 0 for flag in action.option_strings}
    named: list[str] = []
    flags: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--":
            named += waiting
        elif argument.startswith("-") and argument != "-":
            flags.append(argument)
            if "=" not in argument and argument not in without_value:
                flags += [value for value in [next(waiting, None)] if value is not None]
        else:
            named.append(argument)
    return named, flags


def add_model(parser: Parser) -> None:
    """The model that a command works with, and the parts that it may need."""
    text = "A run (runs/demo), a Hugging Face folder or hub name, or a .gguf file."
    parser.add_argument("model", type=str, help=text)
    add_modules(parser)


def add_modules(parser: Parser) -> None:
    text = "Python files or modules that register parts which the model was made with."
    parser.add_argument("--modules", type=list[str], default=[], help=text)


def add_cluster(parser: Parser) -> None:
    """Where the work is done, when not here alone."""
    text = "Work on Ray: auto (a cluster that this machine is part of, else this machine), local, ray://HOST:PORT."
    parser.add_argument("--cluster", type=str, default="", help=text)
    parser.add_argument("--workers", type=int, default=2, help="With --cluster: processes, or trials, at once.")


def load_model(options: Any) -> LM:
    import_modules(options.modules)
    from bimo.lm import load

    return load(options.model)


def open_tokenizer(path: str) -> Any:
    """A tokenizer out of a run, a model folder, or a file."""
    from bimo import Tokenizer

    folder = Path(path) / "model" if (Path(path) / "model").is_dir() else Path(path)
    return Tokenizer.load(folder)


def make_console() -> Console:
    from rich.console import Console

    return Console()


def print_now(line: object) -> None:
    print(line, flush=True)


def show_share(share: float) -> None:
    """How far the reading is, on a line that the next one overwrites; only where somebody looks."""
    show_stage("reading", share)


def show_stage(stage: str, share: float) -> None:
    """How far a stage of some work is, in the same way."""
    if sys.stderr.isatty():
        print(f"\r\033[K{stage}: {share:.0%}" if share < 1 else "\r\033[K", end="", file=sys.stderr, flush=True)
