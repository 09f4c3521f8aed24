"""Which files a path means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bimo.core.errors import UserError
from bimo.data.documents import Problem
from bimo.data.files import find_files, is_compressed, kind_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files to read and files to pass over."""
    names = [
        "b.txt",
        "a.md",
        "sub/c.jsonl.gz",
        "sub/deep/d.PARQUET",
        "e.log",
        ".hidden.txt",
        ".git/f.txt",
        "pictures/image.png",
    ]
    for name in names:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("text")
    (tmp_path / "empty.txt").touch()
    return tmp_path


def names(files: list[Path], folder: Path) -> list[str]:
    return [str(file.relative_to(folder)) for file in files]


def test_a_folder_gives_its_readable_files_in_order(folder: Path) -> None:
    expected = ["a.md", "b.txt", "sub/c.jsonl.gz", "sub/deep/d.PARQUET"]
    assert names(find_files([str(folder)]), folder) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["b.txt"]),
        ("*", ["a.md", "b.txt", "sub/c.jsonl.gz", "sub/deep/d.PARQUET"]),
        ("**/*.gz", ["sub/c.jsonl.gz"]),
        ("*/**", ["sub/c.jsonl.gz", "sub/deep/d.PARQUET"]),
        ("*.log", ["e.log"]),
        ("[ab].*", ["a.md", "b.txt"]),
    ],
)
def test_a_glob_gives_what_it_matches(folder: Path, pattern: str, expected: list[str]) -> None:
    assert names(find_files([str(folder / pattern)]), folder) == expected


def test_a_file_that_is_named_is_taken_whatever_its_suffix(folder: Path) -> None:
    files = [str(folder / name) for name in ("e.log", ".hidden.txt", "empty.txt")]
    assert [str(file) for file in find_files(files)] == files


def test_paths_keep_their_order_and_no_file_comes_twice(folder: Path) -> None:
    (folder / "link.txt").symlink_to(folder / "b.txt")
    paths = [str(folder / "sub"), str(folder / "b.txt"), str(folder), "-", "-"]
    files = find_files(paths)
    assert names(files[:-1], folder) == ["sub/c.jsonl.gz", "sub/deep/d.PARQUET", "b.txt", "a.md"]
    assert files[-1] == Path("-")


def test_a_name_with_brackets_is_a_name_before_it_is_a_glob(tmp_path: Path) -> None:
    file = tmp_path / "a[1].txt"
    file.write_text("text")
    assert find_files([str(file)]) == [file]


def test_a_link_in_a_circle_is_told_and_not_followed(folder: Path) -> None:
    (folder / "sub" / "up").symlink_to(folder)
    problems: list[Problem] = []
    assert len(find_files([str(folder)], problems.append)) == 4
    assert [problem.file for problem in problems] == [str(folder / "sub" / "up")]


def test_a_linked_folder_elsewhere_is_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "more.txt").write_text("text")
    (folder / "more").symlink_to(other)
    assert "more/more.txt" in names(find_files([str(folder)]), folder)


def test_a_pipe_in_a_folder_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.txt")
    assert "pipe.txt" not in names(find_files([str(folder)]), folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may list every folder")
def test_a_folder_that_cannot_be_listed_is_told(folder: Path) -> None:
    (folder / "sub").chmod(0)
    problems: list[Problem] = []
    find_files([str(folder)], problems.append)
    (folder / "sub").chmod(0o700)
    assert [problem.file for problem in problems] == [str(folder / "sub")]


@pytest.mark.parametrize("path", ["nothing.txt", "*.csv", "pictures", ""])
def test_a_path_without_a_file_is_an_error_that_names_it(folder: Path, path: str) -> None:
    with pytest.raises(UserError, match=r"Accepted are \.txt, \.md") as error:
        find_files([str(folder / path) if path else ""])
    assert error.value.where.endswith(path)


def test_the_suffix_before_gz_tells_the_kind() -> None:
    kinds = {
        name: kind_of(Path(name)) for name in ("a.txt", "a.MD.gz", "a.jsonl", "a.csv.GZ", "a.parquet", "a", "a.gz")
    }
    assert list(kinds.values()) == ["text", "text", "jsonl", "csv", "parquet", "text", "text"]
    assert [is_compressed(Path(name)) for name in kinds] == [False, True, False, True, False, False, True]
