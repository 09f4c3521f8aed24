"""The house rules of docs/architecture.md, each with a control that breaks it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "bimo"
FILES = sorted(HOUSE.rglob("*.py"))

MAY_IMPORT = {
    "core": set(),
    "tokenizer": {"core"},
    "data": {"core", "tokenizer"},
    "model": {"core"},
    "tasks": {"core", "tokenizer", "data"},
    "training": {"core", "model"},
    "interop": {"core", "tokenizer", "model"},
    "engine": {"core", "tokenizer", "model"},
    "evaluation": {"core", "tokenizer", "model", "engine", "interop", "tasks", ""},
    "flags": {"core"},
    "live": {"core", "training"},
    "applying": {"core", "tokenizer", "data", "engine", "tasks", "lm"},
    "guard": {"core"},
    "serving": {"core", "tokenizer", "model", "interop", "engine", "tasks", "applying", "guard", "lm", ""},
    "examples": {"core", "tokenizer", "data", "tasks", "training"},
    "lm": {"core", "tokenizer", "data", "model", "training", "interop", "engine", "evaluation", "examples", "tasks"},
    "testing": {"core", "model", "training", "evaluation", "lm"},
    "__main__": {"cli"},
    "preparing": {"core", "tokenizer", "data", "live"},
    "recipes": {
        "core",
        "tokenizer",
        "data",
        "model",
        "training",
        "interop",
        "engine",
        "evaluation",
        "live",
        "lm",
        "preparing",
        "",
    },
    "materials": {"core", "tokenizer", "data", "training", "examples", "live", "preparing", "tasks"},
    "scoring": {"core", "engine", "evaluation", "live", "lm", "materials", "preparing"},
    "finetuning": {
        *("core", "tokenizer", "data", "model", "training", "interop", "evaluation", "examples", "live", "lm"),
        *("materials", "recipes", "scoring", "tasks"),
    },
    "demo": {"core", "tokenizer", "data", "model", "training", "evaluation", "live", "lm", "recipes"},
    "planning": {"core", "tokenizer", "data", "training", "preparing", "recipes"},
    "budgeting": {"core", "data", "model", "training", "preparing", "recipes"},
    "tuning": {"core", "tokenizer", "data", "training", "evaluation", "lm", "preparing", "recipes"},
    "quantizing": {"core", "data", "model", "interop", "evaluation", "lm"},
    "cluster": {"core", "tokenizer", "data", "training", "preparing", "recipes", "tuning", ""},
    "cli": {
        "core",
        "data",
        "tasks",
        "applying",
        "training",
        "planning",
        "budgeting",
        "tuning",
        "quantizing",
        "finetuning",
        "cluster",
        "flags",
        "recipes",
        "demo",
        "lm",
        "evaluation",
        "engine",
        "interop",
        "serving",
        "",
    },
}
COLLECTIONS = {"list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict"}
LONGEST_FILE, LONGEST_FUNCTION, MOST_ARGUMENTS = 400, 60, 8
Tree = ast.Module


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path) for path in FILES}


def room(module: str) -> str:
    """The folder, or the file right under bimo; '' for bimo itself."""
    return [*module.split("."), ""][1]


def imports(tree: Tree, *, top_level: bool = False) -> Iterator[str]:
    """Modules of ours that a file imports; those under TYPE_CHECKING are only for types."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(inner for part in node.body for inner in ast.walk(part))
        if top_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            skipped.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "bimo":
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in inner)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "bimo")


