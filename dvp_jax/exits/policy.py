"""Exit policies: after which layer a token exits, and what its id and confidence are read from.

The decode step (`dvp_jax.decode.step`) asks every policy the same questions, so a new one is one class here or in
your own code, and touches no loop:

    @dataclasses.dataclass(frozen=True)
    class EvenDepths(CALM):
        def decide(self, output, threshold, heads):
            decision = super().decide(output, threshold, heads)
            return decision._replace(exits=decision.exits & (output.depth % 2 == 0))

    DecodeConfig(method=EvenDepths(num_layers=24, min_exit_layer=2))

A policy is a frozen dataclass, hence hashable, hence a static argument of `jax.jit`. Its fields have the names of
`DecodeConfig`, which fills them in for the policies in `dvp_jax.decode.config.POLICIES`.

"Depth l" means "after l layers". Layers up to depth `first_exit` always run. From there to `last_depth` the policy
decides after each layer. At `last_depth` every remaining token exits.
"""

from __future__ import annotations

import abc
import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.exits.confidence import HIDDEN_MEASURES, LOGIT_MEASURES, MEASURES_OF_CHANGE, States, best_two
from dvp_jax.exits.pruning import Hints, Kept, PruningRule
from dvp_jax.exits.sampling import Draws
from dvp_jax.exits.vocabulary import Vocabulary
from dvp_jax.t5.exit_classifier import ExitClassifier
from dvp_jax.t5.top_k import top_k

ExitDepths = int | tuple[int, ...] | None
"""Every n-th depth, the depths themselves, or None for every depth."""


class Heads(NamedTuple):
    """What turns a hidden state into a token and a confidence."""

    vocabulary: Vocabulary  # full, or what the policy kept of it
    classifier: ExitClassifier | None  # None for models without one
    draws: Draws | None = None  # what draws the token; None takes the likeliest

    def token(self, logits: Array, likeliest: Int[Array, " batch"], exits: Bool[Array, " batch"]) -> Array:
        """The token id of each row that exits: its likeliest candidate, or the one that it draws."""
        draws, ids = self.draws, self.vocabulary.ids
        if draws is not None:
            likeliest = lax.cond(jnp.any(exits), lambda: draws.candidate(logits, ids), lambda: likeliest)
        return self.vocabulary.token(likeliest)


class LayerOutput(NamedTuple):
    """The rows of a batch after one decoder layer."""

    depth: int  # l
    hidden: Float[Array, "batch d_model"]  # h_l
    previous: Float[Array, "batch d_model"] | None  # h_(l-1), where the policy needs it
    active: Bool[Array, " batch"]  # rows that have not exited


class ExitDecision(NamedTuple):
    """What a depth says about each row."""

    exits: Bool[Array, " batch"]
    token: Int[Array, " batch"]  # with a measure of the hidden state, valid only where the row exits
    confidence: Float[Array, " batch"]  # NaN where the likeliest token's logit is not finite
    kept: Kept  # mask over the kept rows, for deeper candidate depths
    recent: Int[Array, "batch recent"] | None = None  # the likeliest ids, where all are read and a rule needs them


class Verdict(NamedTuple):
    """What became of the drafts of each row."""

    corrected: Bool[Array, " batch"]  # whether one was replaced
    token: Int[Array, " batch"]  # by which token
    is_finite: Bool[Array, " batch"]  # whether that token's logit is
    num_forgotten: Int[Array, " batch"]  # how many tokens after it are taken back


class Reads(NamedTuple):
    """How many products with the unembedding a token takes; two arrays of the shape of its exit layers."""

    full: Float[np.ndarray, "*shape"]  # with all V rows
    kept: Float[np.ndarray, "*shape"]  # with the kept rows only


