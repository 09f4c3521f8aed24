"""GGUF's block formats by name: how many numbers lie in how many bytes. Loads no torch; `blocks.py` computes them."""

from __future__ import annotations

from dataclasses import dataclass

from bimo.core.errors import UserError


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """How numbers lie in a file.

    Attributes:
        name: Its name in llama.cpp.
        number: ggml's number of the type.
        block_size: Numbers in a block.
        block_bytes: Bytes of a block.
    """

    name: str
    number: int
    block_size: int
    block_bytes: int

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` numbers.

        Raises:
            UserError: The width is not a whole number of blocks.
        """
        if width % self.block_size:
            raise UserError(
                f"a row of {width} numbers is not a whole number of {self.name} blocks of {self.block_size}",
                mend="Use a format with smaller blocks, such as F16.",
            )
        return width // self.block_size * self.block_bytes


FORMATS = {
    format.name: format
    for format in (
        BlockFormat("F32", 0, 1, 4),
        BlockFormat("F16", 1, 1, 2),
        BlockFormat("Q4_0", 2, 32, 18),
        BlockFormat("Q4_1", 3, 32, 20),
        BlockFormat("Q5_0", 6, 32, 22),
        BlockFormat("Q5_1", 7, 32, 24),
        BlockFormat("Q8_0", 8, 32, 34),
        BlockFormat("Q4_K", 12, 256, 144),
        BlockFormat("Q5_K", 13, 256, 176),
        BlockFormat("Q6_K", 14, 256, 210),
        BlockFormat("BF16", 30, 1, 2),
    )
}
