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

from dvp_jax.exits.confidence import HIDDEN_MEASURES, LOGIT_MEASURES, MEASURES_OF_CHANGE, States, best_two
from dvp_jax.exits.pruning import Kept, PruningRule
from dvp_jax.exits.vocabulary import Vocabulary
from dvp_jax.t5.exit_classifier import MetaClassifier


class Heads(NamedTuple):
    """What turns hidden states into tokens and confidence."""

    vocabulary: Vocabulary  # whole, or what the policy kept
    meta: MetaClassifier | None  # of models that have one


class LayerOutput(NamedTuple):
    """Where the rows stand after a layer."""

    number: int  # l
    hidden: Float[Array, "batch d_model"]  # h_l
    before: Float[Array, "batch d_model"] | None  # h_(l-1), for a policy that compares
    asking: Bool[Array, " batch"]  # rows that have not left


class ExitDecision(NamedTuple):
    """What a depth says of each row."""

    leaves: Bool[Array, " batch"]
    token: Int[Array, " batch"]  # where the row leaves
    confidence: Float[Array, " batch"]
    kept: Kept  # what deeper candidates are read from, among the rows that the policy kept


class ExitPolicy(Protocol):
    """What the decode step asks of a method."""

    @property
    def first_exit(self) -> int:
        """First depth at which a token may leave."""

    @property
    def last_depth(self) -> int:
        """Depth at which every token has left."""

    @property
    def compares(self) -> bool:
        """Whether `decide` and `read_last` need h_(l-1)."""

    @property
    def all_or_none(self) -> bool:
        """Whether a token leaves at `first_exit` or not before `last_depth`, and no layer skips it (FREE)."""

    def observe(self, depth: LayerOutput, vocabulary: Vocabulary) -> Vocabulary:
        """Called at each depth up to `first_exit`: the vocabulary that deeper candidates are read from."""

    def decide(self, depth: LayerOutput, threshold: Float[Array, "#batch"], readers: Heads) -> ExitDecision:
        """Which of the asking rows leave at a candidate depth, and with what."""

    def read_last(self, depth: LayerOutput, whole: Heads, readers: Heads) -> ExitDecision:
        """Reads the asking rows, which reached `last_depth`: all of them leave."""


@dataclasses.dataclass(frozen=True)
class Static:
    """Every token leaves at the same depth; at the decoder's own depth this is the `full` model."""

    depth: int
    confidence: str
    all_or_none: bool = dataclasses.field(default=False, kw_only=True)

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

    @property
    def compares(self) -> bool:
        return self.confidence in MEASURES_OF_CHANGE

    def observe(self, depth: LayerOutput, vocabulary: Vocabulary) -> Vocabulary:
        return vocabulary

    def decide(self, depth: LayerOutput, threshold: Array, readers: Heads) -> ExitDecision:
        reading = self._read(depth, readers, self.sure)
        return reading._replace(leaves=depth.asking & (reading.confidence > threshold))

    def read_last(self, depth: LayerOutput, whole: Heads, readers: Heads) -> ExitDecision:
        return self._read(depth, whole)

    def _read(self, depth: LayerOutput, readers: Heads, sure: int = 1) -> ExitDecision:
        logits, kept = self._candidates(depth, readers.vocabulary, sure)
        best = best_two(logits, whole=readers.vocabulary.ids is None)
        if self.confidence in LOGIT_MEASURES:
            confidence = LOGIT_MEASURES[self.confidence](logits, best)
        else:
            confidence = self._confidence_of_hidden(depth, readers)
        return ExitDecision(depth.asking, readers.vocabulary.token(best.candidate), confidence, kept)

    def _candidates(self, depth: LayerOutput, vocabulary: Vocabulary, sure: int) -> tuple[Array, Kept]:
        """The logits that the depth is read from."""
        return vocabulary.logits(depth.hidden, sure), vocabulary.kept

    def _confidence_of_hidden(self, depth: LayerOutput, readers: Heads) -> Array:
        normed = readers.vocabulary.normed(depth.hidden)
        return HIDDEN_MEASURES[self.confidence](States(depth.hidden, depth.before, normed, readers.meta))


@dataclasses.dataclass(frozen=True)
class Oracle(Static):
    """A token leaves at the first depth whose likeliest token is the full model's, which it must know beforehand.

    The bound that every measure is held against (CALM, section 3). `states` says what later tokens attend to:
    "own", the states that tokens left with, propagated, as in any early exit; "full", those of the full model.
    """

    min_exit_layer: int
    states: str

    @property
    def first_exit(self) -> int:
        return self.min_exit_layer


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
    """CALM with its other two measures, of the hidden state: no depth before the exit touches the unembedding."""

    def decide(self, depth: LayerOutput, threshold: Array, readers: Heads) -> ExitDecision:
        confidence = self._confidence_of_hidden(depth, readers)
        leaves = depth.asking & (confidence > threshold)

        def token(hidden: Array) -> Array:
            return best_two(readers.vocabulary.logits(hidden), whole=True).candidate

        def nothing(hidden: Array) -> Array:
            return jnp.zeros(hidden.shape[0], jnp.int32)

        return ExitDecision(leaves, lax.cond(jnp.any(leaves), token, nothing, depth.hidden), confidence, None)


@dataclasses.dataclass(frozen=True)
class DVP(CALM):
    """CALM over a vocabulary pruned at depth p to the likeliest tokens (DVP).

    At p itself confidence still comes from the whole vocabulary, which had to be computed there anyway.
    """

    prune_layer: int
    rule: PruningRule
    final_vocab: str

    @property
    def rows(self) -> int:
        """How many rows of the unembedding are read at each candidate depth after p."""
        return self.rule.rows(self.prune_layer)

    @property
    def sure(self) -> int:
        return self.rows

    def observe(self, depth: LayerOutput, vocabulary: Vocabulary) -> Vocabulary:
        if depth.number != self.prune_layer:
            return vocabulary
        return self.rule.prune(depth.number, vocabulary.logits(depth.hidden, self.sure), vocabulary)

    def read_last(self, depth: LayerOutput, whole: Heads, readers: Heads) -> ExitDecision:
        return self._read(depth, whole if self.final_vocab == "full" else readers)

    def _candidates(self, depth: LayerOutput, vocabulary: Vocabulary, sure: int) -> tuple[Array, Kept]:
        logits, kept = super()._candidates(depth, vocabulary, sure)
        return (logits, kept) if vocabulary.ids is None else self.rule.shrink(depth.number, logits, kept)
