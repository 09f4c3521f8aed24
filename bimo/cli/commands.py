"""The command line: verbs in the order of a model's life; each loads only what it needs.

A `UserError` becomes one sentence and exit code 2; an interrupted run exits with 130, as shells expect.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

from bimo.cli.applications import chat, classify, summarize, translate
from bimo.cli.data import check, prepare
from bimo.cli.models import bench, evaluate, export, generate, quantize, verify
from bimo.cli.options import INTERRUPTED
from bimo.cli.serving import serve
from bimo.cli.start import demo, doctor
from bimo.cli.training import plan, train
from bimo.cli.tuning import tune
from bimo.core.errors import UserError, nearest

_PATIENCE_S = 5.0

_MAKING = (doctor, demo, check, prepare, plan, train, tune)
_USING = (generate, chat, translate, summarize, classify, serve, evaluate, verify, quantize, export, bench)
VERBS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    verb.__name__: ((verb.__doc__ or "").strip(), verb) for verb in _MAKING + _USING
}


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
        _let_the_first_speak()
        print(f"bimo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bimo: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, for example `head`
        sys.stderr.close()
        return 0


def _let_the_first_speak() -> None:
    """One of many processes waits before it says what is wrong: mostly the first says the same, and ends them all."""
    if int(os.environ.get("RANK") or 0) > 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_PATIENCE_S)


def _overview() -> str:
    lines = [
        "usage: bimo COMMAND [OPTIONS]",
        "",
        "From raw text to a GPT that you can trust. In the order of its life:",
        "",
    ]
    lines += [f"  {verb:10} {text}" for verb, (text, _) in VERBS.items()]
    return "\n".join([*lines, "", "bimo COMMAND --help says more. Start with: bimo demo"])


def _end_on_sigterm() -> None:
    """SIGTERM ends a command like Ctrl-C: what is half written is cleared away, and a sentence is said."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
