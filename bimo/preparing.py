"""From text to tokens: which text a run reads, its tokenizer and its token shards, made or found in its folder."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from bimo.core.artifacts import RunDirectory
from bimo.core.config import CheckSettings, DataSettings, RunSettings
from bimo.core.errors import UserError
from bimo.data import Corpus, Document, Problem, is_validation
from bimo.data.checkup import Report, quick_check, verdict
from bimo.data.distinct import Distinct
from bimo.data.prepare import Preparation, Prepared, Source, overlap_problem
from bimo.live import Waiting
from bimo.tokenizer import Tokenizer

Look = Callable[[list[str], list[str], CheckSettings], Report]
"""(training paths, validation paths, what to look for) → what was found."""
_SHOWN_PROBLEMS = 10
_SHOWN_FINDINGS = 5


@dataclass
class Text:
    """The text of a run: its sources, and what could not be read of them.

    Attributes:
        sources: In the order of the paths.
        corpora: Those of the sources that are read from files, for progress.
        problems: Each only once, however often the text is read.
    """

    sources: list[Source]
    corpora: list[Corpus] = field(default_factory=list)
    problems: dict[Problem, None] = field(default_factory=dict)

    def progress(self) -> float:
        """Share of the current pass that has been read."""
        total = sum(corpus.total_bytes for corpus in self.corpora)
        return sum(corpus.progress.read_bytes for corpus in self.corpora) / total if total else 0.0


def open_text(settings: DataSettings, folder: Path) -> Text:
    """The text that the settings name; standard input is kept in the run's folder, because it is read twice."""
    if not settings.paths:
        raise UserError("no text was named", mend="Add it: bimo train recipe.yaml --data.paths '[FILE_OR_FOLDER]'")
    text = Text([])
    paths = [str(_keep_stdin(folder)) if path == "-" else path for path in settings.paths]
    groups = [[path] for path in paths] if settings.weights else [paths]
    share = 0.0 if settings.validation_paths else settings.validation_share
    wanted = [(f"source-{i}", group, share) for i, group in enumerate(groups)]
    if settings.validation_paths:
        wanted.append(("validation", settings.validation_paths, 1.0))
    for name, group, held_out in wanted:
        corpus = Corpus(group, settings, text.problems.setdefault)
        text.corpora.append(corpus)
        if settings.duplicates == "keep":
            text.sources.append(Source(name, corpus, corpus.fingerprint, held_out))
        else:
            distinct, settled = Distinct(corpus, settings.duplicates), f"{corpus.fingerprint} {settings.duplicates}"
            text.sources.append(Source(name, distinct, settled, held_out))
    return text


def prepare(settings: RunSettings, text: Text, console: Console) -> tuple[Tokenizer, Prepared]:
    """Tokenizer and token shards of a run, made or found in its folder."""
    run = RunDirectory(Path(settings.folder) / settings.name)
    for corpus in text.corpora:
        say(console, f"text: {len(corpus.files)} file(s), {corpus.total_bytes / 1e6:.1f} MB on disk. {corpus.reason}")
    if settings.data.check and not run.check.exists():
        look_at_data(settings.data, text, run, console)
    tokenizer = make_tokenizer(settings, run, text, console)
    with Waiting(console, "encoding", text.progress) as waiting:
        preparation = Preparation(
            tokenizer,
            run.tokens,
            threads=settings.data.workers,
            on_progress=waiting.tick,
            on_overlap=lambda document: text.problems.setdefault(overlap_problem(document)),
        )
        prepared = preparation.run(text.sources)
    report_problems(text, run, console)
    n_tokens = sum(shards.n_tokens for shards in prepared.train)
    n_bytes = sum(shards.n_text_bytes for shards in prepared.train)
    n_documents = sum(shards.n_documents for shards in prepared.train)
    say(
        console,
        f"tokens: {n_tokens:,} to train on from {n_documents:,} documents ({n_bytes / n_tokens:.2f} bytes each), "
        f"{prepared.valid.n_tokens:,} held out from {prepared.valid.n_documents:,}",
    )
    return tokenizer, prepared


def training_documents(text: Text) -> Iterator[Document]:
    """All documents that are not held out."""
    for source in text.sources:
        for document in source.documents:
            if not is_validation(document, source.validation_share):
                yield document


def say(console: Console, sentence: str) -> None:
    """Print a plain line."""
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def make_tokenizer(settings: RunSettings, run: RunDirectory, text: Text, console: Console) -> Tokenizer:
    """The tokenizer that the settings name, the one in the run's folder, or a new one."""
    own = settings.tokenizer
    if own.path:
        tokenizer = Tokenizer.load(own.path)
    elif (run.path / "tokenizer.json").exists():
        tokenizer = Tokenizer.load(run.path)
    else:
        limit = own.train_megabytes * 1e6
        total = sum(corpus.total_bytes for corpus in text.corpora)
        share = min(1.0, limit / total) if total else 1.0
        with Waiting(console, f"training a tokenizer of {own.vocab_size} ids", text.progress) as waiting:
            tokenizer = Tokenizer.train(waiting.watch(_sample(training_documents(text), share, limit)), own.vocab_size)
        if tokenizer.vocab_size < own.vocab_size:
            say(console, f"tokenizer: the text gives only {tokenizer.vocab_size} ids, not {own.vocab_size}")
    tokenizer.save(run.path)
    return tokenizer


def _sample(documents: Iterable[Document], share: float, limit: float) -> Iterator[str]:
    """Texts of a share of the documents, chosen by their hash, up to `limit` bytes in all."""
    size = 0
    for document in documents:
        # Other bits of the hash than those that settle what is held out.
        if (document.fingerprint & 0xFFFFFFFF) < share * 2**32:
            size += len(document.text.encode())
            if size > limit:
                return
            yield document.text


def report_problems(text: Text, run: RunDirectory, console: Console) -> None:
    """What could not be read: the first few on the screen, all of them in events.jsonl."""
    problems = list(text.problems)
    for problem in problems[:_SHOWN_PROBLEMS]:
        say(console, f"left out: {problem}")
    if len(problems) > _SHOWN_PROBLEMS:
        say(console, f"left out: {len(problems) - _SHOWN_PROBLEMS} more, all listed in {run.path / 'events.jsonl'}")
    for problem in problems:
        run.log_event("left out", file=problem.file, row=problem.row, what=problem.what)


def look_at_data(
    settings: DataSettings, text: Text, run: RunDirectory, console: Console, look: Look = quick_check
) -> None:
    """The checkup before a run: the worst on the screen, all of it in `check.json`."""
    sides: dict[bool, list[str]] = {True: [], False: []}
    for source in text.sources:
        documents = source.documents.documents if isinstance(source.documents, Distinct) else source.documents
        if isinstance(documents, Corpus):
            sides[source.validation_share == 1].extend(documents.paths)
    if not sides[False]:
        return
    wanted = CheckSettings(text_field=settings.text_field, documents=settings.documents)
    with Waiting(console, "looking at the text", lambda: 0.0):
        report = look(sides[False], sides[True], wanted)
    report.save(run.check)
    worst = [f"{finding.where}: {finding.what}" for finding in report.findings if finding.severity != "note"]
    for line in worst[:_SHOWN_FINDINGS]:
        say(console, f"data: {line}")
    say(console, f"data: {verdict(report, hint=False)}")
    if worst:
        names = " ".join(map(shlex.quote, sides[False]))
        say(console, f"data: all of it is in {run.check}; more: bimo check {names}")


def _keep_stdin(folder: Path) -> Path:
    """Standard input as a file, because the tokenizer and the encoding both read it."""
    path = folder / "stdin.txt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    return path
