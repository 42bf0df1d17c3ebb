"""Learn then Test (Angelopoulos et al., arXiv 2110.01052): which settings are certified to have a small mean loss.

All functions take arrays of any leading shape, so that thousands of calibrations can be simulated at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, special, stats

PValue = Callable[[Float[np.ndarray, "*shape"], int, float], Float[np.ndarray, "*shape"]]
"""A p-value of the null hypothesis that the mean loss exceeds delta.

Its arguments are the mean losses measured on n examples, n, and delta.
"""


def hoeffding_bentkus(risks: Float[np.ndarray, "*shape"], n: int, delta: float) -> Float[np.ndarray, "*shape"]:
    """The Hoeffding-Bentkus p-value, for losses in [0, 1].

    It is the smaller of two bounds, where h1(a, b) is the relative entropy of two coins:

        min(exp(-n h1(min(risk, delta), delta)), e P(Binomial(n, delta) <= ceil(n risk)))

    Source: Learn then Test (arXiv 2110.01052), section on Hoeffding-Bentkus p-values; Bates et al. 2021 (arXiv
    2101.02703).

    Args:
        risks: mean losses on n independent examples.
        n: number of examples.
        delta: the tolerance, in (0, 1).
    """
    below = np.minimum(risks, delta)
    # A risk of 0 needs 0 log 0 = 0, which rel_entr has.
    entropy = special.rel_entr(below, delta) + special.rel_entr(1 - below, 1 - delta)
    return np.minimum(np.exp(-n * entropy), np.e * stats.binom.cdf(np.ceil(_totals(risks, n)), n, delta))


def exact_binomial(risks: Float[np.ndarray, "*shape"], n: int, delta: float) -> Float[np.ndarray, "*shape"]:
    """The exact p-value for losses that are 0 or 1: P(Binomial(n, delta) <= n risk).

    Args:
        risks: mean losses on n independent examples.
        n: number of examples.
        delta: the tolerance, in (0, 1).

    Raises:
        ValueError: n risk is not a whole number, so some loss is neither 0 nor 1.
    """
    totals = _totals(risks, n)
    if (totals % 1 != 0).any():
        total = totals[totals % 1 != 0].flat[0]
        raise ValueError(f"losses sum to {total:g}; allowed with exact_binomial: losses that are 0 or 1")
    return stats.binom.cdf(totals, n, delta)


def hoeffding(risks: Float[np.ndarray, "*shape"], n: int, delta: float) -> Float[np.ndarray, "*shape"]:
    """Hoeffding's p-value, for losses in [0, 1]: exp(-2 n max(0, delta - risk)^2).

    It is the one in the text of CALM (arXiv 2207.07061), and is never smaller than `hoeffding_bentkus`.

    Args:
        risks: mean losses on n independent examples.
        n: number of examples.
        delta: the tolerance, in (0, 1).
    """
    return np.exp(-2 * n * np.maximum(0.0, delta - np.asarray(risks)) ** 2)


P_VALUES: dict[str, PValue] = {
    "hoeffding_bentkus": hoeffding_bentkus,
    "exact_binomial": exact_binomial,
    "hoeffding": hoeffding,
}


def _totals(risks: Float[np.ndarray, "*shape"], n: int) -> Float[np.ndarray, "*shape"]:
    """Sums of losses. The product n * (3 / n) may be a little above 3, and its ceiling must not be 4."""
    return np.round(n * np.asarray(risks, np.float64), 9)


@dataclasses.dataclass(frozen=True)
class Certificate:
    """The result of Learn then Test for each setting.

    Attributes:
        level: the level at which each path was tested.
        p_values: the p-value of every setting, tested or not.
        tested: whether the setting was tested: every setting before it on its path was rejected.
        rejected: whether the setting was tested and its p-value is at most the level. Its null hypothesis is
            rejected, so the setting is certified.
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
    """Certifies settings: with probability at least 1 - epsilon no rejected setting has a mean loss above delta.

    The settings of each path are tested in order, at level epsilon / len(paths), up to the first one that is not
    rejected (fixed-sequence testing, as CALM does for its one threshold, arXiv 2207.07061).

    The guarantee needs n independent examples, and paths that were fixed before the losses were seen. Proof:
    Take the first setting on a path whose mean loss exceeds delta. A p-value is at most u with probability at
    most u, so this setting is rejected with probability at most the level. Later settings on the path are
    rejected only if it is. So a path rejects a setting whose mean loss exceeds delta with probability at most
    epsilon / len(paths), and any of the paths does so with probability at most epsilon (Bonferroni).

    Nothing is assumed about how the loss changes along a path, or about how the losses of settings depend on each
    other. The guarantee is for all rejected settings at once, so any of them may be chosen, for example by its
    cost on the same examples.

    Args:
        risks: mean losses on the n examples, in [0, 1].
        n: number of examples.
        paths: indices of settings in the order of testing. Each setting is on one path.
        delta: the tolerance, in (0, 1).
        epsilon: the probability of error, in (0, 1).
        p_value: a name in `P_VALUES`.

    Raises:
        ValueError: an argument is outside its bounds, or a setting is on no path or on several.
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
    """Raises ValueError if delta or epsilon is outside (0, 1), or if the p-value is unknown."""
    for name, value in (("delta", delta), ("epsilon", epsilon)):
        if not 0 < value < 1:  # NaN fails too
            raise ValueError(f"{name} is {value}; allowed: between 0 and 1, both excluded")
    if p_value not in P_VALUES:
        raise ValueError(f"p_value is {p_value!r}; allowed: {', '.join(P_VALUES)}")


def smallest_delta(n: int, level: float, p_value: str = "hoeffding_bentkus") -> float:
    """Computes the smallest delta that n examples can certify at a level: the one for a mean loss of 0.

    Returns:
        The delta, or 1 if none can be certified.
    """
    test = P_VALUES[p_value]

    def excess(delta: float) -> float:
        return float(test(np.zeros(()), n, delta)) - level

    most = 1 - 1e-12
    return float(optimize.brentq(excess, 1e-12, most)) if excess(most) < 0 else 1.0


def choose(
    costs: Float[np.ndarray, "*batch settings"], allowed: Bool[np.ndarray, "*batch settings"], full_cost: float
) -> Int[np.ndarray, "*batch"]:
    """Chooses the cheapest allowed setting, or the full model if no allowed setting is cheaper.

    Args:
        costs: cost of each setting.
        allowed: whether each setting may be chosen.
        full_cost: cost of the full model. It has no loss, so it needs no test.

    Returns:
        Indices of settings, -1 for the full model. Of equally cheap settings the first is chosen.
    """
    allowed_costs = np.where(allowed, costs, np.inf)
    full_costs = np.full((*allowed_costs.shape[:-1], 1), full_cost)
    candidates = np.concatenate([full_costs, allowed_costs], axis=-1)  # (*batch, 1 + settings)
    return candidates.argmin(axis=-1) - 1
