"""Where chat templates run: transformers' Jinja environment, with fewer words and with a budget.

Jinja's own sandbox keeps a template away from Python's objects. Here only harmless filters and methods are left, and
what a template may compute is bounded: time, characters, the size of every value. The templates that chat models really
have need a thousandth of that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

LONGEST_SOURCE, MOST_NODES = 2**16, 2**13
"""Characters of a template and nodes of its syntax tree; the longest of well-known models have 20,000 and 2,000."""
LONGEST_VALUE = 2**20
"""Characters of one value, with all that is in it, beside four times what the messages hold."""
ITEM = 8
"""Characters that an item of a list counts for: about what it takes in memory."""
TIME_LIMIT_S = 2.0

_FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "forceescape", "int"),
    *("items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round"),
    *("safe", "select", "selectattr", "sort", "string", "title", "trim", "unique", "upper"),
)
_SHALLOW = ("count", "d", "default", "first", "last", "length")
"""Filters that do not look into a list; templates ask for the number of messages at each of them."""
_COMPARING = (
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
    ">",
    "gt",
    "greaterthan",
    ">=",
    "ge",
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
    """What one rendering may still use; every loop, call, comparison and output spends of it.

    Args:
        longest: Characters of the largest value.
    """

    def __init__(self, longest: int) -> None:
        self.longest, self.left = longest, 8 * longest
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
        """The value, if it is not too large with all that is in it.

        A list may hold another one a thousand times and take no memory for it; whatever reads, compares or writes it
        still goes through all of them. So an item counts as often as it is met.
        """
        if isinstance(value, str):
            self.check(len(value))
            self.spend(len(value) // (8 if value.isascii() else 2))
        elif isinstance(value, int):
            self.check(value.bit_length() * 256)
        elif isinstance(value, _CONTAINERS):
            self._walk(value)
        return value

    def _walk(self, value: Any) -> None:
        items = characters = 0
        waiting = [iter((value,))]
        while waiting:
            for item in waiting[-1]:
                items += 1
                if isinstance(item, str):
                    characters += len(item)
                elif isinstance(item, int):
                    items += item.bit_length() // 64
                if ITEM * items + characters > self.longest:
                    self.check(ITEM * items + characters)
                if isinstance(item, _CONTAINERS):
                    waiting.append(_inside(item))
                    break
            else:
                waiting.pop()
        self.spend(ITEM * len(value) + items + characters // 8)  # memory of this list, time for all that is in it


_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS = (list, tuple, dict, set, frozenset, *_VIEWS)


def _inside(value: Any) -> Iterator[Any]:
    return (part for pair in value.items() for part in pair) if isinstance(value, dict) else iter(value)


class _Namespace(Namespace):
    """Jinja's namespace; it is not written out, because it can be changed, and hold itself, after it was checked."""

    def __repr__(self) -> str:
        return "<Namespace>"


