"""What a chat template writes around the contents of messages, so that it need not run for each conversation.

A template is a program, and may do anything with a content. So it is run once on stand-ins of the contents, in an
environment that follows them: what joins or writes a stand-in keeps it, trimming is noted, a question about a content
(does it hold "</think>"? is it empty?) is answered for the real one and noted as a condition. Anything else ends the
attempt, and such conversations are rendered each time. What comes out is a frame: texts and places of contents, which
holds for all conversations with these roles that answer the noted questions alike. Nothing is guessed from examples.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Macro
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from bimo.tokenizer.sandbox import LONGEST_VALUE, Bound, Budget, Environment, attribute_call, now
from bimo.tokenizer.stand_ins import Frame, Hole, Trace, Traced, UnframedError, touched

_MOST_SHAPES, _MOST_FRAMES, _MOST_TRIES = 256, 8, 16
"""Of roles in turn; of frames for each; of attempts to find them."""
_OF_TYPES = ("string", "defined", "undefined", "none", "mapping", "iterable", "sequence", "number", "boolean")
"""Tests that give the same for all texts."""
_STRUCTURAL = (
    *("length", "count", "first", "last", "list", "reverse", "items", "d", "default"),
    *("selectattr", "rejectattr", "map"),
)
"""Filters that take lists apart without looking at what is in them."""
_COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    **{"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "lteq": operator.le},
    **{"gt": operator.gt, "gteq": operator.ge},
    "in": lambda item, group: item in group,
    "notin": lambda item, group: item not in group,
}


class _Following(Bound):
    """Every comparison goes through the environment: Python's own would not see a stand-in on the right of `in`."""

    def visit_Compare(self, node: Any) -> Any:  # noqa: N802  # Jinja calls it by the node's name
        if len(node.ops) > 1:
            raise UnframedError
        self.generic_visit(node)
        return attribute_call("_compared", nodes.Const(node.ops[0].op), node.expr, node.ops[0].expr)

    def visit_EvalContextModifier(self, node: Any) -> Any:  # noqa: N802
        """{% autoescape true %}, which rewrites each content where it is written."""
        raise UnframedError

    visit_ScopedEvalContextModifier = visit_EvalContextModifier  # noqa: N815


