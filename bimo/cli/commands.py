"""The command line: verbs in the order of a model's life; each loads only what it needs.

A `UserError` becomes one sentence and exit code 2; an interrupted run exits with 130, as shells expect.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

from bimo.cli.applications import chat, classify, summarize, translate
from bimo.cli.comparing import compare
from bimo.cli.data import check, prepare
from bimo.cli.models import bench, evaluate, export, generate, quantize, verify
from bimo.cli.options import INTERRUPTED
from bimo.cli.packs import pack
from bimo.cli.parts import engine, guard
from bimo.cli.serving import serve
from bimo.cli.start import demo, doctor
from bimo.cli.training import plan, train
from bimo.cli.tuning import tune
from bimo.core.errors import UserError, nearest

_PATIENCE_S = 5.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

_MAKING = (doctor, demo, check, prepare, plan, train, tune, pack)
_USING = (generate, chat, translate, summarize, classify, evaluate, compare, verify, quantize, export, bench)
_SERVING = (serve, engine, guard)
VERBS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    verb.__name__: ((verb.__doc__ or "").strip(), verb) for verb in _MAKING + _USING + _SERVING
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _end_on_sigterm()
    try:
        code = _done(arguments)
        sys.stdout.flush()  # what cannot be written is told here, and not by Python as it ends
        return code
    except UserError as error:
        _let_the_first_speak()
        print(f"bimo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bimo: interrupted", file=sys.stderr)
        return INTERRUPTED
    except UnicodeEncodeError as error:
        if error.encoding.lower().replace("-", "") == "utf8":
            raise  # half of a surrogate pair: nothing that a terminal could mend
        sign = error.object[error.start : error.end][:10]
        mend = "Set PYTHONIOENCODING=utf-8, or a locale such as LC_ALL=C.UTF-8."
        print(f"bimo: the output is {error.encoding}, which cannot show {sign!a}. {mend}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, for example `head`
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            raise
        _drop_output()
        print(f"bimo: the output cannot be written ({error.strerror}). Give it another place.", file=sys.stderr)
        return 2


def _done(arguments: list[str]) -> int:
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


def _drop_output() -> None:
    """What is still waiting to be written would be tried again as Python ends, and fail again."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


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
