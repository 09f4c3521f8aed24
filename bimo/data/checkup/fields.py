"""Which fields the records of a file have, for which task, and what is wrong with a record that deviates from them.

The set is recognised from the first records: one of the tables below, or whatever most of them hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter
from typing import Any

from bimo.core.errors import nearest

Fault = tuple[str, str, str]
"""Kind, what and mend of something wrong with a record."""

_RENAME = "Rename it."
_FILL = "Fill it in, or remove the row."


@dataclass(frozen=True)
class Task:
    """A set of fields that belongs to a task.

    Attributes:
        name: Of the task, for people.
        texts: Fields that hold text, in order.
        label: The field that holds a label; '' for none.
        is_pair: The second text is the first in other words: they are compared.
    """

    name: str
    texts: tuple[str, ...]
    label: str = ""
    is_pair: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """All that a record of the task must have."""
        return (*self.texts, *((self.label,) if self.label else ()))


MESSAGES = Task("conversations", ("messages",))
TASKS = (
    MESSAGES,
    Task("translation", ("source", "target"), is_pair=True),
    Task("translation", ("src", "tgt"), is_pair=True),
    Task("summaries", ("document", "summary"), is_pair=True),
    Task("summaries", ("article", "summary"), is_pair=True),
    Task("prompts with completions", ("prompt", "completion")),
    Task("prompts with completions", ("prompt", "response")),
    Task("preferences", ("prompt", "chosen", "rejected")),
    Task("instructions", ("instruction", "output")),
    Task("prompts with completions", ("input", "output")),
    Task("questions with answers", ("question", "answer")),
    Task("classification", ("text", "label"), label="label"),
)
CLASSIFICATION = TASKS[-1]
ROLES = ("system", "user", "assistant", "tool", "function", "developer")


def recognise_task(records: Sequence[Mapping[str, object]], text_field: str) -> Task | None:
    """The task of most of these records; None when no field holds text that is known."""
    if not records:
        return None
    counts = Counter(key for record in records for key in record)
    often = {key for key, n in counts.items() if 2 * n >= len(records)}
    if text_field != "text" and text_field in often:
        return Task("text", (text_field,))
    for task in TASKS:
        if task == CLASSIFICATION:
            continue
        if often.issuperset(task.fields):
            return task
    if often.issuperset(("text", "label")):
        return Task("classification", ("text",), label="label")
    return Task("text", (text_field,)) if text_field in often else None


@dataclass
class RecordChecker:
    """Checks the records of one file against its task.

    Attributes:
        task: What they are for.
        required: Fields that nearly all of the first records have.
        known: Fields that the first records have, one alone of many excepted.
        kinds: The type of each required field in most of the first records.
    """

    task: Task
    required: tuple[str, ...] = ()
    kinds: dict[str, type] = field(default_factory=dict)
    known: frozenset[str] = frozenset()
    _good: set[tuple[str, ...]] = field(default_factory=set)
    _others: tuple[tuple[str, type], ...] = ()

    def __post_init__(self) -> None:
        names = self.task.texts
        # itemgetter is a third faster than a loop, and gives a bare value for one name.
        get = itemgetter(*names)
        self._pick: Callable[[Mapping[str, object]], tuple[Any, ...]] = get if len(names) > 1 else lambda r: (get(r),)

    @classmethod
    def learn(cls, task: Task, records: Sequence[Mapping[str, object]]) -> RecordChecker:
        """Which further fields belong to a record, and of which type, judged from the first records."""
        counts = Counter(key for record in records for key in record)
        required = tuple(key for key, n in counts.items() if n >= 0.9 * len(records) or key in task.fields)
        kinds = {}
        for key in required:
            values = Counter(type(record[key]) for record in records if record.get(key) is not None)
            if values and values.most_common(1)[0][1] >= 0.9 * sum(values.values()):
                kinds[key] = values.most_common(1)[0][0]
        often = frozenset(key for key, n in counts.items() if n > 1 or len(records) < 20)
        checker = cls(task, required, kinds, often)
        for key in task.texts:
            checker.kinds[key] = list if task is MESSAGES else str
        checker._others = tuple((key, kind) for key, kind in kinds.items() if key not in task.texts)
        return checker

    def texts_of(self, record: Mapping[str, object]) -> tuple[str, ...] | None:
        """The texts of a record in which nothing is wrong; None when it has to be looked at."""
        if tuple(record) not in self._good:
            if any(key not in record for key in self.required) or not self.known.issuperset(record):
                return None
            self._good.add(tuple(record))
        for key, kind in self._others:
            if type(record[key]) is not kind or record[key] == "":
                return None
        if self.task is MESSAGES:
            text = conversation_text(record["messages"])
            return None if text is None else (text,)
        texts = self._pick(record)
        for text in texts:
            if type(text) is not str or not text or text.isspace():
                return None
        return texts

    def faults(self, record: Mapping[str, object]) -> Iterator[Fault]:
        """What is wrong with a record, for those that `texts_of` does not take."""
        for key in self.required:
            if key not in self.task.fields:
                if key not in record or not isinstance(record[key], self.kinds.get(key, object)):
                    yield "further field", f"the field {key!r} is missing or of another type than in other rows", ""
            elif key not in record:
                strangers = [name for name in record if name not in self.required]
                near = nearest(key, strangers) or next((f" (instead: {n!r})" for n in strangers), "")
                yield "wrong field", f"the field {key!r} is missing{near}", _RENAME if near else _FILL
            elif record[key] is None:
                yield "wrong field", f"the field {key!r} is null", _FILL
            elif key in self.kinds and type(record[key]) is not self.kinds[key]:
                kind, wanted = type(record[key]).__name__, self.kinds[key].__name__
                if {kind, wanted} != {"int", "float"}:
                    yield (
                        "wrong field",
                        f"the field {key!r} is {kind}, not {wanted}",
                        f"Write a value of type {wanted}.",
                    )
        for key in record:
            if key not in self.known and all(name in record for name in self.task.fields):
                yield "further field", f"the field {key!r} stands in no other row{nearest(key, self.known)}", ""
        for key in self.task.fields:
            if isinstance(record.get(key), str) and not str(record[key]).strip():
                yield "empty", f"the field {key!r} is empty", _FILL
        messages = record.get("messages")
        if self.task is MESSAGES and isinstance(messages, list):
            yield from message_faults(messages)


def conversation_text(messages: object) -> str | None:
    """What is said in a conversation in which nothing is wrong, a line end between the turns; else None."""
    texts: list[str] = []
    before = ""
    try:
        for message in messages:  # type: ignore[attr-defined]  # anything that is not a list ends in the except
            role, content = message["role"], message["content"]
            if not content or content.isspace() or _ORDER.get((before, role)) is None:
                return None
            if texts and content == texts[-1]:
                return None
            before = role
            texts.append(content)
    except (TypeError, KeyError, AttributeError):
        return None
    return "\n".join(texts) if before == "assistant" else None


_ORDER = {
    (before, role): True
    for before, roles in {
        "": ("system", "user"),
        "system": ("user",),
        "user": ("assistant",),
        "assistant": ("user",),
    }.items()
    for role in roles
}


def message_faults(messages: Sequence[object]) -> Iterator[Fault]:
    """What is wrong with a conversation."""
    if not messages:
        yield "empty", "the conversation has no messages", "Remove the row."
        return
    roles: list[str] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            yield "wrong field", f"message {number} is {type(message).__name__}, not an object", _FILL
            return
        fault = _message_fault(number, message)
        if fault:
            yield fault
            if fault[0] == "wrong field":
                return
        roles.append(str(message.get("role")))
    contents = [message["content"] for message in messages if isinstance(message, Mapping) and "content" in message]
    for number, (before, content) in enumerate(pairwise(contents), 2):
        if content and content == before:
            yield "copied", f"message {number} says the same as the one before it", ""
            break
    yield from _order_faults(roles)


def _message_fault(number: int, message: Mapping[str, object]) -> Fault | None:
    for key in ("role", "content"):
        if key not in message:
            there = [name for name in message if name not in ("role", "content")]
            if key == "content" and "tool_calls" in message:
                return None
            return "wrong field", f"message {number} has no {key!r}{nearest(key, there)}", _RENAME
    role, content = message["role"], message["content"]
    if role not in ROLES:
        what = f"message {number} has the unknown role {role!r}{nearest(str(role), ROLES)}"
        return "roles", what, f"Known are {', '.join(ROLES[:4])}."
    if content is None and "tool_calls" in message:
        return None
    if not isinstance(content, str):
        return "wrong field", f"the content of message {number} is {type(content).__name__}, not text", _FILL
    return None if content.strip() else ("empty", f"message {number} ({role}) is empty", "Fill it in, or remove it.")


def _order_faults(roles: Sequence[str]) -> Iterator[Fault]:
    spoken = [role for role in roles if role in ("user", "assistant")]
    if "assistant" not in spoken:
        yield "roles", "the conversation has no answer of the assistant", "There is nothing to learn: remove the row."
        return
    if any(role not in ROLES for role in roles) or "tool" in roles or "function" in roles:
        return
    if "system" in roles[1:]:
        number = roles.index("system", 1) + 1
        yield "roles", f"message {number} is from the system, in the midst of the conversation", "Put it first."
    elif spoken[0] == "assistant":
        yield "roles", "the assistant speaks first", "Put the user's message before it."
    else:
        for number, (before, role) in enumerate(pairwise(roles), 2):
            if before == role:
                yield (
                    "roles",
                    f"messages {number - 1} and {number} are both from the {role}",
                    "Join them, or add the missing turn.",
                )
                return
    if spoken[-1] == "user":
        yield "no answer at the end", "the last message is the user's", "Add the answer, or remove the message."
