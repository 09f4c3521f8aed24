"""Several rules as one, out of the names of a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES, made_part, name_and_parameters
from bimo.guard.contract import Guard, Side, Verdict


class Chain:
    """Runs rules one after the other; all of them see the same text, and after one has refused it no other is asked.

    Args:
        rules: By their names.
    """

    def __init__(self, rules: Mapping[str, Guard]) -> None:
        self.rules = dict(rules)

    def check(self, text: str, side: Side) -> list[Verdict]:
        """All verdicts, in the order of their places."""
        found: list[Verdict] = []
        for rule in self.rules.values():
            found += rule.check(text, side)
            if any(verdict.action == "refuse" for verdict in found):
                break
        return sorted(found, key=lambda verdict: (verdict.start, verdict.end))


def made_chain(texts: Sequence[str]) -> Chain:
    """The chain of rules that are named like `personal_data(action="mask")`.

    Raises:
        UserError: A rule is unknown, stands twice, or refuses its parameters.
    """
    rules: dict[str, Guard] = {}
    for text in texts:
        name, parameters = name_and_parameters(text)
        if name in rules:  # the later one would take the place of the first
            raise UserError(f"the rule {name!r} stands twice", where="guard", mend="Name each rule once.")
        rules[name] = made_part("guard", text, REGISTRIES["guard"].get(name), parameters)
    return Chain(rules)
