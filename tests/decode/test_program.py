"""What is compiled when, and what the compiled program does with the weights."""

import dataclasses
import re

import jax
import numpy as np
import pytest

import dvp_jax
from dvp_jax.decode import api, token_loop
from dvp_jax.decode.api import encode, lower_decode
from tests.decode.helpers import DVP, run
from tests.models import both


def test_a_changed_threshold_does_not_recompile():
    compiled = token_loop.decode_tokens._cache_size()
    for threshold in (0.11, 0.5, 0.93):
        for decay in (None, 3.0):
            for per_depth in (None, (threshold, 0.2, 0.3, 1.0)):
                thresholds = {
                    "threshold": threshold,
                    "thresholds_per_depth": per_depth,
                    "decay_temperature": decay,
                }
                run([[3, 4, 5]], dataclasses.replace(DVP, prune_size=17, **thresholds))
    assert token_loop.decode_tokens._cache_size() == compiled + 1


def test_lengths_within_a_bucket_share_one_program():
    compiled = api._encode._cache_size(), token_loop.decode_tokens._cache_size()
    cfg = dataclasses.replace(DVP, prune_size=19)
    for length in (33, 40, 50, 64):
        run([[7] * length], cfg)
    sizes = api._encode._cache_size(), token_loop.decode_tokens._cache_size()
    assert sizes[1] == compiled[1] + 1 and sizes[0] <= compiled[0] + 1


@pytest.mark.parametrize(("every", "rows"), [(1, 1), (3, 1), (1, 4)])
@pytest.mark.parametrize("method", ["full", "calm", "dvp"])
def test_no_weight_is_copied_or_transposed_in_the_compiled_program(method, every, rows):
    # Dimensions that nothing but weights has.
    _, model = both("t5", vocab_size=1009, d_model=96, d_kv=20, d_ff=264, num_heads=5)
    ids = np.full((rows, 20), 3)
    cfg = dvp_jax.DecodeConfig(method=method, max_new_tokens=16, branch_every=every, unembedding="float")
    lowered, _ = lower_decode(model, encode(model, ids, np.ones_like(ids)), cfg)
    hlo = lowered.compile().as_text()
    matrices = [leaf for leaf in jax.tree.leaves(model.params) if leaf.ndim == 2 and leaf.size > 1000]
    weights = {tuple(sorted(leaf.shape)) for leaf in matrices}
    assert (96, 264) in weights and (96, 1009) in weights
    moved = re.findall(r"= \w+\[([\d,]*)\]\S* (?:copy|transpose|copy-start|concatenate)\(", hlo)
    shapes = {tuple(sorted(map(int, dims.split(",")))) for dims in moved if dims}
    assert shapes, "the pattern found no copies at all: has the text format changed?"
    assert not shapes & weights
    if rows > 1:  # of few rows the weight is the left operand: the product has its rows first
        products = set(re.findall(r"= f32\[(\d+,\d+)\]\S* dot\(", hlo))
        assert {f"{size},{rows}" for size in (96, 100, 264, 1009)} <= products
        assert not any(product.startswith(f"{rows},") for product in products - {f"{rows},64", f"{rows},5"})
    assert not re.search(r"= .*(?:infeed|outfeed|send|recv|callback)", hlo), "the loop must not visit the host"


def test_the_int8_copy_is_never_widened_as_a_whole():
    _, model = both("t5", vocab_size=2500, d_model=96)
    ids = np.full((1, 20), 3)
    encoded = encode(model, ids, np.ones_like(ids))
    assert model.int8_unembedding.rows.shape == (3, 2, 512, 96)
    lowered, _ = lower_decode(model, encoded, dvp_jax.DecodeConfig(max_new_tokens=16, unembedding="int8"))
    computations = re.split(r"\n\n", lowered.compile().as_text())
    copies = [text for text in computations if "s8[3,2,512,96]" in text]
    assert copies, "else the copy is not there at all"
    # Within a fusion nothing is stored.
    assert not any("f32[3,2,512,96]" in text for text in copies if "fused_computation" not in text.split("{")[0])
