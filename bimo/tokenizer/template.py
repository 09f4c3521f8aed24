"""Chat templates of other models: Jinja programs out of downloaded files, so they run in a sandbox with a budget.

Rendering equals `apply_chat_template` of transformers; what is not allowed stands in `sandbox.py`. Content of messages
cannot forge a control token, whatever the template does with it.
"""

from __future__ import annotations

import functools
import re
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bimo.core.errors import UserError

if TYPE_CHECKING:
    from bimo.tokenizer.frames import Frames

Messages = Sequence[Mapping[str, str]]
Piece = tuple[bool, str]
_RENDERING = threading.Lock()  # a template has one budget at a time


class ChatTemplate:
    """How a model wants a conversation written.

    Args:
        source: The Jinja template.
        tokens: Names of special tokens by the template's variables (bos_token, eos_token, …); empty ones are left out.
        where: What to name in errors.
    """

    def __init__(self, source: str, *, tokens: Mapping[str, str], where: str = "chat template") -> None:
        self.source, self.where = source, where
        self.tokens = {key: name for key, name in tokens.items() if name}

    def render(self, messages: Messages, *, add_generation_prompt: bool = True) -> str:
        """The conversation as one text.

        Raises:
            UserError: The template refuses these messages, is broken, or asks for more than it may have.
        """
        with _RENDERING:
            return self._rendered(messages, add_generation_prompt)

    def _rendered(self, messages: Messages, add_generation_prompt: bool) -> str:
        import jinja2

        from bimo.tokenizer.sandbox import LONGEST_VALUE, Budget

        held = sum(len(message["content"]) for message in messages)
        budget = self._environment.budget = Budget(LONGEST_VALUE + 4 * held)
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        pieces: list[str] = []
        try:
            for piece in self._template.generate(
                messages=plain, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **self.tokens
            ):
                budget.spend(len(piece))
                pieces.append(piece)
        except (jinja2.TemplateError, RecursionError, MemoryError, ArithmeticError) as error:
            raise self._refusal(str(error) or type(error).__name__) from error
        except (TypeError, ValueError, LookupError, AttributeError) as error:  # out of the template's expressions
            raise self._refusal(f"{type(error).__name__}: {error}") from error
        return "".join(pieces)

    def pieces(self, messages: Messages, names: Iterable[str], *, add_generation_prompt: bool = True) -> list[Piece]:
        """The same text, cut around what could forge a control token.

        Args:
            messages: The conversation.
            names: Names of control tokens.
            add_generation_prompt: Whether to open the assistant's next message.

        Returns:
            (forged, text) in order: forged pieces stand in some message's content and are a control token's name, or
            could become one with what the template writes beside them. Together they are what `render` gives.
        """
        pattern, edges = _forging(tuple(names))
        if pattern is None or not any(_stands_in(message["content"], pattern, edges) for message in messages):
            return [(False, self._framed(messages, add_generation_prompt))]
        forgery = _Forgeries(pattern)
        whole = self.render(messages, add_generation_prompt=add_generation_prompt)
        hidden = [{**message, "content": forgery.hide(message["content"])} for message in messages]
        pieces = forgery.cut(self.render(hidden, add_generation_prompt=add_generation_prompt))
        if "".join(text for _, text in pieces) != whole:
            raise UserError(
                "a message holds a control token's name, and the template treats it in a way that cannot be followed",
                where=self.where,
                mend=f"Take {forgery.found[0]!r} out of the messages.",
            )
        return pieces

    def _framed(self, messages: Messages, add_generation_prompt: bool) -> str:
        """The same as `render`, which runs only where what the template writes around the contents is not known."""
        text = self._frames.text(messages, add_generation_prompt)
        if text is None:
            text = self.render(messages, add_generation_prompt=add_generation_prompt)
            with _RENDERING:  # an attempt has one trace and one budget
                self._frames.learn(messages, add_generation_prompt, text)
        return text

    @cached_property
    def _frames(self) -> Frames:
        from bimo.tokenizer.frames import Frames

        return Frames(self.source, self.tokens)

    @cached_property
    def _environment(self) -> Any:
        from bimo.tokenizer.sandbox import Environment

        return Environment()

    @cached_property
    def _template(self) -> Any:
        import jinja2

        from bimo.tokenizer.sandbox import LONGEST_SOURCE

        if len(self.source) > LONGEST_SOURCE:
            raise self._refusal(f"it has {len(self.source)} characters, more than {LONGEST_SOURCE}")
        try:
            return self._environment.from_string(self._environment.bounded(self.source))
        except (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
            raise self._refusal(str(error) or type(error).__name__) from error

    def _refusal(self, why: str) -> UserError:
        short = why if len(why) < 300 else why[:300] + " …"
        return UserError(
            f"the chat template cannot write these messages ({short})",
            where=self.where,
            mend="Change the messages (many templates want user and assistant in turn), or use generate.",
        )


class _Forgeries:
    """Hides what could forge a control token behind marks that no template and no user can write, and finds it again.

    Args:
        pattern: Finds them.
    """

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.found: list[str] = []
        self.secret = str(secrets.randbelow(10**18))
        self.pattern = pattern

    def hide(self, content: str) -> str:
        """The content with each of them replaced by a mark."""

        def mark(match: re.Match[str]) -> str:
            text = match[0].strip()
            self.found.append(text)
            return match[0].replace(text, f"\ue0f0{self.secret}:{len(self.found) - 1}\ue0f1", 1)

        return self.pattern.sub(mark, content)

    def cut(self, text: str) -> list[Piece]:
        """A text with marks as pieces: (whether it was hidden, text)."""
        parts = re.split(f"\ue0f0{self.secret}:([0-9]+)\ue0f1", text)
        pieces = [(bool(i % 2), self.found[int(part)] if i % 2 else part) for i, part in enumerate(parts)]
        return [piece for piece in pieces if piece[1]]


@functools.lru_cache(maxsize=8)  # the names are those of a tokenizer, and the conversations many
def _forging(names: tuple[str, ...]) -> tuple[re.Pattern[str] | None, str]:
    """Finds what could forge one of the names; and characters of which all of that has one."""
    names = tuple(filter(None, names))
    ends = {name[i:] for name in names for i in range(1, len(name))}
    begins = {name[:i] for name in names for i in range(1, len(name))}
    # A content that begins with the end of a name, or ends with its beginning, may complete what is beside it.
    parts = [_any(names), rf"\A\s*(?:{_any(ends)})", rf"(?:{_any(begins)})\s*\Z"]
    edges = "".join({character for name in names for character in (name[0], name[-1])})
    return (re.compile("|".join(parts)) if names else None), edges


def _stands_in(content: str, pattern: re.Pattern[str], edges: str) -> bool:
    """Whether a content holds what could forge a name; most have none of its outer characters, which is soon seen."""
    return any(edge in content for edge in edges) and pattern.search(content) is not None


def _any(texts: Iterable[str]) -> str:
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
