"""F1 and exact match, as the official script of SQuAD 1.1 computes them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Converts to lower case and removes punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> float:
    """Returns 1 if both texts are equal after `normalize_answer`, and 0 otherwise."""
    return float(normalize_answer(prediction) == normalize_answer(reference))


def token_f1(prediction: str, reference: str) -> float:
    """Computes the harmonic mean of precision and recall of the words, in [0, 1]."""
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(reference).split()
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2.0 * common / (len(predicted) + len(expected)) if common else 0.0


def squad_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Computes means over questions, in percent. Each question counts with its best reference.

    Args:
        predictions: one answer for each question.
        references: the accepted answers of each question.

    Returns:
        {"f1", "exact_match"}.
    """

    def mean_best(measure: Callable[[str, str], float]) -> float:
        pairs = zip(predictions, references, strict=True)
        best = [max(measure(prediction, answer) for answer in answers) for prediction, answers in pairs]
        return 100.0 * sum(best) / len(best)

    return {"f1": mean_best(token_f1), "exact_match": mean_best(exact_match)}
