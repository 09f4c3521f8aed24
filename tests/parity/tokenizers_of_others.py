"""Small tokenizers of the kinds that published models have, GGUF vocabularies as converters write them, and strings."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bimo.evaluation.texts import SCRIPTS

LIKE_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3, QWEN2 = LIKE_GPT4.replace("DIGITS", "{1,3}"), LIKE_GPT4.replace("DIGITS", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
CONTROL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|stop|>"]
TEXT = [
    *(script for script in SCRIPTS if "<" not in script and "\0" not in script),
    "the cat sat on the mat and saw an old tree by the water while the dog slept, there's it'll WE'RE " * 20,
    "the cat sat on the mat while the dog slept under an old tree by the water; the cat's name is Tom, isn't it? " * 9,
    "一只猫坐在垫子上，狗睡在老树下的水边。这是什么？我们不知道，他们也不知道。" * 9,
    "Größe Straße Übung schön ÉCOLE déjà vu Привет мир ПРИвет приВЕТ Ωmega ωΜΕΓΑ हिन्दी में लिखा है العربية " * 9,
    "for i in range(100):\n    if x[i] == 0:\n        return {'a': 1, \"b\": 2.5}\n\n\n# ======\n" * 9,
    "1 12 123 1234 12345 123456 3.14159 2024-01-31 ١٢٣ ½ ²" * 5,
    "a  b   c    d     e      f       g        h\n\n\ni\n\nj\r\nk\t\tl" * 5,
]


def strings(count: int, seed: int = 0, pieces: Sequence[str] = ()) -> list[str]:
    """Odd strings first, then random ones of many scripts, of real sentences, and of a vocabulary's pieces."""
    generator = random.Random(seed)
    whole = "".join(TEXT)
    found = list(ODD)
    while len(found) < count:
        kind = generator.random()
        if kind < 0.25:
            start = generator.randrange(len(whole))
            found.append(whole[start : start + generator.randrange(1, 60)])
        elif kind < 0.5 and pieces:
            found.append("".join(generator.choices(pieces, k=generator.randrange(1, 9))))
        else:
            ranges = generator.sample(_RANGES, 2)
            found.append("".join(_part(generator, ranges) for _ in range(generator.randrange(1, 40))))
    return found[:count]


ODD = (
    *("", " ", "  ", " a", "  a", "a ", "a  ", "\n", "\r\n\r\n \n\t\n", " \n  \n   x", " " * 50, "\n" * 40, "\t" * 9),
    *("'ſx 'S 'RE I'M ſt ſ 'ſ", "\x00", "a\x00b\x00", "\ufffd \uffff\U0010ffff", "\x85\x0b\x0c\x1c\u00a0\u3000\u2028"),
    *(
        "İıIi ǅ ǈ ﬁ ﬃ",
        "٠١٢٣ ०१२३ 𝟘𝟙 ⅷ ½ 三",
        "👨‍👩‍👧‍👦🏳️‍🌈🇩🇪👍🏽",
        "e\u0301a\u0308\u0323 \u0958 \u1100\u1161\u11a8 각",
        "བོད་སྐད་ ไทย กำ",
    ),
    *(
        "=-" * 30 + "=" * 17,
        "▁ ▁▁ x▁y ▁",
        "aaaaaaaaaaaaaaaaaaaaa",
        "<0x0A><0x41> <0xE4>",
        "\U00020000\U0002a700\ue000\U000f0000",
    ),
    *("<s></s><unk>", "<|user|>hi<|stop|>", "< s>", "the" * 700, "一只猫" * 300, "x" * 3000),
)
_RANGES = (
    *((0x00, 0x20), (0x20, 0x7F), (0xA0, 0x250), (0x250, 0x370), (0x370, 0x530), (0x530, 0x700), (0x700, 0x860)),
    *((0x900, 0xE80), (0xE80, 0x1000), (0x1000, 0x1380), (0x13A0, 0x1800), (0x1E00, 0x2427), (0x2440, 0x2E00)),
    *((0x3000, 0x31E0), (0x3200, 0x3400), (0x4E00, 0x5200), (0xA640, 0xA6A0), (0xAC00, 0xB000), (0xE000, 0xE010)),
    *(
        (0xF900, 0xFE70),
        (0xFF00, 0xFFF0),
        (0xFFF9, 0x10000),
        (0x10330, 0x10350),
        (0x1D400, 0x1D800),
        (0x1F300, 0x1F700),
    ),
    *((0x20000, 0x20100), (0x2A700, 0x2A720), (0xF0000, 0xF0010)),
)
"""Without characters of Unicode 16, which llama.cpp does not know yet."""


def _part(generator: random.Random, ranges: list[tuple[int, int]]) -> str:
    if generator.random() < 0.2:
        return generator.choice(
            [" ", "  ", "\n", "\r\n", "\n\n", "'", "'s", "'ſ", ".", "==", "▁", "1", "e\u0301", "    "]
        )
    return chr(generator.randrange(*generator.choice(ranges)))


def _byte_level(
    *patterns: str,
    size: int = 700,
    ignore_merges: bool = False,
    normalizer: normalizers.Normalizer | None = None,
    before: list[Any] | None = None,
    use_regex: bool = False,
    behavior: tuple[str, bool] = ("isolated", False),
) -> tokenizers.Tokenizer:
    """Byte-level BPE with a cut."""
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        made.normalizer = normalizer
    splits = [pre_tokenizers.Split(Regex(p), behavior[0], invert=behavior[1]) for p in patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    made.pre_tokenizer = pre_tokenizers.Sequence([*(before or []), *splits, last])
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXT, trainer)
    return made


