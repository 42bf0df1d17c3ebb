"""The loop over tokens: its state, one step of it, and the jitted while loop."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.decode.cache import DecodeProgram, Encoded, KVCache, empty_cache
from dvp_jax.decode.oracle import decode_oracle_token
from dvp_jax.decode.step import decode_token
from dvp_jax.exits.policy import Oracle
from dvp_jax.t5.model import Params


@struct.dataclass
class Decoded:
    """What was generated, row by row."""

    tokens: Int[Array, "batch max_new_tokens"]  # no start token; pad_token_id after the end token
    lengths: Int[Array, " batch"]  # the end token counted
    exit_layers: Int[Array, "batch max_new_tokens"]  # layers run per token, 0 past the end
    confidences: Float[Array, "batch max_new_tokens"]  # that decided, or of the last depth; 0 past the end


@struct.dataclass
class DecodeState:
    """The whole state of the token loop."""

    token: Int[Array, " batch"]  # the last one of each row
    ended: Bool[Array, " batch"]
    memory: KVCache
    decoded: Decoded


def new_state(structure: DecodeProgram, encoded: Encoded) -> DecodeState:
    """Of a batch that has decoded nothing."""
    config, batch = structure.config, encoded.active.shape[0]
    counts = jnp.zeros((batch, structure.max_new_tokens), jnp.int32)
    return DecodeState(
        token=jnp.full(batch, config.decoder_start_token_id, jnp.int32),
        ended=~encoded.active,
        memory=empty_cache(structure, encoded),
        decoded=Decoded(counts + config.pad_token_id, counts[:, 0], counts, counts.astype(jnp.float32)),
    )


def next_token(
    structure: DecodeProgram,
    params: Params,
    encoded: Encoded,
    thresholds: Float[Array, "max_new_tokens num_depths"],
    state: DecodeState,
) -> DecodeState:
    """One more token for every row whose text has not ended."""
    decode_next = decode_oracle_token if isinstance(structure.policy, Oracle) else decode_token
    row, memory = decode_next(structure, params, encoded, state.memory, state.token, state.ended, thresholds)
    old, here = state.decoded, next_place(structure, state)

    def write(new: Array, values: Array) -> Array:
        return jnp.where(here, new[:, None], values)

    return DecodeState(
        token=row.token,
        ended=state.ended
        | (row.token == structure.config.eos_token_id)
        | (memory.age >= structure.max_new_tokens),
        memory=memory,
        decoded=Decoded(
            tokens=write(row.token, old.tokens),
            lengths=old.lengths + ~state.ended,
            exit_layers=write(row.exit_layer, old.exit_layers),
            confidences=write(row.confidence, old.confidences),
        ),
    )


def next_place(structure: DecodeProgram, state: DecodeState) -> Bool[Array, "batch max_new_tokens"]:
    """Where the next token of each row goes; nowhere in rows whose text has ended."""
    return (jnp.arange(structure.max_new_tokens) == state.memory.age[:, None]) & ~state.ended[:, None]


@partial(jax.jit, static_argnums=0)
def decode_tokens(
    structure: DecodeProgram,
    params: Params,
    encoded: Encoded,
    thresholds: Float[Array, "max_new_tokens num_depths"],
) -> Decoded:
    """Decodes until every row's text has ended."""

    def unfinished(state: DecodeState) -> Array:
        return ~jnp.all(state.ended)

    step = partial(next_token, structure, params, encoded, thresholds)
    return lax.while_loop(unfinished, step, new_state(structure, encoded)).decoded
