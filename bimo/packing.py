"""`bimo pack`: an adapter becomes a language pack, with what it gains over its model; and one pack for each language.

The gain is measured on rows that nothing was trained on: the model with the adapter beside the model alone, with 95 %
intervals of the difference, in bits per byte and in the scores of the task.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bimo.core.artifacts import RunDirectory, write_folder, write_text
from bimo.core.config import DataSettings, RunSettings, TaskData
from bimo.core.errors import UserError
from bimo.core.json_files import finite, read_json
from bimo.core.settings import Settings
from bimo.data.files import find_files
from bimo.data.records import table_rows
from bimo.data.tables import Broken
from bimo.evaluation.evaluate import evaluate
from bimo.finetuning import ADAPTER as RUN_ADAPTER
from bimo.finetuning import finetune
from bimo.interop import load_adapter
from bimo.lm import LM, load
from bimo.model.lora import Adapter, merge
from bimo.model.packed import unpack
from bimo.serving.packs import ADAPTER, PACK, Fingerprint, Pack, PackManifest, fingerprint, read_pack
from bimo.tasks.languages import language_code
from bimo.tasks.recognising import sure_language

_FILES = ("adapter_config.json", "adapter_model.safetensors")
_PARTS = ("train", "valid")
Say = Callable[[str], None]


@dataclass(frozen=True)
class PackWish(Settings):
    """What a pack shall hold beside its adapter."""

    language: str = ""
    """Its language: a code such as zh, or its English name."""
    name: str = ""
    """What requests call it. Empty: its language's code."""
    base: str = ""
    """The model that the adapter belongs to. Empty: the one that the run or the adapter names."""
    any_weights: bool = False
    """Let it go with other weights of the same shape and vocabulary, such as a quantised model."""
    evaluation: str = ""
    """Rows of the language to measure the gain on; they go into the pack."""
    task: str = ""
    """What the rows are. Empty: what the run was trained for."""
    limit: int = 200
    """Rows to measure on at most; 0: all."""
    system: str = ""
    """What a conversation begins with that has no system message of its own."""
    template: str = ""
    """A file with the chat template of the adapter, where it is not the model's."""
    guard: list[str] = field(default_factory=list)
    """Rules for its requests, beside the server's, such as personal_data(action="mask")."""
    license: str = ""
    """Under which it may be used."""
    notes: str = ""
    """For people."""

    def problems(self) -> list[str]:
        return [] if self.language else ["language is missing, such as zh"]


@dataclass(frozen=True, slots=True)
class Gain:
    """A metric of the model with the adapter beside the model alone, on the same rows.

    Attributes:
        metric: Its name.
        higher_is_better: Which way is up.
        alone: The model's.
        pack: With the adapter.
        low: Lower end of the 95 % interval of the difference, pack less alone.
        high: Its upper end.
        p: How often chance alone makes such a difference.
    """

    metric: str
    higher_is_better: bool
    alone: float
    pack: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        better = (self.pack > self.alone) == self.higher_is_better
        verdict = ("better" if better else "worse") if self.p < 0.05 else "no clear difference"
        difference = f"{self.pack - self.alone:+.4g} (95 %: {self.low:+.4g} to {self.high:+.4g})"
        return f"{self.metric}: {self.alone:.4g} → {self.pack:.4g}, {difference}, {verdict}"


