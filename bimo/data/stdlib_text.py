"""Text that every machine with Python has: the language's help topics, and the docstrings of the standard library.

The modules are parsed, never imported.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from bimo.data.documents import Document

_LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__", "encodings", "turtledemo"}


def python_documents() -> Iterator[Document]:
    """A document per help topic and per module with docstrings, always in the same order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if _LEFT_OUT & set(path.relative_to(root).parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):  # a few files are broken on purpose, to test the compiler
            continue
        if path.match("pydoc_data/topics.py"):
            yield from _topics(tree, path)
            continue
        text = "\n\n".join(_docstrings(tree, path.relative_to(root)))
        if len(text) > 200:
            yield Document(text, str(path), 1)


def _topics(tree: ast.Module, path: Path) -> Iterator[Document]:
    """`topics` is a dictionary of texts."""
    assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
    for text in ast.literal_eval(assignments[-1].value).values():
        yield Document(text.strip(), str(path), 1)


def _docstrings(tree: ast.Module, module: Path) -> Iterator[str]:
    """The module's, classes' and functions' docstrings, each under its signature."""
    name = ".".join(module.with_suffix("").parts).removesuffix(".__init__")
    own = ast.get_docstring(tree)
    if own:
        yield f"{name}\n\n{own}"
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        text = ast.get_docstring(node)
        if text and isinstance(node, ast.ClassDef):
            yield f"class {node.name}\n\n{text}"
        elif text and not isinstance(node, ast.ClassDef):
            yield f"{node.name}({ast.unparse(node.args)})\n\n{text}"
