"""A vocabulary of given rows, without norm and scale."""

from __future__ import annotations

import jax.numpy as jnp

from dvp_jax.exits.vocabulary import Vocabulary


def vocabulary(rows: ArrayLike) -> Vocabulary:
    """W, (vocab, d_model), as the full vocabulary."""
    rows = jnp.asarray(rows, jnp.float32)
    return Vocabulary(rows=rows, ids=None, norm=jnp.ones(rows.shape[1]), int8=None, epsilon=0.0, scale=1.0)
