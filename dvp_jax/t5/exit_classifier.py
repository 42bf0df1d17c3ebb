"""CALM's meta classifier: parameters that a model may carry beside its own."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class MetaClassifier:
    """CALM's classifier: whether a depth already agrees with the last one, linear in the normed hidden state."""

    weight: Float[Array, " d_model"]
    bias: Float[Array, ""]

    def logit(self, normed: Float[Array, "*rows d_model"]) -> Float[Array, "*rows"]:
        """Log-odds of agreement, float32, from norm(h_l)."""
        return jnp.sum(normed * self.weight.astype(jnp.float32), axis=-1) + self.bias.astype(jnp.float32)
