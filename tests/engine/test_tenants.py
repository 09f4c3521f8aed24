"""Blocks are shared within a tenant only: nobody can tell from the work that is saved what another has sent."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine.text_runner import TextRunner, alone, loop

from bimo.engine.blocks import BlockPool
from bimo.engine.request import Request, SamplingParams
from bimo.engine.settings import EngineSettings

PROMPT = tuple(i % 20 for i in range(40))
PARAMS = SamplingParams(max_tokens=5, temperature=0, seed=0)


def read_for(tenants: list[str], settings: EngineSettings | None = None) -> list[int]:
    """Tokens that are read for the same prompt, asked by one tenant after the other."""
    runner = TextRunner(200)
    steps = loop(runner, settings)
    found = []
    for number, tenant in enumerate(tenants):
        before = runner.n_read
        job = steps.submit(Request(f"r{number}", PROMPT, PARAMS, tenant=tenant))
        while steps.step():
            pass
        assert job.error is None
        assert [list(choice.tokens) for choice in job.result.choices] == alone(Request("x", PROMPT, PARAMS))
        found.append(runner.n_read - before)
    return found


def test_a_tenant_does_not_find_what_another_has_sent() -> None:
    first, again, other, other_again = read_for(["anna", "anna", "bert", "bert"])
    assert again < first, "its own beginning is found"
    assert other == first, "another's is not: the same work is done, in the same time"
    assert other_again == again


def test_without_tenants_all_share() -> None:
    first, again = read_for(["", ""])
    assert again < first, "the control: this is what another tenant would see"


def test_requests_at_the_same_time_do_not_wait_for_another_tenants_prompt() -> None:
    runner = TextRunner(200)
    steps = loop(runner)
    requests = [Request(f"r{n}", PROMPT, PARAMS, tenant=tenant) for n, tenant in enumerate(["anna", "bert"])]
    for request in requests:
        steps.submit(request)
    steps.step()
    assert steps.stats.running == 2, "both are read at once"
    runner = TextRunner(200)
    steps = loop(runner)
    for request in requests:
        steps.submit(replace(request, tenant=""))
    steps.step()
    assert steps.stats.running == 1, "the control: the second waits until it can share"


@pytest.mark.parametrize(("mine", "theirs"), [("a", "b"), ("", "a"), ("a", "a "), ("1", "11"), ("0 0 a", "0 a")])
def test_keys_of_different_tenants_differ(mine: str, theirs: str) -> None:
    pool = BlockPool(10, 4)
    found: list[list[bytes]] = []
    for tenant in (mine, theirs):
        keys: list[bytes] = []
        pool.extend_keys(keys, list(range(12)), f"0 0 {tenant}".encode())
        found.append(keys)
    assert not set(found[0]) & set(found[1])
