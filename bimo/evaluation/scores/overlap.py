"""BLEU and chrF out of sacrebleu's own counts for each sentence; equal to its corpus figures."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bimo.core.errors import require
from bimo.evaluation.scores.ratio import ratio
from bimo.tasks.task import TaskExample

_ORDERS = 4
_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
_WITHOUT_MECAB = "char"


class BLEU:
    """BLEU (Papineni et al. 2002) as sacrebleu computes it (Post 2018): 4-grams, one reference, exponential smoothing.

    Chinese, Japanese and Korean targets are cut by sacrebleu's tokenizers for them, all others by 13a. Where MeCab is
    not installed (`sacrebleu[ja]`, `sacrebleu[ko]`), these two are cut into characters; the signature says so.
    """

    name = "BLEU"
    higher_is_better = True

    def rows(self, answers: Sequence[str], examples: Sequence[TaskExample]) -> np.ndarray:
        """Words of the answer, words of the reference, four counts of equal n-grams, four of all: (n, 10)."""
        languages = [target_language(example) for example in examples]
        found = np.zeros((len(answers), 2 + 2 * _ORDERS))
        for language in sorted(set(languages)):
            here = [i for i, own in enumerate(languages) if own == language]
            found[here] = _statistics(_bleu(language), answers, examples, here)
        return found

    def total(self, sums: np.ndarray) -> np.ndarray:
        """The score, 0 … 100, of each line of sums: (…, 10) → (…)."""
        ours, theirs = sums[..., 0], sums[..., 1]
        equal, every = sums[..., 2 : 2 + _ORDERS], sums[..., 2 + _ORDERS :]
        # The k-th order without any equal n-gram counts as 1 / 2**k of one (sacrebleu's smoothing "exp").
        halvings = np.cumsum(equal == 0, axis=-1)
        precisions = ratio(np.where(equal > 0, equal, 0.5**halvings), every)
        means = np.exp(np.log(np.where(precisions > 0, precisions, 1.0)).mean(axis=-1))
        # exp(1 - theirs / ours) for answers that are too short; the limits keep exp from overflowing.
        brevity = np.exp(np.minimum(0.0, 1 - ratio(theirs, ours, 1.0)))
        some = (equal.sum(axis=-1) > 0) & (every > 0).all(axis=-1)
        return np.where(some, 100 * brevity * means, 0.0)

    def signature(self, examples: Sequence[TaskExample]) -> str:
        """sacrebleu's own, one for each tokenizer."""
        languages = {target_language(example) for example in examples}
        return "; ".join(sorted({_signature(_bleu(language)) for language in languages}))


class CHRF:
    """chrF (Popović 2015) as sacrebleu computes it: 6-grams of characters, recall weighs twice."""

    name = "chrF"
    higher_is_better = True

    def rows(self, answers: Sequence[str], examples: Sequence[TaskExample]) -> np.ndarray:
        """For each order the n-grams of the answer, of the reference, and the equal ones: (n, 18)."""
        return _statistics(_chrf(), answers, examples, range(len(answers))).reshape(len(answers), -1)

    def total(self, sums: np.ndarray) -> np.ndarray:
        """The score, 0 … 100, of each line of sums: (…, 18) → (…)."""
        orders = sums.reshape(*sums.shape[:-1], -1, 3)  # (…, 6, 3)
        ours, theirs, equal = orders[..., 0], orders[..., 1], orders[..., 2]
        both = (ours > 0) & (theirs > 0)
        n_orders = both.sum(axis=-1)
        precision = ratio(np.where(both, ratio(equal, ours), 0.0).sum(axis=-1), n_orders)
        recall = ratio(np.where(both, ratio(equal, theirs), 0.0).sum(axis=-1), n_orders)
        return 100 * ratio(5 * precision * recall, 4 * precision + recall)

    def signature(self, examples: Sequence[TaskExample]) -> str:
        """sacrebleu's own."""
        return _signature(_chrf())


def target_language(example: TaskExample) -> str:
    """The code of the language that the target is in, as the example's group says it; '' where nothing does."""
    return example.group.get("language", "").rpartition("→")[2].strip().lower()


def _statistics(
    scorer: Any, answers: Sequence[str], examples: Sequence[TaskExample], here: Sequence[int]
) -> np.ndarray:
    """sacrebleu's counts for some of the answers, (len(here), counts)."""
    if not here:
        return np.zeros((0, 3 * 6))
    ours, theirs = [str(answers[i]) for i in here], [examples[i].target for i in here]
    return np.array(scorer._extract_corpus_statistics(ours, [theirs]), float)


@functools.cache  # sacrebleu remembers what it has cut
def _bleu(language: str) -> Any:
    scores = require("sacrebleu.metrics", "eval")
    tokenizer = _TOKENIZERS.get(language, "13a")
    try:
        return scores.BLEU(tokenize=tokenizer, force=True)
    except RuntimeError:  # its way to say that MeCab is missing
        return scores.BLEU(tokenize=_WITHOUT_MECAB, force=True)


@functools.cache
def _chrf() -> Any:
    return require("sacrebleu.metrics", "eval").CHRF()


def _signature(scorer: Any) -> str:
    scorer.num_refs = 1
    return str(scorer.get_signature())
