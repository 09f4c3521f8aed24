"""The verb for a model at work for others: a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bimo.cli.options import add_modules, make_parser, positionals_first, print_now
from bimo.core.errors import UserError, require
from bimo.core.registry import import_modules

if TYPE_CHECKING:
    from bimo.flags import Parser
    from bimo.serving.settings import ServeSettings


def serve(arguments: list[str]) -> int:
    """Serve models over HTTP in the dialect of OpenAI, with translation, summaries and labels."""
    from bimo.engine.settings import EngineSettings
    from bimo.flags import settings_values
    from bimo.serving.settings import ServeSettings

    parser = _parser()
    options = parser.parse_args(positionals_first(parser, arguments))
    settings = ServeSettings.from_dict(settings_values(options, ServeSettings))
    if options.new_key:
        return _new_key(options.new_key, settings.keys)
    if not options.models:
        raise UserError("no model is named", where="bimo serve", mend="For example: bimo serve runs/demo.")
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, "serve")
    engine = EngineSettings.from_dict(options.engine.as_dict())
    import_modules(options.modules)
    return _serve(options, settings, engine)


def _parser() -> Parser:
    from bimo.engine.settings import EngineSettings
    from bimo.flags import add_settings
    from bimo.serving.settings import ServeSettings

    parser = make_parser("serve", serve)
    text = "Runs (runs/demo), Hugging Face folders or hub names, or .gguf files."
    parser.add_argument("models", type=str, nargs="*", help=text)
    text = "What requests call the models, in the same order. Default: as their folders or files."
    parser.add_argument("--name", type=list[str], default=[], help=text)
    text = "LoRA adapters, chosen as models: NAME=FOLDER; MODEL/NAME=FOLDER where there are several models."
    parser.add_argument("--adapter", type=list[str], default=[], help=text)
    text = "Make a key of this name, write its hash into the file of --keys, show it once, and end."
    parser.add_argument("--new_key", type=str, default="", help=text)
    add_modules(parser)
    add_settings(parser, ServeSettings)
    add_settings(parser, EngineSettings, "engine.")
    return parser


def _new_key(name: str, path: str) -> int:
    from bimo.serving.keys import new_key

    if not path:
        raise UserError("it is not said where the key's hash goes", where="--new_key", mend="Add --keys FILE.")
    secret = new_key(Path(path), name)
    print_now(secret)
    print(f"(kept nowhere: only its hash is in {path}; use it as Authorization: Bearer KEY)", file=sys.stderr)
    return 0


def _serve(options: Any, settings: ServeSettings, engine: Any) -> int:
    from bimo.serving.app import make_app
    from bimo.serving.guarding import local_guard
    from bimo.serving.keys import KeyRing, read_keys
    from bimo.serving.local import LocalEngine
    from bimo.serving.logs import log_to
    from bimo.serving.models import open_models
    from bimo.serving.pages import add_pages
    from bimo.serving.running import address_of, listen
    from bimo.serving.running import serve as run

    keys = read_keys(Path(settings.keys)) if settings.keys else KeyRing()
    guard = local_guard(settings.guard)
    if settings.runs and not Path(settings.runs).is_dir():
        raise UserError("there is no such folder", where=f"--runs {settings.runs}", mend="Name the folder of runs.")
    own = listen(settings)  # all this before a model is loaded: what is wrong is said at once
    models = open_models(options.models, options.name, options.adapter, engine)
    app, gateway = make_app(LocalEngine(models), settings, keys=keys, guard=guard, pages=add_pages)
    log_to(sys.stderr)
    url = address_of(own)
    names = [name for model in models for name in model.names]
    run(app, gateway, own, lambda: _greet(url, names, settings, bool(keys.keys)))
    return 0


def _greet(url: str, names: list[str], settings: ServeSettings, has_keys: bool) -> None:
    """Where the server is, and how to ask it something."""
    key = ' -H "Authorization: Bearer KEY"' if has_keys else ""
    print_now(f"serving {', '.join(names)} at {url}   (a page for people; every address: {url}/docs; Ctrl-C ends it)")
    body = f'{{"model": "{names[0]}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    print_now(f"curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'")
    if not has_keys and settings.host not in ("127.0.0.1", "localhost", "::1"):
        print_now(
            "Whoever reaches this machine can use it: --keys FILE closes it (bimo serve --new_key NAME --keys FILE)."
        )