@dataclasses.dataclass(frozen=True)
class ExitPolicy(abc.ABC):
    """The questions that the decode step, the cost model and the tables ask of a method.

    A subclass must say `first_exit`. It may override `prune`, `decide` and `read_final`, which run inside `jit`,
    and the properties after them. The defaults read the full vocabulary and exit where confidence exceeds the
    threshold.

    Attributes:
        num_layers: L, the number of decoder layers.
        confidence: name of the confidence measure, a key of `LOGIT_MEASURES` or `HIDDEN_MEASURES`.
    """

    num_layers: int
    confidence: str = "softmax_diff"

    loop: ClassVar[str] = "early_exit"
    """How the decode step runs the layers after `first_exit`. "early_exit": until every row has exited.
    "deferred": likewise, and the layers that a token skipped run later, for several tokens together.
    "all_layers": all, then `decide` looks back."""

    uses_threshold: ClassVar[bool] = False
    """Whether `decide` compares confidences with the thresholds."""

    @property
    @abc.abstractmethod
    def first_exit(self) -> int:
        """First depth at which a token may exit."""

    @property
    def last_depth(self) -> int:
        """Depth at which every token has exited; deeper layers never run."""
        return self.num_layers

    @property
    def candidates(self) -> Sequence[int]:
        """Depths at which `decide` is asked, ascending, from `first_exit` on. The last depth is read, never
        asked."""
        return range(self.first_exit, self.last_depth)

    def guess(self, hints: Hints, vocabulary: Vocabulary) -> Vocabulary:
        """The vocabulary to read from the first layer on. Called where `num_recent` is not 0."""
        return vocabulary

    def prune(self, output: LayerOutput, vocabulary: Vocabulary) -> Vocabulary:
        """The vocabulary that deeper depths read; `vocabulary` itself where nothing changes.

        Called at each depth up to `first_exit`, after `decide`. XLA computes logits that both ask for once.
        """
        return vocabulary

    def decide(self, output: LayerOutput, threshold: Float[Array, "#batch"], heads: Heads) -> ExitDecision:
        """Which active rows exit at a candidate depth, and with which token.

        Args:
            output: of the layer.
            threshold: what the confidence of each row must exceed.
            heads: with the vocabulary that `prune` returned last.
        """
        return self._read(output, heads, threshold, self.num_exact)

    def read_final(self, output: LayerOutput, full: Heads, heads: Heads) -> ExitDecision:
        """Reads the rows that reached `last_depth`. All of them exit.

        Args:
            output: of the last layer.
            full: with the full vocabulary.
            heads: with the vocabulary that `prune` returned last.
        """
        return self._read(output, full)

    def _read(
        self, output: LayerOutput, heads: Heads, threshold: Array | None = None, num_exact: int = 1
    ) -> ExitDecision:
        """Active rows exit: all of them, or those whose confidence exceeds the threshold."""
        return self._decide_by(*self._candidates(output, heads.vocabulary, num_exact), output, heads, threshold)

    def _decide_by(
        self, logits: Array, kept: Kept, output: LayerOutput, heads: Heads, threshold: Array | None = None
    ) -> ExitDecision:
        best = best_two(logits, full_vocabulary=heads.vocabulary.ids is None)
        if self.confidence in LOGIT_MEASURES:
            confidence = LOGIT_MEASURES[self.confidence](logits, best)
        else:
            confidence = self._confidence_of_hidden(output, heads)
        recent = None
        if self.num_recent and heads.vocabulary.ids is None:
            recent = top_k(logits, self.num_recent, full_vocabulary=True)[1]
        confidence = _nan_unless_finite(best.logit, confidence)
        exits = output.active if threshold is None else output.active & (confidence > threshold)
        return ExitDecision(exits, heads.token(logits, best.candidate, exits), confidence, kept, recent)

    def _candidates(self, output: LayerOutput, vocabulary: Vocabulary, num_exact: int) -> tuple[Array, Kept]:
        return vocabulary.logits(output.hidden, num_exact), vocabulary.kept

    def _confidence_of_hidden(self, output: LayerOutput, heads: Heads) -> Float[Array, " batch"]:
        normed = heads.vocabulary.normed(output.hidden).value
        states = States(output.hidden, output.previous, normed, heads.classifier)
        return HIDDEN_MEASURES[self.confidence](states)

    @property
    def needs_previous_hidden(self) -> bool:
        """Whether `decide` and `read_final` need h_(l-1) as `output.previous`."""
        return self.confidence in MEASURES_OF_CHANGE

    @property
    def num_exact(self) -> int:
        """How many of the largest full-vocabulary logits a candidate depth must know exactly."""
        return 1

    @property
    def num_recent(self) -> int:
        """How many of the likeliest ids to remember where the full vocabulary is read, for `guess`."""
        return 0

    @property
    def kept_rows(self) -> int:
        """How many rows of the unembedding are read after pruning; 0 where nothing is pruned."""
        return 0

    @property
    def window(self) -> int:
        """How many tokens of a row may run the layers that they skipped together; 1 where they never run."""
        return 1

    @property
    def propagates_state(self) -> bool:
        """Whether layers that a token skipped take keys and values from the state it exited with.

        False where they see the state of the full model.
        """
        return True

    @property
    def runs_skipped_layers_later(self) -> bool:
        """Whether a skipped layer runs later for the tokens that skipped it."""
        return self.loop == "deferred"

    @property
    def verifies(self) -> bool:
        """Whether a token that exits is a draft, which the last depth replaces where it reads another token."""
        return False

    def reads(self, exit_layers: np.ndarray) -> Reads:
        """The unembedding products that decoding a token takes, the one that reads its id included.

        Args:
            exit_layers: layers run per token, any shape.
        """
        exit_layers = np.asarray(exit_layers, np.float64)
        return Reads(np.ones_like(exit_layers), np.zeros_like(exit_layers))

    def paper_reads(self, exit_layers: np.ndarray) -> Reads:
        """The products that the published FLOP count (DVP) assumes for confidence; none where no depth is asked.

        Args:
            exit_layers: layers run per token, any shape.
        """
        none = np.zeros(np.shape(exit_layers))
        return Reads(none, none)

    def settings(self) -> dict[str, Any]:
        """The settings that matter to this policy, by their names in `DecodeConfig`, for tables and results."""
        hidden = {"num_layers"} | (set() if self.uses_threshold else {"confidence"})
        return {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in hidden
        }

    def check(self, num_layers: int, vocab_size: int) -> None:
        """Refuses a model that the policy does not fit.

        Raises:
            ValueError: the policy was made for another number of layers, or keeps more tokens than there are.
        """
        if self.num_layers != num_layers:
            name = type(self).__name__
            raise ValueError(f"num_layers of {name} is {self.num_layers}; allowed: {num_layers} for this model")


