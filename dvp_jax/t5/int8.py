"""Screening: the likeliest tokens of the whole vocabulary for a quarter of the bytes, provably.

At batch 1 a product with W takes as long as reading W. An int8 copy of W is read instead, and bounds every logit
from above; the rows with the highest bounds are then rescored with W itself. A row that was not rescored is
known to lie below its bound: so where the smallest wanted logit exceeds the highest bound left, the largest
logits have been found exactly. Where it does not, W is read after all.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int8

from dvp_jax.t5.layers import linear
from dvp_jax.t5.top_k import top_k

_BLOCK = (2, 512)
"""Rows of the copy that are widened to float32 at once: two products side by side, out of the CPU's caches."""

_OLD_JAX = jax.__version_info__ < (0, 11)
"""Sums products slowly."""


class Rescored(NamedTuple):
    """What screening found, row by row."""

    about: Float[Array, "batch vocab"]  # logits from the copy
    ids: Int[Array, "batch rescored"]
    exact: Float[Array, "batch rescored"]  # their logits
    proven: Bool[Array, " batch"]  # whether the largest logits are among them for certain


@struct.dataclass
class Int8Unembedding:
    """An int8 copy of W, row by row: W[v] is about scale[v] * rows[v]."""

    rows: Int8[Array, "blocks 2 512 d_model"]  # W's, filled up with rows of zeros
    scale: Float[Array, " vocab"]
    error: Float[Array, " vocab"]  # norm of what rounding took from each row, with room for float32's own

    def logits(
        self, x: Float[Array, "batch d_model"], weight: Float[Array, "vocab d_model"], sure: int
    ) -> Float[Array, "batch vocab"]:
        """The logits W x, of which at least the `sure` largest are exact; the others within their bound."""
        if num_rescored(sure) >= weight.shape[0]:
            return linear(x, weight)
        found = self.find(x, weight, sure)
        batch = jnp.arange(x.shape[0])[:, None]

        def screened(x: Array) -> Array:
            return found.about.at[batch, found.ids].set(found.exact)

        def whole(x: Array) -> Array:
            return linear(x, weight)

        return lax.cond(jnp.all(found.proven), screened, whole, x)

    def find(self, x: Float[Array, "batch d_model"], weight: Float[Array, "vocab d_model"], sure: int) -> Rescored:
        """Rescores the rows with the highest bounds; `sure` of them are wanted."""
        x = x.astype(weight.dtype).astype(jnp.float32)  # what `linear` multiplies
        about = self._product(x)[:, : weight.shape[0]] * self.scale
        # Cauchy and Schwarz: |(W[v] - scale[v] rows[v]) x| <= error[v] |x|.
        bounds = about + self.error * jnp.linalg.norm(x, axis=-1, keepdims=True)
        highest, ids = top_k(bounds, num_rescored(sure) + 1)
        exact = rows_logits(x, jnp.take(weight, ids[:, :-1], axis=0))
        proven = top_k(exact, sure)[0][:, -1] > highest[:, -1]
        return Rescored(about, ids[:, :-1], exact, proven)

    def _product(self, x: Float[Array, "batch d_model"]) -> Float[Array, "batch filled"]:
        """The copy times x, without its scale, in the form that was measured to be fastest."""
        if x.shape[0] == 1 and not _OLD_JAX:
            rows, state = lax.optimization_barrier((self.rows, x[0]))  # else widened once, before the token loop
            return jnp.sum(rows.astype(jnp.float32) * state, axis=-1).reshape(1, -1)

        def block(rows: Int8[Array, "2 512 d_model"]) -> Float[Array, "2 batch 512"]:
            return jnp.einsum("bd,cvd->cbv", x, rows.astype(jnp.float32))

        return lax.map(block, self.rows).transpose(2, 0, 1, 3).reshape(x.shape[0], -1)


def screening_pays(backend: str, batch: int) -> bool:
    """Whether it was measured to be faster than the product with W (docs/performance.md)."""
    return backend == "cpu" and batch == 1


def num_rescored(sure: int) -> int:
    """How many rows are rescored so that the `sure` largest are nearly always proven (docs/performance.md)."""
    return 2 * sure + 64


def rows_logits(
    x: Float[Array, "batch d_model"], rows: Float[Array, "batch kept d_model"]
) -> Float[Array, "batch kept"]:
    """The logits of each batch row's own rows of W, in their dtype, accumulated in float32."""
    return jnp.einsum("bd,bkd->bk", x.astype(rows.dtype), rows, preferred_element_type=jnp.float32)


@jax.jit
def quantize_unembedding(weight: Float[Array, "vocab d_model"]) -> Int8Unembedding:
    """The int8 copy of W: symmetric, with a scale for each row."""
    rows = weight.astype(jnp.float32)
    largest = jnp.max(jnp.abs(rows), axis=1)
    scale = jnp.where(largest > 0.0, largest, 1.0) / 127.0  # a row of zeros has any
    rounded = jnp.round(rows / scale[:, None])
    error = jnp.linalg.norm(rows - rounded * scale[:, None], axis=1) + 1e-5 * jnp.linalg.norm(rows, axis=1)
    filled = jnp.pad(rounded.astype(jnp.int8), ((0, -len(weight) % math.prod(_BLOCK)), (0, 0)))
    return Int8Unembedding(filled.reshape(-1, *_BLOCK, weight.shape[1]), scale, error)
