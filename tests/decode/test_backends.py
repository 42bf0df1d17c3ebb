"""The forms that operations take on a GPU or TPU, run on CPU: they give what the forms for CPU give."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dvp_jax
from dvp_jax.exits.confidence import best_two, entropy, softmax_diff, softmax_max
from dvp_jax.t5.backend import tracing_for
from dvp_jax.t5.top_k import top_k
from tests.decode.helpers import (
    CALM,
    DECAY,
    DVP,
    FULL,
    LOSSLESS,
    MASS,
    MODEL,
    ORACLE,
    SHALLOW,
    STATE,
    assert_same,
    run,
)
from tests.models import both

pytestmark = pytest.mark.usefixtures("quick_compiler")

ROWS = [[3, 4, 5, 17, 90], [9, 8], [100, 20, 30, 41], [7]]


@pytest.fixture
def traced_for():
    """A context in which programs are traced for a backend; those of other tests are forgotten."""

    def enter(name):
        jax.clear_caches()
        return tracing_for(name)

    yield enter
    jax.clear_caches()


EARLY = dataclasses.replace(DVP, min_exit_layer=2, exit_depths=(2, 3))
CASES = {
    "gpu": [DVP, CALM, LOSSLESS],
    "tpu": [DVP],  # the forms are those for a GPU but for a barrier
}
OTHERS = {"gpu": [DVP, FULL, EARLY, STATE, MASS, DECAY, ORACLE, SHALLOW], "tpu": [DVP, FULL, CALM, LOSSLESS]}


@pytest.mark.parametrize("backend", CASES)
def test_methods_decode_the_same_on_every_backend(traced_for, backend):
    check_backend(traced_for, backend, CASES[backend])


@pytest.mark.slow
@pytest.mark.parametrize("backend", OTHERS)
def test_other_methods_decode_the_same_on_every_backend(traced_for, backend):
    check_backend(traced_for, backend, OTHERS[backend])


def check_backend(traced_for, backend, cfgs):
    with traced_for("cpu"):
        expected = [run(ROWS, cfg) for cfg in cfgs]
    with traced_for(backend):
        found = [run(ROWS, cfg) for cfg in cfgs]
        texts = list(dvp_jax.Engine(both(*MODEL)[1], DVP, slots=2).run(ROWS, in_order=True))
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    dvp = expected[0]
    assert len(set(dvp.exit_layers[dvp.exit_layers > 0].tolist())) > 2, "else propagation was hardly tried"
    for row, result in enumerate(texts):
        assert result.output.tokens == dvp.tokens[row, : dvp.lengths[row]].tolist()


@pytest.mark.parametrize(("size", "k"), [(20_000, 64), (9_000, 500), (9_000, 4096), (9_000, 5000), (300, 64)])
def test_the_largest_by_blocks_are_the_largest_of_equal_ones_the_first(traced_for, size, k):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, size)), rng.integers(0, 30, (3, size)), np.zeros((3, size))
    for values in map(np.float32, rows):
        with traced_for("gpu"):
            largest, indices = top_k(jnp.asarray(values), k)
        expected = np.argsort(-values, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(largest, np.take_along_axis(values, expected, axis=1))


@pytest.mark.parametrize("measure", [softmax_diff, softmax_max, entropy])
def test_the_best_two_in_one_pass_are_the_best_two(traced_for, measure):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 300)) * 4
    logits[:10] = rng.integers(-2, 3, (10, 300))  # ties
    logits[10:20, ::2] = -np.inf  # masked
    logits[20:25, 1:] = -np.inf  # one candidate
    logits = jnp.asarray(logits, jnp.float32)
    with traced_for("cpu"):
        expected = best_two(logits)
    with traced_for("gpu"):
        found = best_two(logits)
    np.testing.assert_array_equal(found.candidate, np.argmax(logits, axis=1))
    np.testing.assert_array_equal(found.second, np.sort(logits, axis=1)[:, -2])
    np.testing.assert_allclose(found.partition, expected.partition, rtol=1e-5)
    np.testing.assert_allclose(measure(logits, found), measure(logits, expected), atol=1e-5)
    assert (measure(logits, found) <= 1.0).all()
