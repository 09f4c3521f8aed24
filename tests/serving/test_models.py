"""Several models and adapters in one server; applications, attention and runs as they are without one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from serving.echo import Echo
from serving.servers import Running, Serve, tiny
from serving.test_streams import said

import bimo
from bimo import LM, Tokenizer
from bimo.core.errors import UserError
from bimo.engine import Engine, EngineSettings, SamplingParams
from bimo.model.lora import Adapter, LowRank
from bimo.serving.models import ServedModel, open_models


def an_adapter(name: str) -> Adapter:
    rng = torch.Generator().manual_seed(3)
    parts = {}
    for layer in range(2):
        down, up = torch.randn(4, 48, generator=rng), torch.randn(64, 4, generator=rng)
        parts[f"layers.{layer}.self_attn.q_proj"] = LowRank(down, up, 0.5)
    return Adapter(name, parts)


def test_models_and_adapters_are_chosen_by_name(serve: Serve, small: LM, small_tokenizer: Tokenizer) -> None:
    other, adapter = tiny(small_tokenizer, seed=9), an_adapter("tuned")
    settings = EngineSettings(threads=1)
    running = serve([ServedModel("first", small, settings, [adapter]), ServedModel("second", other, settings)])
    assert [model["id"] for model in running.get("/v1/models").json()["data"]] == ["first", "tuned", "second"]
    ask = said("the cat sat", max_tokens=16)
    ids = small.tokenizer.encode_chat(ask["messages"])
    params = SamplingParams(max_tokens=16, temperature=0)
    engines = {"first": small.engine, "tuned": Engine(small, settings=settings, adapters=[adapter])}
    engines |= {"second": other.engine, "": small.engine}
    texts = {}
    for name, engine in engines.items():
        found = running.post("/v1/chat/completions", {**ask, "model": name}).json()
        texts[name] = found["choices"][0]["message"]["content"]
        adapted = "tuned" if name == "tuned" else ""
        assert texts[name] == engine.generate([ids], params, adapter=adapted)[0].text, name
        assert found["bimo"]["route"]["model"] == (name or "first")
    assert len({texts["first"], texts["tuned"], texts["second"]}) == 3, "the control: they differ"
    vectors = [running.post("/v1/embeddings", {"input": "a cat", "model": name}).json() for name in ("first", "tuned")]
    assert vectors[0]["data"] != vectors[1]["data"]


def test_names_of_a_command_line(small: LM, tmp_path: Path) -> None:
    small.save(tmp_path / "run" / "model")
    small.save(tmp_path / "plain")
    paths = [str(tmp_path / "run" / "model"), str(tmp_path / "plain")]
    found = open_models(paths, ["mine"], [], EngineSettings(threads=1))
    assert [model.names for model in found] == [("mine",), ("plain",)]
    assert open_models(paths[:1], [], [], EngineSettings())[0].name == "run"
    for names, adapters in ((["plain"], []), (["a", "b", "c"], []), ([], ["x"]), ([], ["x=y"]), ([], ["plain/x="])):
        with pytest.raises(UserError):
            open_models(paths, names, adapters, EngineSettings())
    for model in found:
        model.driver.stop()


def test_applications_are_those_of_the_library(server: Running, small: LM) -> None:
    texts = ["The cat sat. It saw 12 dogs!", "# A title\n\n- one"]
    found = server.post("/v1/translate", {"input": texts, "target": "German", "source": "en"}).json()["results"]
    expected = bimo.translate(small, texts, "de", source="en", report=True)
    assert [one["text"] for one in found] == [one.text for one in expected]
    assert [one["warnings"] for one in found] == [[str(w) for w in one.warnings] for one in expected]
    found = server.post("/v1/summarize", {"input": " ".join(texts * 8)}).json()["results"]
    assert found[0]["text"] == bimo.summarize(small, " ".join(texts * 8))
    found = server.post("/v1/classify", {"input": texts, "labels": ["good", "bad"]}).json()["results"]
    for one, label in zip(found, bimo.classify(small, texts, ["good", "bad"], report=True), strict=True):
        assert one["label"] == label.label
        assert one["probabilities"] == pytest.approx(dict(label.probabilities), rel=1e-5)


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("translate", {"input": "a", "target": "klingon"}, "no language"),
        ("translate", {"input": ["a", " "], "target": "de"}, "empty"),
        ("classify", {"input": "a"}, "no labels"),
        ("classify", {"input": "a", "labels": ["b"]}, "two labels"),
        ("summarize", {"input": ["a"] * 300}, "at most 256"),
        ("embeddings", {"input": "cat " * 2000}, "tokens"),
        ("attention", {"input": "cat " * 200, "layer": 0, "head": 0}, "128"),
        ("chat/completions", said("cat " * 3000), "tokens"),
    ],
)
def test_what_cannot_be_done_is_said(server: Running, path: str, content: dict, words: str) -> None:
    found = server.post(f"/v1/{path}", content)
    assert found.status_code == 400
    assert words in found.json()["error"]["message"]


def test_attention_is_the_formula(server: Running, small: LM) -> None:
    text = "the cat sat on a mat"
    found = server.post("/v1/attention", {"input": text, "layer": 1, "head": 3}).json()
    ids = small.engine.prompt_ids(text)
    assert len(found["tokens"]) == len(ids)
    weights = np.array(found["weights"])
    assert weights.shape == (len(ids), len(ids))
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-4)
    assert np.allclose(weights, np.tril(weights))
    gpt, seen = small.model, []
    hook = gpt.layers[1].self_attn.register_forward_hook(lambda module, given, out: seen.append((given, out)))
    with torch.no_grad():
        gpt.hidden(torch.tensor([ids]))
    hook.remove()
    (x, _), out = seen[0]
    own = gpt.layers[1].self_attn
    v = own.v_proj(x).detach().unflatten(-1, (2, 16))  # (1, T, K, D)
    mixed = []
    for head in range(4):
        rows = server.post("/v1/attention", {"input": text, "layer": 1, "head": head}).json()["weights"]
        mixed.append(torch.tensor(rows) @ v[0, :, head // 2])
    assert torch.allclose(own.o_proj(torch.cat(mixed, dim=-1)).detach(), out[0], atol=1e-4), (
        "weights times values is the layer"
    )
    assert server.post("/v1/attention", {"input": text, "layer": 1, "head": 0}).json()["weights"] != found["weights"]


def test_attention_of_a_file_is_that_of_its_model(serve: Serve, small: LM, tmp_path: Path) -> None:
    ask = {"input": "the cat sat on a mat", "layer": 1, "head": 3}
    found = []
    for lm in (bimo.load(small.export(tmp_path / "tiny.gguf", "F32")), small):
        running = serve([ServedModel("tiny", lm, EngineSettings(threads=1))])
        answers = [running.post("/v1/attention", ask) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
        found.append(answers[1].json()["weights"])
        assert running.post("/v1/completions", {"prompt": "the cat", "max_tokens": 2}).status_code == 200
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_runs_are_shown_and_nothing_else(serve: Serve, small: LM, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for name, steps in (("one", 5000), ("two", 3)):
        (folder / name).mkdir(parents=True)
        lines = [json.dumps({"step": n, "loss": 1 / (n + 1)}) for n in range(steps)]
        (folder / name / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 99']))
    (folder / "two" / "samples.jsonl").write_text('{"step": 1, "text": "a"}\n')
    (folder / "two" / "events.jsonl").write_text('{"event": "end"}\n')
    (folder / "link").symlink_to(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}")
    running = serve([Echo(small)], runs=str(folder))
    listed = {run["name"]: run for run in running.get("/v1/runs").json()}
    assert listed.keys() == {"one", "two"}
    assert listed["one"]["step"] == 4999
    assert len(running.get("/v1/runs/one").json()["metrics"]) <= 2000
    assert running.get("/v1/runs/one").json()["metrics"][-1]["step"] == 4999, "the last is kept"
    assert running.get("/v1/runs/two").json()["samples"] == [{"step": 1, "text": "a"}]
    assert running.get("/v1/runs/two/events").json() == [{"event": "end"}]
    for name in ("link", "..", "%2e%2e", "nothing", "..%2f", "a%00b"):
        assert running.get(f"/v1/runs/{name}").status_code == 404, name


def test_pages_and_a_router_of_others_find_their_places(serve: Serve, small: LM) -> None:
    from fastapi import FastAPI
    from starlette.responses import HTMLResponse, Response

    from bimo.serving.gateway import Gateway, Routed

    def pages(app: FastAPI, gateway: Gateway) -> None:
        @app.get("/", include_in_schema=False)
        async def home() -> Response:
            return HTMLResponse("hello")

    class Always:
        def route(self, text: str, wanted: str, cards: object, task: str = "") -> Routed:
            return Routed("echo", "zh" if "猫" in text else None, f"for {task or 'chat'}")

    running = serve([Echo(small)], pages=pages, router=Always())
    assert running.get("/").text == "hello"
    found = running.post("/v1/chat/completions", said("猫", model="whatever")).json()
    assert found["bimo"]["route"] == {"language": "zh", "model": "echo", "reason": "for chat"}
