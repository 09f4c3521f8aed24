"""What a template writes without being run is what it writes when it is run, or it is run."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bimo.tokenizer import frames
from bimo.tokenizer.frames import Frames
from bimo.tokenizer.template import ChatTemplate

TEMPLATES = {path.stem: path.read_text() for path in Path(__file__).with_name("templates").iterdir()}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
PARTS = ["a", " ", "\n", "墨", "<think>", "</think>", "<tool_response>", "</tool_response>", "{{ 1 }}", "\ue0f2", ""]
CONTENT = st.lists(st.sampled_from(PARTS), max_size=6).map("".join)
Messages = list[dict[str, str]]


def conversation(contents: list[str], system: bool) -> Messages:
    roles = itertools.chain(["system"] if system else [], itertools.cycle(["user", "assistant"]))
    return [{"role": role, "content": content} for role, content in zip(roles, contents)]  # noqa: B905


def learned(template: ChatTemplate, examples: list[Messages], prompt: bool = True) -> Frames:
    found = Frames(template.source, template.tokens)
    for messages in examples:
        found.learn(messages, prompt, template.render(messages, add_generation_prompt=prompt))
    return found


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(CONTENT, min_size=1, max_size=5), min_size=1, max_size=6), st.booleans(), st.booleans())
def test_a_framed_text_is_the_rendered_text(
    name: str, conversations: list[list[str]], prompt: bool, system: bool
) -> None:
    template = ChatTemplate(TEMPLATES[name], tokens=TOKENS)
    for contents in conversations:
        messages = conversation(contents, system and name != "gemma")
        whole = template.render(messages, add_generation_prompt=prompt)
        for _ in range(2):  # before a frame is known, and after
            assert template.pieces(messages, [], add_generation_prompt=prompt) == [(False, whole)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_known_templates_have_frames(name: str) -> None:
    first, other = conversation(["Hello", "there", "you"], False), conversation(["Yet ", " others", "{{ x }}"], False)
    for prompt in (True, False):
        found = learned(ChatTemplate(TEMPLATES[name], tokens=TOKENS), [first], prompt)
        written = ChatTemplate(TEMPLATES[name], tokens=TOKENS).render(other, add_generation_prompt=prompt)
        assert found.text(other, prompt) == written, "known without being run"


def test_a_frame_holds_only_where_its_questions_have_the_same_answers() -> None:
    template = ChatTemplate("{% if 'x' in messages[0].content %}!{% endif %}{{ messages[0].content }}", tokens={})
    plain, with_x = [{"role": "user", "content": "a"}], [{"role": "user", "content": "x"}]
    found = learned(template, [plain])
    assert found.text([{"role": "user", "content": "b"}], True) == "b"
    assert found.text(with_x, True) is None, "it has to be run"
    assert learned(template, [plain, with_x]).text([{"role": "user", "content": "yx"}], True) == "!yx"


# Each looks at a content in another way; the second conversation would be written wrongly by the first one's frame.
LOOKS = {
    "upper": "{{ messages[0].content|upper }}",
    "method": "{{ messages[0].content.replace('a', 'b') }}",
    "length": "{% if messages[0].content|length > 3 %}long{% endif %}",
    "slice": "{{ messages[0].content[1:] }}",
    "character": "{{ messages[0].content[0] }}",
    "loop": "{% for c in messages[0].content %}{{ c }}.{% endfor %}",
    "truth": "{% if messages[0].content %}1{% endif %}",
    "truth of a sum": "{% if messages[0].content + '' %}1{% endif %}",
    "truth of a join": "{% if messages|map(attribute='content')|join %}1{% endif %}",
    "slice of a join": "{{ (messages|map(attribute='content')|join)[2:] }}",
    "join": "{{ messages|map(attribute='content')|join('-') }}",
    "a look into text": "{% if messages[0].content in 'aaaa bb' %}1{% endif %}",
    "a look into a list": "{% if messages[0].content in ['aaaa', 'c'] %}1{% endif %}",
    "a look through values": "{% if 'aaaa' in messages|map(attribute='content') %}1{% endif %}",
    "equality": "{% if 'aaaa' == messages[0].content %}1{% endif %}",
    "a chain": "{% if 'a' < messages[0].content < 'b' %}1{% endif %}",
    "order": "{% if messages[0].content > 'b' %}1{% endif %}",
    "a test": "{% if messages[0].content is lower %}1{% endif %}",
    "a test by name": "{{ messages|selectattr('content', 'equalto', 'aaaa')|list|length }}",
    "a test of truth": "{{ messages|selectattr('content')|list|length }}",
    "a key": "{{ {'aaaa': 1}[messages[0].content] }}",
    "a table": "{{ {messages[0].content: 1} }}",
    "json": "{{ messages|tojson }}",
    "a list": "{{ messages }}",
    "representation": "{{ [messages[0].content]|string }}",
    "repeated": "{{ messages[0].content * 2 }}",
    "percent": "{{ '%s' % messages[0].content }}",
    "a captured block": "{% set x %}{{ messages[0].content }}{% endset %}{% if x %}{{ x[1:] }}{% endif %}",
    "a filtered block": "{% filter upper %}{{ messages[0].content }}{% endfilter %}",
    "a macro": "{% macro f(x) %}{{ x }}{% endmacro %}{% if f(messages[0].content) %}{{ f('a')[0] }}{% endif %}",
    "a macro cut": "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(messages[0].content)[1:] }}",
    "a namespace": "{% set n = namespace(x=messages[0].content) %}{% if n.x %}{{ n.x|last }}{% endif %}",
    "trimmed sums": "{{ (messages[0].content + ' ')|trim }}",
    "sorted": "{{ messages|map(attribute='content')|sort|join }}",
    "a default": "{{ messages[0].content|default('none', true) }}",
    "or": "{{ messages[0].content or 'none' }}",
    "a date of a content": "{{ strftime_now(messages[0].content) }}",
    "values": "{% for v in messages[0].values() %}{{ v|length }}{% endfor %}",
    "count": "{{ 'a'.join([messages[0].content, 'b']).count('a') }}",
    "split": "{{ messages[0].content.split('a')|length }}",
    "unpacked": "{% set a, b, c, d = messages[0].content %}{{ a }}{{ d }}",
    "escaped": "{{ messages[0].content|e }}",
    "autoescape": "{% autoescape true %}{{ messages[0].content }}{% endautoescape %}",
    "added to what is safe": "{{ ('<b>'|safe) + messages[0].content }}",
    "escaped by what is added": "{{ messages[0].content + ('<'|e) }}",
    "capital": "{{ messages[0].content.strip()|capitalize }}",
    "stripped of letters": "{{ messages[0].content.strip('a') }}",
}  # fmt: skip
SAID = ["aaaa", "", "  bb<c>", "%d aaaa", "b'\"", "abca"]


@pytest.mark.parametrize("look", LOOKS)
def test_no_look_at_a_content_is_overlooked(look: str) -> None:
    template = ChatTemplate(LOOKS[look], tokens={})

    def outcome(written: ChatTemplate, content: str, framed: bool) -> Any:
        messages = [{"role": "user", "content": content}]
        try:
            return written.pieces(messages, []) if framed else [(False, written.render(messages))]
        except Exception as error:  # the template refuses: it must do so both ways
            return type(error)

    for first, second in itertools.permutations(SAID, 2):
        fresh = ChatTemplate(LOOKS[look], tokens={})
        outcome(fresh, first, framed=True)
        rendered = outcome(template, second, framed=False)
        assert outcome(fresh, second, framed=True) == rendered, f"{second!r} after {first!r}"


def test_the_test_above_sees_a_frame_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames.Traced, "__bool__", lambda self: True)
    with pytest.raises(AssertionError):
        test_no_look_at_a_content_is_overlooked("truth")


def test_a_frame_ends_with_its_day(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{{ strftime_now('%d') }} {{ messages[0].content }}", tokens={})
    found = learned(template, [[{"role": "user", "content": "a"}]])
    said = [{"role": "user", "content": "b"}]
    assert found.text(said, True) == template.render(said)
    monkeypatch.setattr(frames, "now", lambda form: "tomorrow")
    assert found.text(said, True) is None


def test_frames_do_not_grow_without_end() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content == '1' }}{% endfor %}", tokens={})
    for number in range(100):
        contents = [format(number, "07b")[n] for n in range(7)]
        messages = [{"role": "user", "content": text} for text in contents]
        assert template.pieces(messages, []) == [(False, "".join(str(text == "1") for text in contents))]
    assert sum(map(len, template._frames.found.values())) <= 8
