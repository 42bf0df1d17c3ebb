"""The loop over tokens: its state, one step of it, and the jitted loop."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.decode.cache import KVCache, empty_cache
from dvp_jax.decode.compiling import ProgramJit
from dvp_jax.decode.oracle import decode_oracle_token
from dvp_jax.decode.program import DecodeInputs, DecodeProgram, Encoded
from dvp_jax.decode.step import decode_token


@struct.dataclass
class Decoded:
    """The generated tokens of each row."""

    tokens: Int[Array, "batch max_new_tokens"]  # no start token; pad_token_id after the end token
    lengths: Int[Array, " batch"]  # the end token included
    exit_layers: Int[Array, "batch max_new_tokens"]  # layers run per token; 0 past the end
    confidences: Float[Array, "batch max_new_tokens"]  # that decided, or of the last depth; 0 past the end


@struct.dataclass
class DecodeState:
    """The state of the token loop."""

    token: Int[Array, " batch"]  # the last token of each row
    ended: Bool[Array, " batch"]  # rows whose text has ended
    cache: KVCache
    decoded: Decoded


def initial_state(program: DecodeProgram, encoded: Encoded) -> DecodeState:
    """The state of a batch that has decoded nothing."""
    config, batch = program.config, encoded.active.shape[0]
    zeros = jnp.zeros((batch, program.max_new_tokens), jnp.int32)
    return DecodeState(
        token=jnp.full(batch, config.decoder_start_token_id, jnp.int32),
        ended=~encoded.active,
        cache=empty_cache(program, encoded),
        decoded=Decoded(zeros + config.pad_token_id, zeros[:, 0], zeros, zeros.astype(jnp.float32)),
    )


def next_token(program: DecodeProgram, inputs: DecodeInputs, state: DecodeState) -> DecodeState:
    """Decodes one more token in every row whose text has not ended."""
    decode = decode_oracle_token if program.policy.loop == "all_layers" else decode_token
    row, cache = decode(program, inputs, state.cache, state.token, state.ended)
    here = next_position(program, state)

    def write(new: Array, values: Array) -> Array:
        return jnp.where(here, new[:, None], values)

    is_last = (row.token == program.config.eos_token_id) | (cache.lengths >= program.max_new_tokens)
    return DecodeState(
        token=row.token,
        ended=state.ended | is_last,
        cache=cache,
        decoded=Decoded(
            tokens=write(row.token, state.decoded.tokens),
            lengths=state.decoded.lengths + ~state.ended,
            exit_layers=write(row.exit_layer, state.decoded.exit_layers),
            confidences=write(row.confidence, state.decoded.confidences),
        ),
    )


def next_position(program: DecodeProgram, state: DecodeState) -> Bool[Array, "batch max_new_tokens"]:
    """Where the next token of each row is written; nowhere in rows whose text has ended."""
    return (jnp.arange(program.max_new_tokens) == state.cache.lengths[:, None]) & ~state.ended[:, None]


def _decode_tokens(program: DecodeProgram, inputs: DecodeInputs) -> Decoded:
    """Decodes until the text of every row has ended."""

    def some_text_goes_on(state: DecodeState) -> Array:
        return ~jnp.all(state.ended)

    start = initial_state(program, inputs.encoded)
    return lax.while_loop(some_text_goes_on, partial(next_token, program, inputs), start).decoded


decode_tokens = ProgramJit(_decode_tokens)
