"""BLEU and chrF, from the `sacrebleu` package with its defaults."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import regex
from sacrebleu.metrics import BLEU, CHRF

from dvp_jax.metrics.rouge import UNSPACED

_TOKENIZERS = {"chinese": "zh", "japanese": "ja-mecab", "korean": "ko-mecab"}
_UNSUITED = regex.compile(rf"(?V1)[[{UNSPACED}\p{{Hangul}}\p{{Tibetan}}]&&\p{{L}}]")
_LETTER = regex.compile(r"\p{L}")


def translation_scores(
    predictions: Sequence[str], references: Sequence[str], tokenizer: str = "13a"
) -> dict[str, float]:
    """Scores a corpus.

    Args:
        predictions: the translations to score.
        references: one reference for each prediction.
        tokenizer: name of the tokenizer of BLEU, from `bleu_tokenizer`.

    Returns:
        {"bleu", "chrf"}, in percent.
    """
    return {
        "bleu": bleu(tokenizer).corpus_score(predictions, [references]).score,
        "chrf": CHRF().corpus_score(predictions, [references]).score,
    }


def bleu_tokenizer(language: str) -> str:
    """Returns the name of `sacrebleu`'s tokenizer for a language, by its English name."""
    return next((tokenizer for name, tokenizer in _TOKENIZERS.items() if name in language.lower()), "13a")


@functools.cache
def bleu(tokenizer: str) -> BLEU:
    """Returns the metric with a tokenizer.

    Raises:
        ValueError: an unknown tokenizer.
        ImportError: a package or a download that the tokenizer needs is missing.
    """
    if tokenizer not in BLEU.TOKENIZERS:
        raise ValueError(f"bleu_tokenizer is {tokenizer!r}; allowed: {', '.join(BLEU.TOKENIZERS)}")
    try:
        return BLEU(tokenize=tokenizer)
    except (RuntimeError, AssertionError, OSError) as error:  # another dictionary, or no network to fetch it
        raise ImportError(f"BLEU with tokenizer {tokenizer!r}: {' '.join(str(error).split())}") from None


def suits_13a(references: Sequence[str]) -> bool:
    """Whether BLEU's default tokenizer finds the words: not in Chinese, Korean, Thai and their like."""
    text = "".join(references)
    return 2 * len(_UNSUITED.findall(text)) <= len(_LETTER.findall(text))
