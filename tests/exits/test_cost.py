"""The bytes that a step must read, against a list of what it multiplies with."""

import numpy as np
import pytest

from dvp_jax.exits.cost import bytes_per_token
from dvp_jax.exits.policy import CALM, DVP, Oracle, ShallowDeep, Static
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