class Following(Environment):
    """The environment in which stand-ins are followed; `trace` is set anew for each attempt."""

    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace(())
        self.filters = {name: self._filter(name, function) for name, function in self.filters.items()}
        tests: dict[str, Any] = self.tests
        self.tests = {name: self._test(name, function) for name, function in tests.items()}
        self.globals["strftime_now"] = self._now

    def binding(self) -> NodeTransformer:
        return _Following()

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not touched((left, right), self.trace):
            return super().call_binop(context, operator, left, right)
        if operator != "+":
            self.trace.fail()
        return self._joined(left, right)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # also theirs
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        own = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}  # not Jinja's
        if owner is self or isinstance(owner, Traced):
            return obj(*args, **own)
        reading = isinstance(owner, Mapping) and name in ("get", "items", "keys", "values")
        if not reading and touched((owner, args, own), self.trace) and not _is_structural(obj):
            self.trace.fail()
        return self._noted(super().call(context, obj, *args, **kwargs))

    def getitem(self, obj: Any, argument: Any) -> Any:
        if (isinstance(obj, str) and touched(obj, self.trace)) or touched(argument, self.trace):
            self.trace.fail()
        return super().getitem(obj, argument)

    def _compared(self, name: str, left: Any, right: Any) -> Any:
        of_keys = name in ("in", "notin") and isinstance(right, Mapping) and not touched(left, self.trace)
        if not of_keys and touched((left, right), self.trace):
            sides = (left, right)
            question = name in ("eq", "ne") or (name in ("in", "notin") and isinstance(right, Traced))
            if not question or not all(isinstance(side, Traced) or not touched(side, self.trace) for side in sides):
                self.trace.fail()
            if name in ("eq", "ne") and not isinstance(left, Traced):
                left, right = right, left
        return _COMPARED[name](self._checked(left), self._checked(right))

    def _filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def followed(*given: Any, **kwargs: Any) -> Any:
            args = given[_n_passed(function) :]  # without what Jinja puts in front
            if not touched((args, kwargs), self.trace):
                return self._noted(function(*given, **kwargs))
            value, *more = args
            if name == "trim" and isinstance(value, Traced):
                return value.strip(*more, *kwargs.values())
            if name == "_bounded":  # a block that was captured
                return self._noted(value)
            text = isinstance(value, str) and name not in ("d", "default")
            if name not in _STRUCTURAL or text or touched((more, kwargs), self.trace):
                self.trace.fail()
            return function(*given, **kwargs)

        return followed

    def _test(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def followed(*given: Any, **kwargs: Any) -> Any:
            args = given[_n_passed(function) :]
            if not touched((args, kwargs), self.trace):
                return function(*given, **kwargs)
            if name in _OF_TYPES:
                return function(*("x" if isinstance(value, Traced) else value for value in given), **kwargs)
            names = {"==": "eq", "eq": "eq", "equalto": "eq", "!=": "ne", "ne": "ne", "in": "in"}
            if name not in names or len(args) != 2:
                self.trace.fail()
            return self._compared(names[name], *args)

        return followed

    def _shown(self, value: Any) -> Any:
        if isinstance(value, Traced):
            return value
        if not isinstance(value, str) and touched(value, self.trace):
            self.trace.fail()
        return super()._shown(value)

    def _concatenate(self, *values: Any) -> str:
        return self._joined(*values) if touched(values, self.trace) else super()._concatenate(*values)

    def _joined(self, *values: Any) -> Traced:
        if not all(isinstance(value, str) or not touched(value, self.trace) for value in values):
            self.trace.fail()
        if any(hasattr(value, "__html__") for value in values):  # what `escape` or `safe` gave escapes what is added
            self.trace.fail()
        texts = [str.__str__(value) if isinstance(value, str) else str(value) for value in values]
        self.budget.check(sum(map(len, texts)))
        self.budget.spend(sum(map(len, texts)))
        return self.trace.traced("".join(texts))

    def _noted(self, value: Any) -> Any:
        """What a macro or a block has written is a stand-in again."""
        plain = isinstance(value, str) and not isinstance(value, Traced)
        return self.trace.traced(value) if plain and touched(value, self.trace) else value

    def _now(self, form: Any) -> str:
        if touched(form, self.trace):
            self.trace.fail()
        text = now(form)
        self.trace.dates[str(form)] = text
        return text


def _n_passed(function: Callable[..., Any]) -> int:
    """Whether Jinja puts a context or an environment in front of a filter's arguments."""
    return int(hasattr(function, "jinja_pass_arg"))


def _is_structural(function: Any) -> bool:
    """Whether a call takes its arguments as they are, and looks at none."""
    if isinstance(function, type):
        return function is dict or issubclass(function, Namespace)
    return isinstance(function, Macro)


class Frames:
    """The frames of a template, found as conversations come.

    Args:
        source: The Jinja template; it renders.
        tokens: Its variables.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        self.source, self.tokens = source, tokens
        self.environment = Following()
        self.template: Any = None
        self.hopeless = False
        self.found: dict[tuple[str, ...], list[Frame]] = {}
        self.tries: dict[tuple[str, ...], int] = {}

    def text(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str | None:
        """What the template writes, where that is known without running it."""
        contents = [message["content"] for message in messages]
        for frame in self.found.get(_shape(messages, add_generation_prompt), ()):
            text = frame.text(contents, now)
            if text is not None:
                return text
        return None

    def learn(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool, written: str) -> None:
        """Look for a frame of such conversations.

        Args:
            messages: A conversation for which there is none.
            add_generation_prompt: Whether the assistant's next message is opened.
            written: What the template has written for it.
        """
        shape = _shape(messages, add_generation_prompt)
        tries = self.tries.get(shape, 0)
        full = len(self.tries) >= _MOST_SHAPES and not tries
        if self.hopeless or full or tries >= _MOST_TRIES or len(self.found.get(shape, ())) >= _MOST_FRAMES:
            return
        self.tries[shape] = tries + 1
        try:
            if self.template is None:
                self.hopeless = True  # unless it can be compiled
                self.template = self.environment.from_string(self.environment.bounded(self.source))
                self.hopeless = False
            frame = self._traced(messages, add_generation_prompt)
        except (UnframedError, jinja2.TemplateError, RecursionError, ArithmeticError):
            return
        except (TypeError, ValueError, LookupError, AttributeError, AssertionError, SyntaxError):
            return  # an operation that stand-ins do not have: the template is rendered each time
        contents = [message["content"] for message in messages]
        if frame is not None and frame.text(contents, now) == written:
            self.found.setdefault(shape, []).append(frame)

    def _traced(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> Frame | None:
        trace = self.environment.trace = Trace([message["content"] for message in messages])
        self.environment.budget = Budget(LONGEST_VALUE)
        given = [{"role": m["role"], "content": trace.place(Hole(n))} for n, m in enumerate(messages)]
        variables = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt, **self.tokens}
        text = "".join(self.template.generate(messages=given, **variables))
        if trace.failed:
            return None
        return Frame(trace.parts(text), tuple(dict.fromkeys(trace.conditions)), tuple(trace.dates.items()))


def _shape(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> tuple[str, ...]:
    return (*(message["role"] for message in messages), "…" if add_generation_prompt else ".")
