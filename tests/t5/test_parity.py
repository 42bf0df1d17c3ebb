"""The model against Hugging Face's PyTorch, on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dvp_jax
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.layers import distance_buckets, linear
from tests.models import VARIANTS, both, random_model, save


def batch(vocab_size: int, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Three sources of different lengths."""
    rng = np.random.default_rng(1)
    lengths = np.array([[19], [7], [33]])
    position = np.arange(33)[::-1] if left else np.arange(33)
    mask = position < lengths
    return np.where(mask, rng.integers(2, vocab_size, mask.shape), 0), mask.astype(np.int32)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
def test_teacher_forced_logits_equal_hugging_face(variant, left):
    peer, model = both(variant)
    ids, mask = batch(211, left)
    targets = np.random.default_rng(2).integers(0, 211, (3, 21))
    with torch.no_grad():
        expected = peer(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), decoder_input_ids=torch.tensor(targets)
        ).logits.numpy()
    logits = np.asarray(dvp_jax.teacher_forced_logits(model, ids, mask, targets))
    assert logits.shape == (3, 21, 211)
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_equal_hugging_face(variant):
    peer, model = both(variant, depth=4.0)
    ids, mask = batch(211)
    deeper = peer.config.num_decoder_layers > peer.config.num_layers
    expected = peer.generate(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        max_new_tokens=24,
        do_sample=False,
        use_cache=not deeper,  # transformers 5.23 sizes its cache by the encoder
    )[:, 1:].numpy()
    out = dvp_jax.generate(model, ids, mask, dvp_jax.DecodeConfig(method="full", max_new_tokens=24))
    assert len(np.unique(expected)) > 5, "the model repeats itself, which would test little"
    np.testing.assert_array_equal(out.tokens[:, : expected.shape[1]], expected)
    assert (out.tokens[:, expected.shape[1] :] == 0).all()


def test_an_end_token_ends_a_row_and_not_the_others():
    _, model = both("t5", depth=4.0)
    ids, mask = batch(211)
    cfg = dvp_jax.DecodeConfig(method="full", max_new_tokens=24)
    free = dvp_jax.generate(model, ids, mask, cfg).tokens
    end = int(free[1, 5])  # a token that row 1 generates becomes the end token
    ending = dvp_jax.Model(dvp_jax.T5Config(**{**vars(model.config), "eos_token_id": end}), model.params)
    out = dvp_jax.generate(ending, ids, mask, cfg)
    for row in range(3):
        hits = np.flatnonzero(free[row] == end)
        length = hits[0] + 1 if len(hits) else 24
        assert out.lengths[row] == length
        np.testing.assert_array_equal(out.tokens[row, :length], free[row, :length])
        assert (out.tokens[row, length:] == 0).all() and (out.exit_layers[row, length:] == 0).all()
        assert (out.exit_layers[row, :length] == 4).all()
    assert out.lengths[1] <= 6


def test_bfloat16_weights_give_the_logits_of_the_rounded_weights(tmp_path):
    peer = random_model("t5.1.1")
    model = dvp_jax.load_model(save(peer, tmp_path), dtype="bfloat16")
    assert str(model.params["shared"].dtype) == "bfloat16"
    ids, mask = batch(211)
    targets = np.random.default_rng(2).integers(0, 211, (3, 21))
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.copy_(parameter.bfloat16().float())
        expected = peer(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), decoder_input_ids=torch.tensor(targets)
        ).logits.numpy()
    logits = np.asarray(dvp_jax.teacher_forced_logits(model, ids, mask, targets))
    # Activations are rounded to bfloat16 (8 bits, so 0.4 %) before each product, and errors add up over layers.
    assert np.abs(logits - expected).max() <= 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (32, 256), (16, 64), (64, 1000)])
def test_distance_buckets_equal_hugging_face(bidirectional, buckets, reach):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(3000)
    expected = T5Attention._relative_position_bucket(-distance, bidirectional, buckets, reach)
    config = T5Config(relative_attention_num_buckets=buckets, relative_attention_max_distance=reach)
    np.testing.assert_array_equal(distance_buckets(3000, config, bidirectional=bidirectional), expected.numpy())


@settings(max_examples=25)  # each shape compiles
@given(st.integers(1, 80), st.integers(1, 70), st.integers(1, 40), st.sampled_from(["float32", "bfloat16"]))
def test_a_product_of_any_number_of_rows_is_that_of_float64(rows, inputs, outputs, dtype):
    rng = np.random.default_rng(rows)
    x, weight = (jnp.asarray(rng.normal(size=(n, inputs)), dtype) for n in (rows, outputs))
    expected = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    product = linear(x.reshape(1, rows, inputs), weight)
    assert product.dtype == jnp.float32
    np.testing.assert_allclose(product[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [3, 80])  # one for each form of the product
def test_gradients_of_a_product_are_those_of_the_closed_form(rows):
    rng = np.random.default_rng(rows)
    x, weight, out = (rng.normal(size=size).astype(np.float32) for size in ((rows, 5), (7, 5), (rows, 7)))
    grad_x, grad_weight = jax.grad(lambda x, weight: jnp.sum(linear(x, weight) * out), argnums=(0, 1))(x, weight)
    np.testing.assert_allclose(grad_x, out @ weight, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grad_weight, out.T @ x, rtol=1e-4, atol=1e-4)
