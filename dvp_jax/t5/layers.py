"""The parts of a T5 layer: norm, attention with segments, feed-forward, encoder and decoder layer.

Weights are stored (outputs, inputs), as in PyTorch. On CPU a matrix-vector product reads such rows faster, and
checkpoints are read without transposing. Activations are float32. A product is computed in the dtype of its
weights and accumulated in float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.t5.backend import backend
from dvp_jax.t5.config import T5Config

MASKED = -1e9
"""Added to the attention score of a position that must not be attended to."""


class Segment(NamedTuple):
    """Keys and values to attend to, and the bias that is added to their scores.

    A query may attend to several segments at once, for example the cache and the token that is being decoded.
    """

    keys: Float[Array, "batch num_heads length d_kv"]
    values: Float[Array, "batch num_heads length d_kv"]
    bias: Float[Array, "#batch #num_heads #queries #length"] | float


KeysValues = tuple[Float[Array, "batch num_heads length d_kv"], Float[Array, "batch num_heads length d_kv"]]


class Normed(NamedTuple):
    """A normed state in two factors: norm(x) = scaled * factor.

    A product takes `scaled` and multiplies its result with `factor`, so that the normed state itself is never
    written to memory: on a GPU three kernels fewer a layer (docs/performance.md).
    """

    scaled: Float[Array, "... d_model"]  # x times the norm's trained scale
    factor: Float[Array, "... 1"]  # 1 / sqrt(mean(x^2) + epsilon)

    @property
    def value(self) -> Float[Array, "... d_model"]:
        """norm(x), float32."""
        return self.scaled * self.factor


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(subscripts: str, a: Array, b: Array) -> Array:
    """An einsum in the dtype of its operands, accumulated in float32, and so are its gradients.

    JAX's own gradients would widen bfloat16 operands and multiply in float32, which a GPU does far slower.
    """
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _product_gradients(subscripts: str, operands: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    a, b = operands
    of_a, of_b, of_result = re.split(",|->", subscripts)
    gradient = gradient.astype(a.dtype)
    return (
        product(f"{of_result},{of_b}->{of_a}", gradient, b).astype(a.dtype),
        product(f"{of_result},{of_a}->{of_b}", gradient, a).astype(b.dtype),
    )


product.defvjp(lambda subscripts, a, b: (product(subscripts, a, b), (a, b)), _product_gradients)


def linear(
    x: Float[Array, "... inputs"] | Normed, weight: Float[Array, "outputs inputs"]
) -> Float[Array, "... outputs"]:
    """Computes `x @ weight.T` in the weight's dtype, accumulated in float32.

    Args:
        x: any dtype; it is rounded to the weight's.
        weight: a stored weight.

    Returns:
        float32.
    """
    if isinstance(x, Normed):
        return linear(x.scaled, weight) * x.factor
    # An einsum, because XLA may transpose the weight in memory for `x @ weight.T`.
    rows = x.astype(weight.dtype).reshape(-1, x.shape[-1])
    if 1 < len(rows) <= _FEW_ROWS and backend() == "cpu":
        # On CPU, XLA packs the right operand of a product at each call, which is slow for a large one. So the
        # weight is the left operand here, and barriers keep XLA from swapping the two (docs/performance.md).
        keep = jax.lax.optimization_barrier
        out = keep(product("oi,ib->ob", weight, keep(rows.T))).T
    else:
        out = product("bi,oi->bo", rows, weight)
    return out.reshape(*x.shape[:-1], -1)


_FEW_ROWS = 64
"""Up to this many rows of `x`, packing a weight on CPU takes longer than the product itself."""


def rms_norm(x: Float[Array, "... d_model"], scale: Float[Array, " d_model"], epsilon: float) -> Normed:
    """T5's layer norm: x / sqrt(mean(x^2) + epsilon) * scale, without mean or bias, in float32.

    Source: T5 (arXiv 1910.10683), section 2.1; Zhang and Sennrich (arXiv 1910.07467).
    """
    x = x.astype(jnp.float32)
    factor = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)
    return Normed(x * scale.astype(jnp.float32), factor)


def distance_buckets(max_length: int, config: T5Config, *, bidirectional: bool) -> np.ndarray:
    """Relative position bucket of each distance 0..max_length-1 from a query back to a key.

    Computed in NumPy on the host, because the float32 logarithms of two libraries can fall on two sides of a
    bucket's edge. In the encoder, keys after the query use the upper half of the buckets, at the same distances.

    Args:
        max_length: how many distances.
        config: number of buckets, and the distance from which all keys share the last one.
        bidirectional: True in the encoder, False in the decoder.

    Returns:
        int32 of shape (max_length,).

    Source: T5 (arXiv 1910.10683), section 2.1; `T5Attention._relative_position_bucket` in Hugging Face's
    modeling_t5.py.
    """
    num_buckets = config.relative_attention_num_buckets // (2 if bidirectional else 1)
    max_exact = num_buckets // 2
    distance = np.arange(max_length, dtype=np.int32)
    far = np.log(np.maximum(distance, 1).astype(np.float32) / max_exact) / math.log(
        config.relative_attention_max_distance / max_exact
    )
    logarithmic = max_exact + (far * (num_buckets - max_exact)).astype(np.int32)
    return np.where(distance < max_exact, distance, np.minimum(logarithmic, num_buckets - 1)).astype(np.int32)


def relative_bias(
    table: Float[Array, "num_buckets num_heads"],
    query_positions: Int[Array, " queries"],
    key_positions: Int[Array, " keys"],
    max_length: int,
    config: T5Config,
    *,
    bidirectional: bool,
) -> Float[Array, "1 num_heads queries keys"]:
    """T5's relative position bias.

    Args:
        table: the trained bias of each bucket and head.
        query_positions: positions of the queries, below max_length.
        key_positions: positions of the keys, below max_length.
        max_length: static upper bound of all positions.
        config: number of buckets and the distance they cover.
        bidirectional: True in the encoder; False in the decoder, where later keys are masked anyway.

    Returns:
        float32, to be added to the attention scores of every batch row.

    Source: T5 (arXiv 1910.10683), section 2.1.
    """
    distance = (query_positions[:, None] - key_positions[None, :])[None]
    return distance_bias(table, distance, max_length, config, bidirectional=bidirectional)


def distance_bias(
    table: Float[Array, "num_buckets num_heads"],
    distance: Int[Array, "#batch queries keys"],
    max_length: int,
    config: T5Config,
    *,
    bidirectional: bool,
) -> Float[Array, "#batch num_heads queries keys"]:
    """`relative_bias` from the distance of each query back to each key, below max_length."""
    buckets = jnp.asarray(distance_buckets(max_length, config, bidirectional=bidirectional))
    bucket = buckets[jnp.abs(distance)]  # (batch, queries, keys)
    if bidirectional:
        bucket = bucket + jnp.where(distance < 0, config.relative_attention_num_buckets // 2, 0)
    return table.astype(jnp.float32)[bucket].transpose(0, 3, 1, 2)


def padding_bias(mask: Bool[Array, "batch length"]) -> Float[Array, "batch 1 1 length"]:
    """The bias that hides padding from attention: 0 where `mask` is True, `MASKED` elsewhere."""
    return jnp.where(mask, 0.0, MASKED)[:, None, None, :]


class Dropout(nn.Module):
    """T5's dropout. It is active only if `apply` is given a "dropout" key, as in training.

    All positions of a sequence share one mask, as in T5's own code.
    """

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "... length width"]) -> Float[Array, "... length width"]:
        dropout = nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))
        return dropout(x, deterministic=not self.has_rng("dropout"))


class Attention(nn.Module):
    """T5's multi-head attention: without biases, and without division by sqrt(d_kv)."""

    config: T5Config
    has_relative_bias: bool = False

    def setup(self) -> None:
        c, inner = self.config, self.config.num_heads * self.config.d_kv
        normal, factor = nn.initializers.normal, self.config.initializer_factor
        # T5's own initialisation. The query's has the factor 1 / sqrt(d_kv) that the scores lack.
        self.query = self.param("query", normal(factor * (c.d_model * c.d_kv) ** -0.5), (inner, c.d_model))
        self.key = self.param("key", normal(factor * c.d_model**-0.5), (inner, c.d_model))
        self.value = self.param("value", normal(factor * c.d_model**-0.5), (inner, c.d_model))
        self.output = self.param("output", normal(factor * inner**-0.5), (c.d_model, inner))
        if self.has_relative_bias:
            shape = (c.relative_attention_num_buckets, c.num_heads)
            self.relative_bias = self.param("relative_bias", normal(factor * c.d_model**-0.5), shape)
        self.dropout = Dropout(c)

    def _heads(self, x: Float[Array, "batch length inner"]) -> Float[Array, "batch num_heads length d_kv"]:
        return x.reshape(*x.shape[:2], self.config.num_heads, self.config.d_kv).transpose(0, 2, 1, 3)

    def keys_values(self, x: Float[Array, "batch length d_model"] | Normed) -> KeysValues:
        """Keys and values of the normed states `x`, in the dtype of the weights."""
        dtype = self.key.dtype
        return (
            self._heads(linear(x, self.key)).astype(dtype),
            self._heads(linear(x, self.value)).astype(dtype),
        )

    def __call__(
        self, x: Float[Array, "batch queries d_model"] | Normed, *segments: Segment
    ) -> Float[Array, "batch queries d_model"]:
        """Attends from the normed states to the keys of all segments, under one softmax.

        Args:
            x: normed hidden states.
            segments: keys, values and biases. Their lengths may differ.

        Returns:
            float32, to be added to the residual stream.
        """
        query = self._heads(linear(x, self.query)).astype(self.query.dtype)  # (batch, num_heads, queries, d_kv)
        # One array (batch, num_heads, queries, length) for each segment.
        scores = [product("bhqd,bhkd->bhqk", query, segment.keys) + segment.bias for segment in segments]
        # (batch, num_heads, queries, sum of lengths)
        weights = self.dropout(jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1))
        ends = np.cumsum([segment.keys.shape[2] for segment in segments])[:-1].tolist()
        # One array (batch, num_heads, queries, d_kv) for each segment.
        contexts = [
            product("bhqk,bhkd->bhqd", segment_weights.astype(segment.values.dtype), segment.values)
            for segment_weights, segment in zip(jnp.split(weights, ends, axis=-1), segments, strict=True)
        ]
        context = reduce(jnp.add, contexts).transpose(0, 2, 1, 3)  # (batch, queries, num_heads, d_kv)
        return linear(context.reshape(*context.shape[:2], -1), self.output)


