"""The verb for a model at work for others: a server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bimo.cli.options import add_modules, make_parser, positionals_first, print_now
from bimo.core.errors import UserError, require
from bimo.core.registry import import_modules

if TYPE_CHECKING:
    from bimo.flags import Parser
    from bimo.serving.gateway import Gateway
    from bimo.serving.places import PlaceSettings, Wanted
    from bimo.serving.routing import Router
    from bimo.serving.services import Services
    from bimo.serving.settings import ServeSettings


def serve(arguments: list[str]) -> int:
    """Serve models over HTTP in the dialect of OpenAI, with translation, summaries and labels."""
    from bimo.engine.settings import EngineSettings
    from bimo.flags import settings_values
    from bimo.serving.places import PlaceSettings, Wanted
    from bimo.serving.settings import ServeSettings

    parser = _parser()
    options = parser.parse_args(positionals_first(parser, _spelled(arguments)))
    settings = ServeSettings.from_dict(settings_values(options, ServeSettings))
    if options.new_key:
        return _new_key(options.new_key, settings.keys)
    place = PlaceSettings.from_dict(settings_values(options, PlaceSettings))
    if not options.models and not place.engine_url:
        raise UserError("no model is named", where="bimo serve", mend="For example: bimo serve runs/demo.")
    for module in ("fastapi", "uvicorn", "prometheus_client", "httpx"):
        require(module, "serve")
    engine = EngineSettings.from_dict(options.engine.as_dict())
    import_modules(options.modules)
    wanted = Wanted(
        models=options.models, names=options.name, adapters=options.adapter, engine=engine.to_dict(),
        rules=settings.guard, modules=options.modules, drain_s=settings.drain_s,
    )  # fmt: skip
    if options.cluster:
        return _serve_on_cluster(options, settings, place, wanted)
    return _serve(options, settings, place, wanted)


def _spelled(arguments: list[str]) -> list[str]:
    """`--engine URL` and `--guard URL` as the flags that they are short for; `--guard` with anything else is a rule."""
    found = [f"--engine_url{flag[8:]}" if flag.partition("=")[0] == "--engine" else flag for flag in arguments]
    for place, flag in enumerate(found):
        name, equals, value = flag.partition("=")
        value = value if equals else "".join(found[place + 1 : place + 2])
        if name == "--guard" and value.startswith(("http://", "https://", "unix:")):
            found[place] = f"--guard_url{flag[7:]}"
    return found


def _parser() -> Parser:
    from bimo.cluster.scaling import ScaleSettings
    from bimo.engine.settings import EngineSettings
    from bimo.flags import add_settings
    from bimo.serving.places import PlaceSettings
    from bimo.serving.settings import ServeSettings
    from bimo.serving.wire import WireSettings

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
    add_settings(parser, PlaceSettings)
    add_settings(parser, WireSettings, "wire.")
    add_settings(parser, EngineSettings, "engine.")
    text = "Serve from a cluster by Ray Serve: auto (one that this machine is part of, else this machine), local."
    parser.add_argument("--cluster", type=str, default="", help=text)
    add_settings(parser, ScaleSettings, "scale.")
    return parser


def _new_key(name: str, path: str) -> int:
    from bimo.serving.keys import new_key

    if not path:
        raise UserError("it is not said where the key's hash goes", where="--new_key", mend="Add --keys FILE.")
    secret = new_key(Path(path), name)
    print_now(secret)
    print(f"(kept nowhere: only its hash is in {path}; use it as Authorization: Bearer KEY)", file=sys.stderr)
    return 0


def _serve(options: Any, settings: ServeSettings, place: PlaceSettings, wanted: Wanted) -> int:
    """Serve until a signal ends it."""
    from bimo.serving.app import make_app
    from bimo.serving.guarding import local_guard
    from bimo.serving.keys import open_keys
    from bimo.serving.logs import log_to
    from bimo.serving.pack_host import router_of
    from bimo.serving.pages import add_pages
    from bimo.serving.running import address_of, listen
    from bimo.serving.running import serve as run
    from bimo.serving.services import Services
    from bimo.serving.settings import ServeSettings
    from bimo.serving.wire import WireSettings

    keys = open_keys(settings.keys)
    if place.guard_url and settings.guard != ServeSettings().guard:
        mend = "Give them to it: bimo guard serve --rules RULE."
        raise UserError("rules are named, but the guard runs elsewhere", where="--guard", mend=mend)
    own_guard = None if place.guard_url or place.guard_process else local_guard(settings.guard)
    if settings.runs and not Path(settings.runs).is_dir():
        raise UserError("there is no such folder", where=f"--runs {settings.runs}", mend="Name the folder of runs.")
    own = listen(settings)  # all this before a model is loaded: what is wrong is said at once
    router = router_of(settings)
    services = Services(place, wanted, WireSettings.from_dict(options.wire.as_dict()), _routes_lead(settings))
    guard = services.guard or own_guard
    app, gateway = make_app(services.engine, settings, keys=keys, guard=guard, router=router, pages=add_pages)
    log_to(sys.stderr)
    url = address_of(own)
    with _packs(services, gateway, router):
        run(app, gateway, own, lambda: _greet(url, services.names, settings, bool(keys.keys)), services)
    return 0


def _routes_lead(settings: ServeSettings) -> Callable[[Sequence[str]], None]:
    """Looks whether the routes lead to models, when it is known which there are."""
    from bimo.serving.routing import check_routes, parse

    routes = parse(settings.route) if settings.route else {}
    return lambda names: check_routes(routes, names)


def _packs(services: Services, gateway: Gateway, router: Router | None) -> AbstractContextManager[None]:
    """Language packs at work, in an engine of this process."""
    from bimo.serving.local import LocalEngine
    from bimo.serving.pack_host import packs_at_work

    if isinstance(services.engine, LocalEngine):
        return packs_at_work(services.engine, services.names[0], gateway, router)
    if gateway.settings.packs:
        mend = "Leave out --engine_url and --engine_processes, or --packs."
        raise UserError("packs need the engine in the server's own process", where="--packs", mend=mend)
    return nullcontext()


def _serve_on_cluster(options: Any, settings: ServeSettings, place: PlaceSettings, wanted: Wanted) -> int:
    """Run a server on a cluster until a signal ends it."""
    from bimo.cluster.scaling import ScaleSettings
    from bimo.cluster.serving import start, stop, wait
    from bimo.cluster.session import session
    from bimo.serving.guarding import local_guard
    from bimo.serving.keys import open_keys

    if place.engine_url or place.engine_processes or place.guard_url or place.guard_process:
        mend = "Leave out --engine_url, --engine_processes, --guard_url and --guard_process."
        raise UserError("on a cluster, Ray runs the engine and the guard", where="--cluster", mend=mend)
    if settings.packs:
        mend = "Leave out --cluster, or --packs."
        raise UserError("packs need the engine in the server's own process", where="--packs", mend=mend)
    if options.cluster not in ("auto", "local"):
        raise UserError(
            f"{options.cluster!r} is no cluster to serve from", where="--cluster", mend="Give auto or local."
        )
    scale, keys = ScaleSettings.from_dict(options.scale.as_dict()), open_keys(settings.keys)
    local_guard(settings.guard)  # what is wrong with its rules is said here, not by a replica
    with session(options.cluster, scale.most_workers):
        url, names = start(wanted, settings, keys, scale)
        try:
            _greet(url, names, settings, bool(keys.keys))
            wait()
        finally:
            stop(scale)
    return 0


def _greet(url: str, names: list[str], settings: ServeSettings, has_keys: bool) -> None:
    """Where the server is, and how to ask it something."""
    key = ' -H "Authorization: Bearer KEY"' if has_keys else ""
    shown = ", ".join(names) or "what engines have that do not answer yet"
    print_now(f"serving {shown} at {url}   (a page for people; every address: {url}/docs; Ctrl-C ends it)")
    first = names[0] if names else "MODEL"
    body = f'{{"model": "{first}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    print_now(f"curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'")
    if not has_keys and settings.host not in ("127.0.0.1", "localhost", "::1"):
        print_now(
            "Whoever reaches this machine can use it: --keys FILE closes it (bimo serve --new_key NAME --keys FILE)."
        )
