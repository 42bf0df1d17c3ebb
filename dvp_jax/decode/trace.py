"""What every depth says about every token of a text: the evidence behind exits, for analyses and the report.

One teacher-forced pass replays the states that decoding had, with skipped layers and propagated states. After its
exit layer, a token's states are computed as if only this token had continued.
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

from dvp_jax.decode.api import decode_policy, row_settings
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.program import Encoded, full_heads
from dvp_jax.exits.constraints import Constraints
from dvp_jax.exits.policy import ExitPolicy, LayerOutput
from dvp_jax.exits.thresholds import ALWAYS
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.layers import MASKED, Segment, padding_bias, relative_bias
from dvp_jax.t5.load import Model
from dvp_jax.t5.model import T5, Params, embed, has_relative_bias

_ROWS = 128
"""Tokens whose logits are in memory at once."""


@struct.dataclass
class Trace:
    """What the depths 1..L say about each token. Values past the end of a text mean nothing."""

    candidates: Int[Array, "batch tokens depths"]  # the token that the depth would produce
    confidences: Float[Array, "batch tokens depths"]  # in that token
    ranks: Int[Array, "batch tokens depths"]  # of the given token in the full vocabulary; 0 is the likeliest


def trace(model: Model, encoded: Encoded, tokens: ArrayLike, exit_layers: ArrayLike, cfg: DecodeConfig) -> Trace:
    """Reads given texts at every depth, as the policy of `cfg` does.

    Candidates and confidences come from the full vocabulary up to the depth that prunes, and from the kept tokens
    after it; at the last depth, from what `cfg` reads there. Depths at which the policy would not ask are read
    too. The candidate of a depth is its likeliest token, also where `cfg` draws.

    Args:
        model: from `load_model`.
        encoded: the sources, from `encode`.
        tokens: (B, T) integers without a start token: texts of the first B sources, decoded by any method, or
            references.
        exit_layers: (B, T) layers that each token ran; L throughout for the full model.
        cfg: whose policy reads.

    Raises:
        ValueError: cfg does not fit the model, or the shapes do not fit the sources.
    """
    policy = decode_policy(model, cfg)
    tokens, exit_layers = np.asarray(tokens, np.int32), np.asarray(exit_layers, np.int32)
    num_rows = encoded.active.shape[0]
    if tokens.ndim != 2 or not 1 <= len(tokens) <= num_rows:
        raise ValueError(f"tokens has shape {tokens.shape}; allowed: (B, T), B at most the {num_rows} sources")
    if exit_layers.shape != tokens.shape:
        raise ValueError(f"exit_layers has shape {exit_layers.shape}; allowed: that of tokens, {tokens.shape}")
    if not policy.propagates_state:  # later tokens saw the states of all layers
        exit_layers = np.full_like(exit_layers, policy.last_depth)
    padding = ((0, num_rows - len(tokens)), (0, 0))
    padded = np.pad(tokens, padding), np.pad(exit_layers, padding)
    constraints = row_settings(cfg, model.config, np.zeros(num_rows, int)).constraints
    with model.context():
        traced = _trace(model.config, policy, model.params, constraints, encoded, *padded)
    return jax.tree.map(lambda x: x[: len(tokens)], traced)


@partial(jax.jit, static_argnums=(0, 1))
def _trace(
    config: T5Config,
    policy: ExitPolicy,
    params: Params,
    constraints: Constraints | None,
    encoded: Encoded,
    tokens: Array,
    exit_layers: Array,
) -> Trace:
    states_of = nn.apply(partial(_replay, encoded=encoded, tokens=tokens, exit_layers=exit_layers), T5(config))
    states = jnp.stack(states_of({"params": params}), axis=2)  # (batch, tokens, depths + 1, d_model)
    states = states.reshape(tokens.size, -1, config.d_model)
    banned = None if constraints is None else constraints.banned_throughout(config, tokens)

    def chunks(rows: Array) -> Array:
        padding = ((0, -len(rows) % _ROWS), *[(0, 0)] * (rows.ndim - 1))
        return jnp.pad(rows, padding).reshape(-1, _ROWS, *rows.shape[1:])

    rows = jax.tree.map(chunks, (states, tokens.reshape(-1), banned))
    read = lax.map(lambda rows: _read(config, policy, params, *rows), rows)
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1])[: tokens.size].reshape(*tokens.shape, -1), read)


def _read(
    config: T5Config,
    policy: ExitPolicy,
    params: Params,
    states: Float[Array, "rows depths+1 d_model"],
    targets: Int[Array, " rows"],
    banned: Bool[Array, "rows vocab"] | None,
) -> Trace:
    """What each depth says about each row. A row is one token; its states begin with h_0."""
    heads = full = full_heads(config, params, banned=banned)
    active = jnp.ones(targets.shape, bool)
    decisions, ranks = [], []
    for depth in range(1, config.num_decoder_layers + 1):
        output = LayerOutput(depth, states[:, depth], states[:, depth - 1], active)
        if depth == config.num_decoder_layers:
            decisions.append(policy.read_final(output, full, heads))
        else:
            decisions.append(policy.decide(output, jnp.asarray(ALWAYS), heads))
            if depth in policy.candidates:  # elsewhere decoding would not have asked
                kept = decisions[-1].kept
                heads = heads._replace(vocabulary=dataclasses.replace(heads.vocabulary, kept=kept))
        if depth <= policy.first_exit:
            heads = heads._replace(vocabulary=policy.prune(output, heads.vocabulary))
        ranks.append(_ranks(full.vocabulary.logits(output.hidden), targets))
    return Trace(
        candidates=jnp.stack([decision.token for decision in decisions], axis=-1),
        confidences=jnp.stack([decision.confidence for decision in decisions], axis=-1),
        ranks=jnp.stack(ranks, axis=-1),
    )


def _ranks(logits: Float[Array, "rows vocab"], targets: Int[Array, " rows"]) -> Int[Array, " rows"]:
    """How many tokens are likelier than the target, or as likely with a smaller id."""
    target = jnp.take_along_axis(logits, targets[:, None], axis=1)
    has_smaller_id = jnp.arange(logits.shape[1]) < targets[:, None]
    return jnp.sum((logits > target) | ((logits == target) & has_smaller_id), axis=1, dtype=jnp.int32)


def _replay(
    model: T5, encoded: Encoded, tokens: Int[Array, "batch tokens"], exit_layers: Int[Array, "batch tokens"]
) -> list[Float[Array, "batch tokens d_model"]]:
    """h_l of the depths l = 0..L, where each token attends to the states that decoding had.

    Keys and values of earlier tokens come from the state that they exited with; those of the token itself from the
    state that enters the layer.

    Returns:
        L + 1 arrays.
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
        past = Segment(*layer.self_keys_values(frozen), bias + _masked_where(distance <= 0))
        itself = Segment(*layer.self_keys_values(hidden), bias + _masked_where(distance != 0))
        hidden = layer(hidden, (past, itself), Segment(*cross, cross_bias))
        frozen = jnp.where((exit_layers > index)[..., None], hidden, frozen)
        states.append(hidden)
    return states


def _masked_where(where: Bool[Array, "queries keys"]) -> Float[Array, "queries keys"]:
    return jnp.where(where, MASKED, 0.0)
