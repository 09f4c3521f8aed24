"""Where chat templates run: transformers' Jinja environment, with fewer words and with a budget.

Jinja's own sandbox keeps a template away from Python's objects. Here only harmless filters and methods are left, and
what a template may compute is bounded: time, characters, the size of every value. The templates that chat models really
have need a thousandth of that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

LONGEST_SOURCE = 2**18
"""Characters of a template; the longest of well-known models have some 20,000."""
LONGEST_VALUE = 2**20
"""Characters or items of one value, beside four times what the messages hold."""
TIME_LIMIT_S = 2.0

_FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "forceescape", "int"),
    *("items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round"),
    *("safe", "select", "selectattr", "sort", "string", "sum", "title", "trim", "unique", "upper"),
)
_METHODS = {
    str: "capitalize count endswith find index isalnum isalpha isdigit islower isspace isupper join lower lstrip "
    "partition removeprefix removesuffix replace rfind rpartition rsplit rstrip split splitlines startswith strip "
    "title upper",
    dict: "get items keys values",
    list: "count index",
    tuple: "count index",
    int: "",
    float: "is_integer",
}


class Budget:
    """What one rendering may still use; every loop, call and output spends of it.

    Args:
        longest: Characters or items of the largest value.
    """

    def __init__(self, longest: int) -> None:
        self.longest, self.left = longest, 16 * longest
        self.deadline = time.monotonic() + TIME_LIMIT_S

    def spend(self, characters: int) -> str:
        """Count characters (and one for the call); returns '' so that templates can call it."""
        self.left -= characters + 1
        if self.left < 0 or time.monotonic() > self.deadline:
            raise jinja2.TemplateError("it computes too much")
        return ""

    def check(self, size: int) -> None:
        """Refuse a value of that size."""
        if size > self.longest:
            raise jinja2.TemplateError("it makes a value that is too large")

    def checked(self, value: Any) -> Any:
        """The value, if it is not too large."""
        if isinstance(value, (str, list, tuple, dict)):
            self.check(len(value))
            self.spend(len(value) // 8)
        elif isinstance(value, int):
            self.check(value.bit_length() * 256)
        return value


class Environment(ImmutableSandboxedEnvironment):
    """The environment; `budget` is set anew for each rendering."""

    intercepted_binops = frozenset(("+", "*", "**", "%", "//", "/", "-"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], optimized=False)
        self.budget = Budget(LONGEST_VALUE)
        own = {"replace": self._replace, "join": self._join, "tojson": self._to_json, "indent": self._indent}
        self.filters = {**{name: self.filters[name] for name in _FILTERS}, **own, "_bounded": self._checked}
        self.finalize = self._shown
        self.globals = {
            **{name: self.globals[name] for name in ("range", "dict", "namespace")},
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.now().strftime(str(form)[:100]),
            "_spend": self._spend,
            "_concatenate": self._concatenate,
        }

    def bounded(self, source: str) -> nodes.Template:
        """The syntax tree of a template, in which whatever repeats or grows asks the budget first."""
        tree: nodes.Template = _Bound().visit(self.parse(source))
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may look at an attribute: of text, tables and numbers only at the harmless ones."""
        known = next((names for kind, names in _METHODS.items() if isinstance(obj, kind)), None)
        safe: bool = super().is_safe_attribute(obj, attr, value)
        return safe and (known is None or attr in known.split())

    def wrap_str_format(self, value: Any) -> Any:
        """str.format pads to any width: it is not there."""
        return None

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic whose result is known to be small before it is computed."""
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "**" and not (numbers and abs(left) <= 2**16 and abs(right) <= 32):
            raise jinja2.TemplateError("such a power is not allowed")
        if operator == "%" and not numbers:
            raise jinja2.TemplateError("text % values is not allowed")
        if operator == "*" and not numbers:
            sizes = [len(x) if hasattr(x, "__len__") else max(int(x), 0) for x in (left, right)]
            self.budget.check(sizes[0] * sizes[1])
        return self.budget.checked(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # also theirs
        """A call that spends, and whose result is checked."""
        self.budget.spend(0)
        text, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(text, str) and name == "replace":
            obj, args = self._replace, (text, *args)
        elif isinstance(text, str) and name == "join":
            obj, args = self._join, (*args, text)
        return self.budget.checked(super().call(context, obj, *args, **kwargs))

    def _spend(self, characters: int) -> str:
        return self.budget.spend(characters)

    def _checked(self, value: Any) -> Any:
        return self.budget.checked(value)

    def _shown(self, value: Any) -> Any:
        self.budget.spend(len(value) if isinstance(value, str) else 0)
        return value

    def _concatenate(self, *values: Any) -> str:
        self.budget.check(sum(len(str(value)) for value in values))
        return "".join(map(str, values))

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = str(text), str(old), str(new)
        times = text.count(old) if count is None or count < 0 else min(text.count(old), int(count))
        self.budget.check(len(text) + times * len(new))
        return str(text.replace(old, new, times))

    def _join(self, values: Iterable[Any], between: str = "", attribute: Any = None) -> str:
        items = list(values) if attribute is None else [self.getitem(value, attribute) for value in values]
        self.budget.check(sum(len(str(item)) for item in items) + len(items) * len(str(between)))
        return str(between).join(map(str, items))

    def _to_json(self, value: Any, indent: int | None = None, **options: Any) -> str:
        words = {key: options[key] for key in ("ensure_ascii", "separators", "sort_keys") if key in options}
        indent = None if indent is None else min(int(indent), 16)
        return str(self._checked(json.dumps(value, **{"ensure_ascii": False, **words}, indent=indent)))

    def _indent(self, text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        fill = width if isinstance(width, str) else " " * min(int(width), 64)
        lines = str(text).splitlines(keepends=True)
        self.budget.check(len(str(text)) + len(lines) * len(fill))
        kept = ((i == 0 and not first) or (not blank and not line.strip()) for i, line in enumerate(lines))
        return "".join(line if keep else fill + line for line, keep in zip(lines, kept, strict=True))


class _Generation(Extension):
    """{% generation %}, which marks the assistant's words for training masks: its body as it is."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own form

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Bound(NodeTransformer):
    """Lets loops, macros, concatenations and captured blocks ask the budget."""

    def visit_For(self, node: Any) -> Any:  # noqa: N802  # Jinja calls it by the node's name
        """Spend at the beginning of each round what the body writes by itself."""
        size = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("_spend", nodes.Const(size))))
        return node

    visit_Macro = visit_CallBlock = visit_For  # noqa: N815

    def visit_Concat(self, node: Any) -> Any:  # noqa: N802
        """a ~ b."""
        self.generic_visit(node)
        return _call("_concatenate", *node.nodes)

    def visit_AssignBlock(self, node: Any) -> Any:  # noqa: N802
        """{% set x %}…{% endset %}."""
        self.generic_visit(node)
        node.filter = nodes.Filter(node.filter, "_bounded", [], [], None, None)
        return node


def _call(name: str, *args: Any) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load"), list(args), [], None, None)


def _raise_exception(message: Any) -> None:
    raise jinja2.TemplateError(str(message)[:1000])
