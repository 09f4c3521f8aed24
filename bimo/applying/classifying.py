"""Labels of texts: by the model's head of labels, or by how likely it finds each label as its answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bimo.applying.asking import Asked, OnWarning, given_back
from bimo.applying.results import Classified, Notice
from bimo.applying.working import Answer, Ask, Source, Work, Works, in_order
from bimo.core.errors import UserError
from bimo.tasks.classification import label_request, labels_of
from bimo.tasks.portions import portions
from bimo.tasks.task import Message, asked

if TYPE_CHECKING:
    from bimo.lm import LM
    from bimo.model.heads import LabelHead

_AT_ONCE = 32


class Classifier:
    """Classifies with one model.

    Args:
        lm: The model.
        labels: Those to choose from; empty: those that the model was trained with.

    Raises:
        UserError: There are fewer than two, or the model cannot be asked.
    """

    def __init__(self, lm: LM, labels: Sequence[str] = ()) -> None:
        self._asked = Asked(lm, "classification")
        given = [labels] if isinstance(labels, str) else list(labels)
        self.labels: tuple[str, ...] = tuple(given or getattr(self._asked.task, "labels", ()))
        if len(set(self.labels)) < 2 or not all(isinstance(label, str) and label.strip() for label in self.labels):
            what = (
                f"there must be two labels or more, are {list(self.labels)}" if self.labels else "no labels are known"
            )
            raise UserError(what, where="labels", mend="Name them: labels=['good', 'bad'].")
        self.labels = tuple(dict.fromkeys(self.labels))
        trained = tuple(labels_of(lm.tasks))
        self._head: LabelHead | None = lm.label_head if self.labels == trained else None
        empty = self._request("")
        longest = max(len(self._continuation(self._asked.ids(empty), "", label)) for label in self.labels)
        self._most = self._asked.room(empty, longest, "a text and its label")

    def stream(self, texts: Iterable[str] | Source[str]) -> Iterator[Classified | UserError]:
        """The label of each text, in order; a text that could not be classified gives its error."""
        works = Works(texts, lambda text: [self.work(text)])
        return in_order(self._asked.engine, works, _AT_ONCE)

    def work(self, text: str) -> Work[Classified]:
        """One text: score every label behind it. A text that is too long is judged by all of its parts together."""
        parts = portions(text, self._most, self._asked.count)
        if self._head is not None:
            states = yield [Ask(self._asked.ids(self._request(part.text)), want="last") for part in parts]
            shares = self._head.shares(np.stack([_sound(state) for state in states]))  # (parts, labels)
        else:
            answers = yield [self._ask(part.text, label) for part in parts for label in self.labels]
            totals = np.array([sum(_sound(answer)) for answer in answers]).reshape(len(parts), len(self.labels))
            weights = np.exp(totals - totals.max(axis=1, keepdims=True))
            shares = weights / weights.sum(axis=1, keepdims=True)
        sizes = np.array([len(part.text) for part in parts], dtype=np.float64)
        found = (sizes / sizes.sum()) @ shares  # (labels,)
        notices: tuple[Notice, ...] = ()
        if len(parts) > 1:
            what = f"the text is longer than the model sees at once: {len(parts)} parts were judged, and averaged"
            notices = (Notice(what),)
        probabilities = dict(zip(self.labels, found.tolist(), strict=True))
        return Classified(self.labels[int(found.argmax())], probabilities, notices)

    def _request(self, text: str) -> Sequence[Message]:
        """As the model has learned it; one that has not learned it is told the labels."""
        if self._asked.task is not None:
            return label_request(text)
        return asked(f"Classify the text as one of: {', '.join(self.labels)}. Answer with the label alone.", text)

    def _ask(self, text: str, label: str) -> Ask:
        ids = self._asked.ids(self._request(text))
        own = self._continuation(ids, text, label)
        return Ask((*ids, *own), want="score", n_context=len(ids))

    def _continuation(self, ids: Sequence[int], text: str, label: str) -> tuple[int, ...]:
        """The label as an answer, up to the token that ends it: so "good" is told from "good grief"."""
        tokenizer = self._asked.tokenizer
        ends = tokenizer.end_ids
        if tokenizer.has_chat_template:
            messages = [*self._request(text), {"role": "assistant", "content": label}]
            whole = tuple(tokenizer.encode_chat(messages, add_generation_prompt=False))
            if whole[: len(ids)] == tuple(ids) and len(whole) > len(ids):
                own = whole[len(ids) :]
                end = next((place for place, token in enumerate(own) if token in ends), len(own) - 1)
                return own[: end + 1]
        end_id = tokenizer.end_id
        return (*tokenizer.encode(label), *([] if end_id is None else [end_id]))


def _sound(answer: Answer) -> Any:
    if isinstance(answer, UserError):
        raise answer
    return answer


def classify(
    lm: LM,
    texts: Any,
    labels: Sequence[str] = (),
    *,
    report: bool = False,
    on_warning: OnWarning | None = None,
) -> Any:
    """Say which label a text has, or several, or a stream of them.

    Args:
        lm: A model that was trained for classification, or one for chat.
        texts: A text gives a label, a list gives a list, anything else that gives texts gives an iterator, in order.
        labels: Those to choose from; empty: those that the model was trained with, out of its `tasks.json`.
        report: Give `Classified` with the probability of each label, instead of labels.
        on_warning: Told of each warning; None: they are logged, unless there is a report.

    Raises:
        UserError: There are no labels, a text is empty, or the model cannot be asked.
    """
    return given_back(texts, Classifier(lm, labels).stream, report=report, on_warning=on_warning)
