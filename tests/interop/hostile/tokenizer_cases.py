"""Folders whose tokenizer lies, or what stands beside it."""

from __future__ import annotations

from interop.hostile.folder_changes import (
    DEEP,
    Change,
    added,
    beside,
    both,
    cut,
    merge,
    model,
    raw,
    vocabulary,
)


def replace(old: str, new: str) -> dict[str, object]:
    """A step of a normalizer."""
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


TOKENIZER: dict[str, tuple[Change, str]] = {
    "empty": (raw("tokenizer.json", b""), "cannot be read as JSON"),
    "a_list": (raw("tokenizer.json", b"[]"), "not a JSON object"),
    "nothing_in_it": (raw("tokenizer.json", b"{}"), "not a tokenizer"),
    "nested_10000_deep": (raw("tokenizer.json", b'{"a":' * DEEP + b"1" + b"}" * DEEP), "nested too deeply"),
    "of_50_megabytes": (raw("tokenizer.json", b'{"a":"' + b"x" * 50_000_000 + b'"}'), "larger than such a file"),
    "of_many_small_values": (raw("tokenizer.json", b'{"a":[' + b"[]," * 300_000 + b"[]]}"), "larger than such a file"),
    "a_key_twice": (raw("tokenizer.json", b'{"model": {"vocab": {"a": 1, "a": 2}}}'), "'a' stands twice"),
    "cut_off": (cut("tokenizer.json", 0.7), "cannot be read as JSON"),
    "model_a_list": (vocabulary(lambda c: c.update(model=[])), "not a tokenizer"),
    "model_a_word_piece": (model(type="WordPiece"), "WordPiece"),
    "model_without_merges": (vocabulary(lambda c: c["model"].pop("merges")), "merges"),
    "vocabulary_a_list": (model(vocab=["a", "b"]), "not a tokenizer"),
    "vocabulary_empty": (model(vocab={}), "not a tokenizer"),
    "vocabulary_of_texts": (model(vocab={"a": "1"}), "not a tokenizer"),
    **{
        f"an_id_{name}": (vocabulary(lambda c, i=i: c["model"]["vocab"].update(a=i)), "not a tokenizer")
        for name, i in {
            "negative": -1,
            "of_2_40": 2**40,
            "of_2_64": 2**64,
            "float": 1.5,
            "truth": True,
            "null": None,
            "list": [1],
            "nan": float("nan"),
            "of_400_digits": 10**400,
        }.items()
    },
    "two_tokens_of_one_id": (vocabulary(lambda c: c["model"]["vocab"].update(a=c["model"]["vocab"]["b"])), "same id"),
    "half_a_character": (
        vocabulary(lambda c: c["model"]["vocab"].update({"\ud800": c["model"]["vocab"].pop("Z")})),
        "surrogates",
    ),
    "more_ids_than_the_model": (vocabulary(lambda c: c["model"]["vocab"].update(zzz=10_000)), "the model only"),
    "merges_a_text": (model(merges="a b"), "not a tokenizer"),
    "merges_of_numbers": (model(merges=[1, 2]), "not a tokenizer"),
    "a_merge_without_a_space": (merge("ab"), "not a tokenizer"),
    "a_merge_of_three": (merge("a b c"), "tokens that are not there"),
    "a_merge_of_three_parts": (merge(["a", "b", "c"]), "not a tokenizer"),
    "a_merge_of_the_unknown": (merge(["xyzzy", "a"]), "tokens that are not there"),
    "a_merge_of_lists": (merge([["a"], ["b"]]), "not a tokenizer"),
    "a_merge_with_itself": (merge(["a", "a"]), "tokens that are not there"),
    "added_a_text": (vocabulary(lambda c: c.update(added_tokens="abc")), "not a tokenizer"),
    "added_texts": (vocabulary(lambda c: c.update(added_tokens=["abc"])), "not a tokenizer"),
    "added_without_an_id": (vocabulary(lambda c: c["added_tokens"][0].pop("id")), "not a tokenizer"),
    "added_without_a_name": (vocabulary(lambda c: c["added_tokens"][0].pop("content")), "not a tokenizer"),
    **{
        f"added_id_{name}": (added(id=i), "not a tokenizer")
        for name, i in {
            "negative": -1,
            "of_2_40": 2**40,
            "text": "5",
            "float": 2.5,
            "truth": True,
            "null": None,
            "list": [1],
            "infinite": float("inf"),
        }.items()
    },
    "added_name_a_number": (added(content=5), "not a tokenizer"),
    "added_name_a_list": (added(content=["a"]), "not a tokenizer"),
    "added_id_of_another_token": (added(id=65), "same id"),
    "decoder_unknown": (vocabulary(lambda c: c.update(decoder={"type": "Magic"})), "Magic"),
    "decoder_a_text": (vocabulary(lambda c: c.update(decoder="ByteLevel")), "not a tokenizer"),
    "decoder_of_9000_steps": (
        vocabulary(lambda c: c.update(decoder={"type": "Sequence", "decoders": [{"type": "Fuse"}] * 9000})),
        "9000 steps",
    ),
    "decoder_that_grows": (
        vocabulary(
            lambda c: c.update(
                decoder={
                    "type": "Sequence",
                    "decoders": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"}] * 30,
                }
            )
        ),
        "endlessly long",
    ),
    "decoder_that_fills": (
        vocabulary(
            lambda c: c.update(decoder={"type": "Replace", "pattern": {"String": ""}, "content": "a" * 100_000})
        ),
        "endlessly long",
    ),
    "normalizer_unknown": (vocabulary(lambda c: c.update(normalizer={"type": "Magic"})), "not a tokenizer"),
    "normalizer_that_grows": (
        vocabulary(lambda c: c.update(normalizer={"type": "Sequence", "normalizers": [replace("x", "x" * 60)] * 3})),
        "128 times as long",
    ),
    "normalizer_that_grows_by_an_expression": (
        vocabulary(
            lambda c: c.update(
                normalizer={
                    "type": "Sequence",
                    "normalizers": [{"type": "Replace", "pattern": {"Regex": "x"}, "content": "xxx"}] * 16,
                }
            )
        ),
        "128 times as long",
    ),
    "normalizer_that_fills": (
        vocabulary(lambda c: c.update(normalizer=replace("x", "x" * 1000))),
        "at most 64 characters",
    ),
    "normalizer_that_replaces_nothing": (vocabulary(lambda c: c.update(normalizer=replace("", "x"))), "of nothing"),
    "normalizer_that_prepends_a_million": (
        vocabulary(lambda c: c.update(normalizer={"type": "Prepend", "prepend": "x" * 10**6})),
        "larger than such a file|at most 64 characters",
    ),
    "normalizer_that_prepends_a_thousand": (
        vocabulary(lambda c: c.update(normalizer={"type": "Prepend", "prepend": "x" * 1000})),
        "at most 64 characters",
    ),
    "normalizer_with_a_table_of_long_texts": (
        vocabulary(
            lambda c: c.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA" * 2 + 999 * "eHh4"})
        ),
        "128 times as long",
    ),
    "normalizer_of_9000_steps": (
        vocabulary(lambda c: c.update(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 9000})),
        "steps before the model",
    ),
    "suffix_of_a_thousand_letters": (model(end_of_word_suffix="x" * 1000), "at most 64 characters"),
    "metaspace_of_many_letters": (
        vocabulary(
            lambda c: c.update(
                pre_tokenizer={"type": "Metaspace", "replacement": "x" * 1000, "prepend_scheme": "always"}
            )
        ),
        "one character",
    ),
    "bytes_of_bytes": (
        vocabulary(
            lambda c: c.update(
                pre_tokenizer={
                    "type": "Sequence",
                    "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}] * 30,
                }
            )
        ),
        "128 times as long",
    ),
    "pre_tokenizer_unknown": (vocabulary(lambda c: c.update(pre_tokenizer={"type": "Magic"})), "not a tokenizer"),
    "pre_tokenizer_of_no_expression": (
        vocabulary(
            lambda c: c.update(
                pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
            )
        ),
        "not a tokenizer",
    ),
    "scores_too_few": (model(scores=[1.0]), "not a tokenizer"),
    "scores_a_text": (model(scores="abc"), "not a tokenizer"),
    "unigram_of_texts": (
        vocabulary(lambda c: c.update(model={"type": "Unigram", "vocab": ["a", "b"]})),
        "not a tokenizer",
    ),
    "unigram_of_numbers": (
        vocabulary(lambda c: c.update(model={"type": "Unigram", "vocab": [[1, 2], [3, 4]]})),
        "not a tokenizer",
    ),
    "unigram_a_table": (
        vocabulary(lambda c: c.update(model={"type": "Unigram", "vocab": {"ab": 1}})),
        "not a tokenizer",
    ),
}

