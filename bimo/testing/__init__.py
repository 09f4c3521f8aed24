"""Does a module of your own keep its contract? One check for each kind of part; each takes the part or its name.

    from bimo.testing import check_attention

    check_attention(MyAttention)

It returns the names of the promises that hold, or raises a `ContractError` that lists the broken ones and how to mend
them. The contracts themselves stand in `bimo/model/contracts.py` and, for losses, in `bimo/training/losses.py`.
"""

from bimo.testing.losses import check_loss
from bimo.testing.modules import check_attention, check_feedforward, check_norm, check_positions
from bimo.testing.promises import ContractError

__all__ = ["ContractError", "check_attention", "check_feedforward", "check_loss", "check_norm", "check_positions"]
