"""Constraints: tokens that a text may not have at a place.

Their logits become -inf wherever that place is read: over the full vocabulary or the kept rows, at every depth.
So a depth prunes, measures its confidence and drafts among the tokens that are left.

Source: `NoRepeatNGramLogitsProcessor`, `MinNewTokensLengthLogitsProcessor` and `ForcedBOSTokenLogitsProcessor` of
transformers (generation/logits_process.py).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from dvp_jax.t5.config import T5Config


@struct.dataclass
class Constraints:
    """What restricts the text of each row."""

    min_new_tokens: Int[Array, " batch"]  # no end token before that many others
    forced_bos_token_id: Int[Array, " batch"]  # the first token; -1: any
    no_repeat_ngram_size: int = struct.field(pytree_node=False)  # no n tokens twice in a row's text; 0: any

    def banned(
        self, config: T5Config, text: Int[Array, "batch length"], places: Int[Array, "batch some"]
    ) -> Bool[Array, "batch*some vocab"]:
        """Which tokens may not stand at places of each row's text, those of a text together.

        Args:
            config: of the model.
            text: tokens without a start token. At a place those before it count.
            places: 0 is that of the first token.
        """
        vocabulary = jnp.arange(config.vocab_size)

        def at(row: Constraints, text: Array, place: Array) -> Array:
            banned = config.ends(vocabulary) & (place < row.min_new_tokens)
            if self.no_repeat_ngram_size:
                written = jnp.concatenate([jnp.array([config.decoder_start_token_id]), text])
                banned |= _repeating(written, place + 1, self.no_repeat_ngram_size, config.vocab_size)
            is_forced = (place == 0) & (row.forced_bos_token_id >= 0)
            return jnp.where(is_forced, vocabulary != row.forced_bos_token_id, banned)

        at_places = jax.vmap(jax.vmap(at, in_axes=(None, None, 0)))
        return at_places(self, text, places).reshape(-1, config.vocab_size)

    def banned_throughout(
        self, config: T5Config, text: Int[Array, "batch length"]
    ) -> Bool[Array, "batch*length vocab"]:
        """`banned` at every place of each row's text."""
        return self.banned(config, text, jnp.broadcast_to(jnp.arange(text.shape[1]), text.shape))


def _repeating(
    text: Int[Array, " length"], count: Int[Array, ""], size: int, vocab_size: int
) -> Bool[Array, " vocab"]:
    """Which tokens, put after text[:count], would end it with `size` tokens that stand in it already."""
    banned = jnp.zeros(vocab_size, bool)
    num_ngrams = len(text) - size + 1
    if num_ngrams < 1:
        return banned
    last = count - size + 1 + jnp.arange(size - 1)  # places of the tokens that the new one would follow
    matches = jnp.arange(num_ngrams) + size <= count
    for i in range(size - 1):
        matches &= text[i : i + num_ngrams] == text[last[i]]
    return banned.at[text[size - 1 :]].max(matches)


def make_constraints(
    min_new_tokens: int, no_repeat_ngram_size: int, forced_bos_token_id: int | None, num_rows: int
) -> Constraints:
    """The same constraints in every row.

    Args:
        min_new_tokens: 0 for no minimum.
        no_repeat_ngram_size: 0 for no restriction.
        forced_bos_token_id: None for any token.
        num_rows: how many.
    """
    least: Any = np.full(num_rows, min_new_tokens, np.int32)
    forced: Any = np.full(num_rows, -1 if forced_bos_token_id is None else forced_bos_token_id, np.int32)
    return Constraints(least, forced, no_repeat_ngram_size)