BESIDE: dict[str, tuple[Change, str]] = {
    **{
        f"{file.replace('.', '_')}_no_json": (
            both(beside("tokenizer_config.json", "a", 1), raw(file, b"{")),
            "cannot be read as JSON",
        )
        for file in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
    },
    **{
        f"eos_id_{name}": (beside("generation_config.json", "eos_token_id", value), "eos_token_id")
        for name, value in {
            "text": "</s>",
            "float": 1.0,
            "nested": [[1]],
            "object": {"a": 1},
            "truth": True,
            "of_texts": ["a"],
        }.items()
    },
    **{
        f"bos_{name}": (beside("tokenizer_config.json", "bos_token", value), "bos_token")
        for name, value in {"number": 5, "list": ["<s>"], "truth": True, "object": {"content": 5}}.items()
    },
    "add_bos_a_text": (beside("tokenizer_config.json", "add_bos_token", "yes"), "add_bos_token"),
    "template_a_number": (beside("tokenizer_config.json", "chat_template", 5), "chat_template"),
    "template_of_texts": (beside("tokenizer_config.json", "chat_template", ["a"]), "chat_template"),
    "template_of_numbers": (
        beside("tokenizer_config.json", "chat_template", [{"name": "default", "template": 5}]),
        "chat_template",
    ),
    "template_named_by_a_list": (
        beside(
            "tokenizer_config.json",
            "chat_template",
            [{"name": ["default"], "template": "a"}, {"name": "default", "template": {}}],
        ),
        "chat_template",
    ),
    "template_of_2_megabytes": (
        both(beside("tokenizer_config.json", "a", 1), raw("chat_template.jinja", b"a" * 2**21)),
        "longer than a template",
    ),
}

TEMPLATES = {
    "without_end": "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "that_doubles": "{% set x = namespace(s='a') %}{% for i in range(99) %}{% set x.s = x.s ~ x.s %}{% endfor %}",
    "that_repeats": "{{ 'a' * 10**12 }}",
    "with_a_power": "{{ 9**9**9 }}",
    "that_calls_itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "that_looks_inside": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "that_reads_files": "{% include '/etc/passwd' %}",
    "that_is_no_template": "{% if %}",
    "of_lists_of_one_list": "{% set a=[0]*100000 %}{% set a=[a]*100000 %}{{ a|tojson|length }}",
    "of_lists_as_text": "{% set a=[0]*20000 %}{% set a=[a]*2000 %}{{ a|string|length }}",
    "that_writes_lists": "{% set n=namespace(x=1) %}{% for i in range(60) %}{% set n.x=[n.x,n.x] %}{% endfor %}{{n.x}}",
    "of_many_concatenations": "{{ 'a' ~ 'b' }}" * 15_000,
    "of_many_parts": "{{a}}" * 13_000,
    "nested_deeply": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "of_many_branches": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
}
"""Chat templates; a model that brings one opens, and refuses to chat."""
