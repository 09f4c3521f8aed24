"""Verbs for the first hour: is this machine fit, and what does the whole path look like."""

from __future__ import annotations

from pathlib import Path

from bimo.cli.options import INTERRUPTED, add_modules, load_model, make_console, make_parser
from bimo.core.errors import UserError


def doctor(arguments: list[str]) -> int:
    """Test this machine, or a model of yours, and say how to mend what is wrong."""
    parser = make_parser("doctor", doctor)
    parser.add_argument("--model", type=str, default="", help="A run or model folder to examine.")
    add_modules(parser)
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

        for check in model_checks(load_model(options).model):
            show(check)
    else:
        for check in environment_checks(Path.cwd(), options.seconds):
            show(check)
    print(f"{failed} to mend" if failed else "all is well")
    return 1 if failed else 0


def demo(arguments: list[str]) -> int:
    """The whole path in three minutes: find text, train a tokenizer and a small GPT, measure it, let it write."""
    parser = make_parser("demo", demo)
    parser.add_argument("text", type=str, nargs="*", help="Files, folders or globs; none: Python's documentation.")
    parser.add_argument("--seconds", type=float, default=100.0, help="Time to train.")
    parser.add_argument("--folder", type=str, default="runs", help="Where runs are kept.")
    options = parser.parse_args(arguments)
    if options.seconds <= 0:
        raise UserError(f"--seconds must be positive, is {options.seconds}", mend="Give a time.")
    from bimo.demo import demo as run

    outcome = run(options.text, make_console(), seconds=options.seconds, folder=options.folder)
    return INTERRUPTED if outcome.trainer.interrupted else 0
