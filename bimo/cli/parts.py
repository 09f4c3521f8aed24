"""The verbs for parts of a server that stand alone: an engine, a guard; `bimo serve` is the gateway before them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bimo.cli.options import add_modules, make_parser, positionals_first, print_now
from bimo.core.errors import UserError, nearest, require

if TYPE_CHECKING:
    from bimo.flags import Parser
    from bimo.serving.parts import Part
    from bimo.serving.standing import PartSettings
    from bimo.serving.wire import WireSettings


def engine(arguments: list[str]) -> int:
    """Run the engine of a server as a process of its own: engine serve MODEL."""
    rest = _after_serve("engine", engine, arguments)
    _need()
    from bimo.engine.settings import EngineSettings
    from bimo.flags import add_settings
    from bimo.serving.parts import engine_part

    parser = _parser("engine serve", engine)
    text = "Runs (runs/demo), Hugging Face folders or hub names, or .gguf files."
    parser.add_argument("models", type=str, nargs="*", help=text)
    text = "What requests call the models, in the same order. Default: as their folders or files."
    parser.add_argument("--name", type=list[str], default=[], help=text)
    text = "LoRA adapters, chosen as models: NAME=FOLDER; MODEL/NAME=FOLDER where there are several models."
    parser.add_argument("--adapter", type=list[str], default=[], help=text)
    add_settings(parser, EngineSettings, "engine.")
    options, settings, wire = _parsed(parser, rest)

    def opened(keys: Any) -> Part:
        own = options.engine.as_dict()
        return engine_part(options.models, options.name, options.adapter, own, options.modules, keys, wire)

    return _stand("engine", "--engine_url", settings, opened)


def guard(arguments: list[str]) -> int:
    """Run the guard of a server as a process of its own: guard serve."""
    rest = _after_serve("guard", guard, arguments)
    _need()
    from bimo.serving.parts import guard_part
    from bimo.serving.settings import ServeSettings

    parser = _parser("guard serve", guard)
    text = 'Rules, such as personal_data(action="mask").'
    parser.add_argument("--rules", type=list[str], default=ServeSettings().guard, help=text)
    options, settings, wire = _parsed(parser, rest)
    return _stand("guard", "--guard_url", settings, lambda keys: guard_part(options.rules, options.modules, keys, wire))


def _after_serve(verb: str, command: Callable[..., int], arguments: list[str]) -> list[str]:
    """What follows `serve`, the only thing that a part does so far."""
    if arguments and arguments[0] in ("-h", "--help"):
        return ["--help"]
    if not arguments or arguments[0] != "serve":
        said = repr(arguments[0]) if arguments else "nothing"
        what = f"bimo {verb} does {said}{nearest(arguments[0], ['serve']) if arguments else ''}"
        raise UserError(what, mend=f"Write: bimo {verb} serve. See bimo {verb} --help.")
    return arguments[1:]


def _need() -> None:
    for module in ("fastapi", "uvicorn", "httpx"):
        require(module, "serve")


def _parser(verb: str, command: Callable[..., int]) -> Parser:
    from bimo.flags import add_settings
    from bimo.serving.standing import PartSettings
    from bimo.serving.wire import WireSettings

    parser = make_parser(verb, command)
    add_modules(parser)
    add_settings(parser, PartSettings)
    add_settings(parser, WireSettings, "wire.")
    return parser


def _parsed(parser: Parser, arguments: list[str]) -> tuple[Any, PartSettings, WireSettings]:
    from bimo.flags import settings_values
    from bimo.serving.standing import PartSettings
    from bimo.serving.wire import WireSettings

    options = parser.parse_args(positionals_first(parser, arguments))
    settings = PartSettings.from_dict(settings_values(options, PartSettings))
    return options, settings, WireSettings.from_dict(options.wire.as_dict())


def _stand(part: str, flag: str, settings: PartSettings, opened: Callable[[Any], Part]) -> int:
    """Open a part on its socket, say where it is, and let it work until a signal ends it."""
    from bimo.serving.keys import open_keys
    from bimo.serving.logs import log_to
    from bimo.serving.standing import listening, stand

    keys = open_keys(settings.keys)
    sock = listening(settings)  # before a model is loaded: a port in use is said at once
    app, close = opened(keys)
    log_to(sys.stderr)
    stand(app, sock, settings.drain_s, lambda place: _greet(part, flag, place, bool(keys.keys)), close)
    return 0


def _greet(part: str, flag: str, place: str, has_keys: bool) -> None:
    variable = f"BIMO_{part.upper()}_KEY=KEY " if has_keys else ""
    print_now(f"{part} at {place}   (Ctrl-C ends it)\n{variable}bimo serve {flag} {place}")
