"""A real Chromium on a real server: fixtures of the page's tests. Without a Chromium they are skipped, with the reason.

BIMO_CHROMIUM names one that lies elsewhere than usual.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from serving.page.browsing import CHROMIUM, QUIET, Visit, Visiting, taught_model, trained_run
from serving.servers import Running, Serve, tiny

from bimo import LM, Tokenizer
from bimo.engine import EngineSettings
from bimo.serving.local import LocalEngine
from bimo.serving.models import ServedModel
from bimo.serving.pages import add_pages
from bimo.serving.settings import ServeSettings


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium, for one file of tests: as long as playwright is there, no other event loop can run in its thread."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need the package playwright")
    path = next((path for path in CHROMIUM if path and Path(path).exists()), None)
    if path is None:
        pytest.skip("the page's tests need a Chromium; BIMO_CHROMIUM says where one is")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, site: Running) -> Iterator[Visiting]:
    """Opens tabs, each as a browser of its own, and sees at the end that nothing has gone wrong in them.

    The given function takes a server (default: the shared one) and options of `Browser.new_context`; with
    `may_fail=True` errors on the console are expected, as those of a server that is gone.
    """
    opened: list[tuple[Visit, bool]] = []

    def start(server: Running | None = None, may_fail: bool = False, **options: Any) -> Visit:
        context = browser.new_context(**{"locale": "en-GB", "reduced_motion": "reduce", **options})
        context.set_default_timeout(15_000)
        # Nothing is left to chance unless a test does so.
        context.add_init_script(f"localStorage['bimo.chat'] ??= '{json.dumps({'temperature': 0, 'max_tokens': 200})}'")
        found = Visit(context.new_page(), (server or site).url)
        found.page.on("request", lambda request: found.hosts.add(urlsplit(request.url).netloc))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.on("console", lambda said: said.type == "error" and found.complaints.append(said.text))
        opened.append((found, may_fail))
        return found

    yield start
    for one, may_fail in opened:
        one.page.context.close()
        assert one.hosts <= {urlsplit(one.url).netloc}, "the page asks this server alone"
        assert may_fail or not one.complaints, "nothing went wrong in the page"


@pytest.fixture(scope="session")
def taught() -> LM:
    return taught_model()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Tokenizer) -> Path:
    """A folder with a real run in it."""
    folder = tmp_path_factory.mktemp("runs")
    trained_run(folder, small_tokenizer)
    return folder


@pytest.fixture(scope="session")
def site(taught: LM, small_tokenizer: Tokenizer, runs: Path) -> Iterator[Running]:
    """A server with its page: a model that knows its answers, one that writes long and by chance, and runs."""
    long = tiny(small_tokenizer, context_length=4096)
    engine = EngineSettings(threads=1)
    models = [ServedModel("taught", taught, engine), ServedModel("long", long, engine)]
    running = Running(LocalEngine(models), ServeSettings(port=0, runs=str(runs)), pages=add_pages)
    yield running
    running.stop()


@pytest.fixture
def own_site(serve: Serve, taught: LM) -> Callable[..., Running]:
    """Starts a server with its page that a test may damage; options are settings of it."""

    def start(models: list[ServedModel] | None = None, **options: Any) -> Running:
        models = models or [ServedModel("taught", taught, EngineSettings(threads=1))]
        return serve(models, pages=add_pages, **options)

    return start
