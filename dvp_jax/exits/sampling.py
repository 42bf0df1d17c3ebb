"""Sampling: what draws the token that a row exits with.

A token is drawn by the Gumbel-max trick: the candidate v with the largest z_v / temperature + g_v, g of the
standard Gumbel distribution. This noise belongs to the request's seed, the place in its text and the token v, and
to nothing else. So what a request draws does not depend on its neighbours, and a draft is right where the last
depth draws the same token by the same noise: with a seed, `lossless` draws the text that `full` draws.

Source: drafter-invariant speculative decoding (arXiv 2408.07978), by Gumbel sampling.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt


@struct.dataclass
class Sampling:
    """How each row draws its tokens."""

    temperature: Float[Array, " batch"]  # 0: takes the likeliest token
    seeds: UInt[Array, " batch"]
    top_k: Int[Array, " batch"] | None  # draws from that many of the likeliest; None: no row restricts them
    top_p: Float[Array, " batch"] | None  # draws from the fewest of the likeliest that hold this probability

    def draws(self, places: Int[Array, "batch some"], vocab_size: int) -> Draws:
        """What draws the tokens at places of each row's text; batch * some rows, those of a text together."""

        def noise(seed: Array, place: Array) -> Array:
            return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), place), (vocab_size,))

        rows: Sampling = jax.tree.map(lambda x: jnp.repeat(x, places.shape[1]), self)
        return Draws(jax.vmap(noise)(rows.seeds, places.reshape(-1)), rows)


@struct.dataclass
class Draws:
    """What draws a token of each row."""

    noise: Float[Array, "batch vocab"]
    sampling: Sampling

    def candidate(
        self, logits: Float[Array, "batch candidates"], ids: Int[Array, "batch candidates"] | None
    ) -> Int[Array, " batch"]:
        """Index of the candidate that each row draws.

        Args:
            logits: float32.
            ids: the token of each candidate; None for the full vocabulary.
        """
        noise = self.noise if ids is None else jnp.take_along_axis(self.noise, ids, axis=1)
        temperature = self.sampling.temperature[:, None]
        scaled = (logits - jnp.max(logits, axis=1, keepdims=True)) / jnp.where(temperature > 0, temperature, 1.0)
        drawn = jnp.where(self._allowed(scaled), scaled, -jnp.inf) + noise
        return jnp.argmax(jnp.where(temperature > 0, drawn, logits), axis=1).astype(jnp.int32)

    def _allowed(self, scaled: Float[Array, "batch candidates"]) -> Bool[Array, "batch candidates"] | bool:
        """Which candidates top_k, then top_p leave. Of both the likeliest stays, and ties with the last one."""
        top_k, top_p = self.sampling.top_k, self.sampling.top_p
        if top_k is None and top_p is None:
            return True
        descending = -jnp.sort(-scaled, axis=1)
        if top_k is not None:
            ranks = jnp.arange(scaled.shape[1])
            descending = jnp.where(ranks < top_k[:, None], descending, -jnp.inf)
        stays = descending > -jnp.inf
        if top_p is not None:
            probabilities = jax.nn.softmax(descending, axis=1)
            # The sum may reach 1 before the last candidate, by rounding.
            stays &= (jnp.cumsum(probabilities, axis=1) - probabilities < top_p[:, None]) | (top_p[:, None] >= 1)
        last = jnp.maximum(jnp.sum(stays, axis=1), 1) - 1
        return scaled >= jnp.take_along_axis(descending, last[:, None], axis=1)


def make_sampling(
    temperature: float, top_k: int | None, top_p: float | None, seeds: Int[np.ndarray, " batch"]
) -> Sampling:
    """The same settings in every row.

    Args:
        temperature: at least 0.
        top_k: at least 1, or None.
        top_p: in (0, 1], or None.
        seeds: of each row, modulo 2 ** 32.
    """

    def rows(value: float | None, dtype: type) -> Any:
        return None if value is None else np.full(len(seeds), value, dtype)

    own_seeds: Any = np.asarray(seeds % 2**32, np.uint32)
    return Sampling(rows(temperature, np.float32), own_seeds, rows(top_k, np.int32), rows(top_p, np.float32))
