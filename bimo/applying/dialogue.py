"""A conversation of any length with a model of a short memory: what no longer fits is left out or summarised, and said.

The system's message and the newest turns always stay. A history is a file of JSON lines, one message each, written turn
by turn, so that nothing is lost with the process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from bimo.applying.results import Notice
from bimo.applying.summarizing import Summarizer, SummarySettings
from bimo.applying.working import Ready, in_order
from bimo.core.errors import UserError
from bimo.engine import SamplingParams
from bimo.tokenizer.chat import check_messages

if TYPE_CHECKING:
    from bimo.lm import LM

Forget = Literal["drop", "summarize"]
Message = Mapping[str, str]
_EARLIER = "Earlier in this conversation: "
_SHORTEST_MEMORY = 8  # tokens
_LARGEST = 2**28  # bytes of a history
_AS_LINES = 'Write {"role": "user", "content": "…"} on each line; a system message may be the first.'


class Conversation:
    """What was said, and the model that answers.

    Args:
        lm: A model with a chat template.
        system: Instructions that come first and always stay.
        params: How answers are drawn; `max_tokens` of the context are kept free for the next one, half of it at most.
        forget: What becomes of turns that no longer fit: "drop", or "summarize" (by the model itself; needs a moment).
        on_notice: Told when the model stops reading a turn.

    Attributes:
        messages: All that was said, as {"role", "content"}, also what the model no longer reads.

    Raises:
        UserError: The model has no chat template, or the instructions leave no room in its context.
    """

    def __init__(
        self,
        lm: LM,
        system: str = "",
        params: SamplingParams | None = None,
        *,
        forget: Forget = "drop",
        on_notice: Callable[[Notice], None] | None = None,
    ) -> None:
        if not lm.tokenizer.has_chat_template:
            where = str(lm.source or "model")
            raise UserError("this model has no chat template", where=where, mend="Use bimo generate.")
        if forget not in get_args(Forget):
            raise UserError(f"it must be drop or summarize, is {forget!r}", where="forget", mend="Choose one of them.")
        self._lm, self._tokenizer = lm, lm.tokenizer
        self._params = params or SamplingParams()
        self._forget, self._tell = forget, on_notice or (lambda notice: None)
        self._context_length = lm.model.spec.context_length
        self.messages: list[Message] = [{"role": "system", "content": system}] if system else []
        self._start = self._first_turn  # of the turns that are read
        self._memory = ""  # what is known of those before
        if system and self._count([{"role": "user", "content": ""}]) > self._room:
            raise UserError(
                f"the instructions leave no room in a context of {self._context_length} tokens",
                where="system",
                mend="Shorten them.",
            )

    def say(self, text: str) -> str:
        """The model's answer to what the user says; see `stream`."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """The answer in pieces. What was said is kept when the answer is over, also one that was broken off.

        Raises:
            UserError: The text alone does not fit the model's context; the conversation stays as it was.
        """
        turn: Message = {"role": "user", "content": text}
        start, memory, ids = self._fitted(turn)
        dropped = start - self._start
        self._start, self._memory = start, memory
        if dropped:
            self._tell(Notice(self._dropped_sentence(dropped)))
        answer, over = "", False
        try:
            for piece in self._lm.engine.stream(ids, self._params):
                answer += piece
                yield piece
            over = True
        finally:
            if answer or over:  # a model may have nothing to say
                self.messages += [turn, {"role": "assistant", "content": answer}]

    def undo(self) -> bool:
        """Take back the last thing that the user said, and the answer; False: there is none."""
        last = next((n for n in reversed(range(len(self.messages))) if self.messages[n]["role"] == "user"), None)
        if last is None:
            return False
        del self.messages[last:]
        self._start = min(self._start, max(last, self._first_turn))
        return True

    def reset(self) -> None:
        """Forget all but the instructions."""
        del self.messages[self._first_turn :]
        self._start, self._memory = self._first_turn, ""

    @property
    def read(self) -> tuple[Message, ...]:
        """The messages that the model reads, what it knows of earlier ones included."""
        return tuple(self._shown(self._start, self._memory))

    def save(self, path: str | Path, since: int = 0) -> None:
        """Write messages as JSON lines.

        Args:
            path: The file.
            since: Number of the first one; above 0: those from there on are added to the file.

        Raises:
            UserError: The file cannot be written.
        """
        lines = "".join(json.dumps(dict(m), ensure_ascii=False) + "\n" for m in self.messages[since:])
        try:
            with Path(path).open("a" if since else "w", encoding="utf-8") as file:
                file.write(lines)
        except OSError as error:
            raise UserError(
                f"the history cannot be written ({error.strerror})", where=str(path), mend="Name another file."
            ) from error

    def load(self, path: str | Path) -> None:
        """Go on with a conversation that was saved; instructions of its own replace those of this one.

        Raises:
            UserError: There is no such file, or a line of it is no message.
        """
        found = read_history(path)
        if not found or found[0]["role"] != "system":
            found = [*self.messages[: self._first_turn], *found]
        self.messages = found
        self._start, self._memory = self._first_turn, ""

    @property
    def _first_turn(self) -> int:
        return int(bool(self.messages) and self.messages[0]["role"] == "system")

    @property
    def _room(self) -> int:
        """Tokens that a prompt may have: what stays free is for the answer."""
        return self._context_length - min(self._params.max_tokens, self._context_length // 2)

    def _shown(self, start: int, memory: str, *more: Message) -> list[Message]:
        """The messages that are read when turns from `start` on are."""
        system = self.messages[0]["content"] if self._first_turn else ""
        if memory:
            system = f"{system}\n\n{_EARLIER}{memory}" if system else _EARLIER + memory
        first: list[Message] = [{"role": "system", "content": system}] if system else []
        return [*first, *self.messages[start:], *more]

    def _count(self, turns: Sequence[Message]) -> int:
        return len(self._tokenizer.encode_chat(self._shown(len(self.messages), "", *turns)))

    def _fitted(self, turn: Message) -> tuple[int, str, list[int]]:
        """From where on turns are read, what is known of those before, and the prompt."""
        turns = [n for n in range(self._start, len(self.messages)) if self.messages[n]["role"] == "user"]
        starts = [*([self._start] if self._start not in turns else []), *turns, len(self.messages)]

        def prompt(start: int, memory: str) -> list[int]:
            return self._tokenizer.encode_chat(self._shown(start, memory, turn))

        if len(prompt(starts[-1], "")) > self._room:
            n, room = len(self._tokenizer.encode(turn["content"])), self._room
            raise UserError(
                f"the message has {n:,} tokens; beside the instructions and its answer, a context of "
                f"{self._context_length:,} has no room for it ({room:,} at most, all in all)",
                where="message",
                mend="Shorten it; bimo summarize reads texts of any length.",
            )
        low, high = 0, len(starts) - 1  # the prompt shrinks from start to start
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(prompt(starts[middle], self._memory)) <= self._room else (middle + 1, high)
        start, memory = starts[low], self._memory
        if start > self._start and self._forget == "summarize":
            start, memory = self._summarized(starts[low:], prompt)
        ids = prompt(start, memory)
        if len(ids) > self._room:  # what is remembered has no room beside a long message
            memory, ids = "", prompt(start, "")
        return start, memory, ids

    def _summarized(self, starts: Sequence[int], prompt: Callable[[int, str], list[int]]) -> tuple[int, str]:
        """A start with room for a summary of all before it, and the summary."""
        most = max(_SHORTEST_MEMORY, self._room // 8)
        around = len(self._tokenizer.encode(_EARLIER)) + _SHORTEST_MEMORY
        summarizer = Summarizer(self._lm, SummarySettings(max_tokens=most))
        start = next((n for n in starts if len(prompt(n, "")) + most + around <= self._room), starts[-1])
        gone = [f"{m['role']}: {m['content']}" for m in self.messages[self._start : start]]
        text = "\n\n".join([*([self._memory] if self._memory else []), *gone])
        summary = next(in_order(self._lm.engine, Ready([summarizer.work(text)])))
        return start, "" if isinstance(summary, UserError) else summary.text

    def _dropped_sentence(self, n: int) -> str:
        what = f"{n} message{'s' if n > 1 else ''} at the beginning of what it read"
        known = "it knows a summary of them" if self._memory else "it does not know them any more"
        return f"the context of {self._context_length:,} tokens is full: the model no longer reads {what}; {known}"


def read_history(path: str | Path) -> list[Message]:
    """The messages of a history: JSON lines, one message each; a line may also hold a whole {"messages": […]}.

    Raises:
        UserError: There is no such file, it is not UTF-8, or a line of it is no message.
    """
    found: list[Any] = []
    try:
        if Path(path).stat().st_size > _LARGEST:
            raise UserError("it is too large for a history", where=str(path), mend="Start another one.")
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"the history cannot be read ({error.strerror})", where=str(path), mend="Check it.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the history is not UTF-8 ({error})", where=str(path), mend="Convert it.") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"it is no JSON ({error})", where=where, mend=_AS_LINES) from error
        own = value["messages"] if isinstance(value, Mapping) and "messages" in value else [value]
        for message in own if isinstance(own, list) else [own]:
            try:
                check_messages([*found[:1], message])  # the first one may be the system's, no other
            except UserError as error:
                raise UserError(error.what, where=where, mend=_AS_LINES) from error
            found.append(message)
    return found
