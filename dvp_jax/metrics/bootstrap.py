"""Confidence intervals of rates over tokens. The tokens of one text depend on each other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from scipy import stats


class Interval(NamedTuple):
    """A rate and the ends of its confidence interval."""

    rate: float
    low: float
    high: float


def rate_interval(
    hits: Int[np.ndarray, " texts"],
    tokens: Int[np.ndarray, " texts"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Computes the share of tokens that are hits, with an interval from resampling texts (cluster bootstrap).

    The ends are percentiles of a seeded bootstrap (Efron & Tibshirani 1993, chapter 13). If no token is a hit, or
    every token is, all resamples are equal and their interval has no width. Then the interval is the exact
    binomial one (Clopper & Pearson 1934) with as many trials as there are texts, as if all tokens of a text were
    the same.

    Args:
        hits: number of hits in each text.
        tokens: number of tokens in each text. Texts without tokens are skipped.
        level: probability that the interval contains the true rate.
        resamples: number of resamples.

    Raises:
        ValueError: there are no tokens, hits are negative or more than tokens, or the shapes differ.
    """
    hits, tokens = np.asarray(hits), np.asarray(tokens)
    if hits.ndim != 1 or hits.shape != tokens.shape:
        raise ValueError(f"hits has shape {hits.shape} and tokens {tokens.shape}; allowed: (texts,) for both")
    if (hits < 0).any() or (hits > tokens).any():
        raise ValueError("hits is negative or more than tokens somewhere; allowed: from 0 to tokens")
    hits, tokens = hits[tokens > 0], tokens[tokens > 0]
    if not len(tokens):
        raise ValueError("tokens is 0 throughout; allowed: at least one token")
    rate = float(hits.sum() / tokens.sum())
    if rate in (0.0, 1.0):
        exact = stats.binomtest(round(rate * len(tokens)), len(tokens)).proportion_ci(level, method="exact")
        return Interval(rate, float(exact.low), float(exact.high))
    if len(tokens) == 1:  # one text says nothing about others
        return Interval(rate, 0.0, 1.0)
    result = stats.bootstrap(
        (hits, tokens),
        lambda hits, tokens, axis: hits.sum(axis=axis) / tokens.sum(axis=axis),
        paired=True,
        vectorized=True,
        confidence_level=level,
        n_resamples=resamples,
        batch=100,  # limits memory: all resamples of all texts would be held at once
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return Interval(rate, float(result.confidence_interval.low), float(result.confidence_interval.high))
