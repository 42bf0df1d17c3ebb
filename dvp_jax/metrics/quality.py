"""How good one text is, in [0, 1], where the other metrics score whole corpora.

A text that equals the other scores 1, also where there is no word in it that a metric could count.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from dvp_jax.metrics.squad import exact_match, token_f1

_rouge_scorer = functools.cache(lambda: RougeScorer(["rougeL"], use_stemmer=True))
_chrf = functools.cache(CHRF)
_bleu = functools.cache(lambda: BLEU(effective_order=True))  # else a text of three words scores 0


def _rouge_l(prediction: str, reference: str) -> float:
    return _rouge_scorer().score(reference, prediction)["rougeL"].fmeasure


def _sentence_chrf(prediction: str, reference: str) -> float:
    return _chrf().sentence_score(prediction, [reference]).score / 100.0


def _sentence_bleu(prediction: str, reference: str) -> float:
    return _bleu().sentence_score(prediction, [reference]).score / 100.0


MEASURES: dict[str, Callable[[str, str], float]] = {
    "rougeL": _rouge_l,
    "f1": token_f1,
    "exact_match": exact_match,
    "chrf": _sentence_chrf,
    "bleu": _sentence_bleu,
}
"""Of a prediction and a reference: as `rouge_scores`, `squad_scores` and `sacrebleu` have them, of one text."""


def text_quality(measure: str, prediction: str, references: Sequence[str]) -> float:
    """The best over the references, in [0, 1].

    Args:
        measure: a name in `MEASURES`.
        prediction: any text.
        references: at least one.

    Raises:
        ValueError: an unknown measure.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure is {measure!r}; allowed: {', '.join(MEASURES)}")
    if prediction in references:
        return 1.0
    best = max(MEASURES[measure](prediction, reference) for reference in references)
    return min(best, 1.0)  # BLEU computes a little more for texts that its tokens make equal
