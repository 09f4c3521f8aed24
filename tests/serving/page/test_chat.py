"""The chat in a real Chromium: streaming, stop, regenerate, edit, probabilities, text that wants to be a program."""

from __future__ import annotations

import re
from typing import Any

import pytest
from serving.page.browsing import ANSWERS, HOSTILE, Visiting
from serving.servers import Running


def hostile_elements(page: Any) -> int:
    return page.locator("img[src=x]").count() + page.locator("body script").count()


def write_long(tab: Any) -> Any:
    """An answer that takes a while."""
    page = tab.open()
    tab.choose("long")
    page.get_by_text("Settings").click()
    page.get_by_label("Most tokens").fill("4000")
    tab.ask("the cat")
    page.locator(".turn[data-writing] .token").nth(20).wait_for()
    return page


@pytest.mark.parametrize("said", ANSWERS)
def test_an_answer_stands_there_word_for_word(visit: Visiting, said: str) -> None:
    tab = visit()
    page = tab.open()
    tab.choose("taught")
    tab.ask(said)
    assert tab.answered().locator(".tokens").text_content() == ANSWERS[said], "with probabilities"
    page.get_by_label("Probabilities").uncheck()
    plain = tab.answered().inner_text()
    assert plain.split() == re.sub(r"```(python)?", "", ANSWERS[said]).split(), "without, and without its fences"


def test_code_between_fences_is_set_as_code(visit: Visiting) -> None:
    tab = visit()
    page = tab.open()
    tab.choose("taught")
    page.get_by_label("Probabilities").uncheck()
    tab.ask("code")
    assert tab.answered().locator("pre code").text_content() == "print(1 < 2)"


def test_text_of_a_model_does_not_become_a_part_of_the_page(visit: Visiting) -> None:
    tab = visit()
    page = tab.open()
    tab.choose("taught")
    for wanted in (True, False):
        page.get_by_label("Probabilities").set_checked(wanted)
        tab.ask("hi")
        assert HOSTILE in tab.answered().text_content(), "it is there, as text"
        page.get_by_role("button", name="New conversation").click()
    tab.ask(HOSTILE)
    tab.answered()
    assert hostile_elements(page) == 0
    assert page.evaluate("window.hit") is None


def test_hostile_text_is_seen_when_it_is_put_in_as_html(visit: Visiting) -> None:
    page = visit(may_fail=True).open()
    page.evaluate("text => { document.querySelector('.welcome').innerHTML = text }", HOSTILE)
    assert hostile_elements(page) == 2, "the control must be caught"


@pytest.mark.parametrize("policy", [True, False])
def test_the_policy_runs_nothing_that_stands_inside_html(visit: Visiting, policy: bool) -> None:
    page = visit(may_fail=True, bypass_csp=not policy).open()
    page.evaluate(
        "() => { const script = document.createElement('script'); script.textContent = 'window.hit = 1';"
        " document.body.append(script) }"
    )
    assert page.evaluate("window.hit") == (None if policy else 1), "without the policy it runs: the control"


@pytest.mark.parametrize("way", ["button", "escape"])
def test_an_answer_is_stopped_and_its_place_is_free(visit: Visiting, site: Running, way: str) -> None:
    tab = visit()
    page = write_long(tab)
    if way == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    tab.answered()
    assert page.get_by_text("Stopped.").is_visible()
    assert 10 < page.locator(".answer .token").count() < 4000, "what was there stays"
    site.until(lambda: not site.get("/v1/stats").json()["running"], 2)
    assert page.get_by_role("button", name="Send").is_visible()


def test_it_streams(visit: Visiting) -> None:
    tab = visit()
    page = write_long(tab)
    before = page.locator(".answer .token").count()
    page.locator(".answer .token").nth(before + 20).wait_for()
    assert page.locator(".turn[data-writing]").count() == 1, "it grows while it is written"
    page.keyboard.press("Escape")
    tab.answered()


def test_an_answer_is_written_again(visit: Visiting) -> None:
    tab = visit()
    page = tab.open()
    tab.choose("taught")
    tab.ask("诗")
    tab.answered()
    page.get_by_role("button", name="Regenerate").click()
    assert tab.answered().text_content() == ANSWERS["诗"]
    assert page.locator(".turn").count() == 2, "it takes the place of the one before"


