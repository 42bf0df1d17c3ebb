"""What a policy reads."""

import dataclasses

import jax
import numpy as np
import pytest

from dvp_jax.decode.program import full_heads
from dvp_jax.exits.policy import LayerOutput
from dvp_jax.t5.exit_classifier import ExitClassifier
from tests.decode.helpers import CALM, MODEL
from tests.exits.helpers import nested
from tests.models import both


def computes(jaxpr, size):
    """Whether an array of this size is computed outside of every `cond`."""
    shapes = [variable.aval.shape for equation in jaxpr.eqns for variable in equation.outvars]
    inside = (computes(inner, size) for equation, inner in nested(jaxpr) if equation.primitive.name != "cond")
    return any(size in shape for shape in shapes) or any(inside)


@pytest.mark.parametrize(
    ("confidence", "reads"),
    [("softmax_diff", True), ("softmax_max", True), ("entropy", True), ("state", False), ("meta", False)],
)
def test_a_measure_of_the_state_reads_no_logits_before_some_row_exits(confidence, reads):
    config = both(*MODEL)[1].config
    policy = dataclasses.replace(CALM, confidence=confidence).policy(4, config.vocab_size)
    params = {**both(*MODEL)[1].params, "meta": ExitClassifier(np.ones(32, np.float32), np.float32(0.0))}

    def decide(hidden, previous):
        output = LayerOutput(2, hidden, previous, np.ones(3, bool))
        return policy.decide(output, np.float32(0.5), full_heads(config, params))

    jaxpr = jax.make_jaxpr(decide)(np.ones((3, 32), np.float32), np.ones((3, 32), np.float32)).jaxpr
    assert computes(jaxpr, config.vocab_size) == reads