def _with_begin(made: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Puts <s> in front, as the files of Llama, Gemma and DeepSeek do."""
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return made


def _neox() -> tokenizers.Tokenizer:
    made = _byte_level(use_regex=True, normalizer=normalizers.NFC())
    made.add_tokens([tokenizers.AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    return made


def trained_pieces(size: int = 900, characters: int = 300) -> tuple[list[str], list[float], list[int]]:
    """A vocabulary as SentencePiece trains it: tokens, their scores and llama.cpp's types."""
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=size, limit_alphabet=characters, show_progress=False)
    made.train_from_iterator(TEXT, trainer)
    content = json.loads(made.to_str())["model"]
    merged = ["".join(pair) for pair in content["merges"]]
    runs = ["▁▁", "▁▁▁▁", "▁▁▁", "▁▁▁▁▁▁▁▁"]  # of one score, as in Llama 2
    merged = list(dict.fromkeys(merged))
    plain = [*merged, *(run for run in runs if run not in merged)]
    single = [token for token in content["vocab"] if token not in plain]
    scores = [-float(i) for i in range(len(merged))] + [-1e9] * (len(plain) - len(merged))
    by_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *by_byte, *plain, *single]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(plain) + len(single))
    return tokens, [0.0] * 259 + scores + [-1e9] * len(single), types


def sentence_piece(*, prefix: str = "prepend", user: Sequence[str] = ()) -> tokenizers.Tokenizer:
    """SentencePiece's BPE as Hugging Face's converters write it: all pairs that make a token, in the order of scores.

    Args:
        prefix: "prepend", "metaspace" (in front of the first words alone) or "none".
        user: Ordinary added tokens.
    """
    tokens, scores, _ = trained_pieces()
    new = [name for name in user if name not in tokens]
    tokens, scores = [*tokens, *new], [*scores, *(-1e9 for _ in new)]
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = []
    for token, _, _ in sorted(zip(tokens, scores, range(len(tokens)), strict=True), key=lambda t: (-t[1], t[2])):
        cuts = [(token[:n], token[n:]) for n in range(1, len(token))]
        pairs += sorted(
            ((a, b) for a, b in cuts if {a, b} <= vocab.keys()), key=lambda cut: (vocab[cut[0]], vocab[cut[1]])
        )
    made = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    front = [normalizers.Prepend("▁")] if prefix == "prepend" else []
    if prefix == "metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", "▁")])
    strip = [] if prefix == "none" else [decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    made.add_special_tokens(CONTROL)
    made.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in user])
    return _with_begin(made)


def _gemma() -> tokenizers.Tokenizer:
    user = [*("\n" * n for n in range(2, 9)), *("▁" * n for n in range(5, 8)), "<table>", "</table>"]
    made = sentence_piece(prefix="none", user=user)
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return made


def _unigram() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=CONTROL, unk_token="<unk>", show_progress=False)
    made.train_from_iterator([text[:2000] for text in TEXT], trainer)
    return made


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "gpt2": lambda: _byte_level(use_regex=True),
    "llama3": lambda: _with_begin(_byte_level(LLAMA3, ignore_merges=True)),
    "qwen2": lambda: _byte_level(QWEN2, normalizer=normalizers.NFC()),
    "smollm2": lambda: _byte_level(use_regex=True, before=[pre_tokenizers.Digits(individual_digits=True)]),
    "tekken": lambda: _with_begin(_byte_level(TEKKEN, ignore_merges=True)),
    "deepseek": lambda: _with_begin(_byte_level(*DEEPSEEK, normalizer=normalizers.Sequence([]))),
    "neox": _neox,
    "olmo2": lambda: _byte_level(LLAMA3, behavior=("removed", True)),
    "llama2": lambda: sentence_piece(),
    "llama2, metaspace": lambda: sentence_piece(prefix="metaspace"),
    "gemma": _gemma,
    "unigram": _unigram,
}
"""Makers of tokenizers by what they are like."""


def added_variants() -> list[tokenizers.AddedToken]:
    """Ordinary and control tokens that take spaces with them, stand alone, or are looked for after normalising."""
    token = tokenizers.AddedToken
    return [
        token("<|left|>", lstrip=True, special=True),
        token("<|right|>", rstrip=True, special=True),
        token("<left>", lstrip=True, normalized=False),
        token("<right>", rstrip=True, normalized=False),
        token("alone", single_word=True, normalized=False),
        token("normal", normalized=True),
        token("<é>", normalized=False),
        token("[both]", lstrip=True, rstrip=True, normalized=False),
    ]


def write_vocabulary(path: Path, tokens: Sequence[str], types: Sequence[int], **words: Any) -> Path:
    """A GGUF file without tensors, as llama.cpp opens it for its vocabulary alone.

    Args:
        path: Where to.
        tokens: By id.
        types: llama.cpp's types of them.
        words: Other fields of "tokenizer.ggml": model, pre, merges, scores, add_space_prefix, …
    """
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        *((writer.add_context_length, 64), (writer.add_embedding_length, 32), (writer.add_block_count, 1)),
        *((writer.add_feed_forward_length, 64), (writer.add_head_count, 2), (writer.add_rope_dimension_count, 16)),
        *((writer.add_layer_norm_rms_eps, 1e-5), (writer.add_vocab_size, len(tokens))),
    ):
        add(value)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(types))
    adders = {"scores": writer.add_token_scores, "merges": writer.add_token_merges, "model": writer.add_tokenizer_model}
    adders |= {
        "name": writer.add_name,
        "pre": writer.add_tokenizer_pre,
        "add_space_prefix": writer.add_add_space_prefix,
    }
    adders |= {f"{role}_token_id": getattr(writer, f"add_{role}_token_id") for role in ("bos", "eos", "unk")}
    for key, value in words.items():
        adders[key](value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
