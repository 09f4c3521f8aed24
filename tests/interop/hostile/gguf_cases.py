"""GGUF files that lie: each is a small sound file with one thing wrong, and the words in which it must be refused."""

from __future__ import annotations

import struct

from interop.hostile.gguf_draft import (
    ARRAY,
    BOOL,
    F32,
    STRING,
    U8,
    U32,
    U64,
    Change,
    Piece,
    array,
    both,
    cut,
    items,
    lack,
    longer,
    make,
    many,
    more,
    number,
    pieces,
    put,
    renamed,
    scaling,
    tensor,
    text,
)

EMBEDDINGS, QUERIES, NORM = "token_embd.weight", "blk.0.attn_q.weight", "output_norm.weight"
ARCH, WORDS = "qwen3.", "tokenizer.ggml."
SIZE = "must|asks for|layers|differs|the model has"
HUGE = 2**62

LAYOUT: dict[str, tuple[Change, str]] = {
    "nothing": (lambda draft: b"", "not a GGUF file"),
    "another_format": (lambda draft: b"\x80\x04" + draft.bytes()[2:], "not a GGUF file"),
    "magic_only": (lambda draft: b"GGUF", "not a GGUF file"),
    "zip": (lambda draft: b"PK\x03\x04" + bytes(100), "not a GGUF file"),
    "version_1": (make(version=1), "version 1 is not supported"),
    "version_99": (make(version=99), "version 99 is not supported"),
    "big_endian": (make(version=3 << 24), "big-endian"),
    "tensors_2_63": (make(counts=(2**63, None)), "tensors, more than it can hold"),
    "fields_2_63": (make(counts=(None, 2**63)), "fields, more than it can hold"),
    "more_tensors_than_there_are": (make(counts=(200, None)), "is cut off|has [0-9]+ dimensions|too long|more than"),
    "more_fields_than_there_are": (make(counts=(None, 100)), "is cut off|unknown type|too long|more than"),
    "no_tensors": (make(pieces=[]), "layers, but 0 tensors"),
    "no_fields": (make(fields={}), "architecture None is not supported"),
    "dims_none": (tensor(QUERIES, dims=[]), "0 dimensions"),
    "dims_five": (tensor(QUERIES, dims=[64, 4, 4, 2, 2]), "5 dimensions"),
    "dims_2_31": (
        lambda draft: draft.bytes().replace(
            text(QUERIES) + struct.pack("<I", 2), text(QUERIES) + struct.pack("<I", 2**31)
        ),
        "2147483648 dimensions",
    ),
    "a_size_of_zero": (tensor(QUERIES, dims=[64, 0]), "impossible shape"),
    "product_beyond_2_64": (tensor(QUERIES, dims=[2**33, 2**33]), "impossible shape"),
    "product_that_wraps_to_the_right_size": (tensor(QUERIES, dims=[64, 2**58 + 1]), "impossible shape"),
    "a_tensor_of_2_40": (tensor(QUERIES, dims=[2**20, 2**20]), "beyond the end|2 x .*|is .*, the model has"),
    "rows_of_no_whole_blocks": (tensor(QUERIES, dims=[63, 64]), "no whole blocks of 32"),
    "type_unknown": (tensor(QUERIES, kind=77), "type 77, which is not supported"),
    "type_removed": (tensor(QUERIES, kind=4), "type 4, which is not supported"),
    "type_of_other_blocks": (tensor(EMBEDDINGS, kind=12), "no whole blocks of 256"),
    "type_of_larger_numbers": (tensor(EMBEDDINGS, kind=0), "overlap"),
    "overlapping": (tensor(QUERIES, offset=0), "overlap"),
    "overlapping_by_a_bit": (tensor(QUERIES, offset=32), "overlap"),
    "the_same_bytes_twice": (
        lambda draft: draft.pieces.append(Piece("copy", [*draft.piece(QUERIES).dims], 8, draft.piece(QUERIES).offset)),
        "overlap",
    ),
    "beyond_the_end": (tensor(QUERIES, offset=2**40), "beyond the end of the file"),
    "beyond_2_64": (tensor(QUERIES, offset=2**64 - 32), "beyond the end of the file"),
    "not_aligned": (tensor(QUERIES, offset=17), "multiple of 32 bytes"),
    "a_name_twice": (tensor(QUERIES, name=EMBEDDINGS), "'token_embd.weight' stands twice"),
    "a_name_twice_among_100000": (many(100_000, twice=True), "'t7' stands twice"),
    "a_name_of_no_text": (
        lambda draft: draft.bytes().replace(b"blk.0.attn_q.weight", b"blk.0.attn_\xff.weight"),
        "not UTF-8",
    ),
    "a_name_of_2_62": (
        lambda draft: draft.bytes().replace(text(QUERIES)[:8], struct.pack("<Q", HUGE)),
        "cut off|too l",
    ),
    "a_field_twice": (make(repeated=["general.name"]), "'general.name' stands twice"),
    "a_field_without_a_value": (put("", b""), "unknown type|cut off"),
    "a_key_of_bytes": (lambda draft: draft.bytes().replace(b"general.name", b"general.\xff\xfe\xfd\xfc"), "not UTF-8"),
    "a_text_of_bytes": (put("general.name", struct.pack("<I", STRING) + text(b"\xc3\x28")), "not UTF-8"),
    "a_text_of_2_62": (put("general.name", struct.pack("<IQ", STRING, HUGE)), "cut off"),
    "a_text_that_ends_with_the_file": (put("general.name", struct.pack("<IQ", STRING, 10**6)), "cut off"),
    "a_field_of_an_unknown_type": (put("general.name", struct.pack("<I", 13)), "unknown type 13"),
    "a_truth_of_two": (put("general.name", struct.pack("<IB", BOOL, 2)), "neither 0 nor 1"),
    "truths_of_two": (put("general.name", array(BOOL, 3, b"\x00\x01\x02")), "neither 0 nor 1"),
    "a_list_of_lists": (put("general.name", array(ARRAY, 1, array(U8, 1, b"1"))), "list of the type 9"),
    "lists_without_end": (put("general.name", array(ARRAY, 1) * 50_000), "list of the type 9"),
    "a_list_of_an_unknown_type": (put("general.name", array(99, 1, bytes(64))), "list of the type 99"),
    **{
        f"a_list_of_2_40_of_type_{kind}": (put("general.name", array(kind, 2**40)), "1099511627776 items")
        for kind in (*range(9), *range(10, 13))
    },
    "a_list_of_2_64": (put("general.name", array(STRING, 2**64 - 1)), "18446744073709551615 items"),
    "a_list_with_a_text_of_2_62": (
        put("general.name", array(STRING, 3, text("a") + struct.pack("<Q", HUGE))),
        "cut off",
    ),
    "a_list_with_a_text_of_2_64": (put("general.name", array(STRING, 1, struct.pack("<Q", 2**64 - 8))), "cut off"),
    "a_list_of_bytes": (put("general.name", array(STRING, 1, text(b"\xff"))), "not UTF-8"),
    **{
        f"alignment_{name}": (put("general.alignment", content), "general.alignment is")
        for name, content in {
            "0": 0,
            "3": 3,
            "2_40": number(U64, 2**40),
            "negative": -32,
            "text": "32",
            "list": [32],
            "float": 32.0,
            "truth": True,
        }.items()
    },
    "alignment_that_the_data_has_not": (put("general.alignment", 4096), "multiple of 4096|beyond the end"),
    **{
        f"cut_at_{percent}_percent": (
            cut(percent / 100),
            "cut off|more than it can hold|more than the file holds|not a GGUF",
        )
        for percent in range(1, 100, 7)
    },
    "cut_in_the_last_tensor": (lambda draft: draft.bytes()[:-200], "beyond the end of the file"),
    "cut_behind_the_header": (cut(1.0), "beyond the end of the file"),
    "many_megabytes_of_texts": (
        put("general.name", array(STRING, 2**22, text("一") * 2**22)),
        "more than 96 MB of memory",
    ),
    "many_megabytes_of_numbers": (
        lambda draft: draft.fields.update({f"x{i}": array(F32, 2**20, bytes(2**22)) for i in range(14)}),
        "more than 96 MB of memory",
    ),
}

