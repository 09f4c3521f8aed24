"""Many works through one engine: in order, each with its own errors, and none waits for what has not arrived."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Iterator

import pytest

from bimo import LM, SamplingParams, UserError
from bimo.applying.working import Arriving, Ask, Ready, Work, Works, in_order


def asking(lm: LM, text: str, rounds: int) -> Work[str]:
    """A work that goes on with its own text."""
    for _ in range(rounds):
        ids = tuple(lm.engine.prompt_ids(text))
        (answer,) = yield [Ask(ids, SamplingParams(max_tokens=3, temperature=0))]
        if isinstance(answer, UserError):
            raise answer
        text += answer.text
    return text


def test_results_come_in_the_order_of_their_works(lm: LM) -> None:
    rounds = [5, 1, 3, 0, 2]
    works = (asking(lm, f"the cat {n}", count) for n, count in enumerate(rounds))
    together = list(in_order(lm.engine, Ready(works), at_once=3))
    alone = [next(in_order(lm.engine, Ready([asking(lm, f"the cat {n}", c)]))) for n, c in enumerate(rounds)]
    assert together == alone, "as if each were alone"


def test_no_more_works_are_under_way_than_allowed(lm: LM) -> None:
    taken = itertools.count()
    works = (asking(lm, f"a {next(taken)}", 1) for _ in range(10))
    results = in_order(lm.engine, Ready(works), at_once=2)
    next(results)
    assert next(taken) <= 3, "the others were not asked for yet"
    results.close()
    assert not lm.engine.jobs, "whoever leaves gives up what is under way"


def test_an_error_takes_the_place_of_its_result_alone(lm: LM) -> None:
    texts = ["the cat", "cat " * 500, "the dog"]
    found = list(in_order(lm.engine, Works(texts, lambda text: [asking(lm, text, 1)])))
    assert [isinstance(result, UserError) for result in found] == [False, True, False]
    assert "the model sees at most 64" in str(found[1])


def test_an_error_of_the_source_comes_after_what_it_gave_before(lm: LM) -> None:
    def broken() -> Iterator[Work[str]]:
        yield asking(lm, "the cat", 2)
        raise UserError("the file ends early")

    results = in_order(lm.engine, Ready(broken()))
    assert next(results)
    with pytest.raises(UserError, match="ends early"):
        next(results)


@pytest.mark.parametrize("live", [True, False])
def test_a_live_source_is_answered_before_it_ends(lm: LM, live: bool) -> None:
    lines: queue.Queue[str] = queue.Queue()

    def arriving() -> Iterator[str]:
        while True:
            try:
                yield lines.get(timeout=20 if live else 0.5)
            except queue.Empty:
                return

    lines.put("the cat")
    source = Arriving(arriving()) if live else Ready(arriving())
    results = in_order(lm.engine, Works(source, lambda text: [asking(lm, text, 1)]))
    first = next(results)
    assert isinstance(first, str)
    assert lines.empty()
    if live:
        lines.put("the dog")  # only now: who waits for the second line before the first answer never gets here in time
        second = next(results)
        assert isinstance(second, str)
        assert second.startswith("the dog")
    else:
        assert next(results, None) is None, "the control: it has waited until the end"
    results.close()


def test_an_error_in_a_live_source_reaches_whoever_takes() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise UserError("gone")

    source = Arriving(broken())
    assert source.take(wait=True) == 1
    with pytest.raises(UserError, match="gone"):
        source.take(wait=True)
