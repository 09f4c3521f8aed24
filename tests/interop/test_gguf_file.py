"""The layout of GGUF files: what bimo writes the `gguf` package reads, and the other way round; a file is whole or not.

Files that lie have tests of their own beside this one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bimo.interop.gguf_file import ALIGNMENT, read_gguf, write_gguf
from bimo.model.formats import FORMATS

gguf = pytest.importorskip("gguf", reason="the reference is an extra")
FIELDS: dict[str, Any] = {
    "general.architecture": "llama",
    "a.truth": True,
    "a.number": 7,
    "a.large_number": 2**40,
    "a.negative_number": -3,
    "a.fraction": 0.25,
    "a.text": "墨 é\n",
    "an.empty_text": "",
    "some.numbers": [1, -2, 3],
    "some.fractions": [0.5, -1.5],
    "some.texts": ["a", "", "坐在"],
    "some.truths": [True, False],
}
SHAPES = {"matrix": (3, 64), "vector": (5,), "cube": (2, 3, 32)}


def numbers(name: str) -> np.ndarray:
    rng = np.random.default_rng(len(name))
    return rng.standard_normal(SHAPES[name]).astype(np.float32)


def written(path: Path) -> Path:
    tensors = [(name, shape, FORMATS["F32"].number) for name, shape in SHAPES.items()]
    write_gguf(path, FIELDS, tensors, lambda name: numbers(name).view(np.uint8).reshape(-1))
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = read_gguf(written(tmp_path / "a.gguf"))
    assert file.metadata == FIELDS, "fields keep their values and types"
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == SHAPES
    for name in SHAPES:
        assert file.data(name).tobytes() == numbers(name).tobytes(), name


TEXT = st.text(st.sampled_from(["a", "é", "坐", "\n", "\0", "\x07", " "]), max_size=9) | st.sampled_from(
    ["b" * 70, "c" * 300]
)


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(TEXT, max_size=12), plain=st.lists(st.sampled_from(["a", "Ġthe", "墨\n", "d" * 100]), max_size=40)
)
def test_lists_of_texts_come_back_whatever_is_in_them(
    texts: list[str], plain: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "texts.gguf"
    fields = {"x.plain": plain, "x.texts": texts, "x.zeros": [0] * 40, "x.number": 1}
    write_gguf(path, fields, [("one", (1, 1), 0)], lambda _: np.zeros(4, dtype=np.uint8))
    read = read_gguf(path).metadata
    assert {key: read[key] or [] for key in fields} == {key: value or [] for key, value in fields.items()}


def test_the_gguf_package_reads_what_was_written(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(written(tmp_path / "a.gguf"))
    assert {key: reader.fields[key].contents() for key in FIELDS} == FIELDS, "fields"
    assert {tensor.name: tuple(tensor.data.shape) for tensor in reader.tensors} == SHAPES
    for tensor in reader.tensors:
        assert np.array_equal(tensor.data, numbers(tensor.name)), tensor.name


@pytest.mark.parametrize("alignment", [32, 8, 64, 4096])
def test_what_the_gguf_package_writes_is_read(alignment: int, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    if alignment != ALIGNMENT:
        writer.add_custom_alignment(alignment)
    fields: dict[str, Any] = {}
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        value = np.iinfo(kind).max
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
        fields[f"a.{kind}"] = value
    writer.add_float32("a.float32", 0.1)
    writer.add_float64("a.float64", 0.1)
    writer.add_bool("a.truth", False)
    writer.add_string("a.text", "墨")
    writer.add_array("some.texts", ["a", "墨"])
    for name in SHAPES:
        writer.add_tensor(name, numbers(name))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    file = read_gguf(tmp_path / "a.gguf")
    fields |= {"a.float32": float(np.float32(0.1)), "a.float64": 0.1, "a.truth": False, "a.text": "墨"}
    fields["some.texts"] = ["a", "墨"]
    assert {key: file.metadata[key] for key in fields} == fields
    for name in SHAPES:
        assert file.data(name).tobytes() == numbers(name).tobytes(), name


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf")
    before = path.read_bytes()

    def interrupted(name: str) -> np.ndarray:
        if name == "vector":
            raise KeyboardInterrupt
        return numbers(name).view(np.uint8).reshape(-1)

    tensors = [(name, shape, FORMATS["F32"].number) for name, shape in SHAPES.items()]
    with pytest.raises(KeyboardInterrupt):
        write_gguf(path, {}, tensors, interrupted)
    assert path.read_bytes() == before, "whole"
    assert [*tmp_path.iterdir()] == [path], "and nothing beside it"


def test_writing_to_what_was_read_does_not_change_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf")
    before = path.read_bytes()
    read_gguf(path).data("vector")[:] = 0
    assert path.read_bytes() == before, "tensors are mapped privately"
