"""Seeded defects: each is a function of a seed and a folder that writes a clean data set with one thing wrong in it.

What comes back says what a checkup must name. The same function with `damaged=False` writes the data set without the
defect, for the control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from data import text_defects as texts
from data.clean_sets import prose
from data.file_defects import CHANGED_FILES, CHANGED_LINES
from data.row_defects import ROWS
from data.seeding import (
    ALL,
    ANYWHERE,
    CHINESE,
    ENGLISH,
    GERMAN,
    PAIRS,
    PLAIN,
    WHOLE_FILE,
    Defect,
    Draft,
    changed_text,
    inside,
    snippet,
)

PERSONAL = "personal|privacy|private data"
SECRET = "secret|credential"

CHARACTERS = {
    "zero width space": inside("\u200b\u200c\u2060\ufeff", "invisible|zero.?width|byte order mark"),
    "soft hyphen": inside("\u00ad", "invisible|soft hyphen"),
    "tag character": inside("\U000e0041\U000e0069", "invisible|tag"),
    "bidirectional override": inside("\u202e\u202d\u2066\u202b", "bidi"),
    "private use character": inside("\ue000\uf8ff\U000f0001", "private.use"),
    "replacement character": inside("\ufffd", "replacement|U\\+FFFD|lost"),
    "control character": inside("\x07\x1b\x08\x01\x7f\x85\x9d", "control"),
    "nul": inside("\x00", "control|NUL|binary"),
    "line separator": inside("\u2028\u2029", "separator|invisible|control|line end"),
    "letters of another alphabet": changed_text(
        texts.confusable, "confusable|look.?alike|alphabet|mixed script|script", ENGLISH
    ),
    "letters in parts": changed_text(texts.decomposed, "NFC|compos|normal", GERMAN),
    "mojibake": changed_text(texts.mojibake, "mojibake|decoded", (*GERMAN, *CHINESE)),
    "mojibake of quotes": changed_text(texts.apostrophe_mojibake, "mojibake|decoded", ENGLISH),
    "gbk read as latin": changed_text(texts.gbk_as_latin, "mojibake|decoded", CHINESE),
    "escapes taken for text": changed_text(texts.escaped, "escape", ENGLISH),
    "marks upon marks": changed_text(texts.marks_upon_marks, "combining|accent|mark|zalgo", ENGLISH),
    "hidden by glyph marks": changed_text(texts.variation_selectors, "invisible|variation", ENGLISH),
}
MARKUP = {
    "html": snippet(lambda random: random.choice(texts.HTML), "html|markup|tag"),
    "html entities": snippet(lambda random: random.choice(texts.ENTITIES), "html|entit"),
    "marks of a chat template": snippet(
        lambda random: random.choice(texts.CHAT_MARKS), "template|control token|special|chat"
    ),
    "placeholder": changed_text(lambda random, _: random.choice(texts.PLACEHOLDERS), "placeholder|lorem"),
    "base64": snippet(texts.base64_blob, "base64|blob|encoded"),
    "picture in the text": snippet(texts.data_uri, "base64|blob|encoded"),
    "hexadecimal": snippet(texts.hex_blob, "hex|blob|encoded"),
    "minified code": changed_text(lambda random, _: texts.minified_code(random), "minified|code|long line"),
    "character loop": changed_text(texts.repeated_character, "repe|loop"),
    "word loop": changed_text(texts.repeated_words, "repe|loop"),
    "line loop": changed_text(texts.repeated_lines, "repe|loop"),
    "long word": snippet(lambda random: texts.letters(random, 3000), "long|blob|word|encoded"),
    "web page": changed_text(texts.web_page, "html|markup|tag"),
    "letters apart": changed_text(texts.spaced_letters, "spaced|letters apart|single letters|space", ENGLISH),
    "percent encoded": changed_text(texts.percent_encoded, "percent|url|escape|encoded", CHINESE),
    "escapes for each character": changed_text(texts.unicode_escapes, "escape", CHINESE),
    "quoted printable": changed_text(texts.quoted_printable, "quoted.printable|escape|encoded", CHINESE),
    "marks without end": changed_text(texts.shouted_marks, "repe|loop|lost"),
    "emoji without end": changed_text(texts.emoji_flood, "repe|loop"),
    "numbers only": changed_text(texts.numbers_only, "number|digit|no words|no letters", PLAIN),
}
PRIVATE = {
    "e-mail address": snippet(texts.email, f"{PERSONAL}|mail"),
    "phone number": snippet(texts.phone, f"{PERSONAL}|phone"),
    "chinese mobile number": snippet(texts.chinese_mobile, f"{PERSONAL}|phone|mobile", CHINESE),
    "chinese identity number": snippet(texts.chinese_id, f"{PERSONAL}|identity|\\bID\\b"),
    "credit card": snippet(texts.credit_card, f"{PERSONAL}|card"),
    "bank account": snippet(texts.iban, f"{PERSONAL}|iban|account"),
    "network address": snippet(texts.ip_address, f"{PERSONAL}|\\bIP\\b|network"),
    "key of a cloud": snippet(texts.aws_key, SECRET),
    "private key": snippet(texts.private_key, f"{SECRET}|private key"),
    "token of a code host": snippet(texts.github_token, SECRET),
    "key of a model service": snippet(texts.model_key, SECRET),
    "web token": snippet(texts.web_token, SECRET),
    "password": snippet(texts.password, SECRET),
    "social security number": snippet(texts.social_security, f"{PERSONAL}|social", ENGLISH),
    "network address of version 6": snippet(texts.six_groups, f"{PERSONAL}|\\bIP\\b|network"),
    "key of a search service": snippet(texts.google_key, SECRET),
    "token of a chat service": snippet(texts.chat_token, SECRET),
    "key of a payment service": snippet(texts.payment_key, SECRET),
    "bearer token": snippet(texts.bearer, SECRET),
    "login in an address": snippet(texts.login_in_address, SECRET),
}


def _other_language(draft: Draft) -> None:
    own = "zh" if "chinese" in draft.form_name else "de" if "german" in draft.form_name else "en"
    own = "de" if draft.form_name == "table of pairs" else own
    draft.text = texts.OTHER_LANGUAGES[draft.random.choice([name for name in texts.OTHER_LANGUAGES if name != own])]


def _copied_elsewhere(draft: Draft) -> None:
    draft.file = "train/one" + draft.form.suffix  # it is read before the other one
    draft.place = min(draft.place, len(draft.rows) - 1)
    draft.copy_row(to=draft.other_file())


def _file_copied(draft: Draft) -> None:
    copy = "train/three" + draft.form.suffix
    draft.files[copy] = list(draft.files["train/one" + draft.form.suffix])
    draft.places = {copy: [ANYWHERE], "train/one" + draft.form.suffix: [ANYWHERE]}


def _leak(change: Callable[[str], str]) -> Callable[[Draft], None]:
    def damage(draft: Draft) -> None:
        train, place = draft.file, draft.place
        draft.copy_row(change, to="valid/valid" + draft.form.suffix)
        draft.places = {**draft.places, train: [place]}

    return damage


def _respaced(text: str) -> str:
    """What a reader takes for the same text: other capitals, other spaces, another mark at the end."""
    return text.upper().replace(", ", ",  ").rstrip(".") + " !"


def _nearly(text: str) -> str:
    """A long text with one of its words changed."""
    words = text.split(" ")
    words[len(words) // 2] = "carefully"
    return " ".join(words)


def _long_copy(change: Callable[[Draft], None]) -> Callable[[Draft], None]:
    def damage(draft: Draft) -> None:
        draft.text = prose(draft.random, "en", 16)
        change(draft)

    return damage


def _boilerplate(draft: Draft) -> None:
    line = draft.random.choice(("Share this page: Facebook Twitter Mail", "© 2019 Harbour News. All rights reserved."))
    start = draft.place
    places = [place for place in range(len(draft.rows)) if place % 3 == 0]
    for draft.place in places:
        draft.text = f"{draft.text}\n{line}"
    draft.place = start
    draft.places = {draft.file: [WHOLE_FILE, *places]}


def _very_long(draft: Draft) -> None:
    language = "zh" if "chinese" in draft.form_name else "en"
    draft.text = " ".join(prose(draft.random, language, 1) for _ in range(draft.random.randint(1200, 1500)))


def _known_question(draft: Draft) -> None:
    """A question of the training rows in the validation rows, with another answer."""
    train, asked = draft.file, draft.row
    _leak(str)(draft)
    (name, (copied,)), *_ = [(name, rows) for name, rows in draft.places.items() if name != train]
    first, second = list(asked)[:2]
    draft.files[name][copied] = {first: asked[first], second: draft.files[name][copied - 1][second]}


def _same_files(draft: Draft) -> None:
    """All of the training text is the validation text, too."""
    valid = "valid/valid" + draft.form.suffix
    draft.files[valid] = list(draft.files["train/one" + draft.form.suffix])
    draft.places = {valid: [WHOLE_FILE, ANYWHERE], "train/one" + draft.form.suffix: [WHOLE_FILE, ANYWHERE]}


COPIES = {
    "leak of a question": Defect(("answers", "summaries", "german pairs"), _known_question, "leak"),
    "validation text is training text": Defect(ALL, _same_files, "leak"),
    "duplicate in other spelling": Defect(
        ("english", "letters", "markdown", "english rows"), lambda draft: draft.copy_row(_respaced), "duplicate|same"
    ),
    "duplicate": Defect(ALL, Draft.copy_row, "duplicate"),
    "duplicate in another file": Defect(ALL, _copied_elsewhere, "duplicate"),
    "file twice": Defect(ALL, _file_copied, "duplicate|same"),
    "near duplicate": Defect(
        ("english", "english rows", "english table", "summaries"),
        _long_copy(lambda draft: draft.copy_row(_nearly)),
        "near.duplicate|nearly",
        {"near_duplicates": True},
    ),
    "leak": Defect(ALL, _leak(str), "leak"),
    "leak in other spelling": Defect(("english", "letters", "markdown", "english rows"), _leak(_respaced), "leak"),
    "near leak": Defect(("english", "english rows"), _long_copy(_leak(_nearly)), "leak", {"near_duplicates": True}),
    "boilerplate": Defect(PLAIN, _boilerplate, "boilerplate|repeated line|line repeat"),
    "another language": Defect((*PLAIN, *PAIRS), _other_language, "language|script"),
    "very long": Defect((*PLAIN, "summaries", "answers"), _very_long, "long"),
    "very short": changed_text(
        lambda random, _: random.choice(("a", "?", "1", "…")), "short|no letters|no words", PLAIN
    ),
    "cut by the context": Defect(PLAIN, _very_long, "context", {"context_length": 4096}),
}

TABLES_OF_DEFECTS = (CHARACTERS, MARKUP, PRIVATE, COPIES, ROWS, CHANGED_LINES, CHANGED_FILES)
DEFECTS = {name: replace(defect, name=name) for table in TABLES_OF_DEFECTS for name, defect in table.items()}
