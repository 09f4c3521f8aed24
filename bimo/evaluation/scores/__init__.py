"""Metrics: what answers score, each as sums over answers, so that a resampled set is a product of matrices."""

from bimo.evaluation.scores.labels import Accuracy, CalibrationError, MacroF1
from bimo.evaluation.scores.likelihood import BitsPerByte, Perplexity
from bimo.evaluation.scores.naming import make_metric
from bimo.evaluation.scores.overlap import BLEU, CHRF
from bimo.evaluation.scores.rouge import Rouge1, Rouge2, RougeL
from bimo.evaluation.scores.texts import Cut, Distinct1, Distinct2, ExactMatch, Repetition

__all__ = [
    "BLEU",
    "CHRF",
    "Accuracy",
    "BitsPerByte",
    "CalibrationError",
    "Cut",
    "Distinct1",
    "Distinct2",
    "ExactMatch",
    "MacroF1",
    "Perplexity",
    "Repetition",
    "Rouge1",
    "Rouge2",
    "RougeL",
    "make_metric",
]
