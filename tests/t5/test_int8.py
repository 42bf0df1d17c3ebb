"""Logits through an int8 copy of the unembedding against products in float64."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dvp_jax
from dvp_jax.t5.int8 import Int8Unembedding, num_rescored, quantize_unembedding, rows_logits
from dvp_jax.t5.model import T5, unembedding
from tests.models import both

V, D = 700, 24
int8_logits = jax.jit(Int8Unembedding.logits, static_argnums=3)


def weight_and_states(seed, kind):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(V, D))
    if kind == "rows of many lengths":
        weight *= np.exp(rng.normal(size=(V, 1)))
    elif kind == "an outlier in each row":
        weight[np.arange(V), rng.integers(D, size=V)] *= 30.0
    elif kind == "all rows nearly equal":  # closer than int8 tells apart: W itself must be read
        weight = weight[:1] + 1e-4 * weight
    return weight.astype(np.float32), rng.normal(size=(3, D)).astype(np.float32)


KINDS = ["normal", "rows of many lengths", "an outlier in each row", "all rows nearly equal"]


@given(st.integers(0, 1000), st.sampled_from(KINDS), st.sampled_from([1, 5, 60, 300]))
def test_the_largest_logits_are_exact_and_truly_the_largest(seed, kind, num_exact):
    weight, states = weight_and_states(seed, kind)
    expected = states.astype(np.float64) @ weight.astype(np.float64).T
    logits = np.asarray(int8_logits(quantize_unembedding(weight), states, weight, num_exact))
    for row, exact in zip(logits, expected, strict=True):
        largest = np.argsort(-row, kind="stable")[:num_exact]
        np.testing.assert_allclose(row[largest], exact[largest], rtol=1e-5, atol=1e-5)
        assert exact[largest].min() >= np.sort(exact)[-num_exact] - 1e-5


@given(st.integers(0, 1000), st.sampled_from(KINDS))
def test_a_row_and_its_copy_differ_by_no_more_than_the_bound(seed, kind):
    weight, states = weight_and_states(seed, kind)
    int8 = quantize_unembedding(weight)
    copy = np.asarray(int8.rows, np.float64).reshape(-1, D)[:V] * np.asarray(int8.scale, np.float64)[:, None]
    difference = np.abs(states.astype(np.float64) @ (weight - copy).T)
    bound = np.asarray(int8.error) * np.linalg.norm(states, axis=1, keepdims=True)
    assert (difference <= bound).all()
    assert kind == "all rows nearly equal" or difference.max() > 0.01 * bound.min(), "else the bound says nothing"


def test_rows_closer_than_the_copy_tells_apart_are_not_proven():
    for kind, proven in (("normal", True), ("all rows nearly equal", False)):
        weight, states = weight_and_states(0, kind)
        assert (quantize_unembedding(weight).rescore(states, weight, 1).proven == proven).all()


def test_only_as_many_rows_are_proven_as_were_asked_for():
    weight, states = weight_and_states(0, "all rows nearly equal")
    weight[0] = 2.0 * states[0]  # far the largest for the first state; the second largest cannot be told
    for num_exact, proven in ((1, True), (2, False)):
        assert quantize_unembedding(weight).rescore(states[:1], weight, num_exact).proven == proven


@pytest.mark.parametrize("fractions", [(0.05, 0.2), (0.3, 0.45), (0.4, 0.2), (0.8, 0.7)])
def test_a_row_that_float32_sums_too_low_is_not_proven_to_be_no_candidate(fractions):
    """One row has the largest logit, in float64, but its long sum of equal terms is rounded down at each addition,
    and that of 66 other rows up. All rows equal their int8 copies."""
    half = 16384
    down, up = (np.float32((np.floor(0.999 * 2**24 / half) + fraction) / 127) for fraction in fractions)
    count = int(half * min(1.0, float(up) / float(down)))  # the sum of `count` terms is just below the others
    weight = np.zeros((67, 2 * half + 1), np.float32)
    weight[0, :count] = weight[0, -1] = weight[1:, half:-1] = 1.0
    state = np.repeat([down, up, 0], [half, half, 1]).astype(np.float32)
    norms = np.linalg.norm(state.astype(np.float64)) * half**0.5
    state[-1] = half * float(up) - count * float(down) + 1e-6 * norms
    exact = weight.astype(np.float64) @ state.astype(np.float64)
    assert exact[0] > exact[1:].max()
    rescored = jax.jit(Int8Unembedding.rescore, static_argnums=3)(
        quantize_unembedding(weight), state[None], weight, 1
    )
    assert 0 in rescored.ids[0] or not rescored.proven[0]


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 512])
def test_a_trained_models_kept_set_is_found_and_proven(shared, size):
    model = dvp_jax.load_model(shared / "models" / "t5-multi30k-ende")
    weight = unembedding(model.config, model.params)
    states = []
    for line in (shared / "golden" / "t5-multi30k-ende.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["method"] == "full" and len(states) < 3:
            source, target = np.array([row["input_ids"]]), np.array([[0, *row["tokens"][:-1]]])

            def read(t5, source=source, target=target):
                return t5.readout(jnp.stack(t5.depths(source, source > 0, target)))

            states.append(nn.apply(read, T5(model.config))({"params": model.params})[:, 0])
    states = np.concatenate(states, axis=1)[:4].reshape(-1, model.config.d_model)  # the early depths
    rescored = jax.jit(model.int8_unembedding.rescore, static_argnums=2)(states, weight, size)
    exact = states @ np.asarray(weight).T
    kept = np.argpartition(-exact, size, axis=1)[:, :size]
    covered = np.mean([np.isin(row, ids) for row, ids in zip(kept, np.asarray(rescored.ids), strict=True)])
    proven = rescored.proven.mean()
    print(f"K {size}: {100 * covered:.3f} % of the exact top K rescored, proven in {100 * proven:.2f} %")
    assert covered >= 0.999 and proven >= 0.99


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_each_batch_row_is_multiplied_with_its_own_rows(batch):
    weight, states = weight_and_states(0, "normal")
    rows = weight[: batch * 5].reshape(batch, 5, D)
    expected = np.einsum("bd,bkd->bk", states[:batch].astype(np.float64), rows)
    np.testing.assert_allclose(rows_logits(states[:batch], rows), expected, rtol=1e-5, atol=1e-5)


def test_a_row_of_zeros_has_a_copy():
    int8 = quantize_unembedding(jnp.zeros((3, D)))
    assert np.isfinite(int8.scale).all() and not np.asarray(int8.rows).any()
    assert not np.asarray(int8.error).any()


@pytest.mark.parametrize("method", ["full", "calm", "dvp"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decoding_through_the_int8_copy_gives_the_same_tokens_and_exits(method, dtype):
    _, model = both("t5", 0, 4.0, 4.0, vocab_size=1009)
    model = dataclasses.replace(model, params=jax.tree.map(lambda x: x.astype(dtype), model.params))
    cfg = dvp_jax.DecodeConfig(
        method=method, max_new_tokens=8, threshold=0.4, min_exit_layer=1, prune_layer=1, prune_size=16
    )
    assert num_rescored(16) < 1009, "else the copy is never read"
    ids = np.array([[first, 5, 9] for first in range(2, 10)])
    plain, through_copy = (
        dvp_jax.generate(model, ids, np.ones_like(ids), dataclasses.replace(cfg, unembedding=unembedding))
        for unembedding in ("float", "int8")
    )
    np.testing.assert_array_equal(through_copy.tokens, plain.tokens)
    np.testing.assert_array_equal(through_copy.exit_layers, plain.exit_layers)
    np.testing.assert_allclose(through_copy.confidences, plain.confidences, atol=1e-3)  # the tail is from int8
