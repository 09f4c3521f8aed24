"""Stop strings cut a stream as they would cut the whole text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bimo.engine.stops import StopStrings


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_stop_strings_cut_a_stream_like_the_whole_text(text: str, stop: list[str], data: st.DataObject) -> None:
    stops = StopStrings(tuple(stop))
    shown, rest = "", text
    while rest:
        n = data.draw(st.integers(1, len(rest)))
        shown += stops.push(rest[:n])
        rest = rest[n:]
    shown += stops.finish()
    first = min((text.index(s) + len(s) for s in stop if s in text), default=None)
    if first is None:
        assert shown == text, "without a stop string nothing is lost"
    else:
        assert text.startswith(shown), "nothing is added"
        assert not any(s in shown for s in stop), "cut at a stop string"
        assert stops.found, "and it says so"
