"""Texts that show whether two tokenizers are the same: many scripts, odd spaces, names of control tokens, noise."""

from __future__ import annotations

import json
import random

from bimo.evaluation.certificate import Finding
from bimo.tokenizer import Tokenizer

SCRIPTS = (
    "",
    " ",
    "Hello, world!  Two  spaces\tand\ttabs\r\n\r\n  end ",
    "def f(x):\n    return x**2  # comment\n\n\n",
    "I'll DON'T we'Ve 1234567890 3.14e-5 'ſ ﬁ Ⅷ ½ ²",
    "鲁迅《狂人日记》：“今天晚上，很好的月光。”笔墨",
    "ひらがなカタカナ漢字 한국어 조합",
    "हिन्दी தமிழ் ไทยไม่มีช่องว่าง العربية עִבְרִית ქართული",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇨🇳 e\u0301 a\u0308\u0323 ﷽",
    "\x00\x01\x7f\u200b\ufeff\u2028\u3000\u00a0",
    "<|end|><|user|> <|begin|></s><s>[INST]<|im_start|>▁ ▁▁",
    "tok" * 60 + "\n" * 9 + " " * 33 + "=" * 21,
)
_RANGES = (
    *((0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE80), (0x2000, 0x2800)),
    *((0x3000, 0x3130), (0x4E00, 0x5200), (0xAC00, 0xB000), (0x1F300, 0x1F700)),
)


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of up to 40 characters, each of one or two scripts."""
    generator = random.Random(seed)
    texts = []
    for _ in range(count):
        ranges = generator.sample(_RANGES, 2)
        length = generator.randrange(1, 40)
        texts.append("".join(_character(generator, ranges) for _ in range(length)))
    return texts


def _character(generator: random.Random, ranges: list[tuple[int, int]]) -> str:
    if generator.random() < 0.2:
        return generator.choice(" \n'.")
    return chr(generator.randrange(*generator.choice(ranges)))


def compare_tokenizers(ours: Tokenizer, original: Tokenizer, count: int = 300) -> Finding:
    """Ids and texts of a tokenizer against Hugging Face's tokenizers on the original's tokenizer.json."""
    import tokenizers

    reference = tokenizers.Tokenizer.from_str(json.dumps(original.content))
    reference.encode_special_tokens = True
    texts = [*SCRIPTS, *random_texts(count)]
    wrong = []
    for text in texts:
        expected = reference.encode(text, add_special_tokens=False).ids
        ids = ours.encode(text)
        if ids != expected or ours.decode(ids) != original.decode(expected):
            wrong.append(text)
    return Finding(
        "tokens",
        "tokenizers",
        float(len(wrong)),
        0.0,
        "tokenizer",
        note=f"{wrong[0]!r} gives other ids" if wrong else f"{len(texts)} texts give the same ids",
    )
