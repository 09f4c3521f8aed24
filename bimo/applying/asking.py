"""What the applications share: a model that can be asked, how much it can read, and answers for one text or many."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from bimo.applying.results import Notice
from bimo.core.errors import UserError
from bimo.engine import Engine
from bimo.tasks.prompts import prompt_ids
from bimo.tasks.task import Message, Task

if TYPE_CHECKING:
    from bimo.lm import LM

OnWarning = Callable[[Notice], None]
Result = TypeVar("Result")
_log = logging.getLogger("bimo")


class Asked:
    """A model that is asked to do a task.

    Args:
        lm: The model with its tokenizer.
        task: Name of the task.

    Attributes:
        engine: What answers.
        task: As the model was trained for it; None when it was not.

    Raises:
        UserError: The model knows no conversations, and was not trained for the task either.
    """

    def __init__(self, lm: LM, task: str) -> None:
        self.tokenizer = lm.tokenizer
        self.task: Task | None = next((own for own in lm.tasks if own.name == task), None)
        if self.task is None and not self.tokenizer.has_chat_template:
            raise UserError(
                f"this model has no chat template and was not trained for {task}, so it cannot be asked",
                where=str(lm.source or "model"),
                mend=f"Train it with the task {task!r}, or use a model made for chat.",
            )
        self.engine: Engine = lm.engine
        self.context_length = lm.model.spec.context_length

    def ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """What the model reads before it answers."""
        return tuple(prompt_ids(messages, self.tokenizer))

    def count(self, text: str) -> int:
        """How many tokens a text takes."""
        return len(self.tokenizer.encode_array(text))

    def room(self, empty: Sequence[Message], max_tokens: int, what: str) -> int:
        """How many tokens a text may have that goes into a request whose messages are `empty` without it.

        Raises:
            UserError: There is no room worth the name.
        """
        spare = 4  # tokens at the seams can come out differently
        room = self.context_length - len(self.ids(empty)) - max_tokens - spare
        if room < spare:
            raise UserError(
                f"the model's context of {self.context_length} tokens has no room for {what}",
                where="model",
                mend="Use a model with a longer context, or smaller max_tokens.",
            )
        return room


def given_back(
    texts: Any,
    results: Callable[[Iterable[str]], Iterator[Result | UserError]],
    *,
    report: bool,
    on_warning: OnWarning | None,
    shown: Callable[[Result], str] = str,
) -> Any:
    """Results in the shape in which the texts came: one for one, a list for a list, an iterator for all else.

    Args:
        texts: A text, a list of texts, or what gives them one by one.
        results: Texts to results, in a stream.
        report: Give the results themselves, instead of their texts.
        on_warning: Told of each warning; None: they are logged, unless there is a report that holds them.
        shown: The text of a result.

    Raises:
        UserError: Something in it is no text, or could not be done.
    """
    if not isinstance(texts, (str, Iterable)):
        what = f"texts are a text or several, not {type(texts).__name__}"
        raise UserError(what, mend="Give a text, a list of texts, or an iterator.")
    tell = on_warning or ((lambda notice: None) if report else _logged)

    def stream() -> Iterator[Any]:
        for number, result in enumerate(results(_checked(texts)), start=1):
            if isinstance(result, UserError):
                where = "text" if isinstance(texts, str) else f"text {number}"
                raise UserError(result.what, where=result.where or where, mend=result.mend) from result
            for notice in result.warnings:  # type: ignore[attr-defined]  # every result has them
                tell(notice)
            yield result if report else shown(result)

    if isinstance(texts, str):
        return next(stream())
    return list(stream()) if isinstance(texts, (list, tuple)) else stream()


def _checked(texts: Iterable[Any]) -> Iterator[str]:
    for number, text in enumerate([texts] if isinstance(texts, str) else texts, start=1):
        where = "text" if isinstance(texts, str) else f"text {number}"
        if not isinstance(text, str):
            raise UserError(f"it is {type(text).__name__}, not text", where=where, mend="Give texts.")
        if not text.strip():
            raise UserError("it is empty", where=where, mend="Leave it out.")
        yield text


def _logged(notice: Notice) -> None:
    _log.warning("%s", notice)
