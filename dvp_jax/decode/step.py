"""One token of every row: run layers, ask the policy at each candidate depth, propagate state."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.decode.layer_loop import LAYER_LOOPS, DepthState, propagate_state
from dvp_jax.exits.policy import Depth, ExitPolicy, Readers, Reading
from dvp_jax.exits.vocabulary import Vocabulary
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.layers import MASKED, DecoderLayer, KeysValues, Segment, padding_bias, relative_bias
from dvp_jax.t5.model import Params, embed, has_relative_bias, unembedding


@dataclasses.dataclass(frozen=True)
class Structure:
    """All that decides the compiled decode program, beside the shapes of its arguments."""

    config: T5Config
    policy: ExitPolicy
    max_new_tokens: int
    layer_loop: str


def decode_token(
    structure: Structure,
    params: Params,
    layers: DecoderLayers,
    token: Int[Array, " batch"],
    ended: Bool[Array, " batch"],
    thresholds: Float[Array, " num_depths"],
) -> tuple[DepthState, list[KeysValues]]:
    """Decodes the token after `token` in every row whose text has not ended.

    Args:
        structure: model, policy and loop.
        params: of the model.
        layers: the decoder's, at this step.
        token: the last token of each row.
        ended: rows that need no token.
        thresholds: what confidence must exceed, at depth l in thresholds[l - 1].

    Returns:
        The rows' tokens, exits and confidences, and the new keys and values of each layer.
    """
    config, policy = structure.config, structure.policy
    vocabulary = whole = whole_vocabulary(config, params)
    meta = params.get("meta")

    def at(depth: int, state: DepthState) -> Depth:
        return Depth(depth, state.hidden, state.before, ~state.exited)

    def kept_readers(state: DepthState) -> Readers:
        # Once the loop below runs, `vocabulary` is what the policy kept.
        return Readers(dataclasses.replace(vocabulary, kept=state.kept), meta)

    def leave(state: DepthState, reading: Reading) -> DepthState:
        return dataclasses.replace(
            state,
            exited=state.exited | reading.leaves,
            token=jnp.where(reading.leaves, reading.token, state.token),
            confidence=jnp.where(reading.leaves, reading.confidence, state.confidence),
        )

    def run(depth: int, state: DepthState) -> tuple[DepthState, KeysValues]:
        hidden, keys_values = layers.run(depth, state.hidden)
        state = dataclasses.replace(
            state,
            hidden=jnp.where(state.exited[:, None], state.hidden, hidden),
            exit_layer=jnp.where(state.exited, state.exit_layer, depth),
            before=state.hidden if policy.compares else None,
        )
        if policy.first_exit <= depth < policy.last_depth:
            reading = policy.decide(at(depth, state), thresholds[depth - 1], kept_readers(state))
            state = dataclasses.replace(leave(state, reading), kept=reading.kept)
        return state, keys_values

    embedded = embed(params["shared"], token[:, None])[:, 0]
    state = DepthState(
        hidden=embedded,
        exited=ended,
        exit_layer=jnp.zeros_like(token),
        token=jnp.full_like(token, config.pad_token_id),
        confidence=jnp.zeros(token.shape, jnp.float32),
        before=embedded if policy.compares else None,
        kept=None,
    )
    fresh = []
    for depth in range(1, policy.first_exit + 1):
        state, keys_values = run(depth, state)
        vocabulary = policy.observe(at(depth, state), vocabulary)
        state = dataclasses.replace(state, kept=vocabulary.kept)
        fresh.append(keys_values)

    depths = range(policy.first_exit + 1, policy.last_depth + 1)
    count, state, ran = LAYER_LOOPS[structure.layer_loop](run, depths, state)
    deeper = range(policy.first_exit + 1, config.num_decoder_layers + 1)
    fresh += propagate_state(layers.keys_values, deeper, count, state, ran)

    def read_last(state: DepthState) -> DepthState:
        last = at(policy.last_depth, state)
        return leave(state, policy.read_last(last, Readers(whole, meta), kept_readers(state)))

    return lax.cond(jnp.all(state.exited), lambda state: state, read_last, state), fresh


class DecoderLayers:
    """The decoder's layers at one step: depth and state in, state and new keys and values out.

    Args:
        structure: model and output length.
        params: of the model.
        cross: cross-attention keys and values of each layer.
        source_mask: False where the source is padding.
        caches: self-attention keys and values of each layer, (batch, num_heads, max_new_tokens, d_kv); read
            below `step`, never written.
        step: tokens decoded so far.
    """

    def __init__(
        self,
        structure: Structure,
        params: Params,
        cross: list[KeysValues],
        source_mask: Bool[Array, "batch source"],
        caches: list[KeysValues],
        step: Int[Array, ""],
    ) -> None:
        self._config, self._params = structure.config, params["decoder"]
        self._cross, self._caches = cross, caches
        self._padding = padding_bias(source_mask)
        self._biases = {
            index: self._past_and_present_bias(index, structure.max_new_tokens, step)
            for index in range(self._config.num_decoder_layers)
            if has_relative_bias(self._config, index)
        }

    def _past_and_present_bias(self, index: int, max_new_tokens: int, step: Array) -> tuple[Array, Array]:
        """Score biases of the cached tokens, those not yet decoded masked, and of the token itself."""
        positions = jnp.arange(max_new_tokens)
        table = self._params[f"layers_{index}"]["self_attention"]["relative_bias"]
        bias = partial(
            relative_bias,
            table,
            step[None],
            max_length=max_new_tokens,
            config=self._config,
            bidirectional=False,
        )
        return bias(positions) + jnp.where(positions < step, 0.0, MASKED), bias(step[None])

    def _apply(self, depth: int, method: str, *args: object) -> Any:
        index = depth - 1
        layer = DecoderLayer(self._config, has_relative_bias(self._config, index))
        return layer.apply({"params": self._params[f"layers_{index}"]}, *args, method=method)

    def keys_values(self, depth: int, hidden: Float[Array, "batch d_model"]) -> KeysValues:
        """State propagation: the keys and values that the layer at `depth` is owed, and nothing else."""
        return self._apply(depth, "self_keys_values", hidden[:, None])

    def run(self, depth: int, hidden: Float[Array, "batch d_model"]) -> tuple[Array, KeysValues]:
        """The layer at `depth`, and its new keys and values."""
        index = depth - 1
        past, present = self._biases[index if index in self._biases else 0]
        keys_values = self.keys_values(depth, hidden)
        segments = (Segment(*self._caches[index], past), Segment(*keys_values, present))
        cross = Segment(*self._cross[index], self._padding)
        return self._apply(depth, "__call__", hidden[:, None], segments, cross)[:, 0], keys_values


def whole_vocabulary(config: T5Config, params: Params) -> Vocabulary:
    """Every token, read through the decoder's final norm."""
    return Vocabulary(
        rows=unembedding(config, params),
        ids=None,
        norm=params["decoder"]["final_norm"]["scale"],
        screen=params.get("screen"),
        epsilon=config.layer_norm_epsilon,
        scale=config.logit_scale,
    )
