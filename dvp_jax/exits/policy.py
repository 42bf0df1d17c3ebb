"""Exit policies: after which layer a token leaves the decoder, and what it is read from.

A policy is a small frozen object, hence a static argument of `jit`. The decode step asks it the same few
questions whatever the method; a new rule is a new class here and touches no loop.

Depth l means "after l layers". Depths below `first_exit` run unasked; from there to `last_depth` the policy
decides; at `last_depth` every remaining token leaves.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.exits.confidence import HIDDEN_MEASURES, LOGIT_MEASURES, best_two
from dvp_jax.exits.vocabulary import Vocabulary
from dvp_jax.t5.meta import MetaClassifier


class Readers(NamedTuple):
    """What turns hidden states into tokens and confidence."""

    vocabulary: Vocabulary  # whole, or what the policy kept
    meta: MetaClassifier | None  # of models that have one


class Reading(NamedTuple):
    """What a depth says of each row."""

    leaves: Bool[Array, " batch"]
    token: Int[Array, " batch"]  # where the row leaves
    confidence: Float[Array, " batch"]


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

    def decide(
        self,
        hidden: Float[Array, "batch d_model"],
        asking: Bool[Array, " batch"],
        threshold: Float[Array, ""],
        readers: Readers,
    ) -> Reading:
        """Which of the `asking` rows leave at a candidate depth, and with what."""

    def read_last(
        self,
        hidden: Float[Array, "batch d_model"],
        asking: Bool[Array, " batch"],
        whole: Readers,
        readers: Readers,
    ) -> Reading:
        """Reads the `asking` rows, which reached `last_depth`: all of them leave."""


@dataclasses.dataclass(frozen=True)
class Static:
    """Every token leaves at the same depth; at the decoder's own depth this is the `full` model."""

    depth: int
    confidence: str

    @property
    def sure(self) -> int:
        """How many of the largest whole-vocabulary logits a candidate depth must know exactly."""
        return 1

    @property
    def first_exit(self) -> int:
        return self.depth

    @property
    def last_depth(self) -> int:
        return self.depth

    def observe(self, depth: int, hidden: Array, vocabulary: Vocabulary) -> Vocabulary:
        return vocabulary

    def decide(self, hidden: Array, asking: Array, threshold: Array, readers: Readers) -> Reading:
        reading = self._read(hidden, asking, readers, self.sure)
        return reading._replace(leaves=asking & (reading.confidence > threshold))

    def read_last(self, hidden: Array, asking: Array, whole: Readers, readers: Readers) -> Reading:
        return self._read(hidden, asking, whole)

    def _read(self, hidden: Array, asking: Array, readers: Readers, sure: int = 1) -> Reading:
        logits = readers.vocabulary.logits(hidden, sure)
        best = best_two(logits)
        if self.confidence in LOGIT_MEASURES:
            confidence = LOGIT_MEASURES[self.confidence](logits, best)
        else:
            confidence = self._confidence_of_hidden(hidden, readers)
        return Reading(asking, readers.vocabulary.token(best.candidate), confidence)

    def _confidence_of_hidden(self, hidden: Array, readers: Readers) -> Array:
        assert readers.meta is not None
        return HIDDEN_MEASURES[self.confidence](readers.vocabulary.normed(hidden), readers.meta)


@dataclasses.dataclass(frozen=True)
class CALM(Static):
    """A token leaves at the first depth whose confidence passes the threshold.

    Confident adaptive language modeling (CALM): `depth` is the decoder's.
    """

    min_exit_layer: int

    @property
    def first_exit(self) -> int:
        return self.min_exit_layer


@dataclasses.dataclass(frozen=True)
class HiddenCALM(CALM):
    """CALM with a measure of the hidden state: no depth before the exit touches the unembedding."""

    def decide(self, hidden: Array, asking: Array, threshold: Array, readers: Readers) -> Reading:
        confidence = self._confidence_of_hidden(hidden, readers)
        leaves = asking & (confidence > threshold)

        def token(hidden: Array) -> Array:
            return best_two(readers.vocabulary.logits(hidden)).candidate

        def nothing(hidden: Array) -> Array:
            return jnp.zeros(hidden.shape[0], jnp.int32)

        return Reading(leaves, lax.cond(jnp.any(leaves), token, nothing, hidden), confidence)


@dataclasses.dataclass(frozen=True)
class DVP(CALM):
    """CALM over a vocabulary pruned at depth p to the K likeliest tokens (DVP).

    At p itself confidence still comes from the whole vocabulary, which had to be computed there anyway.
    """

    prune_layer: int
    prune_size: int
    final_vocab: str

    @property
    def sure(self) -> int:
        return self.prune_size

    def observe(self, depth: int, hidden: Array, vocabulary: Vocabulary) -> Vocabulary:
        if depth != self.prune_layer:
            return vocabulary
        return vocabulary.prune(vocabulary.logits(hidden, self.sure), self.prune_size)

    def read_last(self, hidden: Array, asking: Array, whole: Readers, readers: Readers) -> Reading:
        return self._read(hidden, asking, whole if self.final_vocab == "full" else readers)
