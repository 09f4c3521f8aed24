"""Answers of a form: a regular expression, one of some texts, or JSON of a schema.

The grammar is llguidance's: it says in some 50 µs which tokens can come next, for any vocabulary whose bytes are known.
`Forms` is made once for a tokenizer; each answer has a `Constraint` of its own. What a pattern may cost is bounded, so
that no request holds up the others.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bimo.core.errors import UserError, require
from bimo.engine.request import SamplingParams
from bimo.tokenizer import Tokenizer

_EXTRA = "grammar"
_LONGEST = 2**18  # characters of a pattern, a schema, or all choices
_LIMITS = {"initial_lexer_fuel": 300_000, "max_grammar_size": 100_000, "max_lexer_states": 50_000}
"""The hardest pattern then takes some 0.4 s on a slow core; a schema of 500 keys with 50 choices each fits."""
_WHITESPACE = r"(\n[ \t]{0,16}| ?)"
"""Between parts of JSON, on one line or indented; without a bound, a weak model writes spaces until its tokens end."""
_BEFORE = "\x02"  # what tokenizers do to the beginning of a text happens to this, which grows together with nothing
_KEPT = 64  # forms whose grammar is kept for the next request
_MOST_PLACES = 256  # parts of a schema that are looked at to find the one that is wrong


class Constraint:
    """Where one answer stands in its form.

    Args:
        matcher: llguidance's, at the beginning.
        n_ids: Ids of the tokenizer.
        vocab_size: Ids of the model (V).
        where: The form, to name in errors.
    """

    def __init__(self, matcher: Any, n_ids: int, vocab_size: int, where: str) -> None:
        self._matcher, self._n_ids, self._where = matcher, n_ids, where
        self._allowed = np.zeros(vocab_size, dtype=np.bool_)

    def allowed(self) -> NDArray[np.bool_]:
        """Which ids may be chosen now, (V,); ends, where the answer may be over. Good until the next call.

        Raises:
            UserError: The form is too complicated to go on.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        n = min(self._n_ids, len(self._allowed))
        self._allowed[:n] = np.unpackbits(bits, count=n, bitorder="little")
        return self._allowed

    def accept(self, token: int) -> None:
        """The token was chosen.

        Raises:
            UserError: It does not fit the form.
        """
        self._matcher.consume_token(token)
        self._check()

    @property
    def finished(self) -> bool:
        """Whether nothing but an end can follow."""
        return bool(self._matcher.is_stopped())

    @property
    def complete(self) -> bool:
        """Whether the answer has the form as it stands; more may follow."""
        return bool(self._matcher.is_accepting())

    def rollback(self, n_tokens: int) -> None:
        """Take back the last accepted tokens."""
        self._matcher.rollback(n_tokens)
        self._check()

    def fork(self) -> Constraint:
        """An independent one at the same place."""
        return Constraint(self._matcher.deep_copy(), self._n_ids, len(self._allowed), self._where)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UserError(_first_line(self._matcher.get_error()), where=self._where, mend="Ask for a simpler form.")


class Forms:
    """Makes constraints for one tokenizer.

    Args:
        tokenizer: The tokenizer of the answers.
        vocab_size: Ids of the model (V); 0: those of the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int = 0) -> None:
        self._library = require("llguidance", _EXTRA)
        self._n_ids, self._vocab_size = tokenizer.vocab_size, vocab_size or tokenizer.vocab_size
        words = _Words(tokenizer)
        self._tokenizer = self._library.LLTokenizer(self._library.TokenizerWrapper(words), eos_token=words.end_ids)
        self._limits = self._library.LLParserLimits(verbose_errors=False, **_LIMITS)
        self._kept: OrderedDict[str, Constraint] = OrderedDict()

    def of(self, params: SamplingParams) -> Constraint | None:
        """The constraint that a request asks for; None: there is none."""
        if params.regex:
            return self.regex(params.regex)
        if params.choices:
            return self.choices(params.choices)
        return self.json_schema(params.json_schema) if params.json_schema else None

    def regex(self, pattern: str) -> Constraint:
        """The whole answer matches a regular expression, as of `re.fullmatch`, without look-around and references.

        `\\d` stands for 0 to 9 alone: a model that may choose among all digits of Unicode surprises everybody.

        Raises:
            UserError: It is wrong, or too complicated.
        """
        _check_text(pattern, "regex")
        matcher = self._library.LLMatcher
        as_given = matcher.validate_grammar(matcher.grammar_from_regex(pattern), limits=self._limits)
        if as_given:  # said of the pattern as it was given, or the place would be another
            raise UserError(_regex_problem(as_given), where="regex", mend="Mend it, or ask for a simpler form.")
        return self._made(matcher.grammar_from_lark(f"start: /{self._library.regex_to_lark(pattern, 'd')}/"), "regex")

    def choices(self, texts: Sequence[str]) -> Constraint:
        """The answer is one of some texts.

        Raises:
            UserError: There is none, or an empty one.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise UserError("there must be texts, and none may be empty", where="choices", mend="Give a list of texts.")
        quoted = " | ".join(json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(texts))
        _check_text(quoted, "choices")
        grammar = self._library.LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {quoted}")
        return self._made(grammar, "choices")

    def json_schema(self, schema: str | Mapping[str, Any] | bool) -> Constraint:
        """The answer is JSON that a JSON schema allows.

        Args:
            schema: As text or parsed; {} or True allows any JSON.

        Raises:
            UserError: It is no schema, asks for what cannot be kept to, or is too complicated.
        """
        parsed = _parsed(schema) if isinstance(schema, str) else schema
        text = json.dumps(parsed)
        _check_text(text, "json_schema")
        try:
            return self._made(self._json_grammar(parsed), "json_schema")
        except UserError as error:
            place = self._wrong_place(parsed, error.what)
            raise UserError(error.what, where=f"json_schema{place}", mend=error.mend) from error

    def _json_grammar(self, schema: Any) -> str:
        # An unknown keyword that is ignored would let through what the caller has ruled out.
        grammar: str = self._library.LLMatcher.grammar_from_json_schema(
            json.dumps(schema), defaults={"whitespace_pattern": _WHITESPACE}, overrides={"lenient": False}
        )
        return grammar

    def _made(self, grammar: str, where: str) -> Constraint:
        """A constraint at its beginning; the grammar of one that was made before is not compiled again."""
        kept = self._kept.get(grammar)
        if kept is None:
            matcher = self._library.LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
            if matcher.is_error():
                problem = _first_line(matcher.get_error())
                raise UserError(problem, where=where, mend="Mend it, or ask for a simpler form.")
            kept = self._kept[grammar] = Constraint(matcher, self._n_ids, self._vocab_size, where)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(grammar)
        return kept.fork()

    def _wrong_place(self, schema: Any, problem: str) -> str:
        """Where in a schema the smallest part stands that has the problem by itself, as a JSON pointer."""
        found = ""
        for number, (place, part) in enumerate(_parts(schema)):
            if number == _MOST_PLACES:
                break
            matcher = self._library.LLMatcher(
                self._tokenizer, self._json_grammar(part), log_level=0, limits=self._limits
            )
            if place.startswith(found) and _first_line(matcher.get_error()) == problem:
                found = place
        return f" at {found}" if found else ""


