"""Verbs for a model at work: talk, translate, summarise, classify."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bimo.cli.options import add_model, generation, load_model, make_parser, positionals_first, show_stage
from bimo.core.errors import UserError

if TYPE_CHECKING:
    from bimo.applying import Conversation
    from bimo.cli.inputs import Inputs
    from bimo.flags import Parser


def translate(arguments: list[str]) -> int:
    """Translate documents, records or standard input; layout, numbers, links and placeholders are kept and checked."""
    from bimo.applying import TranslationSettings
    from bimo.applying.translating import Translator
    from bimo.cli.inputs import answer_all
    from bimo.flags import add_settings, settings_values
    from bimo.tasks.glossary import read_glossary
    from bimo.tasks.languages import language_code

    parser = _parser("translate", translate, "translation")
    parser.add_argument("--to", type=str, default="", help="Language to translate into: de, or German.")
    parser.add_argument("--from", type=str, default="", help="Language of the texts. Default: whatever they are in.")
    text = "A .tsv, .csv or .json file of terms and the translations that they must have."
    parser.add_argument("--glossary", type=str, default="", help=text)
    add_settings(parser, TranslationSettings)
    options, inputs = _parsed(parser, arguments)
    if not options.to:
        raise UserError("it is not said into which language", where="--to", mend="For example --to de.")
    settings = TranslationSettings.from_dict(settings_values(options, TranslationSettings))
    languages = {name: language_code(options[name]) for name in ("to", "from") if options[name]}
    glossary = read_glossary(options.glossary) if options.glossary else None
    lm = _model(options)
    translator = Translator(lm, languages["to"], source=languages.get("from", ""), glossary=glossary, settings=settings)

    def progress(done: int, of: int) -> None:
        if inputs.documents:
            show_stage("translating", done / of)

    def stream(texts: Any) -> Any:
        return translator.stream(texts, on_progress=progress)

    return answer_all(inputs, stream, lambda result: {options.output_field: result.text}, "translating")


def summarize(arguments: list[str]) -> int:
    """Summarise documents of any length, records or standard input."""
    from bimo.applying.summarizing import Summarizer, SummarySettings
    from bimo.cli.inputs import answer_all
    from bimo.flags import add_settings, settings_values

    parser = _parser("summarize", summarize, "summary")
    add_settings(parser, SummarySettings)
    options, inputs = _parsed(parser, arguments)
    settings = SummarySettings.from_dict(settings_values(options, SummarySettings))
    summarizer = Summarizer(_model(options), settings)
    return answer_all(inputs, summarizer.stream, lambda result: {options.output_field: result.text}, "summarising")


def classify(arguments: list[str]) -> int:
    """Say which label documents, records or standard input have."""
    from bimo.applying.classifying import Classifier
    from bimo.cli.inputs import answer_all

    parser = _parser("classify", classify, "label")
    text = "Labels to choose from, with commas between them. Default: those that the model was trained with."
    parser.add_argument("--labels", type=str, default="", help=text)
    text = "Also give the probability of each label; records get a field for them."
    parser.add_argument("--probabilities", action="store_true", help=text)
    options, inputs = _parsed(parser, arguments)
    labels = [label.strip() for label in options.labels.strip("[]").split(",") if label.strip()]
    classifier = Classifier(_model(options), labels)

    def shown(result: Any) -> Mapping[str, object]:
        shares = {label: round(share, 4) for label, share in result.probabilities.items()}
        if not options.probabilities:
            return {options.output_field: result.label}
        if inputs.documents:
            return {"": f"{result.label}\t{json.dumps(shares, ensure_ascii=False)}"}
        return {options.output_field: result.label, "probabilities": shares}

    return answer_all(inputs, classifier.stream, shown, "classifying")


def _parser(verb: str, command: Callable[[list[str]], int], output_field: str) -> Parser:
    """A parser with what all applications take."""
    from bimo.engine.settings import EngineSettings
    from bimo.flags import add_settings

    parser = make_parser(verb, command)
    add_model(parser)
    text = "Documents (.txt, .md) or records (.jsonl, .csv, .parquet). Default: standard input."
    parser.add_argument("files", type=str, nargs="*", help=text)
    text = "Of the files: text, jsonl, csv or parquet. Default: by their names; standard input is text."
    parser.add_argument("--format", type=str, default="auto", help=text)
    text = "Of records: the field that holds the text. Default: text, source or document."
    parser.add_argument("--field", type=str, default="", help=text)
    text = "A file for the answers, or a folder for those of several documents. Default: standard output."
    parser.add_argument("--output", type=str, default="", help=text)
    text = "Of records: the field for the answer."
    parser.add_argument("--output_field", type=str, default=output_field, help=text)
    parser.add_argument("--force", action="store_true", help="Replace an output that is there.")
    add_settings(parser, EngineSettings, "engine.")
    return parser


def _parsed(parser: Parser, arguments: list[str]) -> tuple[Any, Inputs]:
    """The options, and the inputs: checked before a model is loaded."""
    from bimo.cli.inputs import Inputs

    options = parser.parse_args(positionals_first(parser, arguments))
    inputs = Inputs(options.files, options.format, options.field, options.output, options.output_field, options.force)
    return options, inputs


def _model(options: Any) -> Any:
    from bimo.engine.settings import EngineSettings

    settings = EngineSettings.from_dict(options.engine.as_dict())
    lm = load_model(options)
    lm.engine_settings = settings
    return lm


_HELP = """/save FILE  write the conversation as JSON lines; without FILE, the one of --history
/undo       take back your last message and its answer
/reset      forget the conversation, not the instructions
/help       this
//…         a message that begins with /
An empty line, or the end of the input, ends the conversation."""


def chat(arguments: list[str]) -> int:
    """Talk with a model that was made for chat; /help names its commands, an empty line ends the conversation."""
    from bimo.applying import Conversation
    from bimo.engine import SamplingParams

    def add(parser: Parser) -> None:
        parser.add_argument("--system", type=str, default="", help="Instructions that come first.")
        text = "A file that the conversation goes on from, and is kept in."
        parser.add_argument("--history", type=str, default="", help=text)
        text = "What becomes of turns that no longer fit the context: drop, or summarize."
        parser.add_argument("--forget", type=str, default="drop", help=text)

    options, sampling, lm = generation("chat", chat, arguments, add=add)
    params = SamplingParams.from_dict(sampling)
    conversation = Conversation(
        lm, options.system, params, forget=options.forget, on_notice=lambda notice: _say(str(notice))
    )
    history = _History(conversation, options.history)
    for line in _lines():
        command, _, rest = line.strip().partition(" ")
        if command.startswith("/") and not command.startswith("//"):
            _obey(command, rest.strip(), history)
            continue
        try:
            for piece in conversation.stream(line.removeprefix("/") if line.startswith("//") else line):
                print(piece, end="", flush=True)
        except UserError as error:
            if not sys.stdin.isatty():
                raise
            _say(str(error))  # a person can say something else
            continue
        finally:
            history.keep()
        print(flush=True)
    return 0


class _History:
    """A conversation and the file that it is kept in, if there is one."""

    def __init__(self, conversation: Conversation, path: str) -> None:
        self.conversation, self.path = conversation, path
        if path and Path(path).exists():
            conversation.load(path)
            _say(f"going on from {path}: {len(conversation.messages)} messages")
            self.n_kept = len(conversation.messages)
        else:
            self.n_kept = 0
            self.keep()

    def keep(self, *, anew: bool = False) -> None:
        """Write what is not in the file yet."""
        n = len(self.conversation.messages)
        if self.path and (anew or n != self.n_kept):
            self.conversation.save(self.path, 0 if anew else self.n_kept)
            self.n_kept = n


def _obey(command: str, rest: str, history: _History) -> None:
    conversation = history.conversation
    if command == "/save":
        path = rest or history.path
        if not path:
            _say("name a file: /save talk.jsonl")
            return
        try:
            conversation.save(path)
            _say(f"wrote {len(conversation.messages)} messages to {path}")
        except UserError as error:
            _say(str(error))
    elif command == "/undo":
        _say("taken back" if conversation.undo() else "there is nothing to take back")
        history.keep(anew=True)
    elif command == "/reset":
        conversation.reset()
        _say("forgotten")
        history.keep(anew=True)
    elif command == "/help":
        _say(_HELP)
    else:
        _say(f"there is no command {command}; see /help. For a message that begins with /, write //")


def _lines() -> Any:
    """What the user says, line by line, up to an empty one."""
    while True:
        try:
            line = input("you> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise UserError(f"the input is not UTF-8 ({error})", where="standard input", mend="Convert it.") from error
        if not line.strip():
            return
        yield line


def _say(sentence: str) -> None:
    """Something of bimo's own, apart from what the model says."""
    print(f"({sentence})" if "\n" not in sentence else sentence, file=sys.stderr, flush=True)
