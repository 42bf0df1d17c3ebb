"""T5 as a pure function of its parameters: encoder, teacher-forced decoder, and the pieces decoding uses.

The parameters are a plain nested dict of arrays:

    shared                                      (V, d_model)     token embedding
    lm_head                                     (V, d_model)     unembedding, where untied
    encoder / layers_0 .. / self_attention ..., feed_forward ..., *_norm
    encoder / final_norm / scale
    decoder / ...                               the same, with cross_attention
    meta                                        CALM's `MetaClassifier`, where one was trained
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.t5.config import T5Config
from dvp_jax.t5.layers import (
    MASKED,
    DecoderLayer,
    Dropout,
    EncoderLayer,
    KeysValues,
    Norm,
    Segment,
    linear,
    padding_bias,
    relative_bias,
)

Params = dict[str, Any]
"""Nested dict of arrays, as laid out above."""


class T5(nn.Module):
    """Encoder-decoder; used for its parameters (`init`) and for teacher-forced passes."""

    config: T5Config

    def setup(self) -> None:
        c = self.config
        embedding = nn.initializers.normal(c.initializer_factor)
        rows = c.vocab_size + c.vocab_padding
        self.shared = self.param("shared", embedding, (rows, c.d_model))
        self.encoder = _Encoder(c)
        self.decoder = _Decoder(c)
        if not c.tie_word_embeddings:
            self.lm_head = self.param("lm_head", embedding, (rows, c.d_model))

    def encode(
        self, input_ids: Int[Array, "batch source"], mask: Bool[Array, "batch source"]
    ) -> Float[Array, "batch source d_model"]:
        """The encoder's output, normed."""
        return self.encoder(embed(self.shared, input_ids), mask)

    def cross_keys_values(self, encoded: Float[Array, "batch source d_model"]) -> list[KeysValues]:
        """Cross-attention keys and values of every decoder layer."""
        return [layer.cross_keys_values(encoded) for layer in self.decoder.layers]

    def depths(
        self,
        input_ids: Int[Array, "batch source"],
        mask: Bool[Array, "batch source"],
        decoder_input_ids: Int[Array, "batch target"],
    ) -> list[Float[Array, "batch target d_model"]]:
        """Teacher-forced h_l of the depths l = 1..L: the residual stream after l decoder layers."""
        cross = self.cross_keys_values(self.encode(input_ids, mask))
        return self.decoder(embed(self.shared, decoder_input_ids), cross, mask)

    def readout(
        self, hidden: Float[Array, "*depths batch target d_model"]
    ) -> Float[Array, "*depths batch target d_model"]:
        """s * norm(h_l), of which the unembedding makes the logits of depth l."""
        return self.decoder.readout(hidden) * self.config.logit_scale

    def __call__(
        self,
        input_ids: Int[Array, "batch source"],
        mask: Bool[Array, "batch source"],
        decoder_input_ids: Int[Array, "batch target"],
    ) -> Float[Array, "batch target vocab"]:
        """Teacher-forced logits of the last depth, float32."""
        last = self.depths(input_ids, mask, decoder_input_ids)[-1]
        rows = self.shared if self.config.tie_word_embeddings else self.lm_head
        return linear(self.readout(last), rows[: self.config.vocab_size])


class _Encoder(nn.Module):
    config: T5Config

    def setup(self) -> None:
        c = self.config
        self.layers = [EncoderLayer(c, has_relative_bias(c, index)) for index in range(c.num_layers)]
        self.final_norm = Norm(c)
        self.dropout = Dropout(c)

    def __call__(
        self, hidden: Float[Array, "batch source d_model"], mask: Bool[Array, "batch source"]
    ) -> Float[Array, "batch source d_model"]:
        hidden = self.dropout(hidden)
        positions = jnp.arange(hidden.shape[1])
        for index, layer in enumerate(self.layers):
            if has_relative_bias(self.config, index):
                table = layer.self_attention.relative_bias
                bias = padding_bias(mask) + relative_bias(
                    table, positions, positions, len(positions), self.config, bidirectional=True
                )
            hidden = layer(hidden, bias)
        return self.dropout(self.final_norm(hidden))


class _Decoder(nn.Module):
    config: T5Config

    def setup(self) -> None:
        c = self.config
        self.layers = [DecoderLayer(c, has_relative_bias(c, index)) for index in range(c.num_decoder_layers)]
        self.final_norm = Norm(c)
        self.dropout = Dropout(c)

    def __call__(
        self,
        hidden: Float[Array, "batch target d_model"],
        cross: list[KeysValues],
        mask: Bool[Array, "batch source"],
    ) -> list[Float[Array, "batch target d_model"]]:
        """The residual stream after each layer."""
        hidden, depths = self.dropout(hidden), []
        positions = jnp.arange(hidden.shape[1])
        causal = jnp.where(positions[:, None] >= positions[None, :], 0.0, MASKED)
        for index, (layer, cross_keys_values) in enumerate(zip(self.layers, cross, strict=True)):
            if has_relative_bias(self.config, index):
                table = layer.self_attention.relative_bias
                bias = causal + relative_bias(
                    table, positions, positions, len(positions), self.config, bidirectional=False
                )
            itself = Segment(*layer.self_keys_values(hidden), bias)
            hidden = layer(hidden, (itself,), Segment(*cross_keys_values, padding_bias(mask)))
            depths.append(hidden)
        return depths

    def readout(
        self, hidden: Float[Array, "*depths batch target d_model"]
    ) -> Float[Array, "*depths batch target d_model"]:
        """The final norm, at any depth."""
        return self.dropout(self.final_norm(hidden))


def has_relative_bias(config: T5Config, index: int) -> bool:
    """Whether layer `index` (from 0) holds a relative position bias: the first, or each in UMT5."""
    return index == 0 or config.relative_bias_per_layer


def unembedding(config: T5Config, params: Params) -> Float[Array, "vocab d_model"]:
    """W, without padding: the embedding itself where the two are tied."""
    return params["shared" if config.tie_word_embeddings else "lm_head"][: config.vocab_size]


def embed(
    shared: Float[Array, "vocab d_model"], ids: Int[Array, "batch length"]
) -> Float[Array, "batch length d"]:
    """The residual stream before the first layer, float32."""
    return jnp.take(shared, ids, axis=0).astype(jnp.float32)


def init_params(config: T5Config, key: Array, dtype: jnp.dtype = jnp.float32) -> Params:
    """Random parameters by T5's own initialisation.

    Args:
        config: the shape.
        key: a `jax.random.key`.
        dtype: of all parameters.
    """
    ids = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(T5(config).init)(key, ids, ids == 0, ids)["params"]
    return jax.tree.map(lambda x: x.astype(dtype), params)
