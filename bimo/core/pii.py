"""One definition of personal data and of secrets in text. For data and for requests.

Numbers count only when their checksum holds (identity cards, payment cards, bank accounts), addresses only when they
are not reserved for examples. Whoever has long texts looks at `places` first: the rest cannot match.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date


@dataclass(frozen=True, slots=True)
class Hit:
    """Something that should not be told on: `text[start:end]`."""

    kind: str
    """'e-mail address', 'phone number', 'password', …"""
    start: int
    end: int

    @property
    def mark(self) -> str:
        """What stands in its place when it is masked: '<EMAIL>', '<PHONE>', '<PRIVATE_KEY>'."""
        name = self.kind.removesuffix(" number").removesuffix(" address")
        return f"<{name.upper().replace('-', '').replace(' ', '_')}>"


def shown(value: str) -> str:
    """Enough of a value to find it again, not enough to use it."""
    return f"{value[:4]}…{value[-2:]}" if len(value) > 8 else f"{value[:2]}…"


def personal_data(text: str) -> list[Hit]:
    """Everything personal, in order; of two that overlap, the surer one."""
    return _apart([*_hits(_ADDRESSES, text), *numbers(text)])


def addresses(text: str) -> list[Hit]:
    """E-mail addresses, in order."""
    return _apart(_hits(_ADDRESSES, text))


def numbers(text: str) -> list[Hit]:
    """Phone, card, account and identity numbers and public IP addresses, in order."""
    return _apart(_hits(_NUMBERS, text))


def secrets(text: str) -> list[Hit]:
    """Every key and password, in order."""
    return _apart([*tokens(text), *passwords(text)])


def tokens(text: str) -> list[Hit]:
    """Keys that are known by their form; each is a word of at least `TOKEN_LENGTH` characters."""
    return _apart(_hits(_TOKENS, text))


def passwords(text: str) -> list[Hit]:
    """Secrets that are known by what stands before them, one of `PASSWORD_MARKERS`."""
    return _apart(_hits(_PASSWORDS, text))


def password_at(text: str, place: int) -> Hit | None:
    """The secret whose marker, one of `PASSWORD_MARKERS`, stands at this place."""
    for kind, pattern, holds in _PASSWORDS:
        match = pattern.match(text, place)
        if match and holds(match["value"]):
            return Hit(kind, *match.span("value"))
    return None


def _hits(patterns: Sequence[_Pattern], text: str) -> Iterator[Hit]:
    for kind, pattern, holds in patterns:
        for match in pattern.finditer(text):
            group = "value" if "value" in pattern.groupindex else 0
            if holds(match[group]):
                yield Hit(kind, *match.span(group))


def mask(text: str) -> str:
    """The text with a mark in place of everything personal and secret."""
    for find in (secrets, personal_data):
        parts, done = [], 0
        for hit in find(text):
            parts += [text[done : hit.start], hit.mark]
            done = hit.end
        text = "".join([*parts, text[done:]])
    return text


def _apart(hits: Iterable[Hit]) -> list[Hit]:
    """Without those that overlap an earlier one; in the order of the text."""
    kept: list[Hit] = []
    starts: list[int] = []
    for hit in hits:
        place = bisect_right(starts, hit.start)
        if (not place or kept[place - 1].end <= hit.start) and (place == len(kept) or hit.end <= starts[place]):
            kept.insert(place, hit)
            starts.insert(place, hit.start)
    return kept


_NOBODY = frozenset(
    "user username name yourname your you me someone somebody nobody foo bar xxx xxxx john.doe jane.doe".split()  # noqa: SIM905
)
_RESERVED = (
    ".example",
    ".invalid",
    ".localhost",
    ".test",
    ".local",
    ".localdomain",
    ".png",
    ".jpg",
    ".service",
    ".ext",
)


def _real_address(address: str) -> bool:
    """Whether an e-mail address is somebody's: not one for examples, not a mailing list."""
    name, _, domain = address.lower().rpartition("@")
    labels = domain.split(".")
    stands_for_others = "example" in labels or "domain" in labels or labels[0] in ("lists", "bugs")
    return name not in _NOBODY and not stands_for_others and not f".{domain}".endswith(_RESERVED)


