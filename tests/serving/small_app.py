"""A small server that speaks the dialect over a real tiny model, for the page's tests."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse

import bimo
from bimo.applying.classifying import Classifier
from bimo.applying.summarizing import Summarizer
from bimo.applying.translating import Translator
from bimo.core.errors import UserError
from bimo.engine import Engine, SamplingParams
from bimo.serving.pages import add_pages
from bimo.serving.runs import RunsFolder


def attention(lm: Any, text: str, layer: int, head: int) -> dict[str, Any]:
    from bimo.model import backends

    ids = lm.tokenizer.encode(text)[:128]
    spec = lm.model.spec
    if not (0 <= layer < spec.n_layers and 0 <= head < spec.n_heads):
        raise UserError("no such layer or head")
    kept = {}

    def watch(module: Any):
        plain = module.attend

        def attend(q, k, v, ctx):
            eye = torch.eye(k.shape[2]).expand(k.shape[0], k.shape[1], -1, -1)
            kept["w"] = backends.attend_math(q.float(), k.float(), eye, ctx)
            return plain(q, k, v, ctx)

        module.attend = attend
        return plain

    block = [m for m in lm.model.modules() if hasattr(m, "attend") and hasattr(m, "q_proj")][layer]
    plain = watch(block)
    try:
        with torch.no_grad():
            lm.model(torch.tensor([ids]))
    finally:
        block.attend = plain
    weights = kept["w"][0, head]
    return {
        "tokens": [lm.tokenizer.decode([i]) for i in ids],
        "weights": [[round(float(x), 5) for x in row] for row in weights],
        "n_layers": spec.n_layers,
        "n_heads": spec.n_heads,
    }


def make_small_app(models: dict[str, Any], runs: Path | None = None) -> FastAPI:
    app = FastAPI()
    add_pages(app)
    engines = {name: Engine(lm) for name, lm in models.items()}
    folder = RunsFolder(runs) if runs else None
    state = {"requests": 0}

    @app.exception_handler(UserError)
    async def told(request: Any, error: UserError) -> JSONResponse:
        status = 404 if "no such run" in error.what else 400
        return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error", "param": None, "code": None}}, status)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in models]}

    def info(lm: Any, t: Any) -> dict[str, Any]:
        def one(i: int, lp: float) -> dict[str, Any]:
            b = app.state.spell[id(lm)][i]
            return {"token": b.decode("utf-8", "replace"), "logprob": lp, "bytes": list(b)}

        return {**one(t.token, t.logprob), "top_logprobs": [one(i, lp) for i, lp in t.top]}

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: dict[str, Any]) -> Any:
        state["requests"] += 1
        lm, engine = models[body["model"]], engines[body["model"]]
        ids = lm.tokenizer.encode_chat(body["messages"], add_generation_prompt=True)
        params = SamplingParams(max_tokens=body.get("max_tokens", 128), temperature=body.get("temperature", 0.8), logprobs=body.get("top_logprobs") if body.get("logprobs") else None, seed=body.get("seed"))
        job = engine.submit(engine.request(ids, params))
        job.listener = lambda: None  # the engine is driven as long as somebody listens
        engine.drive()

        async def events() -> AsyncIterator[str]:
            import asyncio

            shown, first = 0, True
            try:
                while True:
                    finished = job.finished.is_set()
                    text = ""
                    while job.pieces:
                        text += job.pieces.popleft()[1]
                    infos = list(job.writers[0].logprobs)[shown:]
                    shown += len(infos)
                    chunk = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
                    if params.logprobs is not None:
                        chunk["choices"][0]["logprobs"] = {"content": [info(lm, t) for t in infos]}
                    if first:
                        chunk["bimo"] = {"route": {"language": None, "model": body["model"], "reason": ""}, "guard": []}
                        first = False
                    if text or infos:
                        yield f"data: {json.dumps(chunk)}\n\n"
                    if finished:
                        reason = {"max_tokens": "length", "context": "length"}.get(job.writers[0].reason, "stop")
                        yield "data: " + json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}) + "\n\n"
                        yield "data: [DONE]\n\n"
                        return
                    await asyncio.sleep(0.02)
            finally:
                engine.cancel(job.request.id)

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.post("/v1/{task}", response_model=None)
    def apply(task: str, body: dict[str, Any]) -> Any:
        state["requests"] += 1
        if task == "moderations":
            text = body["input"]
            found = [{"rule": "email", "score": 1.0, "action": "mask", "start": m.start(), "end": m.end()} for m in re.finditer(r"[\w.]+@[\w.]+", text)]
            return {"results": [{"flagged": bool(found), "verdicts": found}]}
        lm = models[body["model"]]
        if task == "attention":
            return {"model": body["model"], **attention(lm, body["input"], body["layer"], body["head"])}
        if task == "translate":
            result = next(Translator(lm, body["target"], source=body.get("source", "")).stream([body["input"]]))
        elif task == "summarize":
            result = next(Summarizer(lm).stream([body["input"]]))
        else:
            result = next(Classifier(lm, body.get("labels", ())).stream([body["input"]]))
        if isinstance(result, UserError):
            raise result
        plain = {"warnings": [str(w) for w in result.warnings]}
        if task == "classify":
            plain |= {"label": result.label, "probabilities": dict(result.probabilities)}
        else:
            plain |= {"text": result.text}
        return {"model": body["model"], "results": [plain], "bimo": {"route": {"reason": ""}, "guard": []}}

    @app.get("/v1/stats")
    def stats() -> dict[str, Any]:
        import resource

        engine = next(iter(engines.values()))
        s = engine.stats
        return {"queue": 0, "running": getattr(s, "running", 0), "waiting": getattr(s, "waiting", 0), "tokens_per_s": getattr(s, "tokens_per_s", 0.0), "free_blocks": getattr(s, "free_blocks", 0), "n_blocks": getattr(s, "n_blocks", 0), "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "requests": state["requests"], "rejected": 0, "models": list(models)}

    def runs_folder() -> RunsFolder:
        return folder

    if folder is not None:

        @app.get("/v1/runs")
        def list_runs() -> Any:
            return folder.summaries()

        @app.get("/v1/runs/{name}")
        def run(name: str) -> Any:
            return folder.run(name)

        @app.get("/v1/runs/{name}/events")
        def events_of(name: str) -> Any:
            return folder.events(name)

    app.state.spell = {}
    for lm in models.values():
        table = spelling_of(lm.tokenizer)
        app.state.spell[id(lm)] = table
    return app


def spelling_of(tokenizer: Any) -> Any:
    """Bytes of each id."""
    return tokenizer.bytes_of_ids


if __name__ == "__main__":
    import uvicorn

    pairs = dict(pair.split("=") for pair in sys.argv[3:])
    lms = {name: bimo.load(path) for name, path in pairs.items()}
    uvicorn.run(make_small_app(lms, Path(sys.argv[2]) if sys.argv[2] else None), port=int(sys.argv[1]), log_level="warning")
