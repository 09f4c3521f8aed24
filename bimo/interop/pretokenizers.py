"""How byte-level BPE cuts a text before merging, as llama.cpp names it and as a `tokenizer.json` writes it.

One table serves both directions. A tokenizer.json says the same cut in several ways; `stages_of` brings it to a list of
regular expressions, each of which isolates its matches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_ANY_CASE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"


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


KNOWN = (
    PreTokenizer(
        ("qwen2", "stablelm2", "hunyuan", "solar-open", "megrez", "deepseek-r1-qwen", "kormo", "f2llmv2"), (_words(""),)
    ),
    PreTokenizer(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        (_words("{1,3}"),),
        ignore_merges=True,
        add_begin=True,
    ),
    PreTokenizer(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), (_words("{1,3}"),)),
    PreTokenizer(("qwen35",), (_words("", r"[\p{L}\p{M}]"),)),
    PreTokenizer(
        ("gpt-2", "mpt", "olmo", "jais", "trillion", "phi-2", "jina-es", "jina-de", "gigachat", "roberta-bpe"), (_GPT2,)
    ),
    PreTokenizer(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (r"\p{N}", _GPT2)
    ),
    PreTokenizer(("falcon",), (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    PreTokenizer(("default",), (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    PreTokenizer(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm"),
        (
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
            rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
        ),
    ),
    PreTokenizer(
        ("tekken",), (rf"{_CASED % ('', '')}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",), ignore_merges=True
    ),
    PreTokenizer(
        ("gpt-4o", "llama4", "kanana2"),
        (rf"{_CASED % (_SHORT + '?', _SHORT + '?')}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",),
    ),
)


def named(name: str) -> PreTokenizer | None:
    """The cut that llama.cpp calls so."""
    return next((known for known in KNOWN if name in known.names), None)


def recognised(pre_tokenizer: dict[str, Any] | None, ignore_merges: bool) -> PreTokenizer | None:
    """The cut that a tokenizer.json asks for, if llama.cpp knows it."""
    stages = stages_of(pre_tokenizer)
    fitting = [known for known in KNOWN if known.stages == stages]
    return next((known for known in fitting if known.ignore_merges == ignore_merges), None)


def to_json(stages: tuple[str, ...]) -> dict[str, Any]:
    """A tokenizer.json's pre_tokenizer of regular expressions, then bytes as letters."""
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*({**split, "pattern": {"Regex": s}} for s in stages), byte_level]}


def stages_of(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...] | None:
    """The regular expressions of a pre_tokenizer that ends in bytes; None when it is something else."""
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    stages: list[str] = []
    for step in steps:
        kind = step["type"]
        if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
            stages.append(step["pattern"]["Regex"].replace(_ANY_CASE, _SHORT))
        elif kind == "Digits":
            stages.append(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")
        elif kind == "ByteLevel" and not step.get("add_prefix_space") and step is steps[-1]:
            stages += [_GPT2] if step.get("use_regex", True) else []
        else:
            return None
    return tuple(stages) if steps and steps[-1]["type"] == "ByteLevel" else None
