"""How two results are compared: what counts as a difference, how much is allowed, and where the worst one sits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from bimo.evaluation.certificate import Finding, Tolerance

_EXACT = "nothing is computed, so nothing rounds"
TOLERANCES = {
    "files": Tolerance(
        0.0,
        "files that are missing or have other bytes than the manifest says",
        "a changed file can hold a sound model that is not the one that was trained: only its sha256 tells",
    ),
    "choices": Tolerance(0.0, "fields of the shape that differ", _EXACT),
    "weights": Tolerance(0.0, "largest |a - b| of a tensor", _EXACT),
    "tokens": Tolerance(0.0, "texts that give other ids or come back differently", "ids are whole numbers"),
    "activations": Tolerance(
        1e-4,
        "largest |a - b| of a tensor over the largest |b| in it",
        "float32 rounds at 6e-8; sums over some thousand terms and some dozens of layers leave about 1e-5, a wrong "
        "mask, sign, scale or weight leaves 1e-3 and more",
    ),
    "logits": Tolerance(
        1e-4,
        "largest |a - b| over the largest |b|, but at least over 1",
        "as for activations, at the end of all layers",
    ),
    "loss": Tolerance(1e-5, "|a - b| over |b|", "a mean over many tokens: their rounding cancels"),
    "gradients": Tolerance(
        1e-3,
        "largest |a - b| of a tensor over the largest |b| in it, but at least over a thousandth of the largest of all",
        "the backward pass goes through every layer twice, and sums over all tokens",
    ),
    "slope": Tolerance(
        2e-3,
        "|a - b| of the derivative along one random direction per layer, over |b| or the size of what it adds up",
        "the reference has no gradients: its derivative is a central difference in float64, good to about 1e-6",
    ),
    "parts": Tolerance(
        1e-4,
        "as for activations, of each part alone on inputs that it reacts to",
        "as for activations; an epsilon, a cap or a base that is wrong leaves 1e-2 and more there",
    ),
    "far": Tolerance(
        1e-4,
        "as for parts, at positions up to the end of the context; the limit grows with the context, by 2^-22 a token",
        "two float32 powers may differ in the last bit: an angle at position n is then off by n x 2^-24",
    ),
    "masks": Tolerance(0.0, "pairs of tokens of which one sees the other and should not, or the reverse", _EXACT),
    "greedy": Tolerance(0.0, "tokens that differ, up to the first near tie", "the likeliest token is one token"),
    "cache": Tolerance(1e-4, "as for logits", "the order of sums differs between one token and many"),
    "batch": Tolerance(1e-4, "as for logits", "the order of sums differs between one row and many"),
    "padding": Tolerance(1e-4, "as for logits", "other places in a row give the same angles only up to rounding"),
    "tokens of llama.cpp": Tolerance(0.0, "texts that give other ids", "ids are whole numbers"),
    "logits of llama.cpp": Tolerance(
        5e-3,
        "largest |a - b| over the largest |b|; the limit depends on the format: 5e-3 for F32, 1e-2 for F16, 3e-2 for "
        "BF16, 1e-1 for quantised weights",
        "llama.cpp keeps keys and values in float16, and multiplies quantised weights with activations of 8 bits",
    ),
    "export": Tolerance(
        0.0,
        "largest |a - b| of a tensor over the largest |b| in it; the limit depends on the format",
        "half a step of the format: 2^-11 for F16, 2^-8 for BF16, 1/200 for Q8_0 (127 steps), 1/7 for Q4_0 and Q4_K "
        "(8 steps to either side, and scales that are rounded); nothing for F32",
    ),
}
_WITH_POSITIONS = ("activations", "logits", "cache", "batch", "padding")


def finding(check: str, reference: str, difference: float, tensor: str = "", *, note: str = "") -> Finding:
    """A finding with the tolerance of its kind of check, which is the first word of `check`."""
    return Finding(check, reference, difference, TOLERANCES[check.split(",")[0]].allowed, tensor, note=note)


def left_out(check: str, reference: str, why: str) -> Finding:
    """A comparison that could not be made."""
    return Finding(check, reference, 0.0, 0.0, note=why, left_out=True)


def compare(
    check: str,
    reference: str,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    *,
    floor: float = 0.0,
    allowed: float | None = None,
) -> Finding:
    """Tensors by name, in order of computation: the first that differs too much, or else the worst.

    Args:
        check: What is compared.
        reference: With what.
        ours: The results under test.
        theirs: The reference's; names that ours lack count as infinitely different.
        floor: Differences are divided by the largest |b| of a tensor, but at least by this.
        allowed: The limit; None: that of the kind of check.
    """
    limit = TOLERANCES[check.split(",")[0]].allowed if allowed is None else allowed
    worst = Finding(check, reference, 0.0, limit)
    for name, b in theirs.items():
        a = ours.get(name)
        if a is None or a.shape != b.shape:
            return Finding(check, reference, math.inf, limit, name, note="there is no such tensor of that shape")
        difference, place = _largest(a, b, floor)
        if difference > worst.difference or not worst.tensor:
            # Activations are (B, T, …): the second index is a position.
            position = place[1] if check.split(",")[0] in _WITH_POSITIONS else -1
            worst = Finding(check, reference, difference, limit, name, position)
        if not difference <= limit:
            return worst
    return worst


def same_tokens(reference: str, ours: list[int], theirs: list[int], logits: Tensor, floor: float) -> Finding:
    """Two greedy texts.

    Args:
        reference: Whose the second one is.
        ours: Ids.
        theirs: Ids.
        logits: The reference's logits at each place, (n, V): where its two best are nearly equal, either may follow.
        floor: How near is nearly.
    """
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a == b:
            continue
        first, second = logits[place].topk(2).values.tolist()
        if first - second < floor:
            note = f"compared up to token {place}, where two are equally likely"
            return Finding("greedy", reference, 0.0, 0.0, "tokens", place, note)
        different = sum(x != y for x, y in zip(ours, theirs, strict=True))
        return Finding("greedy", reference, different, 0.0, "tokens", place, f"{b} was expected, {a} came")
    return Finding("greedy", reference, 0.0, 0.0, "tokens", note=f"{len(ours)} tokens are the same")


def scale_of(tensors: Iterable[Tensor]) -> float:
    """The largest number of all."""
    return max((float(tensor.abs().max()) for tensor in tensors if tensor.numel()), default=0.0)


def _largest(a: Tensor, b: Tensor, floor: float) -> tuple[float, tuple[int, ...]]:
    """The largest difference and its index; NaN and infinity where the other has none are infinitely different."""
    if a.numel() == 0:
        return 0.0, ()
    a, b = a.detach().double(), b.detach().double()
    difference = (a - b).abs()
    difference = difference.masked_fill(~torch.isfinite(difference), math.inf)
    place = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
    largest = float(difference[place])
    scale = max(float(b.abs().max()), floor)
    return (largest / scale if scale > 0 and math.isfinite(scale) else largest and math.inf), place