def _luhn(number: str) -> bool:
    digits = [int(c) for c in number if c.isdigit()]
    doubled = [d if place % 2 == 0 else sum(divmod(2 * d, 10)) for place, d in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and sum(doubled) % 10 == 0


def _chinese_id(number: str) -> bool:
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    check = "10X98765432"[sum(w * int(c) for w, c in zip(weights, number, strict=False)) % 11]
    try:
        date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    return number[-1].upper() == check


def _iban(account: str) -> bool:
    plain = account.replace(" ", "")
    turned = plain[4:] + plain[:4]
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in turned)) % 97 == 1


def _public_address(address: str) -> bool:
    octets = [int(part) for part in address.split(".")]
    a, b = octets[0], octets[1]
    private = (
        a in (0, 10, 127) or a >= 224 or (a, b) in ((192, 168), (169, 254), (100, 64)) or (a == 172 and 16 <= b < 32)
    )
    examples = tuple(octets[:3]) in ((192, 0, 2), (198, 51, 100), (203, 0, 113)) or len(set(octets)) == 1
    return max(octets) < 256 and not private and not examples and sum(o > 9 for o in octets) >= 3


def _real_phone(number: str) -> bool:
    digits = [c for c in number if c.isdigit()]
    return len(set(digits)) > 2 and 7 <= len(digits) <= 15


def _always(value: str) -> bool:
    return True


_Pattern = tuple[str, re.Pattern[str], Callable[[str], bool]]
"""Kind, form (a group in it is the value) and whether a value of this form holds."""

_ADDRESSES: tuple[_Pattern, ...] = (
    (
        "e-mail address",
        re.compile(
            r"(?<![\w.%+-])[A-Za-z0-9][\w.%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![\w-])", re.ASCII
        ),
        _real_address,
    ),
)
_NUMBERS: tuple[_Pattern, ...] = (
    ("ID card number", re.compile(r"(?<![\dA-Za-z])[1-8]\d{5}(?:19|20)\d{9}[\dXx](?![\dA-Za-z])"), _chinese_id),
    ("social security number", re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])"), _always),
    (
        "bank account",
        re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"),
        _iban,
    ),
    (
        "card number",
        re.compile(r"(?<![\w.-])(?:[3-6]\d{3}([ -]?)\d{4}\1\d{4}\1\d{4}|3[47]\d{2}([ -]?)\d{6}\2\d{5})(?![\w-]|\.\d)"),
        _luhn,
    ),
    (
        "phone number",
        re.compile(r"(?<![\w.+-])(?:(?:\+|00)86[- ]?)?1[3-9]\d([- ]?)\d{4}\1\d{4}(?![\dA-Za-z_-]|\.\d)", re.ASCII),
        _real_phone,
    ),
    (
        "phone number",
        re.compile(
            r"(?<![\w+])\+[1-9]\d{0,2}[ .-]?(?:\(0?\d{1,5}\)[ .-]?)?\d(?:[ .-]?\d){6,11}(?![\w/]|[.,]\d)", re.ASCII
        ),
        _real_phone,
    ),
    (
        "phone number",
        re.compile(
            r"(?<![\w.(-])(?:\([2-9]\d{2}\) ?|[2-9]\d{2}-|[2-9]\d{2}\.)[2-9]\d{2}[-.]\d{4}(?![\w-]|\.\d)", re.ASCII
        ),
        _real_phone,
    ),
    ("phone number", re.compile(r"(?<![\w.-])0\d{2,4}[-/]\d{6,8}(?![\w-]|\.\d)", re.ASCII), _real_phone),
    ("phone number", re.compile(r"(?<![\w.-])0[1-9](?:[ .]\d\d){4}(?![\w-]|[ .]\d)", re.ASCII), _real_phone),
    ("IP address", re.compile(r"(?<![\w:])(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}(?![\w:])", re.IGNORECASE), _always),
    ("IP address", re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"), _public_address),
)

