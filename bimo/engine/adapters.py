"""Which adapters requests can choose, and which are still in use; adapters come and go while requests run.

A number stands for one adapter for ever: the cache knows blocks by it, so that what was computed with an adapter is
never found by a text of another, of the same name or not. No tensors, and no locks: the loop of steps has them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from bimo.core.errors import UserError, nearest


class AdapterShelf:
    """Names and numbers of adapters.

    Args:
        names: Of those that are there from the beginning; they have the numbers 1, 2, …

    Attributes:
        numbers: By name: what a new request can choose. It is replaced and never changed: whoever has it may keep it.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.numbers = {name: number for number, name in enumerate(names, start=1)}
        self._last = len(self.numbers)
        self._retired: set[int] = set()

    def number(self, name: str) -> int:
        """The number of an adapter by its name; '' is none, 0.

        Raises:
            UserError: There is no such adapter, or no more.
        """
        if not name:
            return 0
        found = self.numbers.get(name)
        if found is None:
            known = ", ".join(self.numbers) or "none"
            raise UserError(
                f"there is no adapter {name!r}{nearest(name, self.numbers)}", mend=f"The engine has: {known}."
            )
        return found

    def is_current(self, number: int) -> bool:
        """Whether new requests may still have it."""
        return not number or number in self.numbers.values()

    def new_number(self) -> int:
        """A number that no adapter had before."""
        self._last += 1
        return self._last

    def put(self, name: str, number: int) -> None:
        """From now on, the name means this adapter; the one that it meant before is retired."""
        if name in self.numbers:
            self._retired.add(self.numbers[name])
        self.numbers = {**self.numbers, name: number}

    def retire(self, name: str) -> None:
        """No new request gets it.

        Raises:
            UserError: There is no such adapter.
        """
        self._retired.add(self.number(name))
        self.numbers = {known: number for known, number in self.numbers.items() if known != name}

    def take_idle(self, used: Collection[int]) -> set[int]:
        """The retired ones that no request uses any more; they are forgotten here."""
        idle = self._retired.difference(used)
        self._retired -= idle
        return idle
