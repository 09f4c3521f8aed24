"""Who owns which block of the cache: reference counts, shared beginnings, and what is forgotten first. No tensors.

- A text holds a table of blocks; a block may be held by many texts.
- A full block is known by its contents: by a digest of its tokens and, through the digest of the block before, of all
  tokens before them. A text that begins with the same tokens finds and holds it. The digest is cryptographic: a
  collision would show one user's text to another.
- A block that nobody holds keeps its contents until its room is needed; the one left longest ago goes first.
- A block that several hold is copied before one of them writes into it.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b


@dataclass(slots=True)
class BlockTable:
    """The blocks of one text.

    Attributes:
        blocks: Block i holds the tokens i * block_size ….
        n_known: How many of them, from the first on, others can find by their contents.
    """

    blocks: list[int]
    n_known: int = 0


class BlockPool:
    """All blocks of a cache.

    Args:
        n_blocks: Blocks that there are, 0 … n_blocks - 1.
        block_size: Tokens in one.
        share: Whether texts find blocks by their contents.

    Attributes:
        references: How many texts hold each block.
    """

    def __init__(self, n_blocks: int, block_size: int, *, share: bool = True) -> None:
        self.n_blocks, self.block_size, self.share = n_blocks, block_size, share
        self.references = [0] * n_blocks
        self._blank = list(range(n_blocks - 1, -1, -1))
        self._left: OrderedDict[int, None] = OrderedDict()  # held by nobody, contents known; left longest ago first
        self._by_key: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def n_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._blank) + len(self._left)

    def blocks_for(self, n_tokens: int) -> int:
        """How many blocks so many tokens take."""
        return -(-n_tokens // self.block_size)

    def extend_keys(self, keys: list[bytes], tokens: Sequence[int], salt: bytes) -> None:
        """Append the digests of the full blocks of `tokens` that `keys` does not have yet.

        Args:
            keys: Digests of the first blocks.
            tokens: The whole text.
            salt: What else the contents depend on (the adapter, the set of frequencies), and who may share them.
        """
        if not self.share:
            return
        size = self.block_size
        for number in range(len(keys), len(tokens) // size):
            before = keys[-1] if keys else blake2b(salt, digest_size=16).digest()
            own = array("q", tokens[number * size : (number + 1) * size]).tobytes()
            keys.append(blake2b(before + own, digest_size=16).digest())

    def n_found(self, keys: Sequence[bytes]) -> int:
        """How many blocks from the first on are there already."""
        return next((n for n, key in enumerate(keys) if key not in self._by_key), len(keys))

    def open(self, keys: Sequence[bytes], n_tokens: int, spare: int = 0) -> BlockTable | None:
        """A table for a text of `n_tokens` tokens, with all the blocks that are there already.

        Args:
            keys: Digests of the blocks that may be shared.
            n_tokens: Tokens that the table covers.
            spare: Blocks that must stay free.

        Returns:
            None, and nothing is changed, when there are not enough free blocks.
        """
        found = [self._by_key[key] for key in keys[: self.n_found(keys)]]
        missing = self.blocks_for(n_tokens) - len(found)
        idle = sum(self.references[block] == 0 for block in found)
        if missing + spare > self.n_free - idle:
            return None
        for block in found:
            self._hold(block)
        return BlockTable([*found, *(self._fresh() for _ in range(missing))], len(found))

    def grow(self, table: BlockTable, start: int, end: int) -> list[tuple[int, int]] | None:
        """Make places `start` … `end` - 1 of a text writable.

        Returns:
            Blocks to copy, (source, target), before anything is written; None, and nothing is changed, when there are
            not enough free blocks.
        """
        last = self.blocks_for(end)
        missing = max(last - len(table.blocks), 0)
        first = start // self.block_size
        shared = [i for i in range(first, last - missing) if self.references[table.blocks[i]] > 1]
        if not missing and not shared:
            return []
        if missing + len(shared) > self.n_free:
            return None
        copies = []
        for i in shared:
            source = table.blocks[i]
            table.blocks[i] = self._fresh()
            self.release(source)
            if i * self.block_size < start:  # something before `start` lies in it
                copies.append((source, table.blocks[i]))
        table.blocks += [self._fresh() for _ in range(missing)]
        return copies

    def publish(self, table: BlockTable, keys: Sequence[bytes], n_full: int) -> None:
        """Make the first `n_full` blocks, which are written, known to others by their digests."""
        if not self.share:
            return
        for i in range(table.n_known, n_full):
            block = table.blocks[i]
            if keys[i] not in self._by_key:  # else another text was faster with the same tokens
                self._by_key[keys[i]] = block
                self._key_of[block] = keys[i]
        table.n_known = max(table.n_known, n_full)

    def fork(self, table: BlockTable) -> BlockTable:
        """A second text that so far equals this one."""
        for block in table.blocks:
            self._hold(block)
        return BlockTable(list(table.blocks), table.n_known)

    def close(self, table: BlockTable) -> None:
        """The text needs its blocks no more. The last ones are forgotten first: nothing is found behind a gap."""
        for block in reversed(table.blocks):
            self.release(block)
        table.blocks.clear()

    def release(self, block: int) -> None:
        """One text less holds the block."""
        assert self.references[block] > 0, f"block {block} is released, and nobody holds it"
        self.references[block] -= 1
        if self.references[block]:
            return
        if block in self._key_of:
            self._left[block] = None
        else:
            self._blank.append(block)

    def _hold(self, block: int) -> None:
        if not self.references[block]:
            del self._left[block]
        self.references[block] += 1

    def _fresh(self) -> int:
        """A block for new contents; the caller has seen that there is one."""
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._left.popitem(last=False)
            del self._by_key[self._key_of.pop(block)]
        self.references[block] = 1
        return block