_PLACEHOLDER = re.compile(
    r"(?i)your|example|xxx|\*\*\*|placeholder|change|dummy|sample|insert|redacted|\.\.\.|hunter2|^[<`]|%[s(d]|\$[\w{(]|[{}()\[\]\\]"
)


def _looks_random(value: str) -> bool:
    """Whether a value could be a password or a key: letters and digits, no placeholder, no program code."""
    varied = any(c.isdigit() for c in value) and any(c.isalpha() for c in value) and len(set(value)) > 4
    return varied and not _PLACEHOLDER.search(value) and "://" not in value


# Each begins with what it must hold, and looks behind it afterwards: so the search can run to the next such place.
_TOKENS: tuple[_Pattern, ...] = (
    ("AWS key", re.compile(r"A(?:KIA|SIA)(?<![A-Z0-9].{4})[0-9A-Z]{16}(?![A-Z0-9])"), _always),
    ("GitHub token", re.compile(r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}"), _always),
    ("GitLab token", re.compile(r"glpat-[A-Za-z0-9_-]{20,}"), _always),
    (
        "API key",
        re.compile(r"sk-(?<![\w-]sk-)(?:[a-z0-9]+-)*(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{20,}|sk_live_[A-Za-z0-9]{16,}"),
        _always,
    ),
    ("Google key", re.compile(r"AIza[0-9A-Za-z_-]{35}"), _always),
    ("Hugging Face token", re.compile(r"hf_(?<!\whf_)[A-Za-z0-9]{30,}"), _always),
    ("Slack token", re.compile(r"xox(?<!\wxox)[abeprs]-[A-Za-z0-9-]{10,}"), _always),
    ("web token", re.compile(r"eyJ(?<!\weyJ)[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"), _always),
    ("login in an address", re.compile(r"://[^\s:/@]{1,64}:(?P<value>[^\s:/@]{4,64})@[\w.-]+"), _looks_random),
)
_PASSWORDS: tuple[_Pattern, ...] = (
    (
        "private key",
        re.compile(
            r"(?P<value>-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----\s*[A-Za-z0-9+/=:,\s-]{40}"
            r"(?:[\s\S]{0,9000}?-----END [A-Z0-9 ]+-----)?)"
        ),
        _always,
    ),
    ("bearer token", re.compile(r"Bearer\s+(?P<value>[A-Za-z0-9._~+/-]{20,200}=*)"), _always),
    (
        "password",
        re.compile(
            r"(?:assword|ASSWORD|asswd|ASSWD|assphrase|ecret|ECRET|oken|OKEN|pi[_-]?[kK]ey|PI_?KEY|密码)"
            r"[\"']?\s{0,2}(?:[:=]|：|是)\s{0,2}[\"']?(?P<value>[^\s\"'<>,;，。；]{6,128})"
        ),
        _looks_random,
    ),
)
TOKEN_LENGTH = 18
PASSWORD_MARKERS = ("-----BEGIN ", "Bearer ", "assw", "ecret", "oken", "pi_key", "密码")
"""In capitals, as in files of settings, an assignment is itself a long word."""


def windows(text: str, places: Iterable[int], around: int = 80) -> Iterator[tuple[int, str]]:
    """Start and text of the surroundings of some places, those that touch joined: what long texts are looked at by."""
    start = end = -1
    for place in places:
        if place - around > end:
            if end > 0:
                yield start, text[start:end]
            start = max(0, place - around)
        end = min(len(text), place + around)
    if end > 0:
        yield start, text[start:end]
