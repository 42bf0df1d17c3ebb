"""XLA's options of a program: which programs have them, and that they reach XLA."""

import dataclasses

import pytest

import dvp_jax
from dvp_jax.decode.api import decode_arguments, encode
from dvp_jax.decode.compiling import CAPTURED, compiler_options
from dvp_jax.decode.token_loop import decode_tokens
from dvp_jax.exits.policy import CALM, DVP, Full, Oracle, Static
from tests.models import both

KNOWS = {"jax_version": (0, 11, 2)}


@pytest.mark.parametrize("policy", [Full(4), Static(4, static_exit_layer=2), Oracle(4)])
def test_a_loop_without_conditionals_is_captured_on_a_gpu_unless_switched_off(policy):
    assert (
        compiler_options(None, policy, "gpu", **KNOWS)
        == compiler_options(True, policy, "gpu", **KNOWS)
        == CAPTURED
    )
    assert compiler_options(False, policy, "gpu", **KNOWS) == ()


@pytest.mark.parametrize("policy", [CALM(4), DVP(4)])
def test_a_loop_with_conditionals_is_captured_by_choice_only(policy):
    assert compiler_options(None, policy, "gpu", **KNOWS) == compiler_options(False, policy, "gpu", **KNOWS) == ()
    assert compiler_options(True, policy, "gpu", **KNOWS) == CAPTURED


def test_other_backends_and_older_versions_are_given_no_options():
    assert all(compiler_options(True, Full(4), backend, **KNOWS) == () for backend in ("cpu", "tpu"))
    assert compiler_options(True, Full(4), "gpu", jax_version=(0, 10, 1)) == ()


def test_the_options_of_a_program_reach_xla():
    _, model = both("t5")
    encoded = encode(model, [[3, 4, 1]], [[1, 1, 1]])
    program, inputs = decode_arguments(model, encoded, dvp_jax.DecodeConfig(method="full", max_new_tokens=2))
    unknown = dataclasses.replace(program, compiler_options=(("no_such_option", 1),))
    with pytest.raises(Exception, match="no_such_option"):
        decode_tokens(unknown, inputs)
    decode_tokens(program, inputs)
