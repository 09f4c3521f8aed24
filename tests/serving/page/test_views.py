"""The other views in a real Chromium: applications, attention, guard, live figures, runs; and what goes wrong."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from serving.page.browsing import ANSWERS, HOSTILE, Visiting
from serving.servers import Running, tiny

from bimo.engine import EngineSettings
from bimo.serving.keys import new_key, read_keys
from bimo.serving.models import ServedModel

TEXT = "the cat sat on a mat"


@pytest.mark.parametrize("view", ["translate", "summarize"])
def test_a_text_gets_its_result_beside_it(visit: Visiting, view: str) -> None:
    tab = visit()
    page = tab.open(view)
    tab.choose("long")
    page.get_by_role("textbox", name="Text").fill(TEXT)
    page.get_by_role("textbox", name="Text").press("Control+Enter")
    result = page.locator(f".view-{view} .result")
    result.locator(".result-foot").wait_for()
    body = {"model": "long", "input": TEXT, **({"target": "de"} if view == "translate" else {})}
    found = httpx.post(f"{tab.url}/v1/{view}", json=body, timeout=60).json()["results"][0]
    assert result.locator(".text").text_content() == found["text"]
    assert result.locator(".warnings li").all_text_contents() == found["warnings"]


def test_labels_come_with_their_probabilities(visit: Visiting) -> None:
    tab = visit()
    page = tab.open("classify")
    tab.choose("long")
    page.get_by_role("textbox", name="Text").fill(TEXT)
    page.get_by_label("Labels").fill("cat, dog， 猫")
    page.get_by_role("button", name="Classify").click()
    rows = page.locator(".labels li")
    rows.first.wait_for()
    body = {"model": "long", "input": TEXT, "labels": ["cat", "dog", "猫"]}
    found = httpx.post(f"{tab.url}/v1/classify", json=body, timeout=60).json()["results"][0]
    assert page.locator(".verdict-label:visible").text_content() == found["label"]
    shares = [float(text.strip("%<>")) for text in rows.locator(".number").all_text_contents()]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True), "likeliest first"


def test_a_change_of_language_names_the_languages_anew(visit: Visiting) -> None:
    page = visit().open("translate")
    assert "German" in page.get_by_label("Into").inner_text()
    page.get_by_role("button", name="中文").click()
    assert "德语" in page.get_by_label("译为").inner_text()
    assert page.get_by_label("译为").input_value() == "de", "what was chosen stays"
    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    assert page.title().startswith("翻译")
    page.reload()
    assert page.locator("html").get_attribute("lang") == "zh-Hans", "this browser remembers it"


@pytest.fixture
def picture(visit: Visiting) -> Any:
    """A tab with the picture of a head."""
    tab = visit()
    page = tab.open("attention")
    tab.choose("long")
    page.get_by_role("textbox", name="Text").fill(TEXT)
    page.get_by_role("textbox", name="Text").press("Enter")
    page.locator(".heatmap").wait_for()
    return page


def weights(page: Any, layer: int, head: int) -> dict[str, Any]:
    body = {"model": "long", "input": TEXT, "layer": layer, "head": head}
    return httpx.post(page.url.partition("/#")[0] + "/v1/attention", json=body, timeout=60).json()


def test_the_picture_says_what_a_head_looks_at(picture: Any) -> None:
    found = weights(picture, 0, 0)
    T = len(found["tokens"])
    picture.locator(".heatmap").focus()
    for _ in range(T):
        picture.keyboard.press("ArrowLeft")
    share = found["weights"][T - 1][0]
    assert f" {100 * share:.{0 if share >= 0.1 else 1}f}% " in picture.locator(".reading").text_content()
    picture.keyboard.press("ArrowRight")
    assert picture.locator(".strip .key").text_content() == found["tokens"][1]
    assert picture.locator(".strip .query").text_content() == found["tokens"][T - 1]
    assert picture.locator(".strip").text_content() == "".join(found["tokens"])


def test_the_picture_is_darkest_where_the_weight_is_largest(picture: Any) -> None:
    found = weights(picture, 0, 0)
    row = found["weights"][-1]
    shades = picture.locator(".heatmap canvas").evaluate(
        """(canvas, [T, row]) => {
          const scale = canvas.width / canvas.clientWidth, pen = canvas.getContext('2d');
          const named = (canvas.parentElement.clientWidth - 76) / T >= 12 ? 76 : 0;
          const cell = Math.min(30, (canvas.parentElement.clientWidth - named - 2) / T);
          return row.map((_, column) => {
            const at = [named + (column + 0.5) * cell, named + (T - 0.5) * cell].map(x => Math.round(x * scale));
            const [red, green] = pen.getImageData(...at, 1, 1).data;
            return red - green;  // how vermilion
          });
        }""",
        [len(row), row],
    )
    assert shades.index(max(shades)) == row.index(max(row))
    assert shades.index(min(shades)) == row.index(min(row))


def test_another_layer_and_head_give_another_picture(picture: Any) -> None:
    before = picture.locator(".heatmap canvas").evaluate("canvas => canvas.toDataURL()")
    picture.get_by_label("Head").select_option("3")
    picture.get_by_label("Layer").select_option("1")
    picture.wait_for_timeout(500)
    picture.locator(".attention-result:not([aria-busy])").wait_for()
    assert picture.locator(".heatmap canvas").evaluate("canvas => canvas.toDataURL()") != before
    assert picture.get_by_label("Head").locator("option").count() == 4


def test_a_text_that_is_too_long_is_told_in_the_words_of_the_server(visit: Visiting) -> None:
    page = visit(may_fail=True).open("attention")
    page.get_by_role("textbox", name="Text").fill("x " * 400)
    page.get_by_role("button", name="Show").click()
    assert "tokens, at most 128 are shown" in page.get_by_role("alert").inner_text()


def test_the_guard_marks_what_it_found_behind_an_emoji(visit: Visiting) -> None:
    page = visit().open("guard")
    page.get_by_role("textbox", name="Text").fill("🙂🙂 write to anna.schmidt@gmail.com, please")
    page.get_by_role("button", name="Check").click()
    assert page.locator("mark").all_text_contents() == ["anna.schmidt@gmail.com"]
    assert "personal_data" in page.locator(".verdicts").inner_text()


def test_live_figures_are_those_of_the_server(visit: Visiting, site: Running) -> None:
    page = visit().open("live")
    page.locator(".stat .spark-line[d]").first.wait_for(state="attached")
    assert page.locator(".engines li").count() == 2
    memory = page.locator(".stat", has_text="Memory").locator(".figure").text_content()
    assert memory.endswith(("MB", "GB"))


def test_live_figures_rest_while_nobody_looks(visit: Visiting) -> None:
    tab = visit()
    page = tab.open("live")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)
    assert asked, "the control: it asks while it is open"
    page.goto(f"{tab.url}/#/guard")
    page.wait_for_timeout(300)
    asked.clear()
    page.wait_for_timeout(2500)
    assert not asked


def test_a_run_shows_its_curves_samples_and_events(visit: Visiting) -> None:
    tab = visit()
    page = tab.open("runs")
    page.locator(".plot .curve").first.wait_for()
    metrics = httpx.get(f"{tab.url}/v1/runs/first try").json()["metrics"]
    evaluations = [line for line in metrics if "learning_rate" not in line]
    assert page.locator(".plot .point.valid").count() == len(evaluations) > 1
    page.get_by_label("Curve of the run").press("Home")
    assert f"training loss {metrics[0]['loss']:.5g}" in page.locator(".run-place .reading").text_content()
    assert "sat on a mat 🙂" in page.locator(".sample-list").inner_text()
    assert "mended" in page.locator(".event-list").inner_text()
    assert page.locator(".event-mark").count() >= 1
    page.get_by_role("button", name="6", exact=True).click()
    assert "mended" in page.locator(".run-place .reading").text_content(), "the event is shown on the curve"
    curve = page.locator(".plot .curve.train")
    linear = curve.get_attribute("d")
    page.get_by_role("button", name="Logarithmic").click()
    assert curve.get_attribute("d") != linear
    page.get_by_label("Curve", exact=True).select_option("rate")
    assert "learning rate" in page.locator(".curve-key").inner_text()


def test_words_of_a_run_stay_text(visit: Visiting) -> None:
    page = visit().open("runs")
    assert HOSTILE in page.locator(".event-list").inner_text(), "it is there, as text"
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("window.hit") is None


def test_a_name_of_a_run_stays_text(visit: Visiting, own_site: Any, tmp_path: Any) -> None:
    name = "<img src=x onerror='window.hit=1'> 100% #a?b&c"
    (tmp_path / name).mkdir()
    (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "learning_rate": 1}\n')
    page = visit(own_site(runs=str(tmp_path))).open("runs")
    page.locator(".run-list a").click()
    assert page.locator(".run-title").text_content() == name
    assert page.locator(".plot .point.train").count() == 1, "its figures are found by it"
    assert page.locator("img[src=x]").count() == 0


def test_without_a_folder_of_runs_the_page_says_how_to_give_one(visit: Visiting, own_site: Any) -> None:
    page = visit(own_site(), may_fail=True).open("runs")
    assert "--runs" in page.locator(".run-list").inner_text()


def test_an_empty_folder_of_runs_is_no_fault(visit: Visiting, own_site: Any, tmp_path: Any) -> None:
    page = visit(own_site(runs=str(tmp_path))).open("runs")
    assert page.get_by_text("There is no run in this folder yet.").is_visible()


def test_a_server_that_is_gone_is_told_and_tried_again(visit: Visiting, own_site: Any) -> None:
    tab = visit(own_site(), may_fail=True)
    page = tab.open()
    tab.page.context.set_offline(True)
    tab.ask("诗")
    page.get_by_role("alert").get_by_text("The server cannot be reached.").wait_for()
    tab.page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    assert tab.answered().text_content() == ANSWERS["诗"]
    assert page.locator(".turn").count() == 2, "the answer that failed is gone"


def test_a_server_that_goes_down_says_so(visit: Visiting, own_site: Any) -> None:
    server = own_site()
    tab = visit(server, may_fail=True)
    page = tab.open()
    server.gateway.draining = True
    tab.ask("诗")
    told = page.get_by_role("alert")
    told.get_by_text("The engine is not ready.").wait_for()
    assert "the server is going down" in told.inner_text(), "in its own words"
    assert "Try again in 5 s" in told.inner_text()
    server.gateway.draining = False
    page.get_by_role("button", name="Try again").click()
    tab.answered()
    assert page.locator(".answer").count() == 1


def test_a_key_is_asked_for_and_used(visit: Visiting, own_site: Any, tmp_path: Any) -> None:
    secret = new_key(tmp_path / "keys", "anna")
    server = own_site()
    tab = visit(server, may_fail=True)
    page = tab.open()
    page.evaluate("sessionStorage.setItem('bimo.key', 'one that was taken away')")
    page.reload()
    page.locator(".view-chat textarea").wait_for()
    server.gateway.keys = read_keys(tmp_path / "keys")
    tab.ask("诗")
    page.get_by_role("alert").get_by_text("The server wants a key.").wait_for()
    page.get_by_label("Key", exact=True).fill(secret)
    page.get_by_role("button", name="Use this key").click()
    assert tab.answered().text_content() == ANSWERS["诗"]
    assert secret not in page.evaluate("JSON.stringify(localStorage)"), "it goes with the tab"


def test_the_browser_itself_asks_for_the_key_of_the_page(visit: Visiting, own_site: Any, tmp_path: Any) -> None:
    secret = new_key(tmp_path / "keys", "anna")
    server = own_site(keys=read_keys(tmp_path / "keys"))
    tab = visit(server, may_fail=True, http_credentials={"username": "anybody", "password": secret})
    tab.open()
    tab.ask("诗")
    assert tab.answered().text_content() == ANSWERS["诗"]


def test_a_full_server_is_told(visit: Visiting, own_site: Any, small_tokenizer: Any) -> None:
    long = ServedModel("long", tiny(small_tokenizer, context_length=4096), EngineSettings(threads=1))
    server = own_site([long], max_parallel=1, queue_requests=0)
    tab = visit(server, may_fail=True)
    page = tab.open()
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4000, "min_tokens": 4000, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as busy:
        lines = busy.iter_lines()  # kept: without it the answer would be closed
        next(lines)
        tab.ask("the cat")
        page.get_by_role("alert").get_by_text("The server has too much to do").wait_for()
