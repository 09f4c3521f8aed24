"""A model at work: texts, lists, streams and documents are translated, summarised, classified, and talked about.

Everything goes through one engine, many texts at once, in the order in which it came. What could not be done well is
said with its place.
"""

from bimo.applying.classifying import classify
from bimo.applying.dialogue import Conversation
from bimo.applying.results import Classified, Notice, Summarized, Translated
from bimo.applying.summarizing import SummarySettings, summarize
from bimo.applying.translating import TranslationSettings, translate

__all__ = [
    "Classified",
    "Conversation",
    "Notice",
    "Summarized",
    "SummarySettings",
    "Translated",
    "TranslationSettings",
    "classify",
    "summarize",
    "translate",
]
