"""Learn then Test: p-values against other implementations, and the guarantee in simulated calibrations."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from scipy import stats

from dvp_jax.evaluate.learn_then_test import (
    P_VALUES,
    choose,
    exact_binomial,
    hoeffding,
    hoeffding_bentkus,
    learn_then_test,
    smallest_delta,
)

# p-values


def exact_hoeffding_bentkus(total: int, n: int, delta: float) -> float:
    """The p-value for losses that sum to a whole number, in fractions and 50 digits."""
    d, below = Fraction(delta), min(Fraction(total, n), Fraction(delta))
    with mpmath.workdps(50):

        def term(a: Fraction, b: Fraction) -> mpmath.mpf:
            ratio = mpmath.mpf((a / b).numerator) / (a / b).denominator
            return mpmath.mpf(a.numerator) / a.denominator * mpmath.log(ratio) if a else mpmath.mpf(0)

        entropy = term(below, d) + term(1 - below, 1 - d)
        cdf = sum(math.comb(n, k) * d**k * (1 - d) ** (n - k) for k in range(total + 1))
        tail = mpmath.e * mpmath.mpf(cdf.numerator) / cdf.denominator
        return float(min(mpmath.exp(-n * entropy), tail))


@pytest.mark.parametrize("delta", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("n", [1, 19, 107])
def test_hoeffding_bentkus_is_that_of_exact_arithmetic(n, delta):
    totals = range(0, n + 1, 1 + n // 12)
    p_values = hoeffding_bentkus(np.array(totals) / n, n, delta)
    assert p_values == pytest.approx([exact_hoeffding_bentkus(total, n, delta) for total in totals], rel=1e-9)


@pytest.mark.parametrize(("n", "delta"), [(50, 0.05), (1014, 0.02), (300, 0.25)])
def test_hoeffding_bentkus_is_that_of_mapie(n, delta):
    risks = (np.arange(40) + 0.37) / (40 * 2) * 2 * delta  # none a whole number of losses, none zero
    theirs = compute_hoeffding_bentkus_p_value(risks, n, delta)
    assert hoeffding_bentkus(risks, n, delta) == pytest.approx(np.ravel(theirs), rel=1e-9)


@pytest.mark.parametrize(("n", "delta"), [(20, 0.1), (1014, 0.01)])
def test_exact_binomial_is_scipys_test(n, delta):
    totals = np.arange(n + 1)
    expected = [stats.binomtest(int(total), n, delta, alternative="less").pvalue for total in totals]
    assert exact_binomial(totals / n, n, delta) == pytest.approx(expected)


def test_no_loss_at_all_is_no_nan():
    with np.errstate(all="raise"):
        assert hoeffding_bentkus(np.array([0.0]), 60, 0.05) == pytest.approx(0.95**60)
        assert exact_binomial(np.array([0.0]), 60, 0.05) == pytest.approx(0.95**60)
        assert hoeffding(np.array([0.0]), 60, 0.05) == pytest.approx(math.exp(-2 * 60 * 0.05**2))


@pytest.mark.parametrize("name", ["hoeffding_bentkus", "hoeffding"])
def test_a_risk_above_delta_is_no_evidence_at_all(name):
    risks = np.array([0.1, 0.1001, 0.5, 1.0])
    assert P_VALUES[name](risks, 200, 0.1) == pytest.approx(1.0)


def test_a_mean_that_is_a_little_too_large_counts_no_loss_more():
    n, total = next((n, k) for n in range(2, 2000) for k in range(n) if k / n * n > k)
    assert exact_binomial(np.array([total / n]), n, 0.5) == stats.binom.cdf(total, n, 0.5)
    assert hoeffding_bentkus(np.array([total / n]), n, 0.5) == pytest.approx(
        exact_hoeffding_bentkus(total, n, 0.5)
    )


@pytest.mark.parametrize("name", P_VALUES)
@pytest.mark.parametrize(("n", "delta"), [(7, 0.3), (100, 0.02), (100, 0.2)])
def test_a_p_value_is_at_most_u_with_probability_at_most_u(name, n, delta):
    totals = np.arange(n + 1)
    p_values, chances = P_VALUES[name](totals / n, n, delta), stats.binom.pmf(totals, n, delta)
    for level in p_values:
        assert chances[p_values <= level].sum() <= level + 1e-12


def test_the_exact_binomial_refuses_losses_between_0_and_1():
    with pytest.raises(ValueError, match=r"losses sum to 2\.5; allowed with exact_binomial: losses that are 0"):
        exact_binomial(np.array([0.2, 0.25]), 10, 0.3)


# Paths


def test_a_path_ends_at_its_first_failure_whatever_comes_after():
    risks = np.array([0.0, 0.0, 0.5, 0.0])
    certificate = learn_then_test(risks, 100, [[0, 1, 2, 3]], delta=0.1, epsilon=0.05)
    assert certificate.rejected.tolist() == [True, True, False, False]
    assert certificate.tested.tolist() == [True, True, True, False]
    assert certificate.p_values[3] == certificate.p_values[0]


def test_a_path_is_tested_in_its_own_order():
    certificate = learn_then_test(np.array([0.0, 0.5, 0.0]), 100, [[2, 1, 0]], delta=0.1, epsilon=0.05)
    assert certificate.rejected.tolist() == [False, False, True]
    assert certificate.tested.tolist() == [False, True, True]


def test_the_level_is_shared_among_paths_not_settings():
    # Without any loss p = 0.9 ** n: 0.9 ** 29 = 0.047 and 0.9 ** 39 = 0.016, of a level of 0.05 and of 0.05 / 3.
    one, three = [[*range(6)]], [[0, 1], [2, 3], [4, 5]]
    for n, paths, passes in ((29, one, True), (28, one, False), (39, three, True), (38, three, False)):
        certificate = learn_then_test(np.zeros(6), n, paths, delta=0.1, epsilon=0.05)
        assert certificate.level == pytest.approx(0.05 / len(paths))
        assert certificate.rejected.tolist() == [passes] * 6
    assert learn_then_test(np.zeros(0), 39, [], delta=0.1, epsilon=0.05).rejected.shape == (0,)


@pytest.mark.parametrize(("level", "n"), [(0.05, 19), (0.05 / 6, 1014), (0.2, 1)])
def test_the_smallest_delta_is_that_of_no_loss(level, n):
    for name in ("hoeffding_bentkus", "exact_binomial"):
        assert smallest_delta(n, level, name) == pytest.approx(1 - level ** (1 / n))
    if n > 1:
        assert smallest_delta(n, level, "hoeffding") == pytest.approx(math.sqrt(-math.log(level) / (2 * n)))
    for name in P_VALUES:
        least = smallest_delta(n, level, name)
        for delta, passes in ((least * 1.001, True), (least * 0.999, False)):
            if delta < 1:
                certificate = learn_then_test(np.zeros(1), n, [[0]], delta=delta, epsilon=level, p_value=name)
                assert certificate.rejected.tolist() == [passes]


def test_one_example_certifies_nothing_by_hoeffding():
    assert smallest_delta(1, 0.05, "hoeffding") == 1.0  # exp(-2) is more


def test_the_cheapest_certified_setting_is_chosen_and_else_the_full_model():
    costs = np.array([5.0, 3.0, 3.0, 1.0])
    assert choose(costs, np.array([True, True, True, False]), 9.0) == 1
    assert choose(costs, np.zeros(4, bool), 9.0) == -1
    assert choose(costs, np.array([True, False, False, False]), 5.0) == -1
    allowed = np.array([[True, False, False, False], [True, True, True, True]])
    assert choose(np.broadcast_to(costs, (2, 4)), allowed, 9.0).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": 0.0}, r"delta is 0.0; allowed: between 0 and 1, both excluded"),
        ({"delta": 1.0}, r"delta is 1.0"),
        ({"delta": math.nan}, r"delta is nan"),
        ({"epsilon": -0.1}, r"epsilon is -0.1; allowed: between 0 and 1"),
        ({"epsilon": 1}, r"epsilon is 1"),
        ({"p_value": "wald"}, r"p_value is 'wald'; allowed: hoeffding_bentkus, exact_binomial, hoeffding"),
        ({"n": 0}, r"n is 0; allowed: at least 1"),
        ({"risks": np.array([0.1, 1.1])}, r"risks spans 0.1 to 1.1; allowed: 0 to 1"),
        ({"risks": np.array([0.1, math.nan])}, r"risks spans nan to nan"),
        ({"paths": [[0]]}, r"paths is \[\[0\]\]; allowed: each of the 2 settings once"),
        ({"paths": [[0, 1], [1]]}, r"allowed: each of the 2 settings once"),
        ({"paths": [[0, 1], []]}, r"paths is \[\[0, 1\], \[\]\]"),
    ],
)
def test_what_cannot_be_tested_is_refused(changes, message):
    arguments = {"risks": np.zeros(2), "n": 30, "paths": [[0, 1]], "delta": 0.1, "epsilon": 0.1, **changes}
    with pytest.raises(ValueError, match=message):
        learn_then_test(**arguments)


# 500 simulated calibrations of a known risk surface over p and K (six paths) and nine thresholds

RUNS, PATHS, THRESHOLDS = 500, 6, 9
ORDER = [list(range(path * THRESHOLDS, (path + 1) * THRESHOLDS)) for path in range(PATHS)]
DELTA, EPSILON, FULL_COST = 0.05, 0.1, 10.0
COSTS = np.ravel(9.0 - np.arange(PATHS)[:, None] * 0.1 - np.arange(THRESHOLDS)[None] * 0.9)
"""Costs fall along each path, and a little from path to path."""


def cliffs() -> np.ndarray:
    """Mean losses that jump from 0 to just above delta: the surface on which errors are most likely."""
    edges = np.array([3, 4, 5, 4, 3, 2])[:, None]
    steps = np.arange(THRESHOLDS)[None]
    return np.ravel(np.where(steps < edges, 0.0, DELTA * 1.001 + 0.01 * (steps - edges)))


def slopes() -> np.ndarray:
    """Mean losses that grow as the threshold falls, faster on some paths, and not at every step."""
    steps, pace = np.arange(THRESHOLDS)[None], np.linspace(0.6, 1.6, PATHS)[:, None]
    return np.ravel(0.11 * (pace * steps / THRESHOLDS) ** 2 + 0.004 * (steps % 2))


def simulate(surface: np.ndarray, n: int, kind: str) -> np.ndarray:
    """Mean losses on n examples of each run, of shape (runs, settings)."""
    rng = np.random.default_rng(0)
    if kind == "0 or 1, settings independent":
        return rng.binomial(n, surface, (RUNS, len(surface))) / n
    if kind == "0 or 1, on the same examples":
        return np.stack([(rng.random((n, 1)) < surface).mean(axis=0) for _ in range(RUNS)])
    # Losses of 1, 0.5 and 0.1, with the same mean.
    values, weights = np.array([1.0, 0.5, 0.1]), np.array([0.5, 0.3, 0.2])
    share = surface / (values @ weights)
    losing = (rng.random((n, 1)) < share for _ in range(RUNS))
    return np.stack([(each * rng.choice(values, (n, 1), p=weights)).mean(axis=0) for each in losing])


def count_broken(surface: np.ndarray, chosen: np.ndarray) -> int:
    """Counts the runs in which the true mean loss of the chosen setting exceeds delta. The full model's is 0."""
    return int((np.append(surface, 0.0)[chosen] > DELTA).sum())


