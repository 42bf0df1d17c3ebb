"""T5 as a pure function of its parameters: encoder, teacher-forced decoder, and the parts that decoding uses.

The parameters are a nested dict of arrays:

    shared                                      (V, d_model)     token embedding
    lm_head                                     (V, d_model)     unembedding, only if it is not tied to shared
    encoder / layers_0 .. / self_attention ..., feed_forward ..., *_norm
    encoder / final_norm / scale                (d_model,)
    decoder / ...                               the same, with cross_attention ...
    meta                                        CALM's `ExitClassifier`, only if one was trained

V includes `vocab_padding` rows of zeros, which only a mesh needs. The int8 copy of the unembedding is not among
the parameters: `Model.int8_unembedding` makes it.
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
"""A nested dict of arrays, laid out as this module's docstring says."""


class T5(nn.Module):
    """The encoder-decoder. It makes parameters (`init`) and runs teacher-forced passes."""

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
        """Runs the encoder.

        Args:
            input_ids: source tokens.
            mask: False at padding.

        Returns:
            The encoder's normed output, float32.
        """
        return self.encoder(embed(self.shared, input_ids), mask)

    def cross_keys_values(self, encoded: Float[Array, "batch source d_model"]) -> list[KeysValues]:
        """Cross-attention keys and values of every decoder layer, from the encoder's output."""
        return [layer.cross_keys_values(encoded) for layer in self.decoder.layers]

    def depths(
        self,
        input_ids: Int[Array, "batch source"],
        mask: Bool[Array, "batch source"],
        decoder_input_ids: Int[Array, "batch target"],
    ) -> list[Float[Array, "batch target d_model"]]:
        """Runs encoder and decoder with teacher forcing.

        Args:
            input_ids: source tokens.
            mask: False at padding of the source.
            decoder_input_ids: target tokens, shifted right: the first is the decoder's start token.

        Returns:
            h_l for l = 1..L: the residual stream after l decoder layers, float32.
        """
        cross = self.cross_keys_values(self.encode(input_ids, mask))
        return self.decoder(embed(self.shared, decoder_input_ids), cross, mask)

    def readout(
        self, hidden: Float[Array, "*depths batch target d_model"]
    ) -> Float[Array, "*depths batch target d_model"]:
        """s * norm(h_l). Multiplied with the unembedding it gives the logits of depth l."""
        return self.decoder.readout(hidden) * self.config.logit_scale

    def __call__(
        self,
        input_ids: Int[Array, "batch source"],
        mask: Bool[Array, "batch source"],
        decoder_input_ids: Int[Array, "batch target"],
    ) -> Float[Array, "batch target vocab"]:
        """Teacher-forced logits of the last depth, float32. Arguments as for `depths`."""
        last = self.depths(input_ids, mask, decoder_input_ids)[-1]
        weight = self.shared if self.config.tie_word_embeddings else self.lm_head
        return linear(self.readout(last), weight[: self.config.vocab_size])


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
        """The normed output, from embedded tokens; `mask` is False at padding."""
        hidden = self.dropout(hidden)
        positions = jnp.arange(hidden.shape[1])
        for index, layer in enumerate(self.layers):
            if has_relative_bias(self.config, index):
                table = layer.self_attention.relative_bias
                bias = padding_bias(mask) + relative_bias(
                    table, positions, positions, len(positions), self.config, bidirectional=True
                )
            hidden = layer(hidden, bias)
        return self.dropout(self.final_norm(hidden).value)


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
        """The residual stream after each layer.

        Args:
            hidden: embedded target tokens.
            cross: keys and values of the encoder's output, one pair for each layer.
            mask: False at padding of the source.
        """
        hidden, depths = self.dropout(hidden), []
        positions = jnp.arange(hidden.shape[1])
        causal = jnp.where(positions[:, None] >= positions[None, :], 0.0, MASKED)
        for index, (layer, cross_keys_values) in enumerate(zip(self.layers, cross, strict=True)):
            if has_relative_bias(self.config, index):
                table = layer.self_attention.relative_bias
                bias = causal + relative_bias(
                    table, positions, positions, len(positions), self.config, bidirectional=False
                )
            self_segment = Segment(*layer.self_keys_values(hidden), bias)
            hidden = layer(hidden, (self_segment,), Segment(*cross_keys_values, padding_bias(mask)))
            depths.append(hidden)
        return depths

    def readout(
        self, hidden: Float[Array, "*depths batch target d_model"]
    ) -> Float[Array, "*depths batch target d_model"]:
        """The decoder's final norm, which reads the residual stream of any depth."""
        return self.dropout(self.final_norm(hidden).value)


def has_relative_bias(config: T5Config, index: int) -> bool:
    """Whether layer `index` (from 0) has a relative position bias: only the first, but every layer in UMT5."""
    return index == 0 or config.relative_bias_per_layer


def unembedding(config: T5Config, params: Params) -> Float[Array, "vocab d_model"]:
    """The unembedding W without padding rows. It is the embedding if the two are tied."""
    return params["shared" if config.tie_word_embeddings else "lm_head"][: config.vocab_size]


def embed(
    shared: Float[Array, "vocab d_model"], ids: Int[Array, "batch length"]
) -> Float[Array, "batch length d"]:
    """The residual stream before the first layer, float32."""
    return jnp.take(shared, ids, axis=0).astype(jnp.float32)


def init_params(config: T5Config, key: Array, dtype: jnp.dtype = jnp.float32) -> Params:
    """Random parameters, drawn by T5's own initialisation.

    Args:
        config: the shape.
        key: a `jax.random.key`.
        dtype: dtype of all parameters.

    Returns:
        Parameters in the layout of this module's docstring.
    """
    ids, mask = (jax.ShapeDtypeStruct((1, 1), kind) for kind in (jnp.int32, jnp.bool))
    # Only the parameters are computed, one after the other, so that equal shapes share a program. One program for
    # all of T5-large takes minutes to compile.
    leaves, structure = jax.tree.flatten(T5(config).lazy_init(key, ids, mask, ids)["params"])
    for index in range(len(leaves)):  # in place, so that the float32 leaf is freed before the next one is cast
        leaves[index] = leaves[index].astype(dtype)
    return jax.tree.unflatten(structure, leaves)