class FeedForward(nn.Module):
    """T5's feed-forward block: wo @ act(wi @ x), or wo @ (act(wi @ x) * (wi_linear @ x)) if gated (T5 1.1)."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "batch length d_model"] | Normed) -> Float[Array, "batch length d_model"]:
        c = self.config
        normal, factor = nn.initializers.normal, c.initializer_factor
        activations: dict[str, Callable[[Array], Array]] = {
            "relu": jax.nn.relu,
            "silu": jax.nn.silu,
            "gelu": partial(jax.nn.gelu, approximate=False),
            "gelu_new": partial(jax.nn.gelu, approximate=True),
        }
        wi = self.param("wi", normal(factor * c.d_model**-0.5), (c.d_ff, c.d_model))
        wo = self.param("wo", normal(factor * c.d_ff**-0.5), (c.d_model, c.d_ff))
        if isinstance(x, Normed) and c.activation == "relu" and not c.gated:
            # The factor is positive, so relu(factor * y) = factor * relu(y), and the second product takes it over:
            # a kernel less a layer on a GPU.
            return linear(Normed(Dropout(c)(jax.nn.relu(linear(x.scaled, wi))), x.factor), wo)
        hidden = activations[c.activation](linear(x, wi))  # (batch, length, d_ff)
        if c.gated:
            wi_linear = self.param("wi_linear", normal(factor * c.d_model**-0.5), (c.d_ff, c.d_model))
            hidden = hidden * linear(x, wi_linear)
        return linear(Dropout(c)(hidden), wo)


class Norm(nn.Module):
    """`rms_norm` with a trained scale."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "... d_model"]) -> Normed:
        scale = self.param(
            "scale", nn.initializers.constant(self.config.initializer_factor), (self.config.d_model,)
        )
        return rms_norm(x, scale, self.config.layer_norm_epsilon)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward. Each reads a norm of the residual stream and is added to the stream."""

    config: T5Config
    has_relative_bias: bool

    def setup(self) -> None:
        self.self_attention = Attention(self.config, self.has_relative_bias)
        self.self_attention_norm = Norm(self.config)
        self.feed_forward = FeedForward(self.config)
        self.feed_forward_norm = Norm(self.config)
        self.dropout = Dropout(self.config)

    def __call__(
        self,
        hidden: Float[Array, "batch length d_model"],
        bias: Float[Array, "batch num_heads length length"],
    ) -> Float[Array, "batch length d_model"]:
        """Runs the layer on whole sequences.

        Args:
            hidden: the residual stream before the layer.
            bias: relative position bias plus padding bias.

        Returns:
            The residual stream after the layer.
        """
        x = self.self_attention_norm(hidden)
        segment = Segment(*self.self_attention.keys_values(x), bias)
        hidden = hidden + self.dropout(self.self_attention(x, segment))
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward.

    Keys and values have calls of their own. A token that has exited still needs them in the deeper layers, where
    it runs nothing else (state propagation).
    """

    config: T5Config
    has_relative_bias: bool

    def setup(self) -> None:
        self.self_attention = Attention(self.config, self.has_relative_bias)
        self.self_attention_norm = Norm(self.config)
        self.cross_attention = Attention(self.config)
        self.cross_attention_norm = Norm(self.config)
        self.feed_forward = FeedForward(self.config)
        self.feed_forward_norm = Norm(self.config)
        self.dropout = Dropout(self.config)

    def self_keys_values(self, hidden: Float[Array, "batch length d_model"]) -> KeysValues:
        """Self-attention keys and values of the states that enter this layer."""
        return self.self_attention.keys_values(self.self_attention_norm(hidden))

    def cross_keys_values(self, encoded: Float[Array, "batch source d_model"]) -> KeysValues:
        """Cross-attention keys and values of the encoder's output, computed once per request."""
        return self.cross_attention.keys_values(encoded)

    def __call__(
        self,
        hidden: Float[Array, "batch length d_model"],
        self_segments: tuple[Segment, ...],
        cross_segment: Segment,
    ) -> Float[Array, "batch length d_model"]:
        """Runs the layer.

        Args:
            hidden: the residual stream before the layer.
            self_segments: what self-attention reads: cached tokens, and the tokens of `hidden` themselves.
            cross_segment: what cross-attention reads: the encoder's output.

        Returns:
            The residual stream after the layer.
        """
        x = self.self_attention_norm(hidden)
        hidden = hidden + self.dropout(self.self_attention(x, *self_segments))
        x = self.cross_attention_norm(hidden)
        hidden = hidden + self.dropout(self.cross_attention(x, cross_segment))
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