def forbidden_imports(module: str, tree: Tree) -> list[str]:
    own = room(module)
    if not own:
        return []
    return [name for name in imports(tree) if room(name) != own and room(name) not in MAY_IMPORT[own]]


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that can be reached from themselves."""
    found = []
    for start in graph:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += graph.get(module, set())
        if start in seen:
            found.append(start)
    return found


def functions(tree: Tree) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def long_functions(tree: Tree) -> list[str]:
    return [f.name for f in functions(tree) if (f.end_lineno or 0) - f.lineno + 1 > LONGEST_FUNCTION]


def crowded_functions(tree: Tree) -> list[str]:
    def count(f: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        names = [a.arg for a in [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]]
        return len([name for name in names if name not in ("self", "cls")])

    return [f.name for f in functions(tree) if count(f) > MOST_ARGUMENTS]


def silent_asserts(tree: Tree) -> list[int]:
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert) and node.msg is None]


def changing_globals(tree: Tree) -> list[str]:
    """Lists, dictionaries and sets in lower case at module level, literal or called, and `global` statements."""
    found = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Global)]
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = getattr(node, "value", None)
        called = isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in COLLECTIONS
        if called or isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)):
            names = [t.id for t in targets if isinstance(t, ast.Name)]
            found += [name for name in names if not name.isupper() and name != "__all__"]
    return found


def relative_imports(tree: Tree) -> list[int]:
    """Lines that import by place instead of by name; who imports whom would not be seen in them."""
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


def bare_arguments(tree: Tree) -> list[str]:
    """Arguments of public functions without a type."""
    found = []
    for f in functions(tree):
        if not f.name.startswith("_"):
            arguments = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
            found += [f"{f.name}({a.arg})" for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
    return found


def file_problems(text: str) -> list[str]:
    problems = ["a long file holds two ideas"] if len(text.splitlines()) > LONGEST_FILE else []
    if text.strip() and not ast.get_docstring(ast.parse(text)):
        problems.append("a file opens with what it is for")
    return problems


RULES = {
    "long functions": (long_functions, "def f():\n" + "    x = 1\n" * 60),
    "functions with many arguments": (crowded_functions, "def f(a, b, c, d, e, *, f, g, h, i): pass"),
    "asserts without words": (silent_asserts, "assert 1"),
    "globals that change": (changing_globals, "cache = {}"),
    "globals that change, called": (changing_globals, "cache: dict = collections.defaultdict(list)"),
    "globals that are replaced": (changing_globals, "def f():\n    global x\n    x = 1"),
    "relative imports": (relative_imports, "from ..data import Document"),
    "untyped public arguments": (bare_arguments, "def f(a): pass"),
}
each_file = pytest.mark.parametrize("path", FILES, ids=module_name)


@each_file
def test_rooms_import_only_whom_they_may_know(path: Path) -> None:
    assert not forbidden_imports(module_name(path), ast.parse(path.read_text())), "see docs/architecture.md"


@each_file
@pytest.mark.parametrize("rule", RULES)
def test_code_keeps_the_rule(path: Path, rule: str) -> None:
    broken = RULES[rule][0](ast.parse(path.read_text()))
    assert not broken, f"{rule}: {broken}"


@each_file
def test_files_are_short_and_say_what_they_are_for(path: Path) -> None:
    assert not file_problems(path.read_text())


@pytest.mark.parametrize("text", ["x = 1\n", '"""What for."""\n' + "\n" * LONGEST_FILE])
def test_a_long_and_a_wordless_file_are_seen(text: str) -> None:
    assert len(file_problems(text)) == 1, "the control must be caught"


def test_there_are_no_import_cycles() -> None:
    graph = {module_name(path): set(imports(ast.parse(path.read_text()), top_level=True)) for path in FILES}
    assert not cycles(graph), "modules that import themselves in the end"


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_sees_what_breaks_it(rule: str) -> None:
    check, bad = RULES[rule]
    assert check(ast.parse(bad)), f"{rule}: the control must be caught"


def test_forbidden_imports_and_cycles_are_seen() -> None:
    assert forbidden_imports("bimo.model.gpt", ast.parse("def f():\n    from bimo.data import Document")) == [
        "bimo.data"
    ]
    assert cycles({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == ["a", "b"]


def test_there_is_no_file_for_leftovers() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "helpers", "misc", "common")], (
        "a helper lives with its idea"
    )


CORE = ", ".join(module for module in sorted(MODULES) if room(module) == "core")
NO_TORCH = "import sys\n{code}\nassert 'torch' not in sys.modules, 'torch was loaded'"
# Any socket event counts, a socket that is only made included.
NO_SOCKET = """
import sys
def hook(event, arguments):
    if event.startswith("socket."):
        raise SystemExit(event)
sys.addaudithook(hook)
{code}
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    """Run in a Python of its own, where nothing has been imported yet."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize(
    "code",
    [
        "import bimo",
        f"import {CORE}",
        "import bimo.data, bimo.tokenizer",
        "import bimo.lm, bimo.engine, bimo.interop.gguf, bimo.model.stored",
        "from bimo.cli import main; main(['--help'])",
    ],
)
def test_loads_no_torch(code: str) -> None:
    done = run(NO_TORCH.format(code=code))
    assert done.returncode == 0, done.stderr


def test_torch_is_seen_when_it_is_loaded() -> None:
    done = run(NO_TORCH.format(code="import bimo; bimo.GPT"))
    assert "torch was loaded" in done.stderr, "the control must be caught"


def test_importing_everything_opens_no_socket() -> None:
    done = run(NO_SOCKET.format(code=f"import {', '.join(sorted(MODULES))}"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("call", ["socket()", "getaddrinfo('localhost', 80)"])
def test_a_socket_is_seen_when_it_is_opened(call: str) -> None:
    done = run(NO_SOCKET.format(code=f"import socket; socket.{call}"))
    assert done.stderr.startswith("socket."), "the control must be caught"
