"""The kept set of a vocabulary and its logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvp_jax.exits.confidence import best_two, entropy, softmax_diff, softmax_max
from tests.exits.helpers import vocabulary


@given(
    st.lists(st.integers(-3, 3), min_size=5, max_size=40).flatmap(
        lambda row: st.tuples(st.just(row), st.integers(1, len(row)))
    )
)
def test_pruning_keeps_the_likeliest_tokens_and_of_equal_ones_the_smaller_ids(row_and_size):
    row, size = row_and_size  # small integers: many ties
    expected = sorted(sorted(range(len(row)), key=lambda i: (-row[i], i))[:size])
    rows = np.arange(len(row), dtype=np.float32)[:, None] * np.ones(3, np.float32)
    kept = vocabulary(rows).prune(jnp.asarray([row], jnp.float32), size)
    assert kept.ids.tolist() == [expected]
    np.testing.assert_array_equal(kept.rows[0, :, 0], expected)


def test_pruned_logits_are_the_kept_entries_of_the_full_logits():
    rng = np.random.default_rng(0)
    full = vocabulary(rng.normal(size=(50, 8)))
    hidden = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)
    logits = full.logits(hidden)
    normed = np.asarray(hidden, np.float64) / np.sqrt((np.asarray(hidden, np.float64) ** 2).mean(1, keepdims=True))
    np.testing.assert_allclose(logits, normed @ np.asarray(full.rows, np.float64).T, rtol=1e-5, atol=1e-5)
    pruned = full.prune(logits, 7)
    expected = np.take_along_axis(np.asarray(logits), np.asarray(pruned.ids), axis=1)
    np.testing.assert_allclose(pruned.logits(hidden), expected, rtol=1e-5, atol=1e-5)
    best = best_two(pruned.logits(hidden)).candidate
    np.testing.assert_array_equal(pruned.token(best), np.argmax(logits, axis=1))


@pytest.mark.parametrize("measure", [softmax_diff, softmax_max, entropy])
@pytest.mark.parametrize("size", [None, 7, 64])
def test_no_confidence_exceeds_one_where_xla_fuses_it_with_the_logits(measure, size):
    # Sure states, in which rounding could decide: the best row is far ahead of the others.
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 64)).astype(np.float32)
    hidden = jnp.asarray(rows[rng.integers(0, 500, 400)] * 3.7 + 0.01 * rng.normal(size=(400, 64)), jnp.float32)

    @jax.jit
    def confidence(hidden):
        full = vocabulary(rows)
        kept = full if size is None else full.prune(full.logits(hidden), size)
        logits = kept.logits(hidden)
        return measure(logits, best_two(logits))

    for batch in (1, 2, 400):
        starts = range(0, min(40 * batch, len(hidden)), batch)
        values = np.concatenate([confidence(hidden[start : start + batch]) for start in starts])
        assert values.max() > 0.99 and (values <= 1.0).all() and (values >= 0.0).all()
