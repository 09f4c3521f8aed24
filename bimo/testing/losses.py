"""The contract of a loss, which is what the training loop relies on: `check_loss(my_loss)`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from bimo.core.spec import ModelSpec
from bimo.testing.promises import Promise, check
from bimo.testing.subjects import name_of
from bimo.testing.wholes import slope_problem
from bimo.training.losses import Loss, loss_by_name

_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Answers:
    """A loss and what it is asked about.

    Attributes:
        loss: The loss.
        logits: (B, T, V).
        targets: (B, T).
        weights: (B, T); every row has a token that counts.
    """

    loss: Loss
    logits: Tensor
    targets: Tensor
    weights: Tensor

    def value(self, logits: Tensor | None = None, targets: Tensor | None = None) -> Tensor:
        """The loss, with copies, of these logits and targets or of others."""
        logits = self.logits.clone() if logits is None else logits
        return self.loss(logits, (self.targets if targets is None else targets).clone(), self.weights.clone())

    def row(self, row: int) -> Answers:
        """One row alone."""
        part = slice(row, row + 1)
        return Answers(self.loss, self.logits[part], self.targets[part], self.weights[part])


def check_loss(loss: str | Loss, spec: ModelSpec | None = None, *, skip: Collection[str] = ()) -> list[str]:
    """Whether a loss, (logits, targets, weights) → mean over trained tokens, keeps its contract.

    Args:
        loss: The function, or its name as settings have it: `focal(gamma=3)`.
        spec: Its vocab_size is the number of ids; None: 11.
        skip: Names of promises that shall not be looked at, for example "slopes" when a factor is detached on purpose.

    Returns:
        The names of the promises that it keeps.

    Raises:
        ContractError: It breaks some; each is told with how to mend it.
    """
    function: Loss = loss_by_name(loss) if isinstance(loss, str) else loss
    return check(name_of(loss), CONTRACT, _answers(function, 11 if spec is None else spec.vocab_size), skip)


def _answers(loss: Loss, vocab_size: int) -> dict[str, Answers]:
    """The subjects, by what is special about their weights."""
    generator = torch.Generator().manual_seed(0)
    prompts = (torch.arange(6) >= torch.tensor([[2], [5], [0], [3]])).float()  # (4, 6): prompts are not trained
    weights = {
        "weights of 0 and 1": prompts,
        "weights of many sizes": prompts * (0.1 + 2 * torch.rand(4, 6, generator=generator)),
        "rows that weigh 1, 2, 3 and 4": prompts * torch.arange(1, 5)[:, None],
        "one token": torch.ones(1, 1),
    }
    return {
        special: Answers(
            loss,
            2 * torch.randn(*weight.shape, vocab_size, generator=generator),
            torch.randint(vocab_size, weight.shape, generator=generator),
            weight,
        )
        for special, weight in weights.items()
    }


def number(answers: Answers) -> str:
    """'' when the loss is one finite number."""
    loss: object = answers.value()
    if not isinstance(loss, Tensor):
        return f"it gives a {type(loss).__name__} and no tensor"
    if loss.dim() or not loss.is_floating_point():
        return f"it gives a tensor of shape {tuple(loss.shape)} and {loss.dtype}"
    return "" if torch.isfinite(loss) else f"it gives {float(loss)} for ordinary logits"


def inputs_kept(answers: Answers) -> str:
    """'' when logits, targets and weights are as they were before."""
    given = {"logits": answers.logits, "targets": answers.targets, "weights": answers.weights}
    copies = {name: tensor.clone() for name, tensor in given.items()}
    answers.loss(*copies.values())
    changed = [name for name, tensor in copies.items() if not torch.equal(tensor, given[name])]
    return f"it changes {changed[0]}, which the loop still needs" if changed else ""


def forgetful(answers: Answers) -> str:
    """'' when the loss is the same each time, whatever it was asked in between."""
    first = answers.value()
    answers.value(answers.logits.flip(0))
    return "" if torch.equal(answers.value(), first) else "the same logits and targets give another loss later"


def untrained(answers: Answers) -> str:
    """'' when tokens of weight 0 have no influence: neither their logits nor their targets."""
    off = answers.weights == 0
    if not off.any():
        return ""
    logits = torch.where(off[..., None], answers.logits.flip(-1) + 5, answers.logits).requires_grad_()
    targets = torch.where(off, (answers.targets + 1) % answers.logits.shape[-1], answers.targets)
    other = answers.value(logits, targets)
    if not torch.allclose(other, answers.value(), rtol=_TOLERANCE):
        return "the loss changes with logits and targets of tokens that have weight 0"
    if not other.requires_grad:
        return ""  # the promise "gradients" tells it
    (gradient,) = torch.autograd.grad(other, logits)
    return "tokens of weight 0 get a gradient" if gradient[off].any() else ""


def mean(answers: Answers) -> str:
    """'' when mean x weights adds up over rows, so that accumulating over parts of a batch is exact."""
    parts = [answers.row(row) for row in range(len(answers.targets))]
    added = sum(float(part.value() * part.weights.sum()) for part in parts)
    whole = float(answers.value() * answers.weights.sum())
    if abs(added - whole) <= _TOLERANCE * (abs(added) + abs(whole)):
        return ""
    return f"loss x sum of weights is {whole:.4g} for the batch, and {added:.4g} for its rows together"


def gradients(answers: Answers) -> str:
    """'' when every trained token's logits get a finite gradient that is not zero."""
    logits = answers.logits.clone().requires_grad_()
    loss = answers.value(logits)
    if not loss.requires_grad:
        return "the loss does not depend on the logits in a way that can be differentiated"
    (gradient,) = torch.autograd.grad(loss, logits, allow_unused=True)
    if gradient is None or not torch.isfinite(gradient).all():
        return "the gradient of the logits is not finite" if gradient is not None else "the logits get no gradient"
    return "" if gradient.any(dim=-1)[answers.weights > 0].all() else "some trained tokens get no gradient"


