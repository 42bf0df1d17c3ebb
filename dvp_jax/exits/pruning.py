"""Pruning rules: which tokens `dvp` keeps at depth p, and at the depths after it.

A rule is a small frozen object, part of its policy. Shapes are fixed: as many rows of the unembedding are gathered
at p, and read at every candidate depth after it, as the largest set can have (`rows`); where a set is smaller, the
other rows are masked, so that confidence sees the set alone.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.exits.vocabulary import Vocabulary
from dvp_jax.t5.top_k import top_k

Kept = Bool[Array, "batch kept"] | None
"""Which of the gathered rows are candidates; None where all of them are, at every depth."""


class PruningRule(Protocol):
    """What `dvp` asks of a rule."""

    def rows(self, prune_layer: int) -> int:
        """How many rows of the unembedding are gathered at p and read after it."""

    def prune(self, prune_layer: int, logits: Float[Array, "batch vocab"], vocabulary: Vocabulary) -> Vocabulary:
        """The vocabulary kept at p, of the whole one and its logits there."""

    def shrink(
        self, depth: int, logits: Float[Array, "batch kept"], kept: Kept
    ) -> tuple[Float[Array, "batch kept"], Kept]:
        """Of the logits of the kept rows at a candidate depth after p, those to read, and what stays kept."""


@dataclasses.dataclass(frozen=True)
class Fixed:
    """The K likeliest tokens at p, for good (DVP)."""

    size: int

    def rows(self, prune_layer: int) -> int:
        return self.size

    def prune(self, prune_layer: int, logits: Array, vocabulary: Vocabulary) -> Vocabulary:
        return vocabulary.prune(logits, self.rows(prune_layer))

    def shrink(self, depth: int, logits: Array, kept: Kept) -> tuple[Array, Kept]:
        return logits, kept


@dataclasses.dataclass(frozen=True)
class Mass(Fixed):
    """The smallest set whose probability at p, in the softmax over the whole vocabulary, reaches `mass`.

    At most `size` tokens, which may hold less. Each row of a batch has a set of its own size. Not in DVP; the
    nucleus of Holtzman et al. (arXiv 1904.09751), who sample from it.
    """

    mass: float

    def prune(self, prune_layer: int, logits: Array, vocabulary: Vocabulary) -> Vocabulary:
        pruned = super().prune(prune_layer, logits, vocabulary)
        assert pruned.ids is not None
        likeliest, places = top_k(jnp.take_along_axis(logits, pruned.ids, axis=1), self.size)
        probabilities = jnp.exp(likeliest - jax.nn.logsumexp(logits, axis=1, keepdims=True))
        missing = jnp.cumsum(probabilities, axis=1) - probabilities < self.mass  # without the token itself
        return dataclasses.replace(pruned, kept=_mask(places, missing, self.size))


@dataclasses.dataclass(frozen=True)
class Decay(Fixed):
    """A set that shrinks with depth, from `size` = K_max at depth 0 to `size_min` = K_min at depth L.

    K_l = max(K_min, K_max / (1 + (K_max - K_min) / K_min * l / L)), rounded down: the law of DVP's published code.
    At p the logits z_p of the whole vocabulary choose S_p, its K_p likeliest tokens; confidence at p comes from
    the whole vocabulary. At each candidate depth l after p the logits z_l of the tokens still kept choose the K_l
    likeliest of them, S_l: confidence at this same depth l is read from S_l, and the next candidate depth
    chooses from S_l. A last depth that reads the pruned vocabulary does as a candidate depth.
    """

    size_min: int
    num_layers: int

    def size_at(self, depth: int) -> int:
        """K_l, in whole numbers throughout."""
        most, least = self.size, self.size_min
        return max(least, most * least * self.num_layers // (least * self.num_layers + (most - least) * depth))

    def rows(self, prune_layer: int) -> int:
        return self.size_at(prune_layer)

    def prune(self, prune_layer: int, logits: Array, vocabulary: Vocabulary) -> Vocabulary:
        pruned = super().prune(prune_layer, logits, vocabulary)
        assert pruned.ids is not None
        return dataclasses.replace(pruned, kept=jnp.ones(pruned.ids.shape, bool))

    def shrink(self, depth: int, logits: Array, kept: Kept) -> tuple[Array, Kept]:
        _, places = top_k(logits, self.size_at(depth))
        kept = _mask(places, True, logits.shape[1])
        return jnp.where(kept, logits, -jnp.inf), kept


def _mask(
    places: Int[Array, "batch some"], kept: Bool[Array, "batch some"] | bool, size: int
) -> Bool[Array, "batch size"]:
    """`kept` at the given places of each row, False elsewhere."""
    batch = jnp.arange(len(places))[:, None]
    return jnp.zeros((len(places), size), bool).at[batch, places].set(kept)
