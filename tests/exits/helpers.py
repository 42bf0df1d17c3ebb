"""A vocabulary of given rows, without norm and scale, and what a jaxpr holds."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dvp_jax.exits.vocabulary import Vocabulary


def vocabulary(rows: ArrayLike) -> Vocabulary:
    """W, (vocab, d_model), as the full vocabulary."""
    rows = jnp.asarray(rows, jnp.float32)
    return Vocabulary(rows=rows, ids=None, norm=jnp.ones(rows.shape[1]), int8=None, epsilon=0.0, scale=1.0)


def nested(jaxpr):
    """The jaxprs inside one's equations."""
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield equation, inner
