"""How byte-level BPE cuts a text before merging, as llama.cpp names it and as a `tokenizer.json` writes it.

One table serves both directions. A tokenizer.json says the same cut in several ways; `stages_of` brings it to a list of
regular expressions, each of which isolates its matches. The expressions are what llama.cpp does, which is not always
what the model's makers meant: "tekken" and "gpt-4o" tell upper from lower case in ASCII alone there, and know no marks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bimo.tokenizer.bpe import byte_letters

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_ANY_CASE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_FRONT = r"[^\r\n\p{L}\p{N}]?"
_CASED = rf"{_FRONT}{_UPPER}*{_LOWER}+%s|{_FRONT}{_UPPER}+{_LOWER}*%s"
_PUNCTUATED = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""


def _words(digits: str, letters: str = r"\p{L}") -> str:
    """The pattern that Llama 3 and Qwen share, with so many digits in a piece."""
    others = r"\s\p{L}\p{N}" if letters == r"\p{L}" else r"\s\p{L}\p{M}\p{N}"
    return rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|\p{{N}}{digits}| ?[^{others}]+[\r\n]*|{_SPACES}"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """A cut that llama.cpp knows.

    Attributes:
        names: Its names there; the first is the one that is written.
        stages: Regular expressions, applied one after the other.
        ignore_merges: A piece that is a token as a whole is taken whole.
        add_begin: Whether texts get the beginning-of-text token when the file does not say.
    """

    names: tuple[str, ...]
    stages: tuple[str, ...]
    ignore_merges: bool = False
    add_begin: bool = False


_DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ"
    "-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰"
    "-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
"""Upper and lower case as DeepSeek's first tokenizers write them."""
_EASTERN = r"(?:(?!\s)[一-龥ࠀ-一가-퟿])+"
"""llama.cpp sees no spaces in it, though the range from ࠀ to 一 holds some."""
_OUTER = r" ?[^(\s|.,!?…。，、।۔،)]+"

