"""Intervals of rates: how often they hold the true one, in simulations."""

import numpy as np
import pytest
from scipy import stats

from dvp_jax.metrics.bootstrap import rate_interval

SPREADS = {"tokens alike": 1e6, "texts differ": 2.0}
"""The smaller, the more the rate varies from text to text (a beta distribution's a + b)."""


def simulated(rng, texts, rate, spread):
    """Hits and tokens of texts of 1 to 29 tokens."""
    tokens = rng.integers(1, 30, texts)
    return rng.binomial(tokens, rng.beta(rate * spread, (1 - rate) * spread, texts)), tokens


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
def test_intervals_hold_the_true_rate_about_95_times_in_100(spread):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        interval = rate_interval(*simulated(rng, 120, 0.3, spread), resamples=400)
        held += interval.low <= 0.3 <= interval.high
    assert 0.92 <= held / 300 <= 0.98


def test_intervals_of_single_tokens_would_be_too_narrow_where_texts_differ():
    hits, tokens = simulated(np.random.default_rng(3), 200, 0.3, 2.0)
    interval = rate_interval(hits, tokens)
    single = stats.binomtest(int(hits.sum()), int(tokens.sum())).proportion_ci()
    assert interval.high - interval.low > 2 * (single.high - single.low)


def test_the_rate_is_of_tokens_not_the_mean_of_texts():
    interval = rate_interval(np.array([1, 0]), np.array([1, 9]))
    assert interval.rate == pytest.approx(0.1)
    assert (interval.low, interval.high) == (0.0, 1.0)  # both texts the one, both the other
    long = rate_interval(np.array([0, 90] * 20), np.array([1, 100] * 20))  # the mean of texts would be 0.45
    assert 0.85 < long.low < long.high < 0.9


def test_the_same_texts_give_the_same_interval():
    hits, tokens = simulated(np.random.default_rng(4), 30, 0.3, 2.0)
    assert rate_interval(hits, tokens) == rate_interval(hits, tokens)


@pytest.mark.parametrize("texts", [1, 5, 100])
def test_no_hit_in_n_texts_leaves_room_for_the_rate_that_gives_none_in_one_of_forty(texts):
    interval = rate_interval(np.zeros(texts, int), np.full(texts, 7))
    assert (interval.rate, interval.low) == (0.0, 0.0)
    assert (1 - interval.high) ** texts == pytest.approx(0.025)


def test_only_hits_mirror_no_hits():
    none, only = (rate_interval(np.full(20, hits), np.full(20, 7)) for hits in (0, 7))
    assert (1 - only.rate, 1 - only.high, 1 - only.low) == pytest.approx(none)


def test_texts_without_such_tokens_change_nothing():
    hits, tokens = np.array([1, 0, 3, 2]), np.array([4, 5, 6, 2])
    padded = rate_interval(np.append(hits, [0, 0]), np.append(tokens, [0, 0]))
    assert padded == rate_interval(hits, tokens)
    assert rate_interval(np.array([0, 0]), np.array([3, 0])).high == pytest.approx(0.975)  # of one text


def test_one_text_says_nothing_of_others():
    assert rate_interval(np.array([3]), np.array([4])) == (0.75, 0.0, 1.0)


@pytest.mark.parametrize(
    ("hits", "tokens", "part"),
    [
        ([0, 0], [0, 0], "tokens is 0"),
        ([], [], "tokens is 0"),
        ([1], [1, 2], "(1,)"),
        ([3], [2], "more than tokens"),
        ([-1], [2], "negative"),
    ],
)
def test_counts_that_cannot_be_are_refused(hits, tokens, part):
    with pytest.raises(ValueError) as error:
        rate_interval(np.array(hits, int), np.array(tokens, int))
    assert part in str(error.value)