def test_the_last_question_is_edited(visit: Visiting) -> None:
    tab = visit()
    page = tab.open()
    tab.choose("taught")
    tab.ask("诗")
    tab.answered()
    page.get_by_role("button", name="Edit").click()
    field = page.locator(".view-chat textarea")
    assert field.input_value() == "诗"
    assert page.locator(".turn").count() == 0
    field.fill("code")
    page.keyboard.press("Enter")
    assert tab.answered().text_content() == ANSWERS["code"]


def test_a_conversation_stays_with_the_tab_alone(visit: Visiting) -> None:
    tab = visit()
    page = tab.open()
    tab.choose("taught")
    tab.ask("诗")
    tab.answered()
    page.reload()
    assert page.locator(".answer .turn-body").text_content() == ANSWERS["诗"]
    assert page.locator(".answer .token").count() > 3, "with its probabilities"
    assert "诗" not in page.evaluate("JSON.stringify(localStorage)"), "nothing is kept beyond the tab"
    page.get_by_role("button", name="New conversation").click()
    page.reload()
    assert page.locator(".turn").count() == 0


def test_enter_that_chooses_a_word_of_an_input_method_does_not_send(visit: Visiting) -> None:
    page = visit().open()
    field = page.locator(".view-chat textarea")
    field.fill("ni hao")
    press = "new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, cancelable: true, isComposing: %s})"
    field.evaluate("(field, _) => field.dispatchEvent(" + press % "true" + ")", None)
    assert field.input_value() == "ni hao"
    field.evaluate("(field, _) => field.dispatchEvent(" + press % "false" + ")", None)
    assert field.input_value() == "", "the control: outside of one it does"


@pytest.mark.parametrize("way", ["pointer", "keyboard"])
def test_a_token_shows_what_else_could_have_stood_there(visit: Visiting, way: str) -> None:
    tab = visit()
    page = tab.open()
    tab.choose("taught")
    tab.ask("code")
    tokens = tab.answered().locator(".token")
    card = page.get_by_role("tooltip")
    if way == "pointer":
        tokens.nth(1).hover()
    else:
        tokens.first.focus()
        page.keyboard.press("ArrowRight")
        assert tokens.nth(1).evaluate("token => token === document.activeElement")
    assert card.is_visible()
    assert card.locator("li").count() == 5
    shares = [float(text.strip("%<>")) for text in card.locator("li .number").all_text_contents()]
    assert sum(shares) <= 101
    assert shares == sorted(shares, reverse=True), "likeliest first"
    assert tokens.nth(1).get_attribute("aria-describedby") == card.get_attribute("id"), "readers hear it too"
    if way == "keyboard":
        page.keyboard.press("Escape")
        assert not card.is_visible()


def test_parts_of_a_character_are_one_stop_with_the_alternatives_of_each(visit: Visiting) -> None:
    tab = visit()
    page = tab.open()
    found = page.evaluate(
        """async () => {
          const { Groups } = await import('/web/tokens.js');
          const groups = new Groups();
          const part = (...bytes) => ({ token: '\\ufffd', logprob: -1, bytes });
          const whole = { token: 'a', logprob: -1, bytes: [97] };
          const tokens = [part(0xe8, 0xaf), part(0x97), whole, part(0xff), part(0xe8), part(0xaf)];
          const got = [...tokens.map(token => groups.push(token)), groups.finish()];
          return got.map(group => group && [group.text, group.tokens.length]);
        }"""
    )
    assert found == [None, ["诗", 2], ["a", 1], ["\ufffd", 1], None, None, ["\ufffd", 2]]


def test_a_model_without_conversations_continues_a_text(visit: Visiting, own_site: Any, taught: Any) -> None:
    from bimo import LM
    from bimo.engine import EngineSettings
    from bimo.serving.models import ServedModel

    class Plain(ServedModel):
        """Says that it knows no conversations, as a model without a template does."""

        @property
        def cards(self) -> list[Any]:
            from dataclasses import replace

            return [replace(card, chat=False) for card in super().cards]

    model = Plain("plain", LM(taught.model, taught.tokenizer), EngineSettings(threads=1))
    tab = visit(own_site(models=[model]))
    page = tab.open()
    page.get_by_placeholder("Begin a text").wait_for()
    tab.ask("床前明月")
    tab.answered()
    assert page.locator(".answer .token").count() >= 2, "probabilities come in the older form"
    assert page.get_by_text("Without probabilities").count() == 0, "and its tokens are the text"