@dataclasses.dataclass(frozen=True)
class Full(ExitPolicy):
    """Every token runs all layers: the full model."""

    @property
    def first_exit(self) -> int:
        return self.num_layers


@dataclasses.dataclass(frozen=True)
class Static(ExitPolicy):
    """Every token exits at the same depth, and nothing is asked before."""

    static_exit_layer: int = 1

    def __post_init__(self) -> None:
        if self.static_exit_layer is None:
            raise ValueError("static_exit_layer is None; allowed with method 'static': a depth of at least 1")
        check_integer("static_exit_layer", self.static_exit_layer, 1, self.num_layers)

    @property
    def first_exit(self) -> int:
        return self.static_exit_layer

    @property
    def last_depth(self) -> int:
        return self.static_exit_layer


@dataclasses.dataclass(frozen=True)
class CandidateDepths(ExitPolicy):
    """A policy that chooses among depths before the last one: the base of CALM and the oracle.

    Attributes:
        min_exit_layer: first candidate depth, unless `exit_depths` names the candidates.
        exit_depths: at which depths a token may exit before the last one (LITE and EE-LLM ask at chosen layers
            only). None: at every depth from `min_exit_layer` on. An integer n: at every n-th. A tuple: at these.
    """

    min_exit_layer: int = 2
    exit_depths: ExitDepths = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_can_exit_early(self.num_layers)
        check_integer("min_exit_layer", self.min_exit_layer, 1, self.num_layers)
        check_exit_depths(self.exit_depths, self.num_layers)

    @property
    def first_exit(self) -> int:
        return min(self.exit_depths) if isinstance(self.exit_depths, tuple) else self.min_exit_layer

    @property
    def candidates(self) -> Sequence[int]:
        if isinstance(self.exit_depths, tuple):
            return tuple(depth for depth in sorted(self.exit_depths) if depth < self.last_depth)
        return range(self.min_exit_layer, self.last_depth, self.exit_depths or 1)


