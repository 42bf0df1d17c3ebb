"""What every depth says of every token of a text: the evidence behind exits, for analysis and the report.

One teacher-forced pass replays the states that decoding had, skipped layers and propagated states included;
beyond its exit each token goes on as if it alone had not left.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

from dvp_jax.decode.api import decode_policy
from dvp_jax.decode.cache import Encoded
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.step import full_vocabulary
from dvp_jax.exits.policy import ExitPolicy, Heads, LayerOutput, Oracle
from dvp_jax.exits.thresholds import ALWAYS
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.layers import MASKED, Segment, padding_bias, relative_bias
from dvp_jax.t5.load import Model
from dvp_jax.t5.model import T5, Params, embed, has_relative_bias
from dvp_jax.t5.sharding import using

_ROWS = 128
"""Tokens whose logits stand in memory at once."""


@struct.dataclass
class Trace:
    """What the depths 1..L say of each token; past a text's end the values mean nothing."""

    candidates: Int[Array, "batch tokens depths"]  # the token that the depth would produce
    confidences: Float[Array, "batch tokens depths"]  # in it
    ranks: Int[Array, "batch tokens depths"]  # of the given token in the whole vocabulary; 0 the likeliest


def trace(model: Model, encoded: Encoded, tokens: ArrayLike, exit_layers: ArrayLike, cfg: DecodeConfig) -> Trace:
    """Reads given texts at every depth, as the policy of `cfg` does.

    Candidates and confidences come from the whole vocabulary up to the depth that prunes, and from the kept
    tokens after it; at the last depth as `cfg` reads it. Depths at which the policy would not ask are read too.

    Args:
        model: from `load_model`.
        encoded: the sources, from `encode`.
        tokens: (B, T) integers without a start token: texts decoded by any method, or references, of the first B
            sources.
        exit_layers: (B, T) layers that each token ran; L throughout for the full model.
        cfg: whose policy reads.

    Raises:
        ValueError: cfg does not fit the model, or shapes that do not fit the sources.
    """
    policy = decode_policy(model, cfg)
    tokens, exit_layers = np.asarray(tokens, np.int32), np.asarray(exit_layers, np.int32)
    most = encoded.active.shape[0]
    if tokens.ndim != 2 or not 1 <= len(tokens) <= most:
        raise ValueError(f"tokens has shape {tokens.shape}; allowed: (B, T), B at most the {most} sources")
    if exit_layers.shape != tokens.shape:
        raise ValueError(f"exit_layers has shape {exit_layers.shape}; allowed: that of tokens, {tokens.shape}")
    if policy.all_or_none or (isinstance(policy, Oracle) and policy.states == "full"):  # no layer skipped a token
        exit_layers = np.full_like(exit_layers, policy.last_depth)
    filling = ((0, most - len(tokens)), (0, 0))
    texts = np.pad(tokens, filling), np.pad(exit_layers, filling)
    with using(model.mesh):
        traced = _trace(model.config, policy, model.params, encoded, *texts)
    return jax.tree.map(lambda x: x[: len(tokens)], traced)


@partial(jax.jit, static_argnums=(0, 1))
def _trace(
    config: T5Config, policy: ExitPolicy, params: Params, encoded: Encoded, tokens: Array, exit_layers: Array
) -> Trace:
    states_of = nn.apply(partial(_replay, encoded=encoded, tokens=tokens, exit_layers=exit_layers), T5(config))
    hidden = jnp.stack(states_of({"params": params}), axis=2).reshape(tokens.size, -1, config.d_model)
    filling = -tokens.size % _ROWS
    states = jnp.pad(hidden, ((0, filling), (0, 0), (0, 0))).reshape(-1, _ROWS, *hidden.shape[1:])
    targets = jnp.pad(tokens.reshape(-1), (0, filling)).reshape(-1, _ROWS)
    read = lax.map(lambda rows: _read(config, policy, params, *rows), (states, targets))
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1])[: tokens.size].reshape(*tokens.shape, -1), read)


def _read(
    config: T5Config,
    policy: ExitPolicy,
    params: Params,
    states: Float[Array, "rows depths+1 d_model"],
    targets: Int[Array, " rows"],
) -> Trace:
    """What each depth says of each row, a row being one token; its states begin with h_0."""
    vocabulary = whole = full_vocabulary(config, params)
    meta = params.get("meta")
    everyone = jnp.ones(targets.shape, bool)
    readings, ranks = [], []
    for number in range(1, config.num_decoder_layers + 1):
        depth = LayerOutput(number, states[:, number], states[:, number - 1], everyone)
        readers = Heads(vocabulary, meta)
        if number == config.num_decoder_layers:
            readings.append(policy.read_last(depth, Heads(whole, meta), readers))
        else:
            readings.append(policy.decide(depth, jnp.asarray(ALWAYS), readers))
            if number >= policy.first_exit:  # before it decoding would not have asked
                vocabulary = dataclasses.replace(vocabulary, kept=readings[-1].kept)
        if number <= policy.first_exit:
            vocabulary = policy.observe(depth, vocabulary)
        ranks.append(_ranks(whole.logits(depth.hidden), targets))
    return Trace(
        candidates=jnp.stack([reading.token for reading in readings], axis=-1),
        confidences=jnp.stack([reading.confidence for reading in readings], axis=-1),
        ranks=jnp.stack(ranks, axis=-1),
    )


def _ranks(logits: Float[Array, "rows vocab"], targets: Int[Array, " rows"]) -> Int[Array, " rows"]:
    """How many tokens are likelier than the target, or as likely and of a smaller id."""
    target = jnp.take_along_axis(logits, targets[:, None], axis=1)
    smaller = jnp.arange(logits.shape[1]) < targets[:, None]
    return jnp.sum((logits > target) | ((logits == target) & smaller), axis=1, dtype=jnp.int32)


def _replay(
    model: T5, encoded: Encoded, tokens: Int[Array, "batch tokens"], exit_layers: Int[Array, "batch tokens"]
) -> list[Float[Array, "batch tokens d_model"]]:
    """h_l of the depths l = 0..L, each token attending to the states that decoding left for it.

    Of earlier tokens a layer sees the keys and values of the state that they were frozen at; of the token
    itself those of the state that enters the layer.
    """
    config = model.config
    start = jnp.full_like(tokens[:, :1], config.decoder_start_token_id)
    hidden = frozen = embed(model.shared, jnp.concatenate([start, tokens[:, :-1]], axis=1))
    positions = jnp.arange(tokens.shape[1])
    distance = positions[:, None] - positions[None, :]
    cross_bias, states = padding_bias(encoded.mask), [hidden]
    for index, (layer, cross) in enumerate(zip(model.decoder.layers, encoded.cross, strict=True)):
        if has_relative_bias(config, index):
            table = layer.self_attention.relative_bias
            bias = relative_bias(table, positions, positions, len(positions), config, bidirectional=False)
        past = Segment(*layer.self_keys_values(frozen), bias + _hide(distance <= 0))
        itself = Segment(*layer.self_keys_values(hidden), bias + _hide(distance != 0))
        hidden = layer(hidden, (past, itself), Segment(*cross, cross_bias))
        frozen = jnp.where((exit_layers > index)[..., None], hidden, frozen)
        states.append(hidden)
    return states


def _hide(where: Bool[Array, "queries keys"]) -> Float[Array, "queries keys"]:
    return jnp.where(where, MASKED, 0.0)
