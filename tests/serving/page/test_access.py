"""For everybody: axe finds no serious fault, all works by keyboard, fits a telephone, in both languages and themes."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest
from serving.page.browsing import ANSWERS, Visiting

VIEWS = ["chat", "translate", "summarize", "classify", "attention", "guard", "live", "runs"]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def axe() -> str:
    """The program of axe-core."""
    pytest.importorskip("axe_playwright_python", reason="the test of accessibility needs axe-playwright-python")
    return resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")


def serious(page: Any, axe: str) -> list[str]:
    """Faults that axe calls serious or critical, and all of contrast."""
    page.evaluate(axe)
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    return [
        f"{fault['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


def use(tab: Any, view: str) -> Any:
    """Open a view, and have something in it."""
    page = tab.open(view)
    if view == "chat":
        tab.choose("taught")
        tab.ask("code")
        tab.answered().locator(".token").nth(1).focus()
    elif view == "live":
        page.locator(".stat .spark-line[d]").first.wait_for(state="attached")
    elif view == "runs":
        page.locator(".plot").focus()
        page.keyboard.press("Home")
    else:
        tab.choose("long")
        field = page.locator(f".view-{view} textarea")
        field.fill("the cat 🙂 anna.schmidt@gmail.com")
        if view == "classify":
            page.get_by_role("textbox").nth(1).fill("cat, dog")
        page.locator(f".view-{view} button.primary").click()
        page.locator(f".view-{view} .result :is(.result-foot, .heatmap, .marked)").wait_for()
    return page


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(visit: Visiting, axe: str, view: str, scheme: str) -> None:
    locale = "zh-CN" if scheme == "dark" else "en-GB"
    page = use(visit(bypass_csp=True, color_scheme=scheme, locale=locale), view)  # axe is put into the page
    assert serious(page, axe) == []


def test_axe_sees_a_fault(visit: Visiting, axe: str) -> None:
    page = visit(bypass_csp=True).open()
    page.evaluate("document.querySelector('.view-chat textarea').labels[0].remove()")
    page.evaluate("document.querySelector('.view-chat textarea').placeholder = ''")
    page.evaluate("document.querySelector('.welcome').style.color = '#eee8dd'")
    found = " ".join(serious(page, axe))
    assert "label" in found, "the control must be caught"
    assert "color-contrast" in found, "the control must be caught"


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_a_view_fits_a_telephone(visit: Visiting, view: str, locale: str) -> None:
    page = use(visit(locale=locale, **PHONE), view)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390, "nothing goes beyond the edge"
    assert page.locator("html").get_attribute("lang") == ("zh-Hans" if locale == "zh-CN" else "en")


def test_a_conversation_by_keyboard_alone(visit: Visiting) -> None:
    tab = visit()
    page = tab.open()
    tab.choose("taught")
    page.locator("body").evaluate("body => document.activeElement.blur()")

    def until(selector: str, key: str = "Tab") -> None:
        for _ in range(60):
            page.keyboard.press(key)
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                outline = page.evaluate(
                    "() => { const on = document.activeElement, style = getComputedStyle(on);"
                    " const around = getComputedStyle(on.closest('.paper') ?? on);"
                    " return style.outlineStyle !== 'none' || around.boxShadow !== 'none' }"
                )
                assert outline, f"where the keyboard is can be seen: {selector}"
                return
        raise AssertionError(f"the keyboard does not come to {selector}")

    until(".skip")
    page.keyboard.press("Enter")
    until(".view-chat textarea")
    page.keyboard.type("诗")
    page.keyboard.press("Enter")
    assert tab.answered().text_content() == ANSWERS["诗"]
    until(".token", "Shift+Tab")
    page.keyboard.press("End")
    assert page.get_by_role("tooltip").is_visible()
    until(".answer .actions button:last-child")
    page.keyboard.press("Enter")
    assert tab.answered().text_content() == ANSWERS["诗"]


def test_readers_hear_the_end_of_an_answer_and_not_each_token(visit: Visiting) -> None:
    tab = visit()
    page = tab.open()
    tab.choose("taught")
    page.evaluate(
        "() => { window.heard = []; new MutationObserver(() => window.heard.push("
        "document.querySelector('.chat > [aria-live]').textContent)).observe("
        "document.querySelector('.chat > [aria-live]'), {childList: true, characterData: true, subtree: true}) }"
    )
    tab.ask("诗")
    tab.answered()
    heard = page.evaluate("window.heard")
    assert len(heard) == 2, "the beginning and the end"
    assert ANSWERS["诗"] in heard[-1]
    assert page.locator(".turns").get_attribute("aria-live") is None


def test_the_theme_is_chosen_and_kept(visit: Visiting) -> None:
    page = visit(color_scheme="light").open()
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(paper)
    for _ in range(2):  # system, light, dark
        page.get_by_role("button", name="Theme").click()
    assert page.evaluate(paper) != light
    page.reload()
    assert page.evaluate(paper) != light, "this browser remembers it"


def test_nothing_moves_for_those_who_want_no_motion(visit: Visiting) -> None:
    moving = "document.getAnimations().filter(one => one.playState === 'running').length"
    still = visit().open("live")
    still.evaluate("document.body.append(Object.assign(document.createElement('i'), {className: 'drop'}))")
    assert still.evaluate(moving) == 0
    free = visit(reduced_motion="no-preference").open("live")
    free.evaluate("document.body.append(Object.assign(document.createElement('i'), {className: 'drop'}))")
    assert free.evaluate(moving) > 0, "the control: otherwise it does"