MEANING: dict[str, tuple[Change, str]] = {
    "architecture_unknown": (put("general.architecture", "mamba"), "'mamba' is not supported"),
    "architecture_a_number": (put("general.architecture", 7), "architecture 7 is not supported"),
    "architecture_a_list": (put("general.architecture", ["qwen3"]), "is not supported"),
    "architecture_missing": (lack("general.architecture"), "architecture None"),
    **{
        f"{key}_missing".replace(".", "_"): (lack(ARCH + key), "missing")
        for key in (
            "block_count",
            "context_length",
            "embedding_length",
            "feed_forward_length",
            "attention.head_count",
            "attention.layer_norm_rms_epsilon",
        )
    },
    **{
        f"{key}_{name}".replace(".", "_"): (put(ARCH + key, content), SIZE)
        for key in (
            "block_count",
            "context_length",
            "embedding_length",
            "feed_forward_length",
            "attention.head_count",
            "attention.head_count_kv",
            "attention.key_length",
            "rope.dimension_count",
        )
        for name, content in {
            "zero": 0,
            "negative": -4,
            "huge": 2**31,
            "of_2_63": number(U64, 2**63),
            "text": "4",
            "float": 4.0,
            "truth": True,
            "nan": float("nan"),
            "list": [4, 5],
            "texts": ["4"],
            "empty": array(U32, 0),
        }.items()
        if not (name == "zero" and key in ("attention.head_count_kv", "attention.key_length", "rope.dimension_count"))
        and not (name == "huge" and key == "context_length")
        and not (name == "zero" and key == "feed_forward_length")
    },
    **{
        f"{key}_{name}".replace(".", "_"): (put(ARCH + key, content), "norm_eps|epsilon|rope_theta|freq_base")
        for key in ("attention.layer_norm_rms_epsilon", "rope.freq_base")
        for name, content in {
            "zero": 0.0,
            "negative": -1e-5,
            "nan": float("nan"),
            "infinite": float("inf"),
            "text": "1e-5",
            "truth": True,
            "list": [1e-5, 1e-6],
            "texts": ["1e-5"],
        }.items()
    },
    "layers_as_a_list_of_2_31": (put(ARCH + "block_count", [2**31 - 1]), "layers"),
    "scaling_of_an_unknown_kind": (scaling("magic", 2.0), "'magic' is not supported"),
    **{
        f"scaling_by_{name}": (scaling("yarn", factor), "factor|wrong value")
        for name, factor in {
            "zero": 0.0,
            "minus_2": -2.0,
            "nan": float("nan"),
            "inf": float("inf"),
            "text": "2",
        }.items()
    },
    "scaling_with_a_base_of_one": (both(scaling("yarn", 2.0), put(ARCH + "rope.freq_base", 1.0)), "no such model"),
    "a_tensor_missing": (lambda draft: draft.pieces.remove(draft.piece(QUERIES)), "'blk.0.attn_q.weight' is missing"),
    "the_embeddings_missing": (tensor(EMBEDDINGS, name="other"), "token_embd.weight"),
    "a_tensor_too_many": (more("more"), "'more' has no place"),
    "a_tensor_turned": (tensor("blk.0.ffn_up.weight", dims=[192, 64]), "the model has"),
    "a_matrix_as_a_vector": (tensor(QUERIES, dims=[64 * 64]), "the model has"),
    "a_vector_as_a_matrix": (tensor(NORM, dims=[32, 2]), "the model has"),
    "a_matrix_of_four_dimensions": (tensor(QUERIES, dims=[64, 1, 1, 64]), "the model has"),
    "embeddings_as_a_vector": (tensor(EMBEDDINGS, dims=[64 * 300]), "ids|embeddings|the model has"),
    "embeddings_of_fewer_tokens": (tensor(EMBEDDINGS, dims=[64, 100]), "ids"),
    "layers_beyond_the_tensors": (put(ARCH + "block_count", 3), "is missing"),
    "layers_fewer_than_the_tensors": (put(ARCH + "block_count", 1), "has no place"),
    "tensors_30000_and_as_many_layers": (
        both(many(30_000, twice=False), put(ARCH + "block_count", 29_000)),
        "29000 layers",
    ),
    "gemma_of_2_31_layers": (both(renamed("gemma3"), put("gemma3.block_count", 2**31)), "layers"),
}