class Environment(ImmutableSandboxedEnvironment):
    """The environment; `budget` is set anew for each rendering."""

    intercepted_binops = frozenset(("+", "*", "**", "%", "//", "/", "-"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], optimized=False)
        self.budget = Budget(LONGEST_VALUE)
        own = {"replace": self._replace, "join": self._join, "tojson": self._to_json, "indent": self._indent}
        filters: dict[str, Any] = {name: self.filters[name] for name in _FILTERS}
        filters |= {**own, "sum": self._sum, "_bounded": _same}
        self.filters = {name: f if name in _SHALLOW else self._watched(f) for name, f in filters.items()}
        tests: dict[str, Any] = self.tests
        self.tests = {name: self._watched(f) if name in (*_COMPARING, "in") else f for name, f in tests.items()}
        self.finalize = self._shown
        self.globals = {
            **{name: self.globals[name] for name in ("range", "dict")},
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": now,
        }

    def bounded(self, source: str) -> nodes.Template:
        """The syntax tree of a template, in which whatever repeats or grows asks the budget first."""
        tree = self.parse(source)
        if (count := _count(tree)) > MOST_NODES:
            raise jinja2.TemplateError(f"it has {count} parts, more than {MOST_NODES}")
        tree = self.binding().visit(tree)
        tree.set_environment(self)
        return tree

    def binding(self) -> NodeTransformer:
        """What lets a syntax tree ask."""
        return Bound()

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
            self.budget.check(sizes[0] * sizes[1] * (1 if isinstance(left, str) or isinstance(right, str) else ITEM))
        return self.budget.checked(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # also theirs
        """A call that spends, and whose arguments and result are checked."""
        self.budget.spend(0)
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if owner is self:  # what `Bound` has put there
            return obj(*args)
        if isinstance(owner, str) and name == "replace":
            obj, args = self._replace, (owner, *args)
        elif isinstance(owner, str) and name == "join":
            obj, args = self._join, (*args, owner)
        elif isinstance(owner, _CONTAINERS) and name in ("count", "index"):
            self.budget.checked(owner)
        for value in (*args, *kwargs.values()):
            self.budget.checked(value)
        return self.budget.checked(super().call(context, obj, *args, **kwargs))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """obj[argument]; a long tuple takes as long to look up as to read."""
        return super().getitem(obj, self.budget.checked(argument))

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or test whose arguments and result are checked; what it gives one by one spends for each."""

        @wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.budget.spend(0)
            for value in (*args, *kwargs.values()):
                self.budget.checked(value)
            result = function(*args, **kwargs)
            return self._counted(result) if isinstance(result, Iterator) else self.budget.checked(result)

        return watched

    def _counted(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.budget.spend(0)
            yield value

    def _spend(self, characters: int) -> str:
        return self.budget.spend(characters)

    def _checked(self, value: Any) -> Any:
        return self.budget.checked(value)

    def _shown(self, value: Any) -> Any:
        self.budget.spend(len(value) if isinstance(value, str) else 0)
        return value if isinstance(value, str) else self.budget.checked(value)

    def _concatenate(self, *values: Any) -> str:
        texts = [str(self.budget.checked(value)) for value in values]
        self.budget.check(sum(map(len, texts)))
        return str(self.budget.checked("".join(texts)))

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = str(text), str(old), str(new)
        times = text.count(old) if count is None or count < 0 else min(text.count(old), int(count))
        self.budget.check(len(text) + times * len(new))
        return str(text.replace(old, new, times))

    def _join(self, values: Iterable[Any], between: str = "", attribute: Any = None) -> str:
        items = list(values) if attribute is None else [self.getitem(value, attribute) for value in values]
        texts = list(map(str, self.budget.checked(items)))
        self.budget.check(sum(map(len, texts)) + len(texts) * len(str(between)))
        return str(between).join(texts)

    def _sum(self, values: Iterable[Any], attribute: Any = None, start: float = 0) -> Any:
        if not isinstance(start, (int, float)):  # lists would be copied again for each that is added
            raise jinja2.TemplateError("only numbers can be summed")
        return sum((value if attribute is None else self.getitem(value, attribute) for value in values), start)

    def _to_json(self, value: Any, indent: int | None = None, **options: Any) -> str:
        words = {key: options[key] for key in ("ensure_ascii", "separators", "sort_keys") if key in options}
        indent = None if indent is None else min(int(indent), 16)
        return json.dumps(value, **{"ensure_ascii": False, **words}, indent=indent)

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


class Bound(NodeTransformer):
    """Lets loops, macros, lists, slices, comparisons, concatenations and captured blocks ask the budget."""

    def visit_For(self, node: Any) -> Any:  # noqa: N802  # Jinja calls it by the node's name
        """Spend at the beginning of each round what the body writes by itself."""
        size = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(attribute_call("_spend", nodes.Const(size))))
        return node

    visit_Macro = visit_CallBlock = visit_For  # noqa: N815

    def visit_Concat(self, node: Any) -> Any:  # noqa: N802
        """a ~ b."""
        self.generic_visit(node)
        return attribute_call("_concatenate", *node.nodes)

    def visit_List(self, node: Any) -> Any:  # noqa: N802
        """[a, b] and {a: b}: what is in them may hold the same again and again."""
        self.generic_visit(node)
        return node if all(isinstance(item, nodes.Const) for item in node.items) else attribute_call("_checked", node)

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: Any) -> Any:  # noqa: N802
        """(a, b), where it is no target."""
        return self.visit_List(node) if node.ctx == "load" else self.generic_visit(node)

    def visit_Getitem(self, node: Any) -> Any:  # noqa: N802
        """a[1:], which is a copy."""
        self.generic_visit(node)
        return attribute_call("_checked", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: Any) -> Any:  # noqa: N802
        """a == b, a in b, a < b < c."""
        self.generic_visit(node)
        for part in (node, *node.ops):
            if not isinstance(part.expr, nodes.Const):
                part.expr = attribute_call("_checked", part.expr)
        return node

    def visit_AssignBlock(self, node: Any) -> Any:  # noqa: N802
        """{% set x %}…{% endset %}."""
        self.generic_visit(node)
        node.filter = nodes.Filter(node.filter, "_bounded", [], [], None, None)
        return node


def attribute_call(name: str, *args: Any) -> nodes.Call:
    """A call of the environment's own method: a template may give a variable any name, but no attribute."""
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)


def _count(tree: nodes.Node) -> int:
    count, waiting = 0, [tree]
    while waiting and count <= MOST_NODES:
        count += 1
        waiting.extend(waiting.pop().iter_child_nodes())
    return count + len(waiting)


def _same(value: Any) -> Any:
    return value


def now(form: Any) -> str:
    """The date, as a template asks for it."""
    return datetime.now().strftime(str(form)[:100])


def _raise_exception(message: Any) -> None:
    raise jinja2.TemplateError(str(message)[:1000])
