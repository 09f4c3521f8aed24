"""Floors: what simple methods reach that learn from the same text; a model below them has learned nothing of use."""

from bimo.evaluation.floors.contract import Floor
from bimo.evaluation.floors.copying import Copy, Lead
from bimo.evaluation.floors.grams import NextBytes
from bimo.evaluation.floors.held_out import NGramModel, xz_bits_per_byte
from bimo.evaluation.floors.labels import BagOfWords, Majority
from bimo.evaluation.floors.naming import make_floor
from bimo.evaluation.floors.nearest import Nearest
from bimo.evaluation.floors.word_table import WordTable

__all__ = [
    "BagOfWords",
    "Copy",
    "Floor",
    "Lead",
    "Majority",
    "NGramModel",
    "Nearest",
    "NextBytes",
    "WordTable",
    "make_floor",
    "xz_bits_per_byte",
]
