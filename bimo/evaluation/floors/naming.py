"""From text to a floor: `word_table(rounds=3)`, out of the registry that users add theirs to."""

from __future__ import annotations

from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES, made_part, name_and_parameters
from bimo.evaluation.floors.contract import Floor


def make_floor(text: str) -> Floor:
    """The floor of that name with these parameters, not fitted.

    Raises:
        UserError: There is none of that name, or it has no such parameter, or what is registered is no floor.
    """
    name, parameters = name_and_parameters(text)
    floor = made_part("floor", text, REGISTRIES["floor"].get(name), parameters)
    missing = [part for part in ("name", "needs_training", "fit", "answer") if not hasattr(floor, part)]
    if missing:
        what = f"{type(floor).__name__} is no floor: it has no {missing[0]}"
        raise UserError(what, where=f"floor: {text}", mend="See docs/evaluation.md, a floor of your own.")
    return floor  # type: ignore[no-any-return]  # just looked at
