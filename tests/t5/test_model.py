"""Random parameters: where they lie, and how they are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dvp_jax.t5.config import T5Config
from dvp_jax.t5.model import T5, init_params

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


def test_random_parameters_spread_as_t5_prescribes():
    config = T5Config(**SHAPE, num_layers=1, tie_word_embeddings=False)
    params = flat(init_params(config, jax.random.key(0)))
    # The initialisation of Mesh TensorFlow's T5, as `_init_weights` of Hugging Face's modeling_t5.py has it.
    spread = {
        "shared": 1.0,
        "lm_head": 1.0,
        "query": (48 * 12) ** -0.5,
        "key": 48**-0.5,
        "value": 48**-0.5,
        "output": 36**-0.5,
        "relative_bias": 48**-0.5,
        "wi": 48**-0.5,
        "wo": 96**-0.5,
    }
    for name, value in params.items():
        kind = name.rsplit("/", 1)[-1]
        if kind == "scale":
            np.testing.assert_array_equal(value, 1.0)
        else:
            # Five standard errors of the estimate, 1 / sqrt(2 n).
            assert np.std(value) == pytest.approx(spread[kind], rel=5 * (2 * value.size) ** -0.5), name
            assert abs(np.mean(value)) < 5 * spread[kind] * value.size**-0.5, name


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
