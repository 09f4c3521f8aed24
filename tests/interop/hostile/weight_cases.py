"""Folders whose weights or their index lie."""

from __future__ import annotations

import struct

from interop.hostile.folder_changes import (
    DEEP,
    LAYER,
    Change,
    cut,
    header,
    header_text,
    index,
    raw,
    sparse,
    void,
    weight,
)

WEIGHTS: dict[str, tuple[Change, str]] = {
    "empty": (raw("model.safetensors", b""), "damaged weights"),
    "seven_bytes": (raw("model.safetensors", bytes(7)), "damaged weights"),
    "zeros": (raw("model.safetensors", bytes(1000)), "damaged weights"),
    "header_of_2_63": (
        raw("model.safetensors", struct.pack("<Q", 2**63) + b"{}"),
        "header of 9223372036854775808 bytes",
    ),
    "header_of_2_64": (raw("model.safetensors", b"\xff" * 64), "header of"),
    "header_of_one_gigabyte": (raw("model.safetensors", struct.pack("<Q", 2**30) + b"{}"), "header of"),
    "header_no_json": (header_text(lambda text: b"x" * len(text)), "damaged weights"),
    "header_a_list": (header_text(lambda text: b"[1, 2]  "), "damaged weights"),
    "header_null": (header_text(lambda text: b"null    "), "damaged weights"),
    "header_not_utf8": (header_text(lambda text: b'{"\xff\xff":1}'), "damaged weights"),
    "header_nested_10000_deep": (header_text(lambda text: b'{"a":' * DEEP + b"1" + b"}" * DEEP), "damaged weights"),
    "header_unclosed_10000_deep": (header_text(lambda text: b'{"a":' + b"[" * DEEP), "damaged weights"),
    "header_of_15_megabytes": (
        header_text(lambda text: b'{"__metadata__":{' + b",".join(b'"%d":"x"' % i for i in range(1_100_000)) + b"}}"),
        "damaged weights",
    ),
    "header_of_100000_tensors": (
        header_text(
            lambda text: (
                b"{"
                + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(100_000))
                + b"}"
            )
        ),
        ".",
    ),
    "header_of_300000_tensors": (
        header_text(
            lambda text: (
                b"{"
                + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(250_000))
                + b"}"
            )
        ),
        "250000 tensors",
    ),
    "header_without_end": (header_text(lambda text: text.rstrip()[:-2]), "damaged weights"),
    "a_name_twice": (
        header_text(
            lambda text: text.replace(
                b"{",
                b'{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},',
                1,
            )
        ),
        "twice|damaged",
    ),
    "a_name_twice_in_disguise": (
        header_text(
            lambda text: text.replace(
                b"{",
                b'{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"\\u0078":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},',
                1,
            )
        ),
        "twice|damaged",
    ),
    "a_name_twice_behind_escapes": (
        header_text(
            lambda text: text.replace(
                b"{",
                b'{"x":{"dtype":"F32","shape":[0],"data\\u005foffsets":[0,0]},"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},',
                1,
            )
        ),
        "twice|damaged",
    ),
    "a_field_twice": (
        header_text(
            lambda text: text.replace(b'"dtype":"F32"', b'"dtype":"F32","dtype":"F16"', 1).replace(
                b'"dtype": "F32"', b'"dtype":"F32","dtype":"F16"', 1
            )
        ),
        "damaged weights",
    ),
    "overlapping": (weight(data_offsets=[0, 64 * 64 * 4]), "damaged weights"),
    "beyond_the_end": (weight(data_offsets=[2**40, 2**40 + 64 * 64 * 4]), "damaged weights"),
    "beyond_2_64": (weight(data_offsets=[2**64 - 4, 2**64]), "damaged weights"),
    "backwards": (weight(data_offsets=[64 * 64 * 4, 0]), "damaged weights"),
    "negative_offsets": (weight(data_offsets=[-4, 0]), "damaged weights"),
    "offsets_of_text": (weight(data_offsets=["0", "4"]), "damaged weights"),
    "three_offsets": (weight(data_offsets=[0, 1, 2]), "damaged weights"),
    "no_offsets": (header(lambda c: void(c[LAYER].pop("data_offsets"))), "damaged weights"),
    "a_hole": (header(lambda c: void(c.pop(LAYER))), "damaged weights|missing"),
    "bytes_behind_the_end": (
        lambda folder: void((folder / "model.safetensors").open("ab").write(b"x" * 64)),
        "damaged weights",
    ),
    "dtype_unknown": (weight(dtype="F12"), "damaged weights"),
    "dtype_a_number": (weight(dtype=5), "damaged weights"),
    "dtype_int": (weight(dtype="I32"), "holds torch.int32"),
    "dtype_bool": (weight(dtype="BOOL", shape=[64, 256]), "."),
    "dtype_f8": (weight(dtype="F8_E4M3", shape=[64, 256]), "."),
    "dtype_f8_scales": (weight(dtype="F8_E8M0", shape=[64, 256]), "."),
    "dtype_f4": (weight(dtype="F4", shape=[64, 512]), "."),
    "dtype_complex": (weight(dtype="C64", shape=[64, 32]), "."),
    "dtype_too_large": (weight(dtype="F64"), "damaged weights"),
    "shape_of_2_40": (weight(shape=[2**20, 2**20]), "damaged weights"),
    "shape_that_overflows": (weight(shape=[2**33, 2**33]), "damaged weights"),
    "shape_that_wraps": (weight(shape=[64, 2**58 + 64]), "damaged weights"),
    "shape_negative": (weight(shape=[-64, -64]), "damaged weights"),
    "shape_of_text": (weight(shape=["64", "64"]), "damaged weights"),
    "shape_of_floats": (weight(shape=[64.0, 64.0]), "damaged weights"),
    "shape_of_a_number": (weight(shape=4096), "damaged weights"),
    "shape_nested": (weight(shape=[[64], [64]]), "damaged weights"),
    "shape_with_a_zero": (weight(shape=[64, 0]), "damaged weights"),
    "shape_turned_flat": (weight(shape=[64 * 64]), "the model has"),
    "shape_of_64_dimensions": (weight(shape=[64, 64] + [1] * 62), "."),
    "shape_of_1000_dimensions": (weight(shape=[64, 64] + [1] * 998), "."),
    "a_tensor_too_many": (
        header(lambda c: c.update(more={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})),
        "'more' is in the file|damaged",
    ),
    "a_tensor_renamed": (header(lambda c: void(c.update(other=c.pop(LAYER)))), "is missing"),
    "a_name_of_a_megabyte": (header(lambda c: void(c.update({"x" * 10**6: c.pop(LAYER)}))), "is missing"),
    "metadata_of_numbers": (header(lambda c: c.update(__metadata__={"a": 5})), "damaged weights"),
    "metadata_a_list": (header(lambda c: c.update(__metadata__=[1])), "damaged weights"),
    **{
        f"cut_at_{percent}_percent": (cut("model.safetensors", percent / 100), "damaged weights")
        for percent in (1, 2, 5, 20, 50, 99)
    },
    "of_16_gigabytes_of_nothing": (sparse("model.safetensors", 2**34), "damaged weights"),
    "index_empty": (index({}), "tensors|missing"),
    "index_a_list": (index(["model.safetensors"]), "no table of file names"),
    "index_of_numbers": (index({LAYER: 5}), "no table of file names"),
    "index_above": (index({LAYER: "../model.safetensors"}), "no .safetensors file of this folder"),
    "index_absolute": (index({LAYER: "/etc/passwd"}), "no .safetensors file of this folder"),
    "index_absolute_weights": (index({LAYER: "/tmp/model.safetensors"}), "no .safetensors file of this folder"),
    "index_below": (index({LAYER: "sub/model.safetensors"}), "no .safetensors file of this folder"),
    "index_backslash": (index({LAYER: "..\\model.safetensors"}), "."),
    "index_pickled": (index({LAYER: "pytorch_model.bin"}), "no .safetensors file of this folder"),
    "index_nothing": (index({LAYER: ""}), "no .safetensors file of this folder"),
    "index_dots": (index({LAYER: ".."}), "no .safetensors file of this folder"),
    "index_with_a_null": (index({LAYER: "a\0.safetensors"}), "damaged weights|no such file"),
    "index_of_an_endless_name": (index({LAYER: "a" * 5000 + ".safetensors"}), "damaged weights|can"),
    "index_of_what_is_not_there": (
        index({LAYER: "model-00002-of-00001.safetensors"}),
        "model-00002-of-00001.safetensors",
    ),
    "index_of_100000_files": (index({f"t{i}": f"{i}.safetensors" for i in range(100_000)}), "."),
    "index_of_half_a_character": (
        raw("model.safetensors.index.json", b'{"weight_map": {"a": "\\ud800.safetensors"}}'),
        ".",
    ),
    "index_no_json": (raw("model.safetensors.index.json", b"\x80"), "cannot be read as JSON"),
    "index_twice": (
        raw("model.safetensors.index.json", b'{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}'),
        "stands twice",
    ),
    "index_of_50_megabytes": (raw("model.safetensors.index.json", b"[" * 50_000_000), "larger than such a file"),
    "a_tensor_in_two_files": (
        lambda folder: (
            index({LAYER: "model-00001-of-00001.safetensors", "x": "b.safetensors"})(folder),
            (folder / "b.safetensors").write_bytes((folder / "model-00001-of-00001.safetensors").read_bytes()),
        )[0],
        "stands in two files",
    ),
}
