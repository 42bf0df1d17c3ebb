"""Which settings keep a promise about their mean loss: Learn then Test (Angelopoulos et al., arXiv 2110.01052).

Every function takes arrays of any leading shape, so that thousands of calibrations can be simulated at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, special, stats

PValue = Callable[[Float[np.ndarray, "*shape"], int, float], Float[np.ndarray, "*shape"]]
"""Of the null "the mean loss exceeds delta", from the risks seen on n examples, n, and delta."""


def hoeffding_bentkus(risks: Float[np.ndarray, "*shape"], n: int, delta: float) -> Float[np.ndarray, "*shape"]:
    """The p-value for losses in [0, 1]: the smaller of Hoeffding's tight bound and Bentkus's.

    min(exp(-n h1(min(risk, delta), delta)), e P(Binomial(n, delta) <= ceil(n risk))), where h1 is the relative
    entropy of two coins (Bates et al. 2021, arXiv 2101.02703; Learn then Test, Hoeffding-Bentkus p-values).

    Args:
        risks: mean losses of n independent examples.
        n: how many.
        delta: in (0, 1).
    """
    below = np.minimum(risks, delta)
    # rel_entr has 0 log 0 = 0, which a risk of 0 asks for.
    entropy = special.rel_entr(below, delta) + special.rel_entr(1 - below, 1 - delta)
    return np.minimum(np.exp(-n * entropy), np.e * stats.binom.cdf(np.ceil(_totals(risks, n)), n, delta))


def exact_binomial(risks: Float[np.ndarray, "*shape"], n: int, delta: float) -> Float[np.ndarray, "*shape"]:
    """The p-value for losses that are 0 or 1: P(Binomial(n, delta) <= n risk). Arguments as `hoeffding_bentkus`.

    Raises:
        ValueError: n risk is no whole number, hence some loss neither 0 nor 1.
    """
    totals = _totals(risks, n)
    if (totals % 1 != 0).any():
        total = totals[totals % 1 != 0].flat[0]
        raise ValueError(f"losses sum to {total:g}; allowed with exact_binomial: losses that are 0 or 1")
    return stats.binom.cdf(totals, n, delta)


def hoeffding(risks: Float[np.ndarray, "*shape"], n: int, delta: float) -> Float[np.ndarray, "*shape"]:
    """The p-value in CALM's text, for losses in [0, 1]: exp(-2 n max(0, delta - risk)^2).

    Never below that of `hoeffding_bentkus`, whose arguments it takes.
    """
    return np.exp(-2 * n * np.maximum(0.0, delta - np.asarray(risks)) ** 2)


P_VALUES: dict[str, PValue] = {
    "hoeffding_bentkus": hoeffding_bentkus,
    "exact_binomial": exact_binomial,
    "hoeffding": hoeffding,
}


def _totals(risks: Float[np.ndarray, "*shape"], n: int) -> Float[np.ndarray, "*shape"]:
    """Sums of losses. A mean of 3/n, times n, may be a little above 3, and must not be taken for 4."""
    return np.round(n * np.asarray(risks, np.float64), 9)


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What Learn then Test found of each setting.

    Attributes:
        level: at which each path was tested.
        p_values: of all settings, those that were not tested too.
        tested: whether every setting before it on its path was rejected.
        rejected: tested, with a p-value of at most the level: the setting keeps the promise.
    """

    level: float
    p_values: Float[np.ndarray, "*batch settings"]
    tested: Bool[np.ndarray, "*batch settings"]
    rejected: Bool[np.ndarray, "*batch settings"]


