"""ROUGE, from the `rouge-score` package, with stemming."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_TYPES = ("rougeL", "rouge1", "rouge2", "rougeLsum")


def rouge_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Computes mean F-measures in percent.

    For rougeLsum both texts are split into sentences after ".", "!" and "?". The published code of DVP splits them
    with a trained model (NLTK's punkt), which differs at abbreviations.

    Args:
        predictions: the texts to score.
        references: one reference for each prediction.

    Returns:
        {"rougeL", "rouge1", "rouge2", "rougeLsum"}.
    """
    from rouge_score import rouge_scorer  # slow: it imports scikit-learn and pandas

    scorer = rouge_scorer.RougeScorer(_TYPES, use_stemmer=True)
    scores = [
        scorer.score(_SENTENCE_END.sub("\n", reference), _SENTENCE_END.sub("\n", prediction))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {name: 100.0 * sum(score[name].fmeasure for score in scores) / len(scores) for name in _TYPES}
