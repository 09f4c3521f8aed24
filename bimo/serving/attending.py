"""Which tokens a head looks at: attention is asked for the mix of unit vectors, which is its weights."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from bimo.core.errors import UserError
from bimo.serving.contract import Attention, AttentionCall
from bimo.serving.models import ServedModel

if TYPE_CHECKING:
    from bimo.model.backends import AttnContext

_MOST_TOKENS = 128
_MOST_PARAMETERS = 1_000_000_000  # the torch module is made for it
_LOOKING = threading.Lock()


def attention_of(model: ServedModel, call: AttentionCall) -> Attention:
    """The weights of one head for a text, in a thread.

    Raises:
        UserError: The text is too long, the model too large, or its attention one that cannot be looked into.
    """
    import torch

    from bimo.model.backends import attend_math

    spec = model.driver.engine.spec
    if call.model != model.name:
        raise UserError("an adapter's attention is not shown", where="model", mend=f"Ask for {model.name}.")
    if not (0 <= call.layer < spec.n_layers and 0 <= call.head < spec.n_heads):
        raise UserError("there is no such head", where="head", mend=f"{spec.n_layers} layers, {spec.n_heads} heads.")
    size = spec.vocab_size * spec.d_model + 12 * spec.n_layers * spec.d_model**2
    if size > _MOST_PARAMETERS:
        raise UserError("the model is too large to be looked into here", where="model", mend="Take a smaller one.")
    ids = model.ids(call.text)
    if not 1 <= len(ids) <= min(_MOST_TOKENS, spec.context_length):
        raise UserError(f"the text has {len(ids)} tokens, at most {_MOST_TOKENS} are shown", where="input")
    found: list[Any] = []
    with _LOOKING:
        gpt = model.lm.model  # of a file it is made now, and must be an ordinary one, which others use, too
    with _LOOKING, torch.inference_mode():
        attention: Any = gpt.layers[call.layer].self_attn
        attend = getattr(attention, "attend", None)
        if attend is None:
            raise UserError("this model's attention cannot be looked into", where="model")
        own = threading.get_ident()

        def looked_at(q: Any, k: Any, v: Any, ctx: AttnContext) -> Any:
            if threading.get_ident() == own:  # the engine may run the same module meanwhile
                found.append((q, k, ctx))
            return attend(q, k, v, ctx)

        attention.attend = looked_at
        try:
            gpt.hidden(torch.tensor([ids], device=next(gpt.parameters()).device))
        finally:
            attention.attend = attend
        q, k, ctx = found[0]
        head = q[:, call.head : call.head + 1].float()
        keys = k[:, call.head * k.shape[1] // q.shape[1]].float().unsqueeze(1)
        units = torch.eye(keys.shape[2], device=keys.device)[None, None]
        weights = attend_math(head, keys, units, ctx)[0, 0]  # (T, T)
    rows = tuple(tuple(round(weight, 6) for weight in row) for row in weights.tolist())
    return Attention(model.texts_of(ids), rows, spec.n_layers, spec.n_heads)
