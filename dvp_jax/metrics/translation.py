"""BLEU and chrF, by `sacrebleu` with its defaults."""

from __future__ import annotations

from collections.abc import Sequence

import sacrebleu


def translation_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Scores of the corpus.

    Returns:
        {"bleu", "chrf"}, in percent.
    """
    return {
        "bleu": sacrebleu.corpus_bleu(predictions, [references]).score,
        "chrf": sacrebleu.corpus_chrf(predictions, [references]).score,
    }