def make_pack(source: Path, output: Path, wish: PackWish, say: Say = print) -> tuple[Pack, list[Gain]]:
    """Make a pack of a run that trained an adapter, or of an adapter's folder.

    Args:
        source: The run, or the folder.
        output: Where the pack goes.
        wish: What else it holds.
        say: Told what was found.

    Raises:
        UserError: There is no adapter, it does not fit, or a file cannot be used.
    """
    code = language_code(wish.language)
    folder = source / RUN_ADAPTER if (source / RUN_ADAPTER).is_dir() else source
    if not (folder / _FILES[0]).is_file():
        mend = "Name a run with adapt.method lora, or the folder of an adapter."
        raise UserError("there is no adapter", where=str(source), mend=mend)
    base = load(wish.base or _base_of(source, folder))
    known = fingerprint(base)  # of the model as it lies, before anything is unpacked
    name, gains = wish.name or code, list[Gain]()
    adapter = load_adapter(folder, base.model, name)
    task = wish.task or _task_of(source)
    if wish.evaluation:
        gains = measured_gains(base, adapter, Path(wish.evaluation), task, wish.limit)
        for gain in gains:
            say(f"  {gain}")
    manifest = PackManifest(
        name=name, language=code, base=Fingerprint(known.shape, "" if wish.any_weights else known.weights),
        template="chat_template.jinja" if wish.template else "", system=wish.system,
        guard="guard.yaml" if wish.guard else "", evaluation="evaluation.jsonl" if wish.evaluation else "",
        task=task, gain="gain.json" if gains else "", license=wish.license, notes=wish.notes,
    )  # fmt: skip
    with write_folder(output) as target:
        _write(target, folder, manifest, wish, gains)
    return read_pack(output, known), gains


def train_packs(
    settings: RunSettings, languages: Sequence[str], output: Path, console: Console, wish: PackWish
) -> list[tuple[Pack, list[Gain]]]:
    """Train an adapter for each language on its rows of some data, and make a pack of each.

    Args:
        settings: A recipe with one task and adapt.method lora; its rows are those of all languages.
        languages: Codes or names.
        output: The folder of packs.
        console: Where it is said what goes on.
        wish: What the packs hold beside; language, name and evaluation are each one's own.

    Raises:
        UserError: The recipe trains no adapter, or a language has no rows.
    """
    if settings.adapt.method != "lora" or len(settings.tasks) != 1:
        mend = "Take recipes/language_pack.yaml."
        raise UserError("a pack is an adapter, trained for one task", where="adapt.method, tasks", mend=mend)
    codes = list(dict.fromkeys(language_code(language) for language in languages))
    if not codes:
        raise UserError("no language is named", where="--languages", mend="For example: --languages '[zh, de]'.")
    (task,) = settings.tasks
    train = _by_language(task.train or settings.data.paths, codes)
    valid = _by_language(task.valid or settings.data.validation_paths, codes)
    for code in codes:
        if not valid[code]:
            train[code], valid[code] = _apart(train[code])
        if not train[code] or not valid[code]:
            what = f"there are {len(train[code])} rows to train on and {len(valid[code])} to measure on"
            raise UserError(f"{what} in {code!r}", where="data", mend="Give rows with lang, or longer texts.")

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    found = []
    for code in codes:
        name = f"{settings.name}-{code}"
        files = {part: RunDirectory(Path(settings.folder) / f"{name}-rows").path / f"{part}.jsonl" for part in _PARTS}
        for part, rows in zip(_PARTS, (train[code], valid[code]), strict=True):
            _write_rows(files[part], rows)
        own = replace(task, train=[str(files["train"])], valid=[str(files["valid"])])
        console.print(f"[bold]{code}[/bold]: {len(train[code]):,} rows to train on, {len(valid[code]):,} to measure on")
        outcome = finetune(replace(settings, name=name, tasks=[own], data=DataSettings()), console)
        if outcome.trainer.interrupted:
            raise KeyboardInterrupt
        about = replace(wish, language=code, name=wish.name and f"{wish.name}-{code}", evaluation=str(files["valid"]))
        about = replace(about, base=settings.adapt.base, task=task.task)
        console.print(f"[bold]{code}[/bold]: the model alone → with the pack")
        found.append(make_pack(outcome.run.path, output / code, about, say))
    return found


