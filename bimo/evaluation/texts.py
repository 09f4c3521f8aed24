"""Texts that show whether two tokenizers are the same: many scripts, odd spaces, names of control tokens, noise."""

from __future__ import annotations

import json
import random
from typing import Any

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


def vocabulary_texts(tokenizer: Tokenizer, count: int, seed: int = 0) -> list[str]:
    """Texts made of the tokenizer's own tokens and of parts of them: these are what its merges are about."""
    generator = random.Random(seed)
    size = tokenizer.vocab_size
    texts = []
    for _ in range(count):
        pieces = [tokenizer.decode([generator.randrange(size)]) for _ in range(generator.randrange(1, 9))]
        text = "".join(pieces)
        cut = generator.randrange(len(text) + 1)
        texts.append(text[cut:] + text[:cut] if generator.random() < 0.5 else text)
    return texts


def compare_tokenizers(ours: Tokenizer, original: Tokenizer, *, exported: bool = False, count: int = 300) -> Finding:
    """A tokenizer against the original one: what is written in it, then what it does.

    Ids are compared with those of Hugging Face's tokenizers on the original's tokenizer.json.

    Args:
        ours: Under test.
        original: What it should be.
        exported: It went through another format, which may write the same tokenizer in other words.
        count: Random texts of each kind.
    """
    import tokenizers

    check = "tokens, exported" if exported else "tokens"
    place = "" if exported else difference_in(ours.content, original.content)
    place = place or next((role for role, value in _roles(original).items() if _roles(ours)[role] != value), "")
    if place:
        return Finding(check, "the original", 1.0, 0.0, f"tokenizer, {place}", note="it is not what the original says")
    reference = tokenizers.Tokenizer.from_str(json.dumps(original.content))
    reference.encode_special_tokens = True
    texts = [*SCRIPTS, *random_texts(count), *vocabulary_texts(original, count)]
    wrong = []
    for i, text in enumerate(texts):
        # By scores that tie, as in some GGUF files, only llama.cpp and bimo merge.
        scored = "scores" in original.content["model"]
        expected = original.encode(text) if scored else reference.encode(text, add_special_tokens=False).ids
        ids = ours.encode(text)
        back = ours.decode(ids)
        in_front = ""
        if i < len(SCRIPTS) or i % 3 == 0:  # one id after the other takes most of the time
            in_front = _streamed(ours, ids).removesuffix(back)  # a stream keeps the space that decoding drops
        if ids != expected or back != original.decode(expected) or in_front.strip(" "):
            wrong.append(text)
    note = f"{wrong[0]!r} gives other ids or comes back differently" if wrong else f"{len(texts)} texts are the same"
    return Finding(check, "tokenizers", float(len(wrong)), 0.0, "tokenizer", note=note)


def _roles(tokenizer: Tokenizer) -> dict[str, object]:
    """The tokens with a role, and how a conversation begins."""
    messages = [{"role": "user", "content": "a <|im_end|> b"}]
    return {
        "begin": tokenizer.begin_id,
        "end": tokenizer.end_id,
        "ends": tokenizer.end_ids,
        "prefix": tokenizer.prefix_ids,
        "control tokens": tokenizer.control_tokens,
        "chat": tokenizer.encode_chat(messages) if tokenizer.has_chat_template else [],
    }


def difference_in(ours: Any, theirs: Any, place: str = "") -> str:
    """The place of the first difference between two parsed JSON values, such as model.merges.3; '' for none."""
    if type(ours) is not type(theirs) or not isinstance(ours, (dict, list)):
        return "" if ours == theirs else place or "all of it"
    if ours == theirs:
        return ""
    keys = list(theirs) if isinstance(theirs, dict) else list(range(len(theirs)))
    if len(ours) != len(theirs) or (isinstance(ours, dict) and ours.keys() != theirs.keys()):
        return f"{place}: other entries" if place else "other entries"
    inner = (difference_in(ours[key], theirs[key], f"{place}.{key}" if place else str(key)) for key in keys)
    return next(filter(None, inner))


def _streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of ids as a stream of pieces gives it."""
    decoder = tokenizer.decoder()
    return "".join(decoder.push(i) for i in ids) + decoder.finish()
