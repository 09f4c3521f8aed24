"""One text at a time, token by token: the slow, obvious twin that the engine is held against."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from bimo.engine.request import SamplingParams, room_after
from bimo.engine.sampling import Rules, next_token
from bimo.model.cache import KVCache
from bimo.model.gpt import GPT


def new_tokens(
    model: GPT,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    forbidden: Iterable[int] = (),
    ends: frozenset[int] = frozenset(),
) -> Iterator[int]:
    """The loop: ids that follow a prompt, one by one, until one of `ends`, `max_tokens` or the end of the context.

    Args:
        model: The model; it is put into evaluation mode.
        prompt: Token ids.
        params: How each token is chosen.
        forbidden: Ids that are never chosen.
        ends: Ids after which nothing follows.
    """
    capacity = len(prompt) + min(params.max_tokens, room_after(model.spec.context_length, prompt))
    weight = model.lm_head.weight
    seed = secrets.randbits(64) if params.seed is None else params.seed
    rules = Rules(params, seed, ends, np.array([*forbidden], dtype=np.int64))
    text = list(prompt)
    cache = KVCache(model.spec, 1, capacity, device=weight.device, dtype=weight.dtype)
    model.eval()
    for end in range(len(prompt), capacity):
        start = model.starting_point(cache, end)
        with torch.inference_mode():
            ids = torch.tensor([text[start:end]], device=weight.device)
            hidden = model.hidden(ids, cache=cache)  # (1, T, C)
            logits = model.logits(hidden[0, -1]).float().cpu()  # (V,)
        token = next_token(logits.numpy(), text, len(prompt), rules)
        yield token
        if token in ends or token in params.stop_ids:
            return
        text.append(token)