@dataclasses.dataclass(frozen=True)
class CALM(CandidateDepths):
    """A token exits at the first depth whose confidence exceeds the threshold (CALM, arXiv 2207.07061, section 3).

    A measure of logits reads the full vocabulary at every candidate depth. A measure of the hidden state reads it
    once, for the token that exits.
    """

    uses_threshold: ClassVar[bool] = True

    def decide(self, output: LayerOutput, threshold: Array, heads: Heads) -> ExitDecision:
        if self.confidence in LOGIT_MEASURES:
            return super().decide(output, threshold, heads)
        confidence = self._confidence_of_hidden(output, heads)
        exits = output.active & (confidence > threshold)

        def read(hidden: Array) -> tuple[Array, Array]:
            logits = heads.vocabulary.logits(hidden)
            best = best_two(logits, full_vocabulary=True)
            return heads.token(logits, best.candidate, exits), _nan_unless_finite(best.logit, confidence)

        def skip(hidden: Array) -> tuple[Array, Array]:
            return jnp.zeros(hidden.shape[0], jnp.int32), confidence

        token, marked = lax.cond(jnp.any(exits), read, skip, output.hidden)
        return ExitDecision(exits, token, marked, None)

    def reads(self, exit_layers: np.ndarray) -> Reads:
        if self.confidence not in LOGIT_MEASURES:
            return super().reads(exit_layers)  # of a batch of one: a row also pays where another row exits
        asked = self._num_asked(exit_layers)
        return Reads(asked + self._reaches_last(exit_layers), np.zeros_like(asked))

    def paper_reads(self, exit_layers: np.ndarray) -> Reads:
        if self.confidence not in LOGIT_MEASURES:
            return super().paper_reads(exit_layers)
        depths = self._paper_depths(exit_layers)
        return Reads(depths, np.zeros_like(depths))

    def _num_asked(self, exit_layers: np.ndarray) -> Float[np.ndarray, "*shape"]:
        asked = np.searchsorted(np.asarray(self.candidates), np.asarray(exit_layers), side="right")
        return asked.astype(np.float64)

    def _reaches_last(self, exit_layers: np.ndarray) -> Bool[np.ndarray, "*shape"]:
        return np.asarray(exit_layers) >= self.last_depth

    def _paper_depths(self, exit_layers: np.ndarray) -> Float[np.ndarray, "*shape"]:
        # The published code counts the depths 0 .. min(exit_layer, L - 1).
        return np.minimum(exit_layers, self.num_layers - 1) + 1.0


@dataclasses.dataclass(frozen=True)
class ShallowDeep(CALM):
    """A token exits at `min_exit_layer` if it is confident there, else at the last layer (FREE, arXiv 2310.05424).

    The deeper layers run later for the tokens that skipped them, up to `max_waiting` tokens side by side, so that
    every token attends to states of the full model.
    """

    max_waiting: int = 8

    loop: ClassVar[str] = "deferred"

    def __post_init__(self) -> None:
        _check_can_exit_early(self.num_layers)
        check_integer("min_exit_layer", self.min_exit_layer, 1, self.num_layers - 1)

    @property
    def first_exit(self) -> int:
        return self.min_exit_layer

    @property
    def candidates(self) -> Sequence[int]:
        return (self.min_exit_layer,)

    @property
    def window(self) -> int:
        return self.max_waiting

    @property
    def propagates_state(self) -> bool:
        return False

    def paper_reads(self, exit_layers: np.ndarray) -> Reads:
        reads = super().paper_reads(exit_layers)
        return reads._replace(full=np.minimum(reads.full, 1.0))  # asks once


