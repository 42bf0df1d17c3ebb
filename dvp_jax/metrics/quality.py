"""Quality of single texts, in [0, 1]. The other metrics score whole corpora, in percent.

A text that equals its reference scores 1, even if it has no word that a metric could count.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from sacrebleu.metrics import BLEU, CHRF

from dvp_jax.metrics.rouge import rouge_scorer
from dvp_jax.metrics.squad import exact_match, token_f1

_chrf = functools.cache(CHRF)
_bleu = functools.cache(lambda: BLEU(effective_order=True))  # otherwise a text of three words scores 0


def _rouge_l(prediction: str, reference: str) -> float:
    return rouge_scorer(("rougeL",)).score(reference, prediction)["rougeL"].fmeasure


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
"""Functions of a prediction and a reference: `rouge_scores`, `squad_scores` and `sacrebleu` for one text."""


def text_quality(measure: str, prediction: str, references: Sequence[str]) -> float:
    """Measures the quality of a text against the reference that it is most like.

    Args:
        measure: a name in `MEASURES`.
        prediction: the text.
        references: at least one accepted text.

    Returns:
        The quality, in [0, 1].

    Raises:
        ValueError: an unknown measure.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure is {measure!r}; allowed: {', '.join(MEASURES)}")
    if prediction in references:
        return 1.0
    best = max(MEASURES[measure](prediction, reference) for reference in references)
    return min(best, 1.0)  # BLEU may be a little above 1 for texts with equal tokens
