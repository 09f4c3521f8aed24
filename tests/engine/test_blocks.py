"""Blocks: shared beginnings are found, whoever writes owns, and nothing leaks, whatever is done in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bimo.engine.blocks import BlockPool, BlockTable

SIZE = 2


def opened(pool: BlockPool, tokens: list[int], salt: bytes = b"") -> BlockTable:
    """A table for a text that was read."""
    keys: list[bytes] = []
    pool.extend_keys(keys, tokens, salt)
    table = pool.open(keys, len(tokens))
    assert table is not None, "there is room"
    pool.publish(table, keys, len(keys))
    return table


def test_texts_that_begin_alike_share_full_blocks() -> None:
    pool = BlockPool(9, SIZE)
    first, second = opened(pool, [1, 2, 3, 4, 5]), opened(pool, [1, 2, 3, 4, 6])
    assert first.blocks[:2] == second.blocks[:2], "two full blocks"
    assert first.blocks[2] != second.blocks[2], "the last one is not full"
    assert pool.n_free == 9 - 4


@pytest.mark.parametrize(
    ("tokens", "salt"), [([9, 2, 3, 4], b""), ([1, 2, 3, 4], b"another adapter")], ids=["other beginning", "salt"]
)
def test_equal_blocks_after_something_else_are_not_shared(tokens: list[int], salt: bytes) -> None:
    pool = BlockPool(9, SIZE)
    assert not set(opened(pool, [1, 2, 3, 4]).blocks) & set(opened(pool, tokens, salt).blocks)


def test_without_sharing_every_text_has_its_own() -> None:
    pool = BlockPool(9, SIZE, share=False)
    assert not set(opened(pool, [1, 2]).blocks) & set(opened(pool, [1, 2]).blocks)


def test_what_was_left_is_found_again_until_its_room_is_needed() -> None:
    pool = BlockPool(4, SIZE)
    old, new = opened(pool, [1, 2, 3, 4]), opened(pool, [5, 6])
    kept = list(old.blocks), list(new.blocks)
    pool.close(old)
    pool.close(new)
    assert pool.n_free == 4, "nobody holds them"
    assert opened(pool, [5, 6]).blocks == kept[1], "found again"
    other = opened(pool, [7, 8, 9, 9])
    keys: list[bytes] = []
    pool.extend_keys(keys, [1, 2, 3, 4], b"")
    assert pool.n_found(keys) == 1, "the end of the text left longest ago goes first, not its beginning"
    assert kept[0][1] in other.blocks, "its room was needed"


def test_a_shared_block_is_copied_before_it_is_written() -> None:
    pool = BlockPool(9, SIZE)
    table = opened(pool, [1, 2, 3])
    child = pool.fork(table)
    shared = child.blocks[1]
    assert pool.grow(child, 3, 4) == [(shared, child.blocks[1])], "it holds token 3"
    assert table.blocks[1] == shared != child.blocks[1], "the other one keeps it"
    assert pool.grow(table, 3, 4) == [], "which is now its own"
    assert pool.grow(child, 4, 5) == [], "a new block needs no copy"


def test_too_little_room_changes_nothing() -> None:
    pool = BlockPool(2, SIZE)
    table = opened(pool, [1, 2, 3])
    assert pool.open([], 1) is None
    assert pool.grow(table, 3, 5) is None
    child = pool.fork(table)
    assert pool.grow(child, 3, 4) is None, "no block for the copy"
    assert (pool.n_free, pool.references) == (0, [2, 2])


def test_spare_blocks_stay_free() -> None:
    pool = BlockPool(3, SIZE)
    assert pool.open([], 3, spare=2) is None
    assert pool.open([], 3, spare=1) is not None


def test_releasing_twice_is_an_error_of_the_program() -> None:
    pool = BlockPool(1, SIZE)
    table = opened(pool, [1])
    pool.release(table.blocks[0])
    with pytest.raises(AssertionError, match="nobody holds it"):
        pool.close(table)


class Pool(RuleBasedStateMachine):
    """Texts open, grow, fork and close; a plain dictionary says what must lie in each block."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12, SIZE)
        self.contents: dict[int, list[int | None]] = {block: [None] * SIZE for block in range(12)}
        self.texts: list[tuple[list[int], BlockTable, list[bytes]]] = []

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def open(self, tokens: list[int]) -> None:
        keys: list[bytes] = []
        self.pool.extend_keys(keys, tokens, b"")
        found = self.pool.n_found(keys)
        free = self.pool.n_free
        table = self.pool.open(keys, len(tokens))
        if table is None:
            assert self.pool.n_free == free, "nothing has changed"
            return
        self.write(tokens, table, found * SIZE)
        self.pool.publish(table, keys, len(tokens) // SIZE)
        self.texts.append((tokens, table, keys))

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), token=st.integers(0, 1))
    def append(self, data: st.DataObject, token: int) -> None:
        tokens, table, keys = data.draw(st.sampled_from(self.texts))
        copies = self.pool.grow(table, len(tokens), len(tokens) + 1)
        if copies is None:
            return
        for source, target in copies:
            self.contents[target] = list(self.contents[source])
        tokens.append(token)
        self.write(tokens, table, len(tokens) - 1)
        self.pool.extend_keys(keys, tokens, b"")
        self.pool.publish(table, keys, len(tokens) // SIZE)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        tokens, table, keys = data.draw(st.sampled_from(self.texts))
        self.texts.append((list(tokens), self.pool.fork(table), list(keys)))

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        text = data.draw(st.sampled_from(self.texts))
        self.texts = [other for other in self.texts if other is not text]
        self.pool.close(text[1])

    def write(self, tokens: list[int], table: BlockTable, start: int) -> None:
        for place in range(start, len(tokens)):
            self.contents[table.blocks[place // SIZE]][place % SIZE] = tokens[place]

    @invariant()
    def every_text_reads_itself(self) -> None:
        for tokens, table, _ in self.texts:
            read = [self.contents[table.blocks[place // SIZE]][place % SIZE] for place in range(len(tokens))]
            assert read == tokens, "nobody wrote over it"

    @invariant()
    def references_count_the_holders(self) -> None:
        held = [block for _, table, _ in self.texts for block in table.blocks]
        assert self.pool.references == [held.count(block) for block in range(12)]
        assert self.pool.n_free == 12 - len(set(held)), "what nobody holds is free"


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_as_many_blocks_are_found_as_are_equal_from_the_beginning(one: list[int], other: list[int]) -> None:
    pool = BlockPool(12, SIZE)
    opened(pool, one)
    keys: list[bytes] = []
    pool.extend_keys(keys, other, b"")
    full = min(len(one), len(other)) // SIZE
    equal = next((n for n in range(full) if one[n * SIZE :][:SIZE] != other[n * SIZE :][:SIZE]), full)
    assert pool.n_found(keys) == equal
