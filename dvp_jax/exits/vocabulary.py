"""The candidate tokens of a depth and their logits: the full vocabulary, or the kept rows W_S (DVP)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.t5.int8 import Int8Unembedding, rows_logits
from dvp_jax.t5.layers import Normed, linear, rms_norm
from dvp_jax.t5.top_k import top_k


@struct.dataclass
class Vocabulary:
    """The tokens that each batch row still considers, and what turns a hidden state into their logits.

    Full: `rows` is W, shared by the batch, and `ids` is None. Pruned: `rows` is W_S, different for each batch row,
    and `ids` is S in ascending order.
    """

    rows: Float[Array, "vocab d_model"] | Float[Array, "batch kept d_model"]
    ids: Int[Array, "batch kept"] | None
    norm: Float[Array, " d_model"]  # scale of the decoder's final norm
    int8: Int8Unembedding | None  # the copy of W to read instead of W; None to read W
    epsilon: float = struct.field(pytree_node=False)
    scale: float = struct.field(pytree_node=False)  # s
    kept: Bool[Array, "batch kept"] | None = None  # False: no candidate, its logit is -inf
    banned: Bool[Array, "batch vocab"] | None = None  # True: likewise; by the token's id, for every depth

    def normed(self, hidden: Float[Array, "batch d_model"]) -> Normed:
        """norm(h_l) in two factors, float32."""
        return rms_norm(hidden, self.norm, self.epsilon)

    def logits(
        self, hidden: Float[Array, "batch d_model"], num_exact: int = 1
    ) -> Float[Array, "batch candidates"]:
        """The logits of depth l: z_l = W (s * norm(h_l)), float32.

        Args:
            hidden: h_l.
            num_exact: how many of the largest logits must be exact and truly the largest. Matters only where an
                int8 copy is read; otherwise all logits are exact.
        """
        normed, banned = self.normed(hidden), self.banned
        if self.ids is not None:
            logits = rows_logits(normed.scaled, self.rows) * (normed.factor * self.scale)
            if self.kept is not None:
                logits = jnp.where(self.kept, logits, -jnp.inf)
            if banned is not None:
                banned = jnp.take_along_axis(banned, self.ids, axis=1)
        elif self.int8 is None:
            logits = linear(normed.value * self.scale, self.rows)
        else:
            logits = self.int8.logits(normed.value * self.scale, self.rows, num_exact)
        return logits if banned is None else jnp.where(banned, -jnp.inf, logits)

    def token(self, index: Int[Array, " batch"]) -> Int[Array, " batch"]:
        """The token id of the candidate at `index` of each row."""
        return index if self.ids is None else jnp.take_along_axis(self.ids, index[:, None], axis=1)[:, 0]

    def prune(self, logits: Float[Array, "batch vocab"], size: int) -> Vocabulary:
        """Keeps the `size` tokens with the largest logits; of equal logits the smaller id (DVP).

        Args:
            logits: z_p over this full vocabulary.
            size: K.

        Returns:
            S and W_S of each row.
        """
        _, ids = top_k(logits, size, full_vocabulary=True)
        # Ascending, so that a tie among the kept logits is broken as in the full vocabulary.
        ids = jnp.sort(ids, axis=-1)
        return dataclasses.replace(self, rows=jnp.take(self.rows, ids, axis=0), ids=ids, int8=None)
