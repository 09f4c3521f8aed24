"""Each family: as many weights as the others, the same ids in and out, and it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from bimo import UserError
from bimo.families.compare import _common, families_for
from bimo.families.encoder import Encoder
from bimo.families.encoder_decoder import EncoderDecoder
from bimo.families.family import Common, Family, sides_of
from bimo.families.gpt import GPTFamily
from bimo.families.material import Encoded, Material, encode, read_material
from bimo.families.peer import matched, n_weights
from bimo.families.settings import CompareSettings
from bimo.training.grouping import grouped
from bimo.training.muon import Muon

Rows = list[dict[str, str]]
TINY = CompareSettings(minutes=0.1, d_model=32, n_layers=2, vocab_size=400, device="cpu", dropout=0.0, threads=1)


def ready(task: str, rows: Rows, settings: CompareSettings = TINY) -> tuple[Common, Encoded, Material]:
    material = read_material(task, rows, (), settings)
    encoded = encode(material, settings)
    return _common(material, encoded, settings), encoded, material


@pytest.fixture(scope="module")
def translating(pairs: Rows) -> tuple[Common, Encoded, Material]:
    return ready("translation", pairs)


@pytest.fixture(scope="module")
def classifying(labelled: Rows) -> tuple[Common, Encoded, Material]:
    return ready("classification", labelled)


@pytest.mark.parametrize(("width", "layers", "vocabulary"), [(32, 2, 300), (64, 3, 1000), (128, 4, 4096), (96, 5, 512)])
def test_all_families_have_equally_many_weights(
    classifying: tuple[Common, Encoded, Material], width: int, layers: int, vocabulary: int
) -> None:
    common, encoded, material = classifying
    settings = replace(TINY, d_model=width, n_layers=layers)
    common = _common(material, encoded, settings)
    common = replace(common, spec=replace(common.spec, vocab_size=max(vocabulary, common.spec.vocab_size)))
    common = replace(common, n_parameters=GPTFamily(common).n_parameters)
    families = families_for(common)
    counts = [family.n_parameters for family in families]
    assert max(counts) / min(counts) < 1.05, {f.name: f.n_parameters for f in families}
    for family in families:
        assert family.n_parameters == n_weights(family.model), "the number is that of the model"  # type: ignore[attr-defined]


def test_weights_that_cannot_be_matched_are_refused() -> None:
    with pytest.raises(UserError, match="no Sequential of this width and depth has 10 weights"):
        matched(lambda width: nn.Sequential(nn.Linear(100, width)), 10)
    width, model = matched(lambda width: nn.Sequential(nn.Linear(100, width)), 10_100)
    assert (width, n_weights(model)) == (100, 10_100)


def test_only_labels_bring_the_encoder(
    translating: tuple[Common, Encoded, Material], classifying: tuple[Common, Encoded, Material]
) -> None:
    assert [family.name for family in families_for(translating[0])] == ["GPT", "encoder-decoder"]
    assert [family.name for family in families_for(classifying[0])] == ["GPT", "encoder-decoder", "encoder"]


def test_sides_are_the_very_ids_that_the_gpt_reads_and_says(translating: tuple[Common, Encoded, Material]) -> None:
    common, encoded, _ = translating
    rows = encoded.train
    sides = sides_of(rows.batch(range(6)), rows.pad)
    for n in range(6):
        ids, marks = (part[rows.starts[n] : rows.starts[n + 1]] for part in (rows.ids, rows.trained))
        assert sides.prompts[n][sides.seen[n]].tolist() == ids[~marks].tolist()
        assert sides.answers[n][sides.said[n]].tolist() == ids[marks].tolist()
    assert int(sides.answers[0][sides.said[0]][-1]) in common.tokenizer.end_ids, "the end is learned, too"


@pytest.mark.parametrize("made", [GPTFamily, EncoderDecoder, Encoder])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_family_learns_and_begins_anew_where_it_began(
    classifying: tuple[Common, Encoded, Material], made: type[GPTFamily], optimizer: str
) -> None:
    common, encoded, _ = classifying
    training = replace(common.training, optimizer=optimizer)
    family: Family = made(replace(common, training=training))
    held_out = list(encoded.held_out.in_order(16))
    stream = grouped(encoded.train, 1024, 0)
    rate = 0.02 if optimizer == "muon" else 3e-3
    family.begin(rate)
    first = family.loss(held_out)
    kept = family.weights()
    losses = [family.step(stream.make(n), 1.0) for n in range(25)]
    assert all(map(math.isfinite, losses))
    assert family.loss(held_out) < 0.8 * first, "it learns"
    family.put_back(kept)
    assert family.loss(held_out) == pytest.approx(first, abs=1e-6), "its weights can be put back"
    family.begin(rate)
    assert family.loss(held_out) == pytest.approx(first, abs=1e-6), "and every beginning is the same"


@pytest.mark.parametrize("made", [GPTFamily, EncoderDecoder, Encoder])
def test_what_was_learned_by_heart_is_answered(
    translating: tuple[Common, Encoded, Material], classifying: tuple[Common, Encoded, Material], made: type[GPTFamily]
) -> None:
    """Reading, writing and the end of an answer are the same in training and in answering."""
    for common, encoded, material in (translating, classifying):
        if made is Encoder and not common.labels:
            continue
        family: Family = made(common)
        family.begin(0.02)
        batch = encoded.train.batch(range(4))
        losses = [family.step(batch, 1.0)]
        while losses[-1] > 0.02 and len(losses) < 300:
            losses.append(family.step(batch, 1.0))
        sides = sides_of(batch, encoded.train.pad)
        prompts = [ids[seen].tolist() for ids, seen in zip(sides.prompts, sides.seen, strict=True)]
        wanted = [example.target for example in material.train[:4]]
        assert family.answer(prompts) == wanted, f"after {len(losses)} updates to a loss of {losses[-1]:.3f}"
        assert family.answer(prompts[::-1]) == wanted[::-1], "in the order of the prompts"
        assert all(answer.how.finish_reason == "end" for answer in family.answer(prompts))


def test_a_step_with_no_share_of_the_rate_changes_nothing(classifying: tuple[Common, Encoded, Material]) -> None:
    common, encoded, _ = classifying
    batch = grouped(encoded.train, 1024, 0).make(0)
    for family in families_for(common):
        for share, same in ((0.0, True), (1.0, False)):
            family.begin(0.02)
            before = family.weights()
            family.step(batch, share)
            after = family.weights()
            assert all(torch.equal(before[n], after[n]) for n in before) == same, f"{family.name} at {share}"


def test_muon_has_the_matrices_of_all_layers_and_no_embedding(classifying: tuple[Common, Encoded, Material]) -> None:
    _, encoded, material = classifying
    common = _common(material, encoded, replace(TINY, d_model=64))
    # Two heads, three times two in one matrix of queries, keys and values, and four groups of neurons.
    for made, blocks in ((EncoderDecoder, {2, 4}), (Encoder, {2, 4, 6})):
        family = made(common)
        family.begin(0.02)
        optimizer = family.optimizer
        assert isinstance(optimizer, Muon)
        blocked = {id(p) for group in optimizer.param_groups if group["blocks"] for p in group["params"]}
        every = [p for group in optimizer.param_groups for p in group["params"]]
        assert len(every) == len({id(p) for p in every}) == sum(p.requires_grad for p in family.model.parameters())
        for name, p in family.model.named_parameters():
            if p.requires_grad:
                assert (id(p) in blocked) == (p.dim() == 2 and ".layers." in name), name
        assert {group["blocks"] for group in optimizer.param_groups if group["blocks"]} == blocks


def test_padding_changes_no_answer(translating: tuple[Common, Encoded, Material]) -> None:
    common, encoded, _ = translating
    family = EncoderDecoder(common)
    family.begin(0.02)
    prompts = sorted((prompt for prompt in encoded.prompts if prompt), key=len)
    short, long = prompts[0], prompts[-1]
    assert len(short) < len(long)
    assert family.answer([short, long]) == [*family.answer([short]), *family.answer([long])]


def test_a_loss_that_is_no_number_is_told_and_changes_nothing(classifying: tuple[Common, Encoded, Material]) -> None:
    common, encoded, _ = classifying
    batch = grouped(encoded.train, 1024, 0).make(0)
    for family in families_for(common):
        family.begin(0.02)
        broken = {
            name: torch.full_like(w, math.nan) if w.is_floating_point() else w for name, w in family.weights().items()
        }
        family.put_back(broken)
        assert family.step(batch, 1.0) == math.inf, family.name
