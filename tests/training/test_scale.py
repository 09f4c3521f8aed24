"""Plans on paper, held against what others have published, and against failures that are lived through."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from bimo.core.config import RunSettings, TokenizerSettings, TrainingSettings
from bimo.core.errors import UserError
from bimo.core.spec import ModelSpec
from bimo.model.gpt import GPT
from bimo.training.datasheets import SHEETS, peak_flops, sheet, sheet_of
from bimo.training.many_gpus import lines_of, plan_for
from bimo.training.scale import (
    Layout,
    Work,
    best_interval_s,
    count_parameters,
    failure_interval_s,
    flops_per_token,
    memory_per_gpu,
    simulate,
    step_time,
    traffic,
    useful_share,
)

GIB = 2**30
H100, A100 = SHEETS["h100"], SHEETS["a100-80gb"]


def llama(n_layers: int, width: int, n_heads: int, d_ff: int) -> ModelSpec:
    return ModelSpec(
        n_layers=n_layers, d_model=width, n_heads=n_heads, n_kv_heads=8, d_ff=d_ff, vocab_size=128256,
        context_length=8192, tied_embeddings=False, qk_norm=False,
    )  # fmt: skip


LLAMA = {
    "8B": llama(32, 4096, 32, 14336), "70B": llama(80, 8192, 64, 28672), "405B": llama(126, 16384, 128, 53248)
}  # fmt: skip


@pytest.mark.parametrize(("name", "published"), [("8B", 8.03e9), ("70B", 70.6e9), ("405B", 405e9)])
def test_parameters_are_those_of_the_model_card(name: str, published: float) -> None:
    assert count_parameters(LLAMA[name])[0] == pytest.approx(published, rel=0.005)


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(n_layers=3, d_model=96, n_heads=3, vocab_size=512),
        ModelSpec(n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, feedforward="gelu", tied_embeddings=False),
    ],
    ids=["tied", "gelu, grouped, untied"],
)
def test_parameters_counted_on_paper_are_those_of_the_model(spec: ModelSpec) -> None:
    assert count_parameters(spec)[0] == GPT(spec).n_parameters()


def test_flops_counted_on_paper_are_those_of_the_model() -> None:
    spec = ModelSpec(n_layers=3, d_model=96, n_heads=3, vocab_size=512)
    assert flops_per_token(spec) == pytest.approx(GPT(spec).flops_per_token(), rel=0.005), "but for the norms"


# torchtitan, llama3_h100_202412: FSDP, local batch 2, selective checkpointing, in GiB with and without compile.
@pytest.mark.parametrize(("gpus", "low", "high"), [(8, 77.0, 82.4), (128, 62.0, 67.0)])
def test_memory_of_an_8b_model_is_what_torchtitan_measured(gpus: int, low: float, high: float) -> None:
    memory = memory_per_gpu(Work(LLAMA["8B"], 2, 2, "selective", whole_logits=True), Layout(shard=gpus))
    assert 0.95 * low <= sum(memory.values()) / GIB <= 1.05 * high, memory


def test_states_that_are_shared_out_explain_the_difference_between_8_and_128_gpus() -> None:
    few, many = (
        sum(memory_per_gpu(Work(LLAMA["8B"], 2, 2, "selective", whole_logits=True), Layout(shard=gpus)).values())
        for gpus in (8, 128)
    )
    assert (few - many) / GIB == pytest.approx(77.0 - 62.0, rel=0.1), "published: 15.0 GiB"


def test_memory_of_a_70b_model_on_256_gpus_is_within_a_quarter() -> None:
    memory = memory_per_gpu(Work(LLAMA["70B"], 16, 16, "blocks", whole_logits=True), Layout(shard=32, tensor=8))
    assert sum(memory.values()) / GIB == pytest.approx(71.9, rel=0.25)


def test_memory_of_a_405b_model_in_a_pipeline_is_within_a_third() -> None:
    memory = memory_per_gpu(
        Work(LLAMA["405B"], 32, 1, "blocks", whole_logits=True), Layout(shard=8, tensor=8, pipeline=8)
    )
    assert sum(memory.values()) / GIB == pytest.approx(72.7, rel=0.33)


@pytest.mark.parametrize(
    ("name", "tokens_per_second", "card", "published"),
    [
        ("8B", 5762, H100, 0.33), ("8B", 6667, H100, 0.39), ("8B", 2973, A100, 0.582), ("70B", 331, A100, 0.517),
    ],
)  # fmt: skip
def test_published_speeds_give_the_published_mfu(name: str, tokens_per_second: float, card, published: float) -> None:  # type: ignore[no-untyped-def]
    mfu = tokens_per_second * flops_per_token(LLAMA[name], causal=False) / card.bf16_flops
    assert mfu == pytest.approx(published, rel=0.06)


def test_fsdp_over_128_gpus_hides_its_traffic_as_measured() -> None:
    """Published: 5,762 tokens per second and GPU on 8, 5,605 on 128."""
    work = Work(LLAMA["8B"], 2, 2, "selective")
    few, many = (step_time(work, Layout(shard=gpus), H100, 0.337).seconds for gpus in (8, 128))
    assert few / many == pytest.approx(5605 / 5762, rel=0.04)


def test_half_the_rows_per_pipeline_cost_llama_3_what_they_cost_it() -> None:
    """Published for 405B: 43 % MFU with 32 rows per group, 41 % with 16 on twice the GPUs."""
    layouts = ((32, Layout(64, 1, 8, 16, interleaved=8)), (16, Layout(128, 1, 8, 16, interleaved=8)))
    first, second = (step_time(Work(LLAMA["405B"], rows, 1, "all"), lay, H100, 0.505) for rows, lay in layouts)
    assert first.mfu == pytest.approx(0.43, rel=0.03), "the assumed share of the peak was chosen for this one"
    assert second.mfu == pytest.approx(0.41, rel=0.03), "and this one follows"


def test_training_llama_3_405b_takes_the_published_operations_and_hours() -> None:
    total = 15.6e12 * 6 * count_parameters(LLAMA["405B"])[0]
    assert total == pytest.approx(3.8e25, rel=0.02)
    hours = total / (0.41 * H100.bf16_flops) / 3600 / useful_share(266, 3.2, 300, failure_interval_s(16384))
    assert hours == pytest.approx(30.84e6, rel=0.15), "GPU hours of the model card"


def test_failures_of_llama_3_leave_more_than_nine_tenths_of_the_time() -> None:
    """Published: 419 unexpected interruptions in 54 days, more than 90 % of the time effective."""
    between = failure_interval_s(16384)
    assert between == pytest.approx(54 * 86400 / 419), "the rate is theirs"
    checkpoint = 16 * 405e9 / 2e12  # all states at the 2 TB/s of their storage
    assert 0.9 < useful_share(best_interval_s(checkpoint, between), checkpoint, 300, between) < 0.97


@pytest.mark.parametrize(("checkpoint", "restart"), [(3.0, 300.0), (60.0, 300.0), (120.0, 1200.0)])
def test_a_simulated_run_loses_what_the_formula_says(checkpoint: float, restart: float) -> None:
    between, work = failure_interval_s(16384), 54 * 86400.0
    interval = best_interval_s(checkpoint, between)
    share = statistics.mean(work / simulate(work, interval, checkpoint, restart, between, seed)[0] for seed in range(8))
    assert share == pytest.approx(useful_share(interval, checkpoint, restart, between), rel=0.02)


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_no_other_interval_between_checkpoints_is_better(factor: float) -> None:
    between, checkpoint = failure_interval_s(16384), 60.0
    best = best_interval_s(checkpoint, between)
    other = useful_share(factor * best, checkpoint, 300.0, between)
    assert other < useful_share(best, checkpoint, 300.0, between)


def test_sharing_out_sends_more_than_copies_but_needs_less_memory() -> None:
    work = Work(LLAMA["8B"], 1)
    shared, copied = Layout(shard=8), Layout(replicas=8)
    assert sum(memory_per_gpu(work, shared).values()) < sum(memory_per_gpu(work, copied).values())
    assert traffic(work, shared, H100).shard_bytes == pytest.approx(
        traffic(work, copied, H100).replica_bytes, rel=0.01
    ), "weights twice in two bytes and the gradient once in four; or the gradient twice in four"
    assert traffic(replace(work, rows=4), shared, H100).shard_bytes > traffic(work, copied, H100).replica_bytes


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA L4", "l4"), ("NVIDIA L40S", "l40s"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"), ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)  # fmt: skip
def test_a_driver_name_finds_its_sheet(driver: str, name: str) -> None:
    assert sheet_of(driver) is SHEETS[name]
    assert peak_flops(driver) == SHEETS[name].bf16_flops


def test_an_unknown_device_is_no_guess() -> None:
    assert peak_flops("Some GPU") == 0
    with pytest.raises(UserError, match="h100"):
        sheet("h1000")


def recipe(batch_size: int = 512, **shape: int) -> RunSettings:
    spec = ModelSpec(**{"n_layers": 16, "d_model": 2048, "n_heads": 16, "context_length": 2048} | shape)  # type: ignore[arg-type]
    training = TrainingSettings(batch_size=batch_size, steps=1000)
    return RunSettings(model=spec, training=training, tokenizer=TokenizerSettings(vocab_size=32768))


def test_a_large_model_fits_only_where_it_is_shared_out() -> None:
    plan = plan_for(recipe(n_layers=40, d_model=5120, n_heads=40), "h100", 512)
    assert plan.fits, "the first way is one that fits"
    fits = {str(way.layout): way.fits for way in plan.ways}
    assert fits["shard 512"], fits
    assert not fits["data 512"], "16 bytes for each of 13 billion weights"


def test_what_does_not_fit_says_what_to_do() -> None:
    plan = plan_for(recipe(8, n_layers=40, d_model=5120, n_heads=40), "l4", 8)
    assert not plan.fits
    assert "does not fit" in lines_of(plan)[-1]


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(UserError, match="shared out among 512"):
        plan_for(recipe(batch_size=7), "h100", 512)


def test_more_gpus_take_less_time_and_fail_more_often() -> None:
    few, many = (plan_for(recipe(), "h100", gpus) for gpus in (8, 256))
    assert few.total_s > 8 * many.total_s
    assert failure_interval_s(8) > failure_interval_s(256)
