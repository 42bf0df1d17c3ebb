"""Confidence, pruning, thresholds and FLOP counts against closed forms and plain loops."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvp_jax.exits.confidence import best_two, softmax_diff
from dvp_jax.exits.flops import decoder_layer_flops, paper_confidence_flops, unembedding_flops
from dvp_jax.exits.policy import CALM, DVP, Static
from dvp_jax.exits.thresholds import threshold_schedule
from dvp_jax.exits.vocabulary import Vocabulary
from dvp_jax.t5.config import T5Config


def confidence(logits):
    logits = jnp.asarray(logits, jnp.float32)
    return np.asarray(softmax_diff(logits, best_two(logits)))


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=50), st.floats(-1e4, 1e4, width=32))
def test_softmax_diff_is_the_gap_between_the_two_largest_probabilities(row, shift):
    logits = np.float32(row) + np.float32(shift)
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    ordered = np.sort(exponentials / exponentials.sum())
    np.testing.assert_allclose(confidence(logits[None])[0], ordered[-1] - ordered[-2], atol=1e-6)


def test_softmax_diff_of_known_rows():
    log = np.log([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2], [0.05, 0.05, 0.9]])
    np.testing.assert_allclose(confidence(log), [0.5, 0.0, 0.85], atol=1e-6)


def test_one_candidate_is_certain():
    assert confidence([[-3.0], [7.0]]).tolist() == [1.0, 1.0]


def test_the_best_of_equal_candidates_is_the_first():
    assert best_two(jnp.array([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0]])).candidate.tolist() == [1, 0]


def vocabulary(rows):
    rows = jnp.asarray(rows, jnp.float32)
    return Vocabulary(rows=rows, ids=None, norm=jnp.ones(rows.shape[1]), screen=None, epsilon=0.0, scale=1.0)


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


def test_pruned_logits_are_the_kept_entries_of_the_whole_logits():
    rng = np.random.default_rng(0)
    whole = vocabulary(rng.normal(size=(50, 8)))
    hidden = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)
    logits = whole.logits(hidden)
    normed = np.asarray(hidden, np.float64) / np.sqrt((np.asarray(hidden, np.float64) ** 2).mean(1, keepdims=True))
    np.testing.assert_allclose(logits, normed @ np.asarray(whole.rows, np.float64).T, rtol=1e-5, atol=1e-5)
    pruned = whole.prune(logits, 7)
    expected = np.take_along_axis(np.asarray(logits), np.asarray(pruned.ids), axis=1)
    np.testing.assert_allclose(pruned.logits(hidden), expected, rtol=1e-5, atol=1e-5)
    best = best_two(pruned.logits(hidden)).candidate
    np.testing.assert_array_equal(pruned.token(best), np.argmax(logits, axis=1))


def test_thresholds_are_constant_or_decay_as_calm_published_it():
    np.testing.assert_array_equal(threshold_schedule(0.25, 3, 2), np.full((3, 2), 0.25))
    decayed = np.asarray(threshold_schedule(0.8, 4, 2, decay_temperature=2.0))
    for t in range(1, 5):
        np.testing.assert_allclose(decayed[t - 1], 0.72 + 0.08 * np.exp(-2.0 * t / 4), rtol=1e-6)


CONFIG = T5Config(vocab_size=1000, d_model=16, d_kv=4, d_ff=32, num_heads=3, num_layers=2, num_decoder_layers=6)
V, D, L = 1000, 16, 6


@pytest.mark.parametrize("exit_layer", range(1, L + 1))
def test_the_papers_count_is_its_sum_over_depths(exit_layer):
    calm = sum((2 * D - 1) * V for _ in range(min(exit_layer, L - 1) + 1))
    dvp = sum((2 * D - 1) * (V if depth <= 2 else 50) for depth in range(min(exit_layer, L - 1) + 1))
    exits = np.array([exit_layer])
    assert paper_confidence_flops(exits, CALM(L, "softmax_diff", 2), CONFIG).tolist() == [calm]
    assert paper_confidence_flops(exits, DVP(L, "softmax_diff", 2, 2, 50, "full"), CONFIG).tolist() == [dvp]
    assert paper_confidence_flops(exits, Static(L, "softmax_diff"), CONFIG).tolist() == [0]


def test_the_papers_count_falls_about_sevenfold_at_its_own_settings():
    large = T5Config(d_model=1024, d_ff=4096, num_heads=16, num_layers=24, num_decoder_layers=24)
    exits = np.array([23])  # deep exits, where pruning saves most: 24 depths against 3 and a little
    ratio = paper_confidence_flops(exits, CALM(24, "softmax_diff", 2), large) / paper_confidence_flops(
        exits, DVP(24, "softmax_diff", 2, 2, 64, "full"), large
    )
    assert 7.0 < ratio[0] < 8.0


@pytest.mark.parametrize("final_vocab", ["full", "pruned"])
@pytest.mark.parametrize(
    ("prune_layer", "min_exit_layer", "exit_layer"),
    [(p, least, e) for p, least in [(2, 2), (1, 3), (3, 6)] for e in range(least, L + 1)],
)
def test_the_real_count_is_that_of_the_products_computed(exit_layer, prune_layer, min_exit_layer, final_vocab):
    candidates = [depth for depth in range(min_exit_layer, L) if depth <= exit_layer]
    calm = 2 * D * V * (len(candidates) + (exit_layer == L))
    exits = np.array([exit_layer])
    assert unembedding_flops(exits, CALM(L, "softmax_diff", min_exit_layer), CONFIG).tolist() == [calm]
    whole_at = {prune_layer} | ({L} if exit_layer == L and final_vocab == "full" else set())
    read_at = set(candidates) | {prune_layer} | ({L} if exit_layer == L else set())
    dvp = sum(2 * D * (V if depth in whole_at else 50) for depth in read_at)
    policy = DVP(L, "softmax_diff", min_exit_layer, prune_layer, 50, final_vocab)
    assert unembedding_flops(exits, policy, CONFIG).tolist() == [dvp]
    assert unembedding_flops(exits, Static(exit_layer, "softmax_diff"), CONFIG).tolist() == [2 * D * V]


def test_layer_flops_count_every_product_once():
    inner, source = 12, 10
    products = {
        "self q": D * inner, "self k": D * inner, "self v": D * inner, "self o": inner * D,
        "cross q": D * inner, "cross o": inner * D, "cross scores": inner * source, "cross values": inner * source,
        "wi": D * 32, "wo": 32 * D,
    }  # fmt: skip
    skipped = 2 * (products["self k"] + products["self v"])
    expected = [2 * sum(products.values()) * e + skipped * (L - e) for e in (1, 4, 6)]
    assert decoder_layer_flops(np.array([1, 4, 6]), CONFIG, source).tolist() == expected