VOCABULARY: dict[str, tuple[Change, str]] = {
    "kind_missing": (lack(WORDS + "model"), "kind None is not supported"),
    "kind_unknown": (put(WORDS + "model", "magic"), "'magic' is not supported"),
    "kind_a_list": (put(WORDS + "model", ["gpt2"]), "is not supported"),
    "tokens_missing": (lack(WORDS + "tokens"), "tokens is no list of texts"),
    "tokens_empty": (put(WORDS + "tokens", array(STRING, 0)), "tokens is no list of texts"),
    "tokens_numbers": (put(WORDS + "tokens", [1, 2, 3]), "tokens is no list of texts"),
    "tokens_one_text": (put(WORDS + "tokens", "abc"), "tokens is no list of texts"),
    "tokens_more_than_embeddings": (longer(WORDS + "tokens", 10), "ids, the model only"),
    "tokens_fewer_than_types": (longer(WORDS + "tokens", -3), "each of"),
    "a_token_huge": (items(WORDS + "tokens", 300, "a" * 2**21), "long|more than"),
    "types_fewer": (longer(WORDS + "token_type", -3), "each of"),
    "types_texts": (put(WORDS + "token_type", ["1"] * 400), "each of"),
    "types_floats": (put(WORDS + "token_type", [1.0] * 400), "token_type"),
    "types_a_number": (put(WORDS + "token_type", 1), "each of"),
    "types_out_of_range": (items(WORDS + "token_type", 5, 99), "token_type"),
    "types_negative": (items(WORDS + "token_type", 5, -1), "token_type"),
    "merges_missing": (lack(WORDS + "merges"), "merges is no list of pairs"),
    "merges_one_text": (put(WORDS + "merges", "a b"), "merges is no list of pairs"),
    "merges_numbers": (put(WORDS + "merges", [1, 2]), "merges is no list of pairs"),
    "a_merge_without_a_space": (items(WORDS + "merges", 0, "ab"), "merges is no list of pairs"),
    "a_merge_of_a_space": (items(WORDS + "merges", 0, " "), "merges is no list of pairs"),
    "a_merge_of_three": (items(WORDS + "merges", 0, "a b c"), "tokens that are not there"),
    "a_merge_of_the_unknown": (items(WORDS + "merges", 0, "xyzzy a"), "tokens that are not there"),
    "a_merge_into_the_unknown": (items(WORDS + "merges", 0, "~ ~"), "tokens that are not there"),
    "the_cut_unknown": (put(WORDS + "pre", "magic"), "'magic' is not supported"),
    "the_cut_a_list": (put(WORDS + "pre", ["qwen2"]), "is not supported"),
    "the_cut_a_number": (put(WORDS + "pre", 5), "is not supported"),
    **{
        f"{role}_{name}": (put(f"{WORDS}{role}_token_id", content), f"{role}_token_id")
        for role in ("bos", "eos")
        for name, content in {
            "out_of_range": 400,
            "of_2_32": 2**32 - 1,
            "negative": -1,
            "text": "<|end|>",
            "float": 1.0,
            "list": [1],
            "truth": True,
        }.items()
    },
    "template_a_number": (put("tokenizer.chat_template", 5), "chat_template"),
    "template_a_list": (put("tokenizer.chat_template", ["a"]), "chat_template"),
    "add_bos_a_text": (put(WORDS + "add_bos_token", "yes"), "add_bos_token"),
    "pieces_without_scores": (pieces(scores=None), "scores is missing"),
    "pieces_with_fewer_scores": (pieces(scores=lambda scores: scores[:-1]), "each of"),
    "pieces_with_texts_for_scores": (pieces(scores=lambda scores: ["1"] * len(scores)), "each of"),
    "pieces_with_a_score_of_nan": (pieces(scores=lambda scores: [*scores[:-1], float("nan")]), "scores"),
    "pieces_with_a_score_of_infinity": (pieces(scores=lambda scores: [*scores[:-1], float("inf")]), "scores"),
    "pieces_with_truths_for_scores": (pieces(scores=lambda s: array(BOOL, len(s), bytes(len(s)))), "scores"),
    "pieces_of_enormous_length": (
        pieces(tokens=lambda tokens: [*tokens[:-9], *("一" * 40_000 + str(i) for i in range(9))]),
        "long",
    ),
}

GGUF = {
    f"{group}/{name}": case
    for group, cases in (("layout", LAYOUT), ("meaning", MEANING), ("vocabulary", VOCABULARY))
    for name, case in cases.items()
}
