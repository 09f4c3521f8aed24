"""What can be wrong with a record: its fields, its label, the sides of a translation, the turns of a conversation."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from data.clean_sets import OPINIONS, Row, prose, sentence
from data.seeding import JSON_ROWS, LABELS, PAIRS, TABLES, TASKS, Defect, Draft, changed_row

BROKEN = "broken|json|row"


def _renamed(draft: Draft, row: dict[str, Any]) -> Row:
    """One letter of the name of a field too many, too few, or in the wrong place."""
    name = draft.random.choice([name for name in row if name != "origin"])
    wrong = draft.random.choice((name[:-1], name + "s", name[1] + name[0] + name[2:], name.capitalize()))
    return {wrong if key == name else key: value for key, value in row.items()}


def _without(draft: Draft, row: dict[str, Any]) -> Row:
    gone = draft.random.choice([name for name in row if name != "origin"])
    return {key: value for key, value in row.items() if key != gone}


def _with_value(*values: Any) -> Callable[[Draft, Any], Row]:
    """A record with one of these in the place of its text."""
    return lambda draft, row: {**row, draft.form.field or "messages": draft.random.choice(values)}


def _messages(change: Callable[[Draft, list[dict[str, Any]]], Any]) -> Callable[[Draft, Any], Row]:
    return lambda draft, row: {"messages": change(draft, [dict(message) for message in row["messages"]])}


def _in_message(**fields: Any) -> Callable[[Draft, Any], Row]:
    """A conversation with other fields in one of its questions or answers; None takes a field away."""

    def change(draft: Draft, messages: list[dict[str, Any]]) -> Any:
        message = draft.random.choice([message for message in messages if message["role"] != "system"])
        message.update(fields)
        for name in [name for name, value in fields.items() if value is None]:
            del message[name]
        return messages

    return _messages(change)


def _contradiction(draft: Draft) -> None:
    original = draft.place
    draft.copy_row()
    places = draft.places[draft.file]
    label = draft.row["label"]
    draft.rows[places[0]] = {**draft.row, "label": next(name for name in OPINIONS if name != label)}
    draft.places = {draft.file: [original, *places]}


def _label(change: Callable[[Random, str], str]) -> Callable[[Draft, Any], Row]:
    return lambda draft, row: {**row, "label": change(draft.random, row["label"])}


def _typo(random: Random, label: str) -> str:
    place = random.randrange(1, len(label) - 1)
    return random.choice((label[:place] + label[place + 1 :], label[:place] + label[place] + label[place:]))


def _far_too_long(draft: Draft, row: dict[str, Any]) -> Row:
    more = sentence(draft.random)
    language = "zh" if "chinese" in draft.form_name else "de"
    return {"source": more["en"].split(",")[0] + ".", "target": prose(draft.random, language, 25)}


FIELDS = "field|column"
ROWS = {
    "misspelt field": changed_row(_renamed, FIELDS, (*TASKS, "chats")),
    "missing field": changed_row(_without, FIELDS, TASKS),
    "no text but a number": changed_row(_with_value(3, 2.5, True), f"{FIELDS}|type|not text", (*TASKS, "english rows")),
    "no text but a list": changed_row(_with_value(["a", "b"], {"a": 1}), f"{FIELDS}|type|not text", TASKS),
    "null": changed_row(_with_value(None), f"{FIELDS}|empty|null", (*TASKS, "english rows", "chats")),
    "empty text": changed_row(_with_value("", "  ", "\n"), "empty", (*TASKS, "english rows", *TABLES)),
    "list for a record": changed_row(lambda draft, row: list(row.values()), BROKEN, JSON_ROWS),
    "number for a record": changed_row(lambda draft, row: draft.random.randrange(100), BROKEN, JSON_ROWS),
    "label with a typo": changed_row(_label(_typo), "label", LABELS),
    "label in capitals": changed_row(_label(lambda _, label: label.capitalize()), "label", LABELS),
    "label with a space": changed_row(_label(lambda _, label: label + " "), "label", LABELS),
    "number for a label": changed_row(lambda draft, row: {**row, "label": 1}, f"label|{FIELDS}|type", ("labels",)),
    "contradicting labels": Defect(LABELS, _contradiction, "contradict|different label|two labels"),
    "not translated": changed_row(
        lambda draft, row: {**row, "target": row["source"]}, "translat|same|equal|identical|copy|copied", PAIRS
    ),
    "sides changed": changed_row(
        lambda draft, row: {"source": row["target"], "target": row["source"]}, "language|script|swap", PAIRS
    ),
    "far too long a translation": changed_row(_far_too_long, "ratio|longer|length|times as long", PAIRS),
    "summary equals document": changed_row(
        lambda draft, row: {**row, "summary": row["document"]}, "same|equal|identical|copy|copied", ("summaries",)
    ),
    "summary longer than document": changed_row(
        lambda draft, row: {"document": row["summary"], "summary": row["document"]},
        "longer|ratio|length",
        ("summaries",),
    ),
    "empty label": changed_row(_label(lambda random, label: ""), "label|empty", LABELS),
    "columns changed": changed_row(
        lambda draft, row: {"text": row["label"], "label": row["text"]}, f"label|swap|{FIELDS}", LABELS
    ),
    "field too many": changed_row(lambda draft, row: {**row, "anotaton": "?"}, FIELDS, TASKS),
    "answer repeats the question": changed_row(
        lambda draft, row: {**row, "completion": row["prompt"]}, "same|equal|identical|copy|copied", ("answers",)
    ),
    "only a name": changed_row(lambda draft, row: "just a text", f"{BROKEN}|{FIELDS}|text", TASKS),
    "other names for turns": changed_row(
        lambda draft, row: {"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi."}]},
        f"{FIELDS}|role",
        ("chats",),
    ),
    "blank message": changed_row(_in_message(content=" \n "), "empty|blank|content", ("chats",)),
    "message twice": changed_row(
        _messages(lambda draft, messages: [*messages[:-1], {**messages[-1], "content": messages[-2]["content"]}]),
        "same|repeat|echo|copy|copied",
        ("chats",),
    ),
    "unknown role": changed_row(_in_message(role="asistant"), "role", ("chats",)),
    "no role": changed_row(_in_message(role=None), "role", ("chats",)),
    "empty message": changed_row(_in_message(content=""), "empty|content", ("chats",)),
    "message without content": changed_row(_in_message(content=None), f"content|{FIELDS}", ("chats",)),
    "message that is no text": changed_row(_in_message(content=["a"]), "content|type|not text", ("chats",)),
    "roles out of order": changed_row(
        _messages(lambda draft, messages: messages[:-1] + messages[-2:]), "role|order|row", ("chats",)
    ),
    "system message at the end": changed_row(
        _messages(lambda draft, messages: [*messages, {"role": "system", "content": "Be brief."}]),
        "role|order",
        ("chats",),
    ),
    "no answer": changed_row(
        _messages(lambda draft, messages: [m for m in messages if m["role"] != "assistant"]),
        "answer|assistant",
        ("chats",),
    ),
    "last question unanswered": changed_row(
        _messages(lambda draft, messages: messages[:-1]), "answer|assistant|ends|last", ("chats",)
    ),
    "no messages": changed_row(_messages(lambda draft, messages: []), "empty|no message", ("chats",)),
    "messages as text": changed_row(
        _messages(lambda draft, messages: json.dumps(messages)), f"{FIELDS}|type|list", ("chats",)
    ),
}
