"""Looks at what goes into a model and what comes out of it: rules give verdicts, a chain runs several.

Imports no torch and knows no server: a rule is a function of a text.
"""

from bimo.guard.chain import Chain, made_chain
from bimo.guard.contract import Action, Guard, Side, Verdict, masked

__all__ = ["Action", "Chain", "Guard", "Side", "Verdict", "made_chain", "masked"]
