"""The verb that trains families of models side by side."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from bimo.cli.options import add_modules, make_console, make_parser, print_now, show_stage
from bimo.core.registry import import_modules

_LINE_S = 15.0
_EXAMPLES = """
Give rows with the task's fields: source and target, document and summary, or text and label; other names of columns by
--fields '{source: english, target: german}'. For example:
  bimo compare train.jsonl --valid valid.jsonl --task "translation(source='en', target='de')"
  bimo compare mails.csv --task classification --minutes 2 --output compare/mails
"""


def compare(arguments: list[str]) -> int:
    """Train a GPT, an encoder-decoder and (for labels) an encoder alike on your rows, and say which to take."""
    parser = make_parser("compare", compare)
    parser.description = f"{compare.__doc__} {' '.join(_EXAMPLES.split())}"
    parser.usage = (
        "bimo compare FILES --task TASK [--valid FILES] [--minutes 5] [--output FOLDER] [--SETTING VALUE ...]"
    )
    parser.add_argument("data", type=str, nargs="+", help="Files, folders or globs of rows to train on.")
    task = "Such as translation(source='en', target='de'), summarization, classification."
    parser.add_argument("--task", type=str, required=True, help=task)
    valid = "Rows to measure on, which are never trained on. Default: a tenth of the rows, kept apart."
    parser.add_argument("--valid", type=str, nargs="+", default=[], help=valid)
    parser.add_argument("--output", type=str, default="", help="A folder for page and data. Default: compare/TASK.")
    add_modules(parser)
    from bimo.evaluation.certificate import check_output
    from bimo.families.settings import CompareSettings
    from bimo.flags import add_settings, settings_values

    add_settings(parser, CompareSettings)
    options = parser.parse_args(arguments)
    import_modules(options.modules)
    values = CompareSettings.from_dict(settings_values(options, CompareSettings)).to_dict()
    from bimo.families.compare import compare as run
    from bimo.families.comparison import JSON_NAME
    from bimo.families.table import table_of
    from bimo.tasks import make_task

    output = Path(options.output or Path("compare") / make_task(options.task).name)
    check_output(output)
    finished: list[str] = []
    progress = _Progress()

    def done(sentence: str) -> None:
        finished.append(sentence)
        show_stage("", 1.0)
        print_now(sentence)

    try:
        found = run(
            options.data, options.task, valid=options.valid, on_progress=progress, on_done=done, **values
        )  # fmt: skip
    except KeyboardInterrupt:
        show_stage("", 1.0)
        stages = ", ".join(sentence.partition(",")[0] for sentence in finished if ", " in sentence.partition(":")[0])
        print_now(f"interrupted; finished: {stages or 'nothing'}. No figure was written.")
        raise
    page = found.save(output)
    console = make_console()
    console.print(table_of(found))
    for note in found.notes:
        print(f"- {note}")
    print_now(f"\n{found.advice}\nThe page: {page}  The data: {output / JSON_NAME}")
    return 0


class _Progress:
    """How far a stage is: on one line of a terminal, or now and then in a line of a log."""

    def __init__(self) -> None:
        self.said = time.monotonic()

    def __call__(self, stage: str, share: float) -> None:
        show_stage(stage, share)
        if not sys.stderr.isatty() and time.monotonic() - self.said > _LINE_S and share < 1:
            self.said = time.monotonic()
            print(f"{stage}: {share:.0%}", file=sys.stderr, flush=True)
