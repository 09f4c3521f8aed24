"""Compiled blocks and recomputed activations: the same numbers, other costs; and how the choice is made and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bimo import GPT, ModelSpec, Trainer, TrainingSettings
from bimo.core.batch import Batch
from bimo.core.registry import register
from bimo.model.gpt import Block
from bimo.training.callbacks import StepResult
from bimo.training.losses import CrossEntropy
from bimo.training.losses.chunks import COMPILED, chunk_rows
from bimo.training.losses.likelihood import _sum_and_gradient
from bimo.training.utilisation import utilisation

SPEC = ModelSpec(n_layers=2, n_heads=4, n_kv_heads=2, d_model=64, vocab_size=300, context_length=32, dropout=0.0)
SETTINGS = TrainingSettings(device="cpu", precision="fp32", steps=4, micro_batch_size=2, warmup_steps=0)
Gradients = dict[str, Tensor]


def batch(seed: int = 0, rows: int = 4) -> Batch:
    ids = torch.randint(300, (rows, 33), generator=torch.Generator().manual_seed(seed))
    weights = torch.ones(rows, 32)
    weights[0, :5] = 0
    return Batch(ids[:, :-1].clone(), ids[:, 1:].clone(), weights)


def trainer(spec: ModelSpec = SPEC, **settings: Any) -> Trainer:
    model = GPT(spec)
    model.reset_parameters(torch.Generator().manual_seed(0))
    made = Trainer(model, replace(SETTINGS, **settings))
    made.prepare_machine()
    return made


def gradients(of: Trainer) -> tuple[float, Gradients]:
    torch.manual_seed(0)
    one = batch()
    loss = float(of.backward(one, of.totals(one, None)))
    return loss, {name: p.grad.clone() for name, p in of.model.named_parameters() if p.grad is not None}


def apart(a: Gradients, b: Gradients) -> float:
    return max(float((a[name] - b[name]).norm() / b[name].norm()) for name in b)


@pytest.fixture
def through_the_compilers_front(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """torch.compile as far as the graphs, without the minute that code generation takes; breaks are errors."""
    graphs: list[torch.fx.GraphModule] = []

    def kept(graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def compiled(kind: type[Block]) -> Any:
        return torch.compile(kind.forward, dynamic=False, fullgraph=True, backend=kept)

    torch._dynamo.reset()
    monkeypatch.setattr("bimo.training.execution.compiled_forward", compiled)
    whole = torch.compile(_sum_and_gradient, dynamic=False, fullgraph=True, backend=kept)
    monkeypatch.setattr("bimo.training.losses.likelihood._compiled", lambda: whole)
    return graphs


@pytest.mark.parametrize("feedforward", ["swiglu", "geglu", "gelu"])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_compiled_blocks_are_one_graph_for_all_layers_and_give_the_same_gradient(
    feedforward: str, qk_norm: bool, through_the_compilers_front: list[Any]
) -> None:
    spec = replace(SPEC, feedforward=feedforward, qk_norm=qk_norm, d_ff=0, biases="all", norm_eps=1e-6)
    eager, compiled = (gradients(trainer(spec, execution=way)) for way in ("eager", "compiled"))
    assert compiled[0] == pytest.approx(eager[0], rel=1e-6)
    assert apart(compiled[1], eager[1]) < 1e-5
    assert len(through_the_compilers_front) == 2, "one graph of a block and one of the loss"


def test_projections_of_one_input_are_one_product_in_the_graph(through_the_compilers_front: list[Any]) -> None:
    gradients(trainer(execution="compiled"))
    products = [node for node in through_the_compilers_front[0].graph.nodes if "linear" in str(node.target)]
    assert len(products) == 4, "qkv, o, gate and up, down"


def test_a_projection_that_somebody_listens_to_is_left_alone(through_the_compilers_front: list[Any]) -> None:
    found = []
    for way, silent in (("eager", True), ("compiled", True), ("compiled", False)):
        made = trainer(execution=way)
        for layer in made.model.layers if silent else ():
            layer.self_attn.v_proj.register_forward_hook(lambda _module, _inputs, y: y * 0)
        found.append(gradients(made)[0])
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] != pytest.approx(found[0], rel=1e-6), "the hook must matter"


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(epsilon=0.1), CrossEntropy(coefficient=1e-2)])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_the_compiled_loss_is_the_eager_one(
    loss: CrossEntropy, softcap: float, through_the_compilers_front: list[Any]
) -> None:
    one, generator = batch(), torch.Generator().manual_seed(1)
    results = []
    for compiled in (False, True):
        hidden, head = (torch.randn(*shape, generator=generator.manual_seed(2)) for shape in ((4, 32, 64), (300, 64)))
        hidden.requires_grad_()
        head.requires_grad_()
        token = COMPILED.set(compiled)
        total = loss.sum(hidden, head, one, softcap)
        COMPILED.reset(token)
        total.backward()
        results.append((total.detach(), hidden.grad, head.grad))
    assert through_the_compilers_front, "it was compiled"
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_names_of_the_weights_stay_as_they_are(through_the_compilers_front: list[Any]) -> None:
    made = trainer(execution="compiled")
    before = list(made.model.state_dict())
    made.fit([batch(n) for n in range(2)])
    assert list(made.model.state_dict()) == before
    assert all("forward" not in vars(layer) for layer in made.model.layers), "blocks are their own again"


def kept_bytes(of: Trainer) -> int:
    """What autograd keeps of a forward pass, without the weights."""
    known, total = {p.data_ptr() for p in of.model.parameters()}, [0]

    def count(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in known:
            known.add(tensor.data_ptr())
            total[0] += tensor.nbytes
        return tensor

    one = batch()
    with of.execution.running(of.model, one), saved_tensors_hooks(count, lambda tensor: tensor):
        of.model.hidden(one.ids)
    return total[0]


def test_activations_that_are_computed_again_are_not_kept() -> None:
    deep = replace(SPEC, n_layers=8)
    everything, blocks = (kept_bytes(trainer(deep, checkpoint_activations=way)) for way in ("none", "blocks"))
    assert blocks < everything / 4, "only what goes into each block is kept"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activations_that_are_computed_again_give_the_same_gradient(dropout: float) -> None:
    spec = replace(SPEC, dropout=dropout)
    kept, again = (gradients(trainer(spec, checkpoint_activations=way)) for way in ("none", "blocks"))
    assert again[0] == kept[0]
    assert apart(again[1], kept[1]) < 1e-6


def test_used_up_memory_with_one_row_makes_a_run_compute_activations_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(micro_batch_size=1, execution="eager")
    real = made.loss_sum

    def small_machine(part: Batch) -> Tensor:
        if made.execution.keeps_activations:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return real(part)

    monkeypatch.setattr(made, "loss_sum", small_machine)
    assert made.fit([batch()]).state.step == SETTINGS.steps
    assert not made.execution.keeps_activations, "activations must not be kept any more"


def test_what_cannot_be_compiled_is_run_eagerly_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_kind: type[Block]) -> Any:
        raise ValueError("no C++ compiler")

    monkeypatch.setattr("bimo.training.execution.compiled_forward", broken)
    made, said = trainer(execution="compiled"), []
    made.execution.tell = lambda kind, /, **facts: said.append(facts["what"])
    made.fit([batch()])
    assert made.state.execution == "eager"
    assert "no C++ compiler" in said[0]


@pytest.mark.parametrize(("eager_s", "compiled_s", "way"), [(1.0, 0.7, "compiled"), (1.0, 0.99, "eager")])
def test_the_faster_way_is_taken_and_kept_in_the_checkpoint(
    eager_s: float,
    compiled_s: float,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    through_the_compilers_front: list[Any],
) -> None:
    assert through_the_compilers_front == [], "nothing is compiled yet"
    made = trainer()
    made.state.step, made.state.seconds, made.state.settled = 20, 1e5, 20  # a long run
    made.settings = replace(made.settings, steps=40)
    monkeypatch.setattr(made.execution, "_eager_seconds", lambda _attempt: eager_s)
    monkeypatch.setattr(made.execution, "_compiled_seconds", lambda _attempt: (3.0, compiled_s))
    made.folder = tmp_path
    made.fit([batch()])
    folder = made.save_checkpoint()
    other = trainer(steps=40)
    other.resume(folder)
    assert made.state.execution == other.state.execution == way


def test_a_short_run_on_cpu_is_eager_without_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(steps=30)
    monkeypatch.setattr(made, "attempt", lambda _batch: pytest.fail("nothing shall be tried"))
    made.fit([batch()])
    assert made.state.execution == "eager"


def test_batches_of_many_shapes_are_not_compiled_each(through_the_compilers_front: list[Any]) -> None:
    made = trainer(execution="compiled")
    made.execution.compiled = made.execution.settled = True
    for length in range(2, 12):
        ids = torch.zeros(1, length, dtype=torch.int64)
        one = Batch(ids, ids, torch.ones(1, length))
        with made.execution.running(made.model, one):
            made.model.hidden(one.ids)
    assert len(through_the_compilers_front) == 4


def test_a_trial_leaves_chance_and_gradients_alone() -> None:
    made = trainer(replace(SPEC, dropout=0.5))
    before = torch.get_rng_state()
    made.attempt(batch())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in made.model.parameters())


def test_chunks_of_a_gpu_are_a_power_of_two() -> None:
    rows = chunk_rows(torch.device("meta"), 50304)
    assert rows & (rows - 1) == 0
    assert rows * 50304 <= 2**27


def test_utilisation_is_what_the_model_needs_over_what_is_promised() -> None:
    made = trainer()
    result = StepResult(1, 0.0, 0.0, 0.0, tokens=1000, seconds=2.0)
    flops = made.model.flops_per_token()
    assert utilisation(made, result, promised=flops * 1000) == pytest.approx(0.5)
    assert utilisation(made, result) == 0.0, "there is no data sheet of this CPU"


def test_a_model_of_ones_own_parts_is_compiled_too(through_the_compilers_front: list[Any]) -> None:
    @register("feedforward", "squared_of_the_test")
    class Squared(nn.Module):
        def __init__(self, spec: ModelSpec) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(spec.d_model, 64), nn.Linear(64, spec.d_model)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).relu().square())

    spec = replace(SPEC, feedforward="squared_of_the_test")
    eager, compiled = (gradients(trainer(spec, execution=way)) for way in ("eager", "compiled"))
    assert apart(compiled[1], eager[1]) < 1e-5


@pytest.mark.slow
def test_a_run_with_generated_code_resumes_bit_for_bit(tmp_path: Path) -> None:
    ends = []
    for parts in ([6], [3, 6]):
        for steps in parts:
            made = trainer(steps=steps, execution="compiled", schedule="constant")
            made.folder = tmp_path / str(len(parts))
            if steps != parts[0]:
                made.resume(made.folder / f"step-{parts[0]:08d}")
            made.fit([batch(n) for n in range(5)])
            made.save_checkpoint()
        ends.append(torch.cat([p.detach().flatten() for p in made.model.parameters()]))
    assert torch.equal(ends[0], ends[1])
