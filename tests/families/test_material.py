"""What the families learn from: nothing that is measured, and one text in, one answer out."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bimo import UserError
from bimo.families.material import Material, encode, read_material
from bimo.families.settings import CompareSettings

Rows = list[dict[str, str]]
SETTINGS = CompareSettings(minutes=0.1)


def sources(material: Material) -> tuple[set[str], set[str], set[str]]:
    parts = (material.train, material.held_out, material.measured)
    train, held, measured = ({example.source for example in part} for part in parts)
    return train, held, measured


def test_no_measured_text_is_learned_whatever_is_said_to_it(pairs: Rows) -> None:
    valid = pairs[:50]
    again = [{**row, "target": row["target"].upper()} for row in valid[:5]]  # the same text, said otherwise
    material = read_material("translation", pairs + again, valid, SETTINGS)
    train, held, measured = sources(material)
    assert measured == {row["source"] for row in valid}
    assert not measured & (train | held)
    assert not train & held
    assert any("55 training rows stand among the measured ones" in note for note in material.notes)


def test_without_that_protection_the_rows_would_leak(pairs: Rows) -> None:
    material = read_material("translation", pairs[50:], pairs[:50], SETTINGS)
    train, held, _ = sources(material)
    assert len(train | held) == len(pairs) - 50, "rows that are not measured stay"
    assert not any("stand among" in note for note in material.notes)


def test_the_way_back_of_a_measured_pair_is_not_learned_either(pairs: Rows) -> None:
    material = read_material("translation(both=True)", pairs, pairs[:50], SETTINGS)
    learned = {frozenset((e.source, e.target)) for e in [*material.train, *material.held_out]}
    assert not learned & {frozenset((row["source"], row["target"])) for row in pairs[:50]}


def test_without_measured_rows_a_tenth_is_kept_apart_by_its_text(pairs: Rows) -> None:
    twice = pairs + pairs
    material = read_material("translation", twice, (), SETTINGS)
    train, held, measured = sources(material)
    assert not measured & (train | held), "equal texts are on one side"
    assert 0.04 < len(material.measured) / len(twice) < 0.2
    again = read_material("translation", twice[::-1], (), SETTINGS)
    assert sources(again) == (train, held, measured), "by text, not by place"


def test_columns_of_other_names_and_a_tmx_are_read(pairs: Rows, tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("english", "german"), *((row["source"], row["target"]) for row in pairs)])
    fields = {"source": "english", "target": "german"}
    units = "".join(
        f'<tu><tuv xml:lang="en"><seg>{row["source"]}</seg></tuv>'
        f'<tuv xml:lang="de"><seg>{row["target"]}</seg></tuv></tu>'
        for row in pairs
    )
    memory = tmp_path / "pairs.tmx"
    memory.write_text(f'<tmx version="1.4"><header srclang="en"/><body>{units}</body></tmx>', encoding="utf-8")
    by_name = read_material("translation", str(table), (), CompareSettings(minutes=0.1, fields=fields))
    by_language = read_material("translation(source='en', target='de')", str(memory), (), SETTINGS)
    assert sources(by_name) == sources(by_language)


def test_a_label_that_is_only_measured_is_told(labelled: Rows) -> None:
    odd = [{"text": f"a bird number {n}", "label": "bird"} for n in range(3)]
    material = read_material("classification", labelled[20:], labelled[:20] + odd, SETTINGS)
    assert any("3 measured rows have a label that no training row has" in note for note in material.notes)
    assert material.labels == ["cat", "dog"]


def test_a_label_that_is_only_held_out_is_known(labelled: Rows) -> None:
    rare = [{"text": f"a bird number {n}", "label": f"bird {n}"} for n in range(60)]
    material = read_material("classification", labelled + rare, labelled[:20], SETTINGS)
    assert {e.target for e in material.held_out} - {e.target for e in material.train}, "there are such labels"
    assert {e.target for e in [*material.train, *material.held_out]} == set(material.labels)


@pytest.mark.parametrize(
    ("task", "rows", "what"),
    [
        ("translation", [{"source": f"a {n}", "target": "b"} for n in range(20)], "too few"),
        ("completion", [{"text": f"some text {n}"} for n in range(100)], "no text in and one answer out"),
        ("classification", [{"text": f"a {n}", "label": "one"} for n in range(200)], "all rows have the label"),
        ("translashun", [{"source": "a", "target": "b"}], "translashun"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_trained(task: str, rows: Rows, what: str) -> None:
    with pytest.raises(UserError, match=what):
        read_material(task, rows, (), SETTINGS)


def test_answers_stay_whole_and_prompts_leave_room_for_them(summaries: Rows) -> None:
    long = [{"document": row["document"] + " and so on" * 60, "summary": row["summary"]} for row in summaries]
    settings = CompareSettings(minutes=0.1, context_length=96)
    material = read_material("summarization", long, (), settings)
    encoded = encode(material, settings)
    assert encoded.train.lengths.max() <= 96
    said = [encoded.tokenizer.decode(encoded.train.ids[a:b][encoded.train.trained[a:b]].tolist())
            for a, b in zip(encoded.train.starts[:20], encoded.train.starts[1:21], strict=True)]  # fmt: skip
    for text, example in zip(said, material.train, strict=False):
        assert text.startswith(example.target), "no answer is cut"
    assert all(prompt is not None and len(prompt) + encoded.answer_tokens <= 96 for prompt in encoded.prompts)
    assert any("lose the end of their text" in note for note in encoded.notes)