@dataclasses.dataclass(frozen=True)
class DVP(CALM):
    """CALM over a vocabulary pruned at depth p (DVP, arXiv 2410.18952).

    At p = `prune_layer` the full logits z_p choose the kept tokens S. At p itself confidence is read from the full
    vocabulary, whose logits are there anyway; at every deeper candidate depth from the logits of S alone. A token
    that reaches the last depth is read from the full vocabulary (`final_vocab="full"`, as published) or from S
    ("pruned").
    """

    prune_layer: int = 2
    pruning: PruningRule = dataclasses.field(default_factory=lambda: PruningRule(64))
    final_vocab: str = "full"

    def __post_init__(self) -> None:
        _check_can_exit_early(self.num_layers)
        check_integer("prune_layer", self.prune_layer, 1, self.num_layers - 1)
        super().__post_init__()
        if self.confidence not in LOGIT_MEASURES:
            raise ValueError(
                f"confidence is {self.confidence!r}; allowed with method 'dvp', which prunes what a measure of "
                f"logits reads: {', '.join(LOGIT_MEASURES)}"
            )
        if self.prune_layer > self.first_exit and not self.num_recent:
            first = "min_exit_layer" if self.first_exit == self.min_exit_layer else "the first of exit_depths"
            raise ValueError(f"prune_layer is {self.prune_layer}; allowed: at most {first}, {self.first_exit}")

    @property
    def kept_rows(self) -> int:
        return self.pruning.rows(self.prune_layer)

    @property
    def num_exact(self) -> int:
        return 1 if self.num_recent else self.kept_rows

    @property
    def num_recent(self) -> int:
        return self.pruning.num_recent

    def guess(self, hints: Hints, vocabulary: Vocabulary) -> Vocabulary:
        return self.pruning.guess(hints, vocabulary)

    def prune(self, output: LayerOutput, vocabulary: Vocabulary) -> Vocabulary:
        if output.depth != self.prune_layer or self.num_recent:
            return vocabulary
        logits = vocabulary.logits(output.hidden, self.num_exact)
        return self.pruning.prune(output.depth, logits, vocabulary)

    def read_final(self, output: LayerOutput, full: Heads, heads: Heads) -> ExitDecision:
        return self._read(output, full if self.final_vocab == "full" else heads)

    def _candidates(self, output: LayerOutput, vocabulary: Vocabulary, num_exact: int) -> tuple[Array, Kept]:
        logits, kept = super()._candidates(output, vocabulary, num_exact)
        if vocabulary.ids is None:
            return logits, kept
        return self.pruning.shrink(output.depth, logits, kept)

    def reads(self, exit_layers: np.ndarray) -> Reads:
        reaches_last = self._reaches_last(exit_layers)
        if self.num_recent:
            asked = self._num_asked(exit_layers)
            if self.final_vocab == "full":
                return Reads(reaches_last.astype(np.float64), asked)
            return Reads(np.zeros_like(asked), asked + reaches_last)
        # The product at p is also the first candidate's where both depths are the same.
        kept = np.maximum(self._num_asked(exit_layers) - (self.prune_layer == self.first_exit), 0)
        if self.final_vocab == "full":
            return Reads(1.0 + reaches_last, kept)
        return Reads(np.ones_like(kept), kept + reaches_last)

    def paper_reads(self, exit_layers: np.ndarray) -> Reads:
        depths = self._paper_depths(exit_layers)
        full = np.minimum(depths, 0 if self.num_recent else self.prune_layer + 1)
        return Reads(full, depths - full)

    def settings(self) -> dict[str, Any]:
        settings = super().settings()
        del settings["pruning"]
        if self.num_recent:
            del settings["prune_layer"]
        return settings | self.pruning.settings()

    def check(self, num_layers: int, vocab_size: int) -> None:
        super().check(num_layers, vocab_size)
        check_integer("prune_size", self.pruning.prune_size, 1, vocab_size)


