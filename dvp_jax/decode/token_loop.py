"""The loop over tokens: its state, one step of it, and the jitted loop."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.decode.cache import KVCache, empty_cache
from dvp_jax.decode.compiling import ProgramJit
from dvp_jax.decode.deferred import decode_deferred_token
from dvp_jax.decode.layer_loop import DepthState
from dvp_jax.decode.oracle import decode_oracle_token
from dvp_jax.decode.program import DecodeInputs, DecodeProgram, Encoded
from dvp_jax.decode.step import decode_token


@struct.dataclass
class Drafts:
    """What became of drafts, which are tokens with an exit layer below L, where skipped layers run later."""

    corrected: Bool[Array, "batch max_new_tokens"]  # drafts that the full model replaced; `tokens` has its token
    layers_run: Int[Array, " batch"]  # that ran one after the other, for the whole text


@struct.dataclass
class Decoded:
    """The generated tokens of each row."""

    tokens: Int[Array, "batch max_new_tokens"]  # no start token; pad_token_id after the end token
    lengths: Int[Array, " batch"]  # the end token included
    exit_layers: Int[Array, "batch max_new_tokens"]  # layers run per token; 0 past the end
    confidences: Float[Array, "batch max_new_tokens"]  # that decided; NaN if logits are not finite; 0 past the end
    drafts: Drafts | None = None  # None where skipped layers never run


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
        decoded=Decoded(
            tokens=zeros + config.pad_token_id,
            lengths=zeros[:, 0],
            exit_layers=zeros,
            confidences=zeros.astype(jnp.float32),
            drafts=Drafts(zeros.astype(bool), zeros[:, 0]) if program.policy.runs_skipped_layers_later else None,
        ),
    )


def next_token(
    program: DecodeProgram, inputs: DecodeInputs, state: DecodeState
) -> tuple[DecodeState, Int[Array, " batch"]]:
    """Decodes one more token in every row whose text has not ended.

    Returns:
        The state, and how many layers each row ran one after the other.
    """
    if program.policy.loop == "deferred":
        return _next_deferred_token(program, inputs, state)
    decode = decode_oracle_token if program.policy.loop == "all_layers" else decode_token
    row, cache = decode(program, inputs, state.cache, state.decoded.tokens, state.token, state.ended)
    decoded = _write(program, state, row)
    decoded = dataclasses.replace(decoded, lengths=decoded.lengths + ~state.ended)
    return _after(program, inputs, state, row.token, cache, decoded), row.exit_layer


def _next_deferred_token(
    program: DecodeProgram, inputs: DecodeInputs, state: DecodeState
) -> tuple[DecodeState, Int[Array, " batch"]]:
    """`next_token`, where it may be a draft and earlier drafts may be replaced or taken back."""
    text = state.decoded.tokens
    row, cache = decode_deferred_token(program, inputs, state.cache, text, state.token, state.ended)
    decoded = _write(program, state, row.current)
    places = jnp.arange(program.max_new_tokens)
    is_text = places < row.length[:, None]
    replaced = (places == row.length[:, None] - 1) & row.corrected[:, None]
    tokens = jnp.where(replaced, row.last[:, None], decoded.tokens)
    drafts = decoded.drafts
    assert drafts is not None
    corrected = (drafts.corrected & (places < state.cache.lengths[:, None])) | replaced
    confidences = jnp.where(replaced & ~row.is_finite[:, None], jnp.nan, decoded.confidences)
    decoded = Decoded(
        tokens=jnp.where(is_text, tokens, program.config.pad_token_id),
        lengths=row.length,
        exit_layers=jnp.where(is_text, decoded.exit_layers, 0),
        confidences=jnp.where(is_text, confidences, 0.0),
        drafts=Drafts(corrected & is_text, drafts.layers_run + row.num_layers),
    )
    return _after(program, inputs, state, row.last, cache, decoded), row.num_layers


def _write(program: DecodeProgram, state: DecodeState, row: DepthState) -> Decoded:
    """What was decoded, with the token of this step in each row whose text has not ended."""
    here = (jnp.arange(program.max_new_tokens) == state.cache.lengths[:, None]) & ~state.ended[:, None]

    def write(new: Array, values: Array) -> Array:
        return jnp.where(here, new[:, None], values)

    return dataclasses.replace(
        state.decoded,
        tokens=write(row.token, state.decoded.tokens),
        exit_layers=write(row.exit_layer, state.decoded.exit_layers),
        confidences=write(row.confidence, state.decoded.confidences),
    )


def _after(
    program: DecodeProgram,
    inputs: DecodeInputs,
    state: DecodeState,
    token: Int[Array, " batch"],
    cache: KVCache,
    decoded: Decoded,
) -> DecodeState:
    is_last = program.config.ends(token) | (cache.lengths >= inputs.settings.max_new_tokens)
    return DecodeState(token, state.ended | is_last, cache, decoded)


def _decode_tokens(program: DecodeProgram, inputs: DecodeInputs) -> Decoded:
    """Decodes until the text of every row has ended."""

    def some_text_goes_on(state: DecodeState) -> Array:
        return ~jnp.all(state.ended)

    def step(state: DecodeState) -> DecodeState:
        return next_token(program, inputs, state)[0]

    return lax.while_loop(some_text_goes_on, step, initial_state(program, inputs.encoded)).decoded


decode_tokens = ProgramJit(_decode_tokens)
