"""BLEU and chrF, from the `sacrebleu` package with its defaults."""

from __future__ import annotations

from collections.abc import Sequence

import sacrebleu


def translation_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Scores a corpus.

    Args:
        predictions: the translations to score.
        references: one reference for each prediction.

    Returns:
        {"bleu", "chrf"}, in percent.
    """
    return {
        "bleu": sacrebleu.corpus_bleu(predictions, [references]).score,
        "chrf": sacrebleu.corpus_chrf(predictions, [references]).score,
    }