KNOWN = (
    PreTokenizer(
        (
            *("qwen2", "stablelm2", "hunyuan", "solar-open", "megrez", "deepseek-r1-qwen", "kormo", "f2llmv2"),
            *("grok-2",),
        ),
        (_words(""),),
    ),
    PreTokenizer(
        (
            *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
            *("jina-v5-nano",),
        ),
        (_words("{1,3}"),),
        ignore_merges=True,
        add_begin=True,
    ),
    PreTokenizer(("dbrx", "smaug-bpe", "chatglm-bpe"), (_words("{1,3}"),)),
    PreTokenizer(("glm4", "glm5"), (_words("{1,3}"),), ignore_merges=True),
    PreTokenizer(("qwen35",), (_words("", r"[\p{L}\p{M}]"),)),
    PreTokenizer(
        (
            *("gpt-2", "mpt", "olmo", "jais", "trillion", "phi-2", "jina-es", "jina-de", "gigachat", "roberta-bpe"),
            *("jina-v1-en", "jina-v2-code", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum", "modern-bert", "exaone4"),
            *("granite-docling",),
        ),
        (_GPT2,),
    ),
    PreTokenizer(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
        (r"\p{N}", _GPT2),
    ),
    PreTokenizer(("falcon",), (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    PreTokenizer(("default",), (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    PreTokenizer(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
        (
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            rf"{_PUNCTUATED}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
        ),
    ),
    PreTokenizer(
        ("deepseek-llm",),
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            r"\s?[!-/:-~！-／：-～‘-‟、-。]+",
            r"\s+$",
            _EASTERN,
            r"\p{N}+",
        ),
    ),
    PreTokenizer(("deepseek-coder",), (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EASTERN, r"\p{N}")),
    PreTokenizer(
        ("tekken",),
        (rf"{_CASED % ('', '')}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",),
        ignore_merges=True,
        add_begin=True,
    ),
    PreTokenizer(
        ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
        (rf"{_CASED % (_SHORT + '?', _SHORT + '?')}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",),
    ),
    PreTokenizer(("minicpm5",), (r"\p{N}{1,3}", _words("+")), ignore_merges=True),
    PreTokenizer(("seed-coder",), (_words("{1}").replace(r"\p{N}]+[\r\n]*", r"\p{N}\r\n]+"),)),
    PreTokenizer(("ufakzeka",), (_words("").removeprefix(_SHORT + "|"),)),
    PreTokenizer(
        ("bailingmoe", "bailingmoe2", "llada-moe"),
        (
            _words("")
            .replace(_SHORT, "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])")
            .replace(r"|\s*[\r\n]+|", r"|\s*[\r\n]|"),
        ),
    ),
    PreTokenizer(("poro-chat", "bloom", "gpt3-finnish"), (_OUTER,)),
    PreTokenizer(("viking",), (_OUTER, r"\p{N}")),
)


_GAPLESS = frozenset((_GPT2, _words(""), _words("{1,3}"), _words("", r"[\p{L}\p{M}]")))
"""Expressions that match every character."""


def named(name: str) -> PreTokenizer | None:
    """The cut that llama.cpp calls so."""
    return next((known for known in KNOWN if name in known.names), None)


def recognised(pre_tokenizer: dict[str, Any] | None, ignore_merges: bool) -> PreTokenizer | None:
    """The cut that a tokenizer.json asks for, if llama.cpp knows it."""
    stages = stages_of(pre_tokenizer)
    fitting = [known for known in KNOWN if known.stages == stages]
    return next((known for known in fitting if known.ignore_merges == ignore_merges), None)


def to_json(stages: tuple[str, ...], vocab: Mapping[str, int]) -> dict[str, Any]:
    """A tokenizer.json's pre_tokenizer of regular expressions, then bytes as letters.

    A byte that the vocabulary lacks, as SmolLM2 lacks some, gives no token. In llama.cpp what stands on its two sides
    stays apart as well, which takes one more cut.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    steps = [*map(_isolated, stages), byte_level, *map(_isolated, filter(None, [lacking(vocab)]))]
    return {"type": "Sequence", "pretokenizers": steps}


def _isolated(expression: str) -> dict[str, Any]:
    return {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": expression}}


def lacking(vocab: Mapping[str, int]) -> str:
    """An expression for the bytes, as letters, that are no tokens; '' when all are."""
    return "|".join(re.escape(letter) for letter in byte_letters().values() if letter not in vocab)


def cut_of_bytes(pre_tokenizer: dict[str, Any] | None) -> str:
    """The expression that isolates some of the bytes, as letters, at the end of a pre_tokenizer; '' for none."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [])
    if [step["type"] for step in steps[-2:]] != ["ByteLevel", "Split"]:
        return ""
    expression: str = steps[-1]["pattern"].get("Regex", "")
    return expression if steps[-1] == _isolated(expression) else ""


def stages_of(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...] | None:
    """The regular expressions of a pre_tokenizer before its bytes; None when it is something else."""
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    if cut_of_bytes(pre_tokenizer):
        steps = steps[:-1]
    stages: list[str] = []
    for step in steps:
        kind = step["type"]
        if kind == "Split" and "Regex" in step["pattern"]:
            stage = step["pattern"]["Regex"].replace(_ANY_CASE, _SHORT).replace("\r", r"\r").replace("\n", r"\n")
            # Removing what lies between matches is the same as isolating them where nothing lies between.
            way = (step["behavior"], step["invert"])
            if way != ("Isolated", False) and not (way == ("Removed", True) and stage in _GAPLESS):
                return None
            stages.append(stage)
        elif kind == "Digits":
            stages.append(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")
        elif kind == "ByteLevel" and not step.get("add_prefix_space") and step is steps[-1]:
            stages += [_GPT2] if step.get("use_regex", True) else []
        else:
            return None
    return tuple(stages) if steps and steps[-1]["type"] == "ByteLevel" else None


def joins_long_s(pre_tokenizer: dict[str, Any] | None, vocab: Mapping[str, int]) -> str | None:
    """A token that makes a difference between 'S in any case and 's, 'S alone, which is how llama.cpp has it.

    In any case, ſ is an s: 'ſ is cut off from the letters after it. What comes out is the same all the same unless a
    token goes across that border.
    """
    if "(?i:" not in json.dumps(pre_tokenizer):
        return None
    letters = byte_letters()
    long_s = "".join(letters[byte] for byte in "ſ".encode())
    tail = long_s[1:]
    continuing = {letters[byte] for byte in range(0x80, 0xC0)}

    def crosses(token: str) -> bool:
        begins = token[:1] == tail and len(token) > 1 and token[1] not in continuing
        return begins or long_s in token[:-1]

    return next((token for token in vocab if crosses(token)), None)
