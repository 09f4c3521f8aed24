"""Of two keys, none finds the other's prompts in the cache."""

from __future__ import annotations

import hashlib

from serving.echo import Echo
from serving.servers import Serve
from serving.test_streams import said

from bimo import LM
from bimo.serving.keys import Key, KeyRing

SECRET_PROMPT = "my account is 12345678, and " * 6


def test_work_for_a_prompt_is_the_same_whatever_others_have_sent(serve: Serve, small: LM) -> None:
    keys = KeyRing([Key(name, hashlib.sha256(name.encode()).hexdigest()) for name in ("anna", "bert", "carl")])
    model = Echo(small)
    running = serve([model], keys=keys)

    def work(name: str, path: str = "chat/completions") -> int:
        before = model.runner.n_read
        content = said(SECRET_PROMPT, max_tokens=1) if path == "chat/completions" else {"input": SECRET_PROMPT}
        if path == "translate":
            content["target"] = "de"
        found = running.post(f"/v1/{path}", content, headers={"authorization": f"Bearer {name}"})
        assert found.status_code == 200, found.text
        return model.runner.n_read - before

    cold = work("anna")
    assert work("anna") < cold / 2, "the control: one's own prompt is found"
    assert work("bert") == cold
    for path in ("embeddings", "translate"):
        cold = work("anna", path)
        assert work("carl", path) == cold, path
