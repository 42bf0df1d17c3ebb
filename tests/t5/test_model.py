"""Random parameters: where they lie, and how they are drawn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import traverse_util

from dvp_jax.t5.config import T5Config
from dvp_jax.t5.hugging_face import hugging_face_tensors
from dvp_jax.t5.model import T5, init_params
from tests.models import state_dict

pytestmark = pytest.mark.usefixtures("quick_compiler")

SHAPE = {"vocab_size": 700, "d_model": 48, "d_kv": 12, "d_ff": 96, "num_heads": 3, "num_decoder_layers": 3}


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


@pytest.mark.parametrize("variant", [{}, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}])
def test_random_parameters_are_those_of_the_modules_own_init(variant):
    config = T5Config(**SHAPE, num_layers=2, **variant)
    ids = jnp.zeros((1, 1), jnp.int32)
    expected = flat(T5(config).init(jax.random.key(3), ids, ids == 0, ids)["params"])
    params = flat(init_params(config, jax.random.key(3)))
    assert params.keys() == expected.keys()
    for name, value in params.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("variant", [{}, {"feed_forward_proj": "gated-gelu"}])
def test_random_parameters_spread_as_those_of_transformers(variant):
    config = T5Config(**SHAPE, num_layers=1, initializer_factor=0.5, **variant)
    torch.manual_seed(0)
    peer = transformers.T5ForConditionalGeneration(transformers.T5Config(**config.to_hugging_face()))
    expected = {name: value.numpy() for name, value in state_dict(peer).items()}
    params = hugging_face_tensors(config, init_params(config, jax.random.key(0)))
    assert params.keys() == expected.keys()
    for name, value in params.items():
        spread = float(np.std(expected[name]))
        # Five standard errors of the difference of two estimates, 1 / sqrt(2 n) each.
        assert np.std(value) == pytest.approx(spread, rel=5 * value.size**-0.5), name
        assert np.mean(value) == pytest.approx(np.mean(expected[name]), abs=8 * spread * value.size**-0.5), name
    untied = flat(init_params(dataclasses.replace(config, tie_word_embeddings=False), jax.random.key(0)))
    assert np.std(untied["lm_head"]) == pytest.approx(0.5, rel=0.02)


def test_random_parameters_have_the_dtype_that_is_asked_for():
    config = T5Config(**SHAPE, num_layers=1)
    params = init_params(config, jax.random.key(0), jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


def test_equal_layers_share_the_programs_that_draw_them():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    shapes = {**SHAPE, "d_ff": 120}
    init_params(T5Config(**shapes, num_layers=2), jax.random.key(0))
    assert compiled
    compiled.clear()
    init_params(T5Config(**{**shapes, "num_decoder_layers": 7}, num_layers=5), jax.random.key(0))
    assert not compiled