def slopes(answers: Answers) -> str:
    """'' when the gradient agrees with differences, in float64."""
    logits = answers.logits.double().requires_grad_()
    (gradient,) = torch.autograd.grad(answers.value(logits), logits)
    problem = slope_problem(lambda: answers.value(logits), logits, gradient)
    return f"the gradient is wrong: {problem}" if problem else ""


def far_logits(answers: Answers) -> str:
    """'' when logits of thousands, as at the worst moments of a training, give finite numbers."""
    logits = (1e4 * answers.logits).requires_grad_()
    loss = answers.value(logits)
    (gradient,) = torch.autograd.grad(loss, logits)
    sound = torch.isfinite(loss) and torch.isfinite(gradient).all()
    return "" if sound else "logits around 10,000 give a loss or a gradient that is not finite"


def bf16(answers: Answers) -> str:
    """'' when logits in bfloat16, as training with bf16 gives them, have nearly the same loss."""
    rough, exact = float(answers.value(answers.logits.bfloat16())), float(answers.value())
    return "" if abs(rough - exact) <= 0.05 * max(abs(exact), 0.1) else f"bfloat16 gives {rough:.4g}, not {exact:.4g}"


_SOUND = ("number", "inputs", "determinism")
CONTRACT: tuple[Promise[Answers], ...] = (
    Promise("number", number, "Return the mean over trained tokens, a scalar, as cross_entropy does."),
    Promise("inputs", inputs_kept, "Change nothing in place.", needs=("number",)),
    Promise("determinism", forgetful, "Keep nothing between calls, and draw no random numbers.", needs=("number",)),
    Promise("weights", untrained, "Multiply each token's loss by its weight before you add up.", needs=_SOUND),
    Promise("mean", mean, "Return (loss of each token * weights).sum() / weights.sum().", needs=(*_SOUND, "weights")),
    Promise("gradients", gradients, "Compute it from the logits, with differentiable functions.", needs=_SOUND),
    Promise("slopes", slopes, "Look at detach() and at backward passes of your own.", needs=(*_SOUND, "gradients")),
    Promise("far logits", far_logits, "Use log_softmax, never the log of a softmax.", needs=(*_SOUND, "gradients")),
    Promise("bf16", bf16, "Begin with logits.float(), or at least mix no dtypes.", needs=_SOUND),
)
