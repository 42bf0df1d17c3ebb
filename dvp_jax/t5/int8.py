"""An int8 copy of the unembedding W, from which the exact largest logits are found for a quarter of the bytes.

At batch 1 a product with W takes as long as reading W. Reading an int8 copy takes a quarter of that and gives an
upper bound of every logit. The rows with the highest bounds are then rescored with W itself. A row that was not
rescored lies below its bound. Where the smallest wanted logit exceeds the highest remaining bound, the largest
logits are therefore among the rescored ones. Where it does not, W is read after all. docs/performance.md has the
measurements.

The bounds include the rounding of float32's sums, in whichever order they are added. What remains is that rounding
itself: of two rescored logits that differ by less, either may be the larger, as between two orders of addition.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int8

from dvp_jax.t5.layers import linear, product
from dvp_jax.t5.top_k import top_k

_BLOCK = (2, 512)
"""Rows that are widened to float32 at once: two products side by side that stay in the CPU's caches."""

_OLD_JAX = jax.__version_info__ < (0, 11)
"""Whether XLA computes a sum of products slowly on CPU."""


class Rescored(NamedTuple):
    """The rows of W that may hold the largest logits of each batch row."""

    approximate: Float[Array, "batch vocab"]  # logits from the int8 copy
    ids: Int[Array, "batch rescored"]
    exact: Float[Array, "batch rescored"]  # logits of `ids` from W
    proven: Bool[Array, " batch"]  # whether the largest logits are surely among `exact`


@struct.dataclass
class Int8Unembedding:
    """W, rounded to int8 with one scale a row: W[v] is close to scale[v] * rows[v]."""

    rows: Int8[Array, "blocks 2 512 d_model"]  # padded with rows of zeros
    scale: Float[Array, " vocab"]
    error: Float[Array, " vocab"]  # bound of |W[v] x - the computed logit| / |x|, see `quantize_unembedding`

    def logits(
        self, x: Float[Array, "batch d_model"], weight: Float[Array, "vocab d_model"], num_exact: int
    ) -> Float[Array, "batch vocab"]:
        """The logits W x. At least the `num_exact` largest are from W, the others within their bound.

        Args:
            x: s * norm(h_l).
            weight: W.
            num_exact: how many of the largest logits must be from W, and truly the largest up to the rounding of
                float32's sums.
        """
        if num_rescored(num_exact) >= weight.shape[0]:
            return linear(x, weight)
        rescored = self.rescore(x, weight, num_exact)
        rows = jnp.arange(x.shape[0])[:, None]

        def from_copy(x: Array) -> Array:
            return rescored.approximate.at[rows, rescored.ids].set(rescored.exact)

        def from_weight(x: Array) -> Array:
            return linear(x, weight)

        return lax.cond(jnp.all(rescored.proven), from_copy, from_weight, x)

    def rescore(
        self, x: Float[Array, "batch d_model"], weight: Float[Array, "vocab d_model"], num_exact: int
    ) -> Rescored:
        """Computes the exact logits of the rows with the highest bounds. Arguments as for `logits`."""
        x = x.astype(weight.dtype).astype(jnp.float32)  # what `linear` multiplies
        approximate = self._product(x)[:, : weight.shape[0]] * self.scale
        bounds = approximate + self.error * jnp.linalg.norm(x, axis=-1, keepdims=True)
        highest, ids = top_k(bounds, num_rescored(num_exact) + 1)
        exact = rows_logits(x, jnp.take(weight, ids[:, :-1], axis=0))
        proven = top_k(exact, num_exact)[0][:, -1] > highest[:, -1]
        return Rescored(approximate, ids[:, :-1], exact, proven)

    def _product(self, x: Float[Array, "batch d_model"]) -> Float[Array, "batch padded"]:
        """The int8 rows times x, unscaled, in the form that was measured to be the fastest."""
        if x.shape[0] == 1 and not _OLD_JAX:
            # Without the barrier XLA widens the copy once, before the token loop, and then reads float32.
            rows, state = lax.optimization_barrier((self.rows, x[0]))
            return jnp.sum(rows.astype(jnp.float32) * state, axis=-1).reshape(1, -1)

        def block_product(rows: Int8[Array, "2 512 d_model"]) -> Float[Array, "2 batch 512"]:
            return jnp.einsum("bd,cvd->cbv", x, rows.astype(jnp.float32))

        return lax.map(block_product, self.rows).transpose(2, 0, 1, 3).reshape(x.shape[0], -1)


def int8_pays(backend: str, batch: int) -> bool:
    """Whether reading the copy was measured to be faster than the product with W (docs/performance.md)."""
    return backend == "cpu" and batch == 1


def copy_pays(vocab_size: int, d_model: int, num_exact: int) -> bool:
    """Whether W is large enough for its copy to be faster: each row has a cost of its own, and so has rescoring.

    It separates the sizes of docs/performance.md at which the copy lost from those at which it won. A smaller W is
    read itself.

    Args:
        vocab_size: V, the rows of W.
        d_model: their length.
        num_exact: how many of the largest logits must be exact.
    """
    return vocab_size * d_model >= 8_000_000 and vocab_size * (d_model - 128) >= 18_000 * num_exact


def num_rescored(num_exact: int) -> int:
    """How many rows to rescore so that the `num_exact` largest are nearly always proven (docs/performance.md)."""
    return 2 * num_exact + 64


def rows_logits(
    x: Float[Array, "batch d_model"], rows: Float[Array, "batch kept d_model"]
) -> Float[Array, "batch kept"]:
    """The logits of each batch row's own rows of W, multiplied in their dtype, accumulated in float32."""
    if len(x) == 1:  # else XLA on CPU makes a loop of it, several times as slow for many rows
        return product("bd,kd->bk", x.astype(rows.dtype), rows[0])
    return product("bd,bkd->bk", x.astype(rows.dtype), rows)


@jax.jit
def quantize_unembedding(weight: Float[Array, "vocab d_model"]) -> Int8Unembedding:
    """The int8 copy of W: symmetric rounding with one scale a row.

    A logit of the copy differs from that of W, each computed in float32, by at most

        |W[v] - s q| |x|            Cauchy-Schwarz; s is the scale of row v, q its int8 numbers
        + gamma(d + 1) |s q| |x|    rounding of the sum over q x, and of its product with s
        + gamma(d) |W[v]| |x|       rounding of the sum over W[v] x

    with gamma(n) = n u / (1 - n u) and u = 2^-24, in any order of addition (Higham, Accuracy and Stability of
    Numerical Algorithms, 2nd edition, equations 3.4 and 3.5). |s q| is at most |W[v]| + |W[v] - s q|. The norms
    and the bound itself are computed in float32 too: 8 roundings more in each sum, and gamma(d) of |W[v] - s q|
    for its norm and for that of x.
    """
    rows = weight.astype(jnp.float32)
    largest = jnp.max(jnp.abs(rows), axis=1)
    scale = jnp.where(largest > 0.0, largest, 1.0) / 127.0  # any scale fits a row of zeros
    rounded = jnp.round(rows / scale[:, None])
    rounding = 2 * (weight.shape[1] + 8) * 2.0**-24
    gamma = rounding / (1.0 - rounding)  # of both sums
    lost = jnp.linalg.norm(rows - rounded * scale[:, None], axis=1)
    error = lost + gamma * (jnp.linalg.norm(rows, axis=1) + 2.0 * lost)
    padded = jnp.pad(rounded.astype(jnp.int8), ((0, -len(weight) % math.prod(_BLOCK)), (0, 0)))
    return Int8Unembedding(padded.reshape(-1, *_BLOCK, weight.shape[1]), scale, error)
