"""Exit policies: after which layer a token leaves the decoder, and what it is read from.

A policy is a small frozen object, hence a static argument of `jit`. The decode step asks it the same few
questions whatever the method; a new rule is a new class here and touches no loop.

Depth l means "after l layers". Depths below `first_exit` run unasked; from there to `last_depth` the policy
decides; at `last_depth` every remaining token leaves.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from jaxtyping import Array, Float, Int

from dvp_jax.exits.confidence import CONFIDENCE_MEASURES, best_two
from dvp_jax.exits.vocabulary import Vocabulary

Reading = tuple[Int[Array, " batch"], Float[Array, " batch"]]
"""Token of each row, and the confidence in it."""


class ExitPolicy(Protocol):
    """What the decode step asks of a method."""

    @property
    def first_exit(self) -> int:
        """First depth at which a token may leave."""

    @property
    def last_depth(self) -> int:
        """Depth at which every token has left."""

    def observe(self, depth: int, hidden: Float[Array, "batch d_model"], vocabulary: Vocabulary) -> Vocabulary:
        """Called at each depth up to `first_exit`: the vocabulary that deeper candidates are read from."""

    def read(self, hidden: Float[Array, "batch d_model"], vocabulary: Vocabulary) -> Reading:
        """Token and confidence at a candidate depth."""

    def read_last(
        self, hidden: Float[Array, "batch d_model"], whole: Vocabulary, vocabulary: Vocabulary
    ) -> Reading:
        """Token and confidence of a token that reached `last_depth`."""


@dataclasses.dataclass(frozen=True)
class Static:
    """Every token leaves at the same depth; at the decoder's own depth this is the `full` model."""

    depth: int
    confidence: str

    @property
    def first_exit(self) -> int:
        return self.depth

    @property
    def last_depth(self) -> int:
        return self.depth

    def observe(self, depth: int, hidden: Array, vocabulary: Vocabulary) -> Vocabulary:
        return vocabulary

    def read(self, hidden: Array, vocabulary: Vocabulary) -> Reading:
        logits = vocabulary.logits(hidden)
        best = best_two(logits)
        return vocabulary.token(best.candidate), CONFIDENCE_MEASURES[self.confidence](logits, best)

    def read_last(self, hidden: Array, whole: Vocabulary, vocabulary: Vocabulary) -> Reading:
        return self.read(hidden, whole)


@dataclasses.dataclass(frozen=True)
class CALM(Static):
    """A token leaves at the first depth whose confidence over the whole vocabulary passes the threshold.

    Confident adaptive language modeling (CALM): `depth` is the decoder's.
    """

    min_exit_layer: int

    @property
    def first_exit(self) -> int:
        return self.min_exit_layer


@dataclasses.dataclass(frozen=True)
class DVP(CALM):
    """CALM over a vocabulary pruned at depth p to the K likeliest tokens (DVP).

    At p itself confidence still comes from the whole vocabulary, which had to be computed there anyway.
    """

    prune_layer: int
    prune_size: int
    final_vocab: str

    def observe(self, depth: int, hidden: Array, vocabulary: Vocabulary) -> Vocabulary:
        if depth != self.prune_layer:
            return vocabulary
        return vocabulary.prune(vocabulary.logits(hidden), self.prune_size)

    def read_last(self, hidden: Array, whole: Vocabulary, vocabulary: Vocabulary) -> Reading:
        return self.read(hidden, whole if self.final_vocab == "full" else vocabulary)
