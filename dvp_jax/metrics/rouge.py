"""ROUGE, from the `rouge-score` package, with stemming, for words of any script."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import regex

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
"""Pattern of a character of a script that has no spaces between words."""
# `rouge-score` has [a-z0-9]+ for a word. This is the same for ASCII.
_WORD = regex.compile(
    rf"(?V1)[{UNSPACED}&&\p{{L}}]\p{{M}}*|[[\p{{L}}\p{{Nd}}]--{UNSPACED}][[\p{{L}}\p{{M}}\p{{Nd}}]--{UNSPACED}]*"
)
# Unicode's ends of sentences: ATerm is the full stop, STerm holds "!" and "?". East Asian ones need no space.
_SENTENCE_END = regex.compile(r"(?<=[\p{SB=STerm}\p{SB=ATerm}])\s+|(?<=[\u3002\uff01\uff1f\uff61])")
_TYPES = ("rougeL", "rouge1", "rouge2", "rougeLsum")


def rouge_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Computes mean F-measures in percent.

    A word is a run of letters with their marks, and digits. In scripts without spaces (Chinese, Japanese, Thai,
    ...) each character with its marks is a word. ASCII has the words of `rouge-score`, and so English its figures.

    For rougeLsum both texts are split into sentences after ".", "!" and "?", and their like in other scripts. The
    published code of DVP splits them with a trained model (NLTK's punkt), which differs at abbreviations.

    Args:
        predictions: the texts to score.
        references: one reference for each prediction.

    Returns:
        {"rougeL", "rouge1", "rouge2", "rougeLsum"}.
    """
    scorer = rouge_scorer(_TYPES)
    scores = [
        scorer.score(_SENTENCE_END.sub("\n", reference), _SENTENCE_END.sub("\n", prediction))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {name: 100.0 * sum(score[name].fmeasure for score in scores) / len(scores) for name in _TYPES}


@functools.cache
def rouge_scorer(types: tuple[str, ...]) -> RougeScorer:
    """A scorer of the `rouge-score` package that computes some of its types."""
    from rouge_score import rouge_scorer, tokenizers  # slow: it imports scikit-learn and pandas

    english = tokenizers.DefaultTokenizer(use_stemmer=True)

    class Words(tokenizers.Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            words = _WORD.findall(unicodedata.normalize("NFC", text.lower()))
            return [part for word in words for part in (english.tokenize(word) if word.isascii() else [word])]

    return rouge_scorer.RougeScorer(types, tokenizer=Words())
