"""The text that every machine has: the documentation that comes with Python itself.

Each module of the standard library gives one document with its docstrings under their signatures, and each topic of
Python's built-in help (the language reference) another. Modules are parsed, never imported.
"""

from __future__ import annotations

import ast
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from bimo.core.errors import UserError
from bimo.data.documents import Document, Problem, ProblemHandler

_NOT_DOCUMENTATION = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def python_documents(on_problem: ProblemHandler | None = None, folder: Path | None = None) -> Iterator[Document]:
    """Yield the documents in the order of their files' names.

    Args:
        on_problem: Is called with each module that cannot be parsed; by default those are passed over.
        folder: A standard library to read. By default that of the running Python.

    Raises `UserError` where the library comes without its source (an embedded or frozen Python).
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    files = _modules(folder)
    if not files:
        raise UserError(
            "this Python came without the source of its library", where=str(folder), mend="Give a path to text."
        )
    for file in files:
        try:
            module = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError) as error:
            if on_problem:
                on_problem(Problem(str(file), getattr(error, "lineno", 0) or 0, f"it is not a Python module ({error})"))
            continue
        if file.parts[-2:] == ("pydoc_data", "topics.py"):
            yield from _topics(module, str(file))
            continue
        text = _text_of(module, _module_name(file.relative_to(folder)))
        if text:
            yield Document(text, str(file), 1)


def _modules(folder: Path) -> list[Path]:
    found: list[Path] = []
    for name, folders, files in os.walk(folder):
        folders[:] = [inner for inner in folders if inner not in _NOT_DOCUMENTATION]
        found += [Path(name, file) for file in files if file.endswith(".py")]
    return sorted(found)


def _module_name(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _text_of(module: ast.Module, name: str) -> str:
    """The module's docstrings in reading order, or '' when it has none."""
    docstring = ast.get_docstring(module)
    parts = [_signature(node) + "\n\n" + text for node, text in _definitions(module)]
    if docstring:
        parts.insert(0, docstring)
    return "\n\n".join([name, *parts]) if parts else ""


def _definitions(parent: ast.Module | ast.ClassDef) -> Iterator[tuple[_Definition, str]]:
    """Classes and functions that have a docstring, also within classes and under `if` and `try`, in reading order."""
    waiting: list[ast.AST] = list(reversed(parent.body))
    while waiting:
        node = waiting.pop()
        if isinstance(node, _Definition):
            text = ast.get_docstring(node)
            if text:
                yield node, text
        if isinstance(node, (ast.ClassDef, ast.If, ast.Try)):
            waiting.extend(reversed([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]))


def _signature(node: _Definition) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    start = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{start} {node.name}({ast.unparse(node.args)}){result}"


def _topics(module: ast.Module, file: str) -> Iterator[Document]:
    """The texts of the one dictionary in pydoc_data/topics.py, which is a literal."""
    for statement in module.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            for key, value in zip(statement.value.keys, statement.value.values, strict=True):
                text = ast.literal_eval(value)
                if key is not None and isinstance(text, str) and text.strip():
                    yield Document(text.strip("\n").rstrip(), file, key.lineno)
