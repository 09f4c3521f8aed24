"""The verb for language packs: made, trained, checked, listed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bimo.cli.options import make_console, make_parser, print_now, run_options
from bimo.core.errors import UserError, nearest

if TYPE_CHECKING:
    from bimo.flags import Parser
    from bimo.serving.packs import Pack


def pack(arguments: list[str]) -> int:
    """Make, train, check or list language packs: bimo pack make | train | check | list."""
    steps: dict[str, Callable[[list[str]], int]] = {"make": _make, "train": _train, "check": _check, "list": _list}
    if not arguments or arguments[0] in ("-h", "--help"):
        print_now((pack.__doc__ or "").strip())
        for name, step in steps.items():
            print_now(f"  {name:6} {(step.__doc__ or '').strip()}")
        return 0
    first, *rest = arguments
    if first not in steps:
        raise UserError(f"there is no bimo pack {first!r}{nearest(first, steps)}", mend=f"Known: {', '.join(steps)}.")
    return steps[first](rest)


def _make(arguments: list[str]) -> int:
    """A pack of a run that trained an adapter, or of an adapter's folder, with what it gains."""
    from bimo.flags import add_settings, settings_values
    from bimo.packing import PackWish, make_pack

    parser = make_parser("pack make", _make)
    parser.add_argument("source", type=str, help="A run with adapt.method lora, or a folder in peft's format.")
    parser.add_argument("output", type=str, help="The pack's folder.")
    add_settings(parser, PackWish)
    options = parser.parse_args(arguments)
    wish = PackWish.from_dict(settings_values(options, PackWish))
    made, _ = make_pack(Path(options.source), Path(options.output), wish, print_now)
    print_now(f"the pack is in {made.folder}: bimo serve MODEL --packs {made.folder.parent}")
    return 0


def _train(arguments: list[str]) -> int:
    """An adapter and a pack for each language, out of rows of all of them, with what each gains."""

    def add(parser: Parser) -> None:
        parser.usage = "bimo pack train [RECIPE.yaml] [DATA ...] --languages '[zh, de]' [--PART.SETTING VALUE ...]"
        parser.add_argument("--languages", type=list[str], default=[], help="Codes or English names.")
        parser.add_argument("--packs", type=str, default="packs", help="The folder where packs go, each in its own.")
        parser.add_argument("--limit", type=int, default=200, help="Rows to measure each on at most; 0: all.")
        parser.add_argument("--license", type=str, default="", help="Under which the packs may be used.")

    settings, options = run_options("pack train", _train, arguments, add)
    from bimo.packing import PackWish, train_packs

    wish = PackWish(language="each", limit=options.limit, license=options.license)
    for made, _ in train_packs(settings, options.languages, Path(options.packs), make_console(), wish):
        print_now(f"{made.name}: {made.folder}")
    print_now(f"Serve them: bimo serve {settings.adapt.base} --packs {options.packs}")
    return 0


def _check(arguments: list[str]) -> int:
    """Whether a pack is whole, and belongs to a model."""
    from bimo.serving.packs import fingerprint, read_pack

    parser = make_parser("pack check", _check)
    parser.add_argument("folder", type=str, help="The pack.")
    parser.add_argument("--model", type=str, default="", help="The model that it shall fit.")
    options = parser.parse_args(arguments)
    base = None
    if options.model:
        from bimo.lm import load

        base = load(options.model)
    found = read_pack(Path(options.folder), fingerprint(base) if base else None)
    if base is not None:
        from bimo.interop import load_adapter

        load_adapter(found.adapter, base.model, found.name)
    print_now("\n".join(_lines(found)))
    return 0


def _list(arguments: list[str]) -> int:
    """The packs in a folder, and what is wrong with those that are damaged."""
    from bimo.serving.packs import read_pack

    parser = make_parser("pack list", _list)
    parser.add_argument("folder", type=str, help="The folder of packs.")
    options = parser.parse_args(arguments)
    folder = Path(options.folder)
    if not folder.is_dir():
        raise UserError("this is no folder", where=options.folder, mend="Check the path.")
    damaged = 0
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            print_now("\n".join(_lines(read_pack(path))))
        except UserError as error:
            damaged += 1
            print_now(f"{path.name}: {error}")
    return 1 if damaged else 0


def _lines(found: Pack) -> list[str]:
    """What is said of a pack."""
    from bimo.core.json_files import read_json

    about = found.manifest
    more = [name for name in ("template", "system", "guard", "evaluation") if getattr(about, name)]
    lines = [f"{about.name}: {about.language}" + (f", with {', '.join(more)}" if more else "")]
    gains = read_json(found.folder / about.gain).get("gains") if about.gain else None
    for gain in gains if isinstance(gains, list) else []:
        if isinstance(gain, dict) and all(isinstance(gain.get(key), (int, float)) for key in ("alone", "pack")):
            lines.append(f"  {str(gain.get('metric'))[:40]}: {gain['alone']:.4g} → {gain['pack']:.4g}")
    return lines
