"""FLOPs against sums over depths, and bytes against a list of the products of a step."""

import numpy as np
import pytest

from dvp_jax.exits.cost import (
    bytes_per_token,
    decoder_layer_flops,
    paper_confidence_flops,
    unembedding_flops,
)
from dvp_jax.exits.policy import CALM, DVP, Full, Lossless, Oracle, ShallowDeep, Static
from dvp_jax.exits.pruning import Decay, Fixed, Mass
from dvp_jax.t5.config import T5Config

D, INNER, FF, V, L, S, N, K = 16, 12, 32, 1000, 6, 40, 10, 50
CONFIG = T5Config(vocab_size=V, d_model=D, d_kv=4, d_ff=FF, num_heads=3, num_layers=2, num_decoder_layers=L)
WEIGHTS = {name: D * INNER for name in ("q", "k", "v", "o", "cross q", "cross o")} | {"wi": D * FF, "wo": D * FF}


def layers(exit_layer, batch, propagated=True):
    numbers = 0
    for depth in range(1, L + 1):
        if depth <= exit_layer:
            numbers += sum(WEIGHTS.values())
            numbers += batch * 2 * INNER * S  # cross-attention keys and values
            numbers += batch * 2 * INNER * N / 2  # the cache, half full on average
        elif propagated:
            numbers += WEIGHTS["k"] + WEIGHTS["v"]
    return numbers


def bytes_of(policy, exit_layer, batch=1, **fields):
    (out,) = bytes_per_token(
        np.array([exit_layer]), policy, CONFIG, source_length=S, new_tokens=N, batch=batch, **fields
    )
    return out


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("exit_layer", range(2, L + 1))
def test_bytes_are_those_of_the_products_computed(exit_layer, batch):
    asked = [depth for depth in range(2, L) if depth <= exit_layer]
    last = int(exit_layer == L)
    base = layers(exit_layer, batch)
    alone = layers(exit_layer, batch, propagated=False)  # no layer beyond the static exit ever runs
    assert bytes_of(Static(L, "softmax_diff", exit_layer), exit_layer, batch) == 4 * (alone + D * V)
    calm = CALM(L, "softmax_diff", 2)
    assert bytes_of(calm, exit_layer, batch) == 4 * (base + (len(asked) + last) * D * V)
    for final_vocab, final in (("full", D * V), ("pruned", batch * D * K)):
        dvp = DVP(L, "softmax_diff", 2, 2, Fixed(K), final_vocab)
        read = D * V + (len(asked) - 1) * batch * D * K + last * final
        assert bytes_of(dvp, exit_layer, batch) == 4 * (base + read)
        assert bytes_of(dvp, exit_layer, batch, itemsize=2) == 2 * (base + read)


@pytest.mark.parametrize("exit_layer", range(2, L + 1))
def test_masked_rows_are_read_too(exit_layer):
    fixed = DVP(L, "softmax_diff", 2, 2, Fixed(K), "pruned")
    mass = DVP(L, "softmax_diff", 2, 2, Mass(K, 0.5), "pruned")
    # 76 / (1 + 46 / 30 * 2 / 6) = 50.29: what is gathered at p stays, however few of it are still candidates.
    decay = DVP(L, "softmax_diff", 2, 2, Decay(76, 30, L), "pruned")
    assert bytes_of(mass, exit_layer) == bytes_of(decay, exit_layer) == bytes_of(fixed, exit_layer)


@pytest.mark.parametrize("exit_layer", range(2, L + 1))
@pytest.mark.parametrize("policy", [CALM(L, "state", 2), Oracle(L, "entropy", 2, "full")])
def test_where_confidence_needs_no_vocabulary_it_is_read_once(policy, exit_layer):
    assert bytes_of(policy, exit_layer) == 4 * (layers(exit_layer, 1) + D * V)


def test_the_int8_copy_is_a_quarter_of_the_vocabulary_and_what_is_rescored():
    dvp = DVP(L, "softmax_diff", 2, 2, Fixed(K), "full")
    whole = bytes_of(dvp, 2) - 4 * layers(2, 1)
    from_copy = bytes_of(dvp, 2, int8_unembedding=True) - 4 * layers(2, 1)
    assert whole == 4 * D * V
    assert from_copy == D * V + 4 * D * (2 * K + 64)


def test_tokens_that_wait_share_the_weights_of_the_layers_that_they_skipped():
    together = ShallowDeep(L, "softmax_diff", 3, max_waiting=8)
    skipped = layers(L, 1) - layers(3, 1, propagated=False)  # whole layers wait
    assert bytes_of(together, 3) == 4 * (layers(3, 1, propagated=False) + skipped / 8 + D * V)
    assert bytes_of(together, L) == 4 * (layers(L, 1) + 2 * D * V)


@pytest.mark.parametrize(("int8", "at_p"), [(False, 4 * D * V), (True, D * V + 4 * D * (2 * K + 64))])
def test_drafts_that_wait_are_verified_by_one_pass_over_the_vocabulary_itself(int8, at_p):
    draft = DVP(L, "softmax_diff", 2, 2, Fixed(K), "full")
    together = Lossless(L, "softmax_diff", draft=draft, max_waiting=8)
    skipped = layers(L, 1) - layers(3, 1, propagated=False)
    expected = 4 * (layers(3, 1, propagated=False) + skipped / 8 + D * K + D * V / 8) + at_p
    assert bytes_of(together, 3, int8_unembedding=int8) == expected
    # A token that is no draft costs what it costs without drafts.
    assert bytes_of(together, L, int8_unembedding=int8) == bytes_of(draft, L, int8_unembedding=int8)


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


@pytest.mark.parametrize(
    ("exit_depths", "asked"),
    [(2, {2: 1, 3: 1, 4: 2, 6: 2}), ((1, 5), {1: 1, 2: 1, 5: 2, 6: 2}), ((3, L), {3: 1, 5: 1, 6: 1})],
)
def test_only_chosen_depths_are_asked(exit_depths, asked):
    calm = CALM(L, "softmax_diff", 2, exit_depths=exit_depths)
    for exit_layer, times in asked.items():
        products = times + (exit_layer == L)
        assert unembedding_flops(np.array([exit_layer]), calm, CONFIG).tolist() == [2 * D * V * products]


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
