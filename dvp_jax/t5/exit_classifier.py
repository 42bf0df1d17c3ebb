"""CALM's trained confidence measure: parameters that a model may carry beside its own."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class ExitClassifier:
    """A linear classifier on the normed hidden state: does this depth already agree with the last one?

    The dedicated early-exit classifier of CALM (arXiv 2207.07061, section 3), here the measure "meta".
    """

    weight: Float[Array, " d_model"]
    bias: Float[Array, ""]

    def logit(self, normed: Float[Array, "*rows d_model"]) -> Float[Array, "*rows"]:
        """Log-odds of agreement, float32.

        Args:
            normed: norm(h_l), float32.
        """
        return jnp.sum(normed * self.weight.astype(jnp.float32), axis=-1) + self.bias.astype(jnp.float32)
