"""The verb that searches for better settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bimo.cli.options import add_cluster, duration_s, make_console, run_options

if TYPE_CHECKING:
    from bimo.flags import Parser


def tune(arguments: list[str]) -> int:
    """Search rate, batch and structure within a time, and say what was gained. The same command goes on with it."""

    def add(parser: Parser) -> None:
        parser.usage = "bimo tune [RECIPE.yaml] --budget 30m [--trials N] [--PART.SETTING VALUE ...]"
        parser.add_argument("--budget", type=str, default="30m", help="Time for all of it, for example 30m or 1h30m.")
        parser.add_argument("--trials", type=int, default=0, help="How many choices are tried. 0: as many as fit.")
        parser.add_argument("--seeds", type=int, default=3, help="Runs of the best and of the recipe at the end.")
        add_cluster(parser)
        parser.add_argument(
            "--trial_seconds", type=float, default=0.0, help="Time of a trial. 0: what fits the budget."
        )

    settings, options = run_options("tune", tune, arguments, add)
    from bimo.training.tune import Effort
    from bimo.tuning import tune as run

    effort = Effort(duration_s(options.budget), options.trials, options.seeds, options.trial_seconds)
    if options.cluster:
        from bimo.cluster.tuning import tune_on

        recipe = tune_on(settings, effort, make_console(), cluster=options.cluster, workers=options.workers)
    else:
        recipe = run(settings, effort, make_console())
    print(f"Train it: bimo train {recipe}")
    return 0