def learn_then_test(
    risks: Float[np.ndarray, "*batch settings"],
    n: int,
    paths: Sequence[Sequence[int]],
    *,
    delta: float,
    epsilon: float,
    p_value: str = "hoeffding_bentkus",
) -> Certificate:
    """Certifies settings: with probability at least 1 - epsilon none that is rejected has a mean loss above delta.

    Along each path settings are tested in order, at level epsilon / len(paths), up to the first that is not
    rejected (fixed-sequence testing, as CALM does for its one threshold, arXiv 2207.07061).

    Why that holds, if the n examples are independent draws and the paths were fixed before their losses were seen:
    the first setting on a path whose mean loss does exceed delta is rejected with probability at most the level,
    since its p-value is at most u with probability at most u; and no later one can be unless it is. So a path
    rejects any such setting with probability at most epsilon / len(paths), and some path does with at most
    epsilon (Bonferroni). Nothing is assumed of how the loss changes along a path, nor of how losses depend on one
    another. As all that is rejected keeps the promise at once, any of it may be chosen, by the same examples' cost
    for instance.

    Args:
        risks: mean losses of the n examples, in [0, 1].
        n: how many.
        paths: indices of settings, each in the order of testing, each setting on one path.
        delta: the tolerance, in (0, 1).
        epsilon: the error level, in (0, 1).
        p_value: a name in `P_VALUES`.

    Raises:
        ValueError: one of these is not so.
    """
    risks = np.asarray(risks, np.float64)
    check_promise(delta, epsilon, p_value)
    if n < 1:
        raise ValueError(f"n is {n}; allowed: at least 1")
    if not ((risks >= 0) & (risks <= 1)).all():  # NaN fails too
        raise ValueError(f"risks spans {risks.min()} to {risks.max()}; allowed: 0 to 1")
    indices = sorted(index for path in paths for index in path)
    if indices != list(range(risks.shape[-1])) or not all(map(len, paths)):
        raise ValueError(f"paths is {paths}; allowed: each of the {risks.shape[-1]} settings once, no path empty")
    level = epsilon / len(paths) if paths else epsilon
    p_values = P_VALUES[p_value](risks, n, delta)
    rejected = np.zeros(risks.shape, bool)
    tested = np.zeros(risks.shape, bool)
    for path in map(list, paths):
        passing = np.logical_and.accumulate(p_values[..., path] <= level, axis=-1)
        rejected[..., path] = passing
        tested[..., path] = True
        tested[..., path[1:]] = passing[..., :-1]
    return Certificate(level, p_values, tested, rejected)


def check_promise(delta: float, epsilon: float, p_value: str = "hoeffding_bentkus") -> None:
    """Raises ValueError where delta or epsilon is not in (0, 1), or there is no such p-value."""
    for name, value in (("delta", delta), ("epsilon", epsilon)):
        if not 0 < value < 1:  # NaN fails too
            raise ValueError(f"{name} is {value}; allowed: between 0 and 1, both excluded")
    if p_value not in P_VALUES:
        raise ValueError(f"p_value is {p_value!r}; allowed: {', '.join(P_VALUES)}")


def smallest_delta(n: int, level: float, p_value: str = "hoeffding_bentkus") -> float:
    """The smallest delta that n examples can certify at a level: that of no loss at all. 1 where none can be."""
    test = P_VALUES[p_value]

    def excess(delta: float) -> float:
        return float(test(np.zeros(()), n, delta)) - level

    most = 1 - 1e-12
    return float(optimize.brentq(excess, 1e-12, most)) if excess(most) < 0 else 1.0


def choose(
    costs: Float[np.ndarray, "*batch settings"], allowed: Bool[np.ndarray, "*batch settings"], full_cost: float
) -> Int[np.ndarray, "*batch"]:
    """The cheapest allowed setting, or -1, the full model, where none is cheaper than that.

    Args:
        costs: of the settings.
        allowed: whether each may be chosen.
        full_cost: of the full model, which has no loss, hence needs no test.

    Returns:
        Indices of settings; among equals, the first.
    """
    open_to_choice = np.where(allowed, costs, np.inf)
    candidates = np.concatenate([np.full((*open_to_choice.shape[:-1], 1), full_cost), open_to_choice], axis=-1)
    return candidates.argmin(axis=-1) - 1
