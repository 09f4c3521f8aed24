"""Languages are recognised offline; where nothing settles it, nothing is claimed."""

from __future__ import annotations

import importlib.util

import pytest

from bimo.tasks.recognising import recognise_language

SHORT = {
    "de": "Guten Tag, wie geht es dir?", "pl": "Dzień dobry, co słychać?", "cs": "Dobrý den, jak se máte?",
    "nl": "Goedemorgen, hoe gaat het?", "en": "How are you this morning?", "fr": "Où sont les toilettes ?",
    "es": "¿Dónde está la biblioteca?", "it": "Dove si trova la stazione?", "pt": "Onde fica a estação, por favor?",
    "ru": "Доброе утро, как дела?",
}  # fmt: skip
BY_SCRIPT = {
    "zh": "你好，世界", "ja": "こんにちは世界", "ko": "안녕하세요 여러분", "el": "Καλημέρα κόσμε", "he": "שלום עולם",
    "th": "สวัสดี",
}  # fmt: skip


@pytest.mark.parametrize("code", BY_SCRIPT)
def test_a_script_of_one_language_settles_it(code: str) -> None:
    guess = recognise_language(BY_SCRIPT[code])
    assert guess is not None
    assert guess.language == code


@pytest.mark.skipif(not importlib.util.find_spec("py3langid"), reason="needs bimo[lang]")
@pytest.mark.parametrize("code", SHORT)
def test_short_texts_are_recognised(code: str) -> None:
    guess = recognise_language(SHORT[code])
    assert guess is not None
    assert guess.language == code


@pytest.mark.skipif(not importlib.util.find_spec("py3langid"), reason="needs bimo[lang]")
def test_only_allowed_languages_are_named() -> None:
    guess = recognise_language("Guten Tag, wie geht es dir?", ["en", "nl"])
    assert guess is not None
    assert guess.language in ("en", "nl")


@pytest.mark.parametrize("text", ["", "123 %s https://example.org/words", "!?", "<b></b>"])
def test_what_has_no_letters_has_no_language(text: str) -> None:
    assert recognise_language(text) is None


def test_a_script_that_is_not_among_the_languages_is_none_of_them() -> None:
    assert recognise_language("你好，世界", ["en", "de"]) is None
