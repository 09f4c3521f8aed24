"""Verbs for text: what is wrong with it, and its tokens."""

from __future__ import annotations

from pathlib import Path

from bimo.cli.options import make_console, make_parser, open_tokenizer, print_now, run_settings, show_share


def check(arguments: list[str]) -> int:
    """Say what is wrong with data, with file, row and mend; --fix FOLDER writes a cleaned copy."""
    from bimo.core.config import CheckSettings
    from bimo.data.checkup.report_lines import lines_of
    from bimo.flags import add_settings, settings_values

    parser = make_parser("check", check)
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
    tokenizer = open_tokenizer(options.tokenizer) if options.tokenizer else None
    if options.fix:
        from bimo.data.checkup.clean import clean, lines_of_cleaning

        done = clean(
            options.paths, Path(options.fix), valid=options.valid, settings=settings,
            mask_personal_data=options.mask_personal_data, on_progress=show_share,
        )  # fmt: skip
        print_now("\n".join(lines_of_cleaning(done, options.fix)))
        assert done.after is not None, "the copy was checked"
        return 0 if done.after.ok else 1
    from bimo.data.checkup import check as run

    report = run(options.paths, valid=options.valid, settings=settings, tokenizer=tokenizer, on_progress=show_share)
    if options.output:
        report.save(Path(options.output))
    print_now("\n".join(lines_of(report)))
    return 0 if report.ok else 1


def prepare(arguments: list[str]) -> int:
    """Train the tokenizer of a recipe and turn its text into token shards, without training a model."""
    settings, _ = run_settings("prepare", prepare, arguments)
    from bimo import recipes

    run = recipes.open_run(settings, resume=False)
    recipes.prepare(settings, recipes.open_text(settings.data, run.path), make_console())
    print(f"prepared in {run.path}; train with the same recipe and name")
    return 0
