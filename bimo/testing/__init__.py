"""Does a module of your own keep its contract? One check for each kind of part; each takes the part or its name.

    from bimo.testing import check_attention

    check_attention(MyAttention)

It returns the names of the promises that hold, or raises a `ContractError` that lists the broken ones and how to mend
them. The contracts themselves stand in `bimo/model/contracts.py`, for losses in `bimo/training/losses/chunks.py`, for
callbacks in `bimo/training/callbacks/protocol.py`.
"""

from bimo.testing.callbacks import check_callback
from bimo.testing.losses import check_loss
from bimo.testing.modules import check_attention, check_feedforward, check_norm, check_positions
from bimo.testing.optimizers import check_optimizer
from bimo.testing.promises import ContractError

__all__ = [
    "ContractError",
    "check_attention",
    "check_callback",
    "check_feedforward",
    "check_loss",
    "check_norm",
    "check_optimizer",
    "check_positions",
]