def _by_language(paths: Sequence[str], codes: Sequence[str]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by language: by their field `lang`, else by what the longest text in them reads as."""
    found: dict[str, list[Mapping[str, Any]]] = {code: [] for code in codes}
    for record in _records(paths):
        told = record.get("lang")
        code = told if isinstance(told, str) and told else _language_of(record)
        if code in found:
            found[code].append(record)
    return found


def _language_of(record: Mapping[str, Any]) -> str:
    """The language of what a model must say: the target, the summary, the last message, or the longest text."""
    messages = record.get("messages")
    said = [m.get("content", "") for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    wanted = [record[key] for key in ("target", "summary", "chosen", "completion") if isinstance(record.get(key), str)]
    texts = wanted or said[-1:] or [value for value in record.values() if isinstance(value, str)]
    guess = sure_language(max(texts, key=len, default=""))
    return guess.language if guess else ""


def _apart(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """A twentieth, by what the rows hold, is measured on; the rest is trained on."""
    chosen = [hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).digest()[0] < 13 for row in rows]
    parts = [[row for row, held in zip(rows, chosen, strict=True) if held is part] for part in (False, True)]
    return parts[0], parts[1]


def _records(paths: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """All records of some files that are whole; what is broken is named when they are trained on."""
    for file in find_files(paths):
        for _, row in table_rows(file):
            if not isinstance(row, Broken):
                yield row


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def measured_gains(base: LM, adapter: Adapter, rows: Path, task: str, limit: int) -> list[Gain]:
    """What an adapter gains over its model on rows."""
    with_it = LM(merge(unpack(copy.deepcopy(base.model)), adapter), base.tokenizer)
    alone = LM(base.model, base.tokenizer)
    with_it.source, alone.source = Path(adapter.name), Path("the model alone")
    found = evaluate(with_it, [str(rows)], task, against=[alone], floors=[], limit=limit)
    other = next(contender for contender in found.contenders if contender.kind == "other model")
    gains = []
    for measure in found.measures:
        ours, theirs = found.ours.scores[measure.name], other.scores[measure.name]
        difference = other.differences[measure.name]
        gains.append(
            Gain(
                measure.name, measure.higher_is_better, theirs.value, ours.value, difference.low, difference.high,
                difference.p,
            )
        )  # fmt: skip
    return gains


def _write(target: Path, adapter: Path, manifest: PackManifest, wish: PackWish, gains: Sequence[Gain]) -> None:
    import yaml

    (target / ADAPTER).mkdir()
    for name in _FILES:
        shutil.copyfile(adapter / name, target / ADAPTER / name)
    manifest.save(target / PACK)
    if wish.template:
        shutil.copyfile(_file(wish.template), target / manifest.template)
    if wish.guard:
        (target / manifest.guard).write_text(yaml.safe_dump(list(wish.guard), allow_unicode=True), encoding="utf-8")
    if wish.evaluation:
        _write_rows(target / manifest.evaluation, list(_records([wish.evaluation])))
    if gains:
        content = json.dumps(finite({"gains": [asdict(gain) for gain in gains]}), indent=1, ensure_ascii=False)
        (target / manifest.gain).write_text(content + "\n", encoding="utf-8")


def _base_of(source: Path, adapter: Path) -> str:
    """The model that a run began with, or that an adapter names."""
    run = RunDirectory(source).settings
    named = RunSettings.from_dict(_yaml(run)).adapt.base if run.is_file() else ""
    named = named or str(read_json(adapter / _FILES[0]).get("base_model_name_or_path") or "")
    if not named:
        raise UserError("it is not said which model it belongs to", where=str(source), mend="Add --base MODEL.")
    return named


def _task_of(source: Path) -> str:
    """What a run was trained for, where it says so."""
    run = RunDirectory(source).settings
    tasks: list[TaskData] = RunSettings.from_dict(_yaml(run)).tasks if run.is_file() else []
    return tasks[0].task if tasks else ""


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def _file(path: str) -> Path:
    if not Path(path).is_file():
        raise UserError("no such file", where=path, mend="Check the path.")
    return Path(path)