@dataclasses.dataclass(frozen=True)
class Lossless(ExitPolicy):
    """Self-speculative decoding: a token that exits is a draft, which the last depth confirms or replaces.

    The text is that of the full model. Drafts wait, at most `max_waiting` of them, and then run the layers that
    they skipped side by side. At the last depth the full vocabulary is read once for all of them. The first draft
    that is not the token read there is replaced by it, and what was drafted after it is forgotten.

    Source: LayerSkip (arXiv 2404.16710), section 4.3. There all drafts of a round exit at one depth; here each
    exits where `draft` is confident.

    Attributes:
        draft: the policy that drafts, CALM or DVP.
        max_waiting: how many drafts are verified together, at most.
    """

    draft: CALM = dataclasses.field(kw_only=True)
    max_waiting: int = 8

    loop: ClassVar[str] = "deferred"
    uses_threshold: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_integer("max_waiting", self.max_waiting, 1, None)
        for name in ("num_layers", "confidence"):
            if getattr(self, name) != getattr(self.draft, name):
                raise ValueError(
                    f"{name} of draft is {getattr(self.draft, name)!r}; allowed: {getattr(self, name)!r}"
                )

    @property
    def first_exit(self) -> int:
        return self.draft.first_exit

    @property
    def candidates(self) -> Sequence[int]:
        return self.draft.candidates

    def prune(self, output: LayerOutput, vocabulary: Vocabulary) -> Vocabulary:
        return self.draft.prune(output, vocabulary)

    def decide(self, output: LayerOutput, threshold: Array, heads: Heads) -> ExitDecision:
        return self.draft.decide(output, threshold, heads)

    def verify(
        self,
        hidden: Float[Array, "batch some d_model"],
        drafts: Int[Array, "batch some"],
        is_draft: Bool[Array, "batch some"],
        output: LayerOutput,
        full: Heads,
    ) -> tuple[ExitDecision, Verdict]:
        """Reads the full vocabulary for tokens that reached `last_depth` together.

        Args:
            hidden: h_L of the newest tokens of each row, the oldest first.
            drafts: what each was read as.
            is_draft: which of them wait to be verified.
            output: of the last layer, for the newest token.
            full: with the full vocabulary, and draws for all these tokens: batch * some rows.

        Returns:
            The decision about the newest token, as `read_final` makes it, and what became of the drafts.
        """
        num_rows, some, _ = hidden.shape
        logits = full.vocabulary.logits(hidden.reshape(num_rows * some, -1))  # (batch * some, vocab)
        # On CPU a top 2 takes a third of the time of an argmax.
        largest, likeliest = (x[:, 0] for x in top_k(logits, 2, full_vocabulary=True))
        tokens = full.token(logits, likeliest, jnp.array(True)).reshape(num_rows, some)
        is_finite = jnp.isfinite(largest).reshape(num_rows, some)
        wrong = is_draft & ((tokens != drafts) | ~is_finite)
        corrected = jnp.any(wrong, axis=1)
        place = jnp.where(corrected, jnp.argmax(wrong, axis=1), some - 1)  # of the last token that stays
        logits, rows = logits.reshape(num_rows, some, -1), jnp.arange(num_rows)
        decision = self._decide_by(logits[:, -1], None, output, full._replace(draws=None))
        decision = decision._replace(token=tokens[:, -1])
        if self.num_recent:
            recent = top_k(logits[rows, place], self.num_recent, full_vocabulary=True)[1]
            decision = decision._replace(recent=recent)
        verdict = Verdict(corrected, tokens[rows, place], is_finite[rows, place], some - 1 - place)
        return decision, verdict

    @property
    def needs_previous_hidden(self) -> bool:
        return self.draft.needs_previous_hidden

    @property
    def num_exact(self) -> int:
        return self.draft.num_exact

    @property
    def num_recent(self) -> int:
        return self.draft.num_recent

    def guess(self, hints: Hints, vocabulary: Vocabulary) -> Vocabulary:
        return self.draft.guess(hints, vocabulary)

    @property
    def kept_rows(self) -> int:
        return self.draft.kept_rows

    @property
    def window(self) -> int:
        return self.max_waiting

    @property
    def propagates_state(self) -> bool:
        return False

    @property
    def verifies(self) -> bool:
        return True

    def reads(self, exit_layers: np.ndarray) -> Reads:
        draft = self.draft.reads(exit_layers)
        drafted = np.asarray(exit_layers) < self.last_depth
        # A token that reached the last depth is read there once, by `draft` as by the verification.
        return Reads(draft.full + drafted, draft.kept)

    def paper_reads(self, exit_layers: np.ndarray) -> Reads:
        return self.draft.paper_reads(exit_layers)

    def settings(self) -> dict[str, Any]:
        settings = {"max_waiting": self.max_waiting, **self.draft.settings()}
        settings.pop("final_vocab", None)  # always the full one
        return settings

    def check(self, num_layers: int, vocab_size: int) -> None:
        super().check(num_layers, vocab_size)
        self.draft.check(num_layers, vocab_size)


@dataclasses.dataclass(frozen=True)
class Oracle(CandidateDepths):
    """A token exits at the first depth whose likeliest token is the full model's.

    The bound of every measure (CALM, section 3). It must know the full model's token beforehand, so it runs all
    layers: for analysis, not for speed.

    Attributes:
        oracle_states: what later tokens attend to. "own": the states that tokens exited with, propagated, as in
            any early exit. "full": the states of the full model.
    """

    oracle_states: str = "own"

    loop: ClassVar[str] = "all_layers"

    @property
    def propagates_state(self) -> bool:
        return self.oracle_states == "own"


def _nan_unless_finite(logit: Float[Array, " batch"], confidence: Float[Array, " batch"]) -> Array:
    """The confidence in tokens with these logits: NaN, which exceeds no threshold, where a logit is not finite."""
    return jnp.where(jnp.isfinite(logit), confidence, jnp.nan)


def check_exit_depths(exit_depths: ExitDepths, num_layers: int) -> None:
    """Raises ValueError where exit_depths is empty, repeats a depth, or names one outside the model."""
    if isinstance(exit_depths, tuple):
        for depth in exit_depths:
            check_integer("exit_depths", depth, 1, num_layers)
        if not exit_depths or len(set(exit_depths)) < len(exit_depths):
            raise ValueError(f"exit_depths is {exit_depths}; allowed: at least one depth, each once")
    elif exit_depths is not None:
        check_integer("exit_depths", exit_depths, 1, None)


def _check_can_exit_early(num_layers: int) -> None:
    if num_layers == 1:
        raise ValueError("num_decoder_layers is 1; allowed with a method that exits early: at least 2")


def check_integer(name: str, value: Any, least: int, most: int | None) -> None:
    """Raises ValueError where `value` is no integer from `least` to `most` (None: no upper bound)."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most} for this model"
        raise ValueError(f"{name} is {value!r}; allowed: an integer {bounds}")