class _Words:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens = list(tokenizer.bytes_of_ids)
        end_ids = sorted(tokenizer.end_ids)
        if not end_ids:  # one is wanted; this one lies beyond the ids and is never chosen
            end_ids = [len(self.tokens)]
            self.tokens.append(b"")
        self.end_ids, self.eos_token_id, self.bos_token_id = end_ids, end_ids[0], None
        self.special_token_ids = sorted({*tokenizer.control_tokens.values(), *end_ids})
        self._encode = tokenizer.encode
        self._before = self._encode(_BEFORE)
        spelled = {word: i for i, word in enumerate(self.tokens) if i not in self.special_token_ids and word}
        self._ids, self._longest = spelled, max(map(len, spelled), default=1)

    def __call__(self, text: str) -> list[int]:
        """Ids of a text inside of an answer, by which llguidance spells what the form leaves no choice about."""
        whole, n_before = self._encode(_BEFORE + text), len(self._before)
        ids, wanted = whole[n_before:], text.encode()
        same = whole[:n_before] == self._before and b"".join(self.tokens[i] for i in ids) == wanted
        return ids if same else self._greedy(wanted)

    def _greedy(self, wanted: bytes) -> list[int]:
        """Ids of bytes, the longest first: where the tokenizer would change the text, or cannot write it."""
        ids: list[int] = []
        while wanted:
            fitting = (i for n in range(self._longest, 0, -1) if (i := self._ids.get(wanted[:n])) is not None)
            found = next(fitting, None)
            if found is None:
                break
            ids.append(found)
            wanted = wanted[len(self.tokens[found]) :]
        return ids


def _parts(schema: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """All objects inside of a schema with their JSON pointers, outer ones first."""
    children = schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    for key, child in children:
        inner = f"{place}/{str(key).replace('~', '~0').replace('/', '~1')}"
        if isinstance(child, dict):
            yield inner, child
        yield from _parts(child, inner)


def _parsed(schema: str) -> Any:
    _check_text(schema, "json_schema")
    try:
        parsed = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})", where="json_schema", mend="Give the schema as JSON.") from error
    if not isinstance(parsed, (dict, bool)):
        raise UserError("a schema is an object, or true", where="json_schema", mend="Give the schema as JSON.")
    return parsed


def _check_text(text: object, where: str) -> None:
    if not isinstance(text, str):
        raise UserError(f"it must be a text, is {type(text).__name__}", where=where, mend="Give a text.")
    if len(text) > _LONGEST:
        raise UserError(f"{len(text)} characters are more than {_LONGEST}", where=where, mend="Ask for a simpler form.")
    if not text.isascii() and any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise UserError("it holds half of a surrogate pair", where=where, mend="Remove it.")


def _first_line(error: str) -> str:
    return error.strip().partition("\n")[0][:300]


def _regex_problem(error: str) -> str:
    """What is wrong with a pattern, and at which character: the library draws an arrow below it."""
    found = re.search(r"^error: (.+)$", error, re.MULTILINE)
    if found is None:
        return _first_line(re.sub(r"^at \d+\(\d+\): ", "", error))
    arrow = re.search(r"^    ( *)\^", error, re.MULTILINE)
    place = f" at character {len(arrow[1]) + 1}" if arrow else ""
    return found[1] + place
