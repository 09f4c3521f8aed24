"""The learning rate of each step, as a plain function of its number."""

from __future__ import annotations

import math

from bimo.core.config import TrainingSettings


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Rate of update number `step`, from 0: linear warm-up, then the schedule of the settings.

    - cosine: half a cosine from the peak to the minimum (Loshchilov & Hutter 2017).
    - wsd: stays at the peak, then falls linearly over the last `decay_share` of the steps (Hu et al. 2024, MiniCPM).
    - constant: stays at the peak.
    """
    peak, low = settings.learning_rate, settings.min_learning_rate
    warmup = min(settings.warmup_steps, settings.steps // 2)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return peak
    if settings.schedule == "wsd":
        decay_steps = max(1, round(settings.decay_share * settings.steps))
        return low + (peak - low) * min(1.0, (settings.steps - step) / decay_steps)
    progress = min(1.0, (step - warmup) / max(1, settings.steps - warmup))
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * progress))