def chance_if_kept(broken: int) -> float:
    """Probability of at least this many broken promises, if each is broken with probability epsilon."""
    return stats.binomtest(broken, RUNS, EPSILON, alternative="greater").pvalue


def select(allowed: np.ndarray) -> np.ndarray:
    return choose(np.broadcast_to(COSTS, allowed.shape), allowed, FULL_COST)


@pytest.mark.parametrize("surface", [cliffs, slopes])
@pytest.mark.parametrize(
    ("p_value", "kind"),
    [
        ("exact_binomial", "0 or 1, settings independent"),
        ("exact_binomial", "0 or 1, on the same examples"),
        ("hoeffding_bentkus", "0 or 1, settings independent"),
        ("hoeffding_bentkus", "between 0 and 1"),
        ("hoeffding", "0 or 1, settings independent"),
    ],
)
def test_the_promise_is_broken_in_at_most_epsilon_of_calibrations(surface, p_value, kind):
    surface = surface()
    risks = simulate(surface, 400, kind)
    certificate = learn_then_test(risks, 400, ORDER, delta=DELTA, epsilon=EPSILON, p_value=p_value)
    broken = count_broken(surface, select(certificate.rejected))
    assert chance_if_kept(broken) >= 0.01, broken


@pytest.mark.parametrize("p_value", ["exact_binomial", "hoeffding_bentkus"])
def test_the_simulation_catches_rules_that_break_the_promise(p_value):
    surface = cliffs()
    risks = simulate(surface, 400, "0 or 1, settings independent")

    def test(epsilon):
        return learn_then_test(risks, 400, ORDER, delta=DELTA, epsilon=epsilon, p_value=p_value)

    right, unshared = test(EPSILON), test(EPSILON * PATHS)
    wrong = {
        "the first failing setting": right.tested & ~right.rejected,
        "delta on these examples": risks <= DELTA,
    }
    if p_value == "exact_binomial":  # the other p-value is too cautious for these to fail
        wrong["the whole level for each path"] = unshared.rejected
        wrong["whatever passes by itself"] = right.p_values <= EPSILON
    for name, allowed in wrong.items():
        assert chance_if_kept(count_broken(surface, select(allowed))) < 1e-6, name


def saving(n: int, p_value: str, kind: str = "0 or 1, on the same examples") -> float:
    """The mean saving compared with the full model, as a share of the largest saving that the promise allows."""
    surface = slopes()
    certificate = learn_then_test(
        simulate(surface, n, kind), n, ORDER, delta=DELTA, epsilon=EPSILON, p_value=p_value
    )
    costs = np.append(COSTS, FULL_COST)[select(certificate.rejected)]
    return float((FULL_COST - costs.mean()) / (FULL_COST - COSTS[surface <= DELTA].min()))


def test_with_more_examples_the_choice_comes_close_to_the_best_possible():
    savings = [saving(n, "hoeffding_bentkus") for n in (100, 400, 1600, 6400)]
    assert savings == sorted(savings)
    assert savings[-1] >= 0.95


def test_sharper_p_values_save_more():
    exact, bentkus, plain = (saving(400, name) for name in ("exact_binomial", "hoeffding_bentkus", "hoeffding"))
    assert exact >= bentkus > plain + 0.1
