"""Text to token ids and back: byte-level BPE, control tokens that text cannot forge, streams that split no
character."""

from bimo.tokenizer.incremental import IncrementalDecoder
from bimo.tokenizer.tokenizer import CONTROL_TOKENS, Tokenizer

__all__ = ["CONTROL_TOKENS", "IncrementalDecoder", "Tokenizer"]
