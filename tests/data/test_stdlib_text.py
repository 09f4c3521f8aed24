"""Python's own documentation becomes readable documents, without importing a module."""

from __future__ import annotations

from pathlib import Path

import pytest

from bimo.core.errors import UserError
from bimo.data.documents import Problem
from bimo.data.stdlib_text import python_documents

MODULE = '''"""What the module
is for."""
raise SystemExit("this module was imported")

async def run(task: str, *, times=3) -> None:
    """Run it.

        >>> indented

    Done.
    """
    def inner(): "Not told: nobody outside can call it."

def silent(): pass

try:
    class Box(dict, metaclass=type):
        """A box."""
        @property
        def size(self): "Its size."
except ImportError:
    pass
'''

READABLE = """pack.tool

What the module
is for.

async def run(task: str, *, times=3) -> None

Run it.

    >>> indented

Done.

class Box(dict)

A box.

def size(self)

Its size."""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A small standard library."""
    files = {"pack/tool.py": MODULE, "pack/__init__.py": '"""The package."""', "bare.py": "x = 1", "broken.py": "\ndef"}
    files |= {"site-packages/other.py": '"""Not Python\'s."""', "test/test_pack.py": '"""A test."""'}
    files["pydoc_data/topics.py"] = "topics = {'lists': '\\nLists\\n*****\\n\\nText.\\n', 'strings': 'Strings'}"
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_docstrings_stand_under_their_signatures(library: Path) -> None:
    documents = list(python_documents(folder=library))
    assert [d.text for d in documents] == [
        "pack\n\nThe package.",
        READABLE,
        "Lists\n*****\n\nText.",
        "Strings",
    ]
    assert [Path(d.file).name for d in documents] == ["__init__.py", "tool.py", "topics.py", "topics.py"]


def test_a_module_that_cannot_be_parsed_is_told_with_its_line(library: Path) -> None:
    problems: list[Problem] = []
    list(python_documents(problems.append, library))
    assert [(Path(p.file).name, p.row) for p in problems] == [("broken.py", 2)]


def test_a_library_without_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without the source"):
        list(python_documents(folder=tmp_path))


def test_the_python_that_runs_has_text_to_learn_from() -> None:
    problems: list[Problem] = []
    documents = list(python_documents(problems.append))
    assert sum(len(d.text.encode()) for d in documents) > 1e6
    assert not problems
    assert any(d.text.startswith("textwrap\n\nText wrapping and filling.") for d in documents)
    assert len({d.fingerprint for d in documents}) > 0.99 * len(documents)
