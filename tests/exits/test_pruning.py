"""Pruning rules against sorted lists and the published law."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dvp_jax.exits.pruning import Decay, Hints, Mass, Recent
from tests.exits.helpers import vocabulary


def kept_sets(pruned):
    return [set(ids[kept].tolist()) for ids, kept in zip(np.array(pruned.ids), np.array(pruned.kept), strict=True)]


@given(
    st.lists(st.integers(-3, 3), min_size=5, max_size=40),
    st.sampled_from([0.05, 0.5, 0.8, 0.99]),
    st.integers(1, 5),
)
def test_mass_keeps_the_smallest_set_that_reaches_it_or_as_many_as_allowed(row, mass, size):
    probabilities = np.exp(np.float64(row)) / np.exp(np.float64(row)).sum()
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    held = np.cumsum(probabilities[order])
    assume(np.abs(held - mass).min() > 1e-5)
    needed = next(count for count, sum_so_far in enumerate(held, 1) if sum_so_far >= mass)
    logits = jnp.asarray([row, row[::-1]], jnp.float32)
    pruned = Mass(size, mass).prune(1, logits, vocabulary(np.ones((len(row), 3))))
    assert pruned.ids.shape == (2, size)
    assert kept_sets(pruned)[0] == set(order[: min(needed, size)])
    assert len(kept_sets(pruned)[1]) == min(needed, size)


def test_the_set_of_decay_shrinks_by_the_published_law():
    # Worked out by hand from K_max / (1 + (K_max - K_min) / K_min * l / L).
    assert [Decay(64, 16, 6).size_at(depth) for depth in range(7)] == [64, 42, 32, 25, 21, 18, 16]
    # The default of the published code, at p = 7 of 24.
    assert Decay(35000, 250, 24).size_at(7) == 842
    assert [Decay(5, 5, 4).size_at(depth) for depth in range(5)] == [5] * 5


@pytest.mark.parametrize("least", [1, 2, 7, 40])
@pytest.mark.parametrize("layers", [2, 12, 24])
def test_decay_ends_at_its_smallest_size_and_never_grows(least, layers):
    sizes = [Decay(40, least, layers).size_at(depth) for depth in range(layers + 1)]
    assert sizes[0] == 40 and sizes[-1] == least and sizes == sorted(sizes, reverse=True)


def test_decay_prunes_anew_from_the_logits_of_each_depth():
    rng = np.random.default_rng(0)
    first, second, third = rng.normal(size=(3, 4, 50)).astype(np.float32)
    rule = Decay(30, 2, 6)
    pruned = rule.prune(1, jnp.asarray(first), vocabulary(np.ones((50, 3))))
    sets = [set(np.argsort(-row)[: rule.size_at(1)].tolist()) for row in first]
    assert kept_sets(pruned) == sets
    kept = pruned.kept
    for depth, logits in ((3, second), (4, third)):
        seen = jnp.where(kept, jnp.take_along_axis(jnp.asarray(logits), pruned.ids, axis=1), -jnp.inf)
        read, kept = rule.shrink(depth, seen, kept)
        sets = [
            set(sorted(before, key=lambda i, row=row: -row[i])[: rule.size_at(depth)])
            for before, row in zip(sets, logits, strict=True)
        ]
        assert kept_sets(dataclasses.replace(pruned, kept=kept)) == sets
        np.testing.assert_array_equal(np.isfinite(read), kept)


def test_recent_keeps_ids_of_the_source_likely_ids_and_common_ids_each_once():
    hints = Hints(
        source=jnp.array([[9, 9, 1, 7, 8], [3, 4, 5, 1, 0]]),
        recent=jnp.array([[30, 9], [2, 40]]),
        common=jnp.array([5, 30, 31, 32, 33, 34, 35, 36]),
    )
    pruned = Recent(8).guess(hints, vocabulary(np.arange(150.0).reshape(50, 3)))
    # Two of the source, two likely ones, and the commonest four.
    assert kept_sets(pruned) == [{9, 30, 5, 31, 32}, {3, 4, 2, 40, 5, 30, 31, 32}]
    assert pruned.kept.sum() == 5 + 8, "no id counts twice"
    assert (np.diff(pruned.ids, axis=1) >= 0).all()
    np.testing.assert_array_equal(pruned.rows[..., 0], 3.0 * pruned.ids)
