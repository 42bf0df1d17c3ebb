"""Dynamic vocabulary pruning (DVP): the rows of the unembedding that a token still considers."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.t5.int8 import Int8Unembedding, rows_logits
from dvp_jax.t5.layers import linear, rms_norm
from dvp_jax.t5.top_k import top_k


@struct.dataclass
class Vocabulary:
    """The candidate tokens of each row and what turns a hidden state into their logits.

    Whole: `rows` is W, shared by the batch, and `ids` is None. Pruned: `rows` is W_S, its own for each
    batch row, and `ids` is S, ascending; where rows of the batch keep sets of different sizes, `kept` masks S.
    With a `screen` the whole vocabulary is read from its int8 copy.
    """

    rows: Float[Array, "vocab d_model"] | Float[Array, "batch kept d_model"]
    ids: Int[Array, "batch kept"] | None
    norm: Float[Array, " d_model"]
    screen: Int8Unembedding | None
    epsilon: float = struct.field(pytree_node=False)
    scale: float = struct.field(pytree_node=False)
    kept: Bool[Array, "batch kept"] | None = None  # False: not a candidate, its logit is -inf

    def normed(self, hidden: Float[Array, "batch d_model"]) -> Float[Array, "batch d_model"]:
        """norm(h_l), float32."""
        return rms_norm(hidden, self.norm, self.epsilon)

    def logits(self, hidden: Float[Array, "batch d_model"], sure: int = 1) -> Float[Array, "batch candidates"]:
        """Candidate logits z_l = W (s * norm(h_l)), float32.

        Args:
            hidden: h_l.
            sure: how many of the largest logits must be exact, and truly the largest. Without a screen, and
                of a pruned vocabulary, all are.
        """
        x = self.normed(hidden) * self.scale
        if self.ids is not None:
            logits = rows_logits(x, self.rows)
            return logits if self.kept is None else jnp.where(self.kept, logits, -jnp.inf)
        if self.screen is None:
            return linear(x, self.rows)
        return self.screen.logits(x, self.rows, sure)

    def token(self, index: Int[Array, " batch"]) -> Int[Array, " batch"]:
        """Token id of the candidate at `index` of each row."""
        return index if self.ids is None else jnp.take_along_axis(self.ids, index[:, None], axis=1)[:, 0]

    def prune(self, logits: Float[Array, "batch vocab"], size: int) -> Vocabulary:
        """Keeps the `size` tokens with the largest whole-vocabulary logits (ties: the smaller id).

        Args:
            logits: of this, whole, vocabulary.
            size: K.
        """
        _, ids = top_k(logits, size, whole=True)
        # Ascending, so that a tie among kept logits falls as it does in the whole vocabulary.
        ids = jnp.sort(ids, axis=-1)
        return dataclasses.replace(self, rows=jnp.take(self.rows, ids, axis=0), ids=ids, screen=None)
