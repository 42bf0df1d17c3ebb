"""Confidence, pruning, thresholds and FLOP counts against closed forms and plain loops."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.special
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from dvp_jax.exits.confidence import States, best_two, entropy, softmax_diff, softmax_max, state
from dvp_jax.exits.cost import decoder_layer_flops, paper_confidence_flops, unembedding_flops
from dvp_jax.exits.policy import CALM, DVP, Full, Oracle, ShallowDeep, Static
from dvp_jax.exits.pruning import Decay, Fixed, Mass
from dvp_jax.exits.thresholds import threshold_schedule
from dvp_jax.exits.vocabulary import Vocabulary
from dvp_jax.t5.config import T5Config


def confidence(logits, measure=softmax_diff):
    logits = jnp.asarray(logits, jnp.float32)
    return np.asarray(measure(logits, best_two(logits)))


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=50), st.floats(-1e4, 1e4, width=32))
def test_softmax_diff_is_the_gap_between_the_two_largest_probabilities(row, shift):
    logits = np.float32(row) + np.float32(shift)
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    ordered = np.sort(exponentials / exponentials.sum())
    np.testing.assert_allclose(confidence(logits[None])[0], ordered[-1] - ordered[-2], atol=1e-6)


def test_softmax_diff_of_known_rows():
    log = np.log([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2], [0.05, 0.05, 0.9]])
    np.testing.assert_allclose(confidence(log), [0.5, 0.0, 0.85], atol=1e-6)


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=50), st.floats(-1e4, 1e4, width=32))
def test_softmax_max_and_entropy_are_those_of_the_probabilities(row, shift):
    logits = np.float32(row) + np.float32(shift)
    probabilities = scipy.special.softmax(logits.astype(np.float64))
    np.testing.assert_allclose(confidence(logits[None], softmax_max)[0], probabilities.max(), atol=1e-6)
    expected = 1.0 - scipy.stats.entropy(probabilities) / np.log(len(row))
    np.testing.assert_allclose(confidence(logits[None], entropy)[0], expected, atol=1e-5)


@pytest.mark.parametrize("measure", [softmax_diff, softmax_max, entropy])
def test_a_masked_candidate_is_as_good_as_absent(measure):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 9)) * 4
    masked = np.full((20, 30), -np.inf)
    masked[:, 5:23:2] = logits
    np.testing.assert_allclose(confidence(masked, measure), confidence(logits, measure), atol=1e-6)


@pytest.mark.parametrize("measure", [softmax_diff, softmax_max, entropy])
def test_one_candidate_is_certain(measure):
    assert confidence([[-3.0], [7.0]], measure).tolist() == [1.0, 1.0]
    assert confidence([[-np.inf, -3.0, -np.inf], [7.0, -np.inf, -np.inf]], measure).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("measure", [softmax_diff, softmax_max, entropy])
def test_no_measure_exceeds_one_by_rounding(measure):
    rng = np.random.default_rng(0)
    for width in (2, 7, 300):
        logits = rng.normal(size=(500, width)) * 30
        logits[:100, 0] = 200.0
        assert (confidence(logits, measure) <= 1.0).all() and (confidence(logits, measure) >= 0.0).all()


def cosine(hidden, before):
    hidden, before = jnp.asarray(hidden, jnp.float32), jnp.asarray(before, jnp.float32)
    return np.asarray(state(States(hidden, before, hidden, None)))


def test_state_is_the_cosine_and_a_negative_one_counts_as_zero():
    rng = np.random.default_rng(0)
    hidden, before = rng.normal(size=(2, 200, 6)) + 0.5
    expected = [1.0 - scipy.spatial.distance.cosine(*pair) for pair in zip(hidden, before, strict=True)]
    assert min(expected) < -0.1
    np.testing.assert_allclose(cosine(hidden, before), np.maximum(expected, 0.0), atol=1e-6)
    assert cosine(np.zeros((1, 6)), before[:1]).tolist() == [0.0]


def test_the_cosine_of_a_state_and_itself_does_not_exceed_one_by_rounding():
    hidden = np.random.default_rng(0).normal(size=(1000, 33)) * 100
    assert (cosine(hidden, hidden) <= 1.0).all()
    np.testing.assert_allclose(cosine(hidden, hidden), 1.0, atol=1e-6)


def test_the_best_of_equal_candidates_is_the_first():
    assert best_two(jnp.array([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0]])).candidate.tolist() == [1, 0]


def vocabulary(rows):
    rows = jnp.asarray(rows, jnp.float32)
    return Vocabulary(rows=rows, ids=None, norm=jnp.ones(rows.shape[1]), int8=None, epsilon=0.0, scale=1.0)


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


def test_each_depth_has_its_own_threshold_which_decays_as_one_alone():
    np.testing.assert_array_equal(threshold_schedule((0.25, 0.5), 3, 2), [[0.25, 0.5]] * 3)
    both = np.asarray(threshold_schedule((0.25, 0.5), 3, 2, decay_temperature=2.0))
    for depth, threshold in enumerate((0.25, 0.5)):
        alone = np.asarray(threshold_schedule(threshold, 3, 2, decay_temperature=2.0))
        np.testing.assert_array_equal(both[:, depth], alone[:, depth])


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
    assert paper_confidence_flops(exits, DVP(L, "softmax_diff", 2, 2, Fixed(50), "full"), CONFIG).tolist() == [dvp]
    assert paper_confidence_flops(exits, Full(L, "softmax_diff"), CONFIG).tolist() == [0]


def test_the_papers_count_falls_about_sevenfold_at_its_own_settings():
    large = T5Config(d_model=1024, d_ff=4096, num_heads=16, num_layers=24, num_decoder_layers=24)
    exits = np.array([23])  # deep exits, where pruning saves most: 24 depths against 3 and a little
    ratio = paper_confidence_flops(exits, CALM(24, "softmax_diff", 2), large) / paper_confidence_flops(
        exits, DVP(24, "softmax_diff", 2, 2, Fixed(64), "full"), large
    )
    assert 7.0 < ratio[0] < 8.0


# By p: K_max / (1 + (K_max - K_min) / K_min * p / L) is 50.23, 50.29 and 50.24, so 50 rows are gathered.
DECAY_TO_50 = {1: Decay(72, 20, L), 2: Decay(76, 30, L), 3: Decay(89, 35, L)}


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
    for rule in (Fixed(50), Mass(50, 0.9), DECAY_TO_50[prune_layer]):
        policy = DVP(L, "entropy", min_exit_layer, prune_layer, rule, final_vocab)
        assert unembedding_flops(exits, policy, CONFIG).tolist() == [dvp]
    only_the_token = [
        Static(L, "softmax_diff", exit_layer),
        CALM(L, "state", min_exit_layer),
        Oracle(L, "softmax_diff", min_exit_layer, "own"),
    ]
    for policy in only_the_token:
        assert unembedding_flops(exits, policy, CONFIG).tolist() == [2 * D * V]
        assert paper_confidence_flops(exits, policy, CONFIG).tolist() == [0]


def test_layer_flops_count_every_product_once():
    inner, source = 12, 10
    products = {
        "self q": D * inner, "self k": D * inner, "self v": D * inner, "self o": inner * D,
        "cross q": D * inner, "cross o": inner * D, "cross scores": inner * source, "cross values": inner * source,
        "wi": D * 32, "wo": 32 * D,
    }  # fmt: skip
    skipped = 2 * (products["self k"] + products["self v"])
    expected = [2 * sum(products.values()) * e + skipped * (L - e) for e in (1, 4, 6)]
    calm = CALM(L, "softmax_diff", 1)
    assert decoder_layer_flops(np.array([1, 4, 6]), calm, CONFIG, source).tolist() == expected
    layer = 2 * sum(products.values())
    static = Static(L, "softmax_diff", 4)  # no token ever runs the layers beyond, which so are owed nothing
    assert decoder_layer_flops(np.array([4]), static, CONFIG, source).tolist() == [4 * layer]
    together = ShallowDeep(L, "softmax_diff", 2)  # the deeper layers run later
    assert decoder_layer_flops(np.array([2, L]), together, CONFIG, source).tolist() == [L * layer] * 2
