"""How the layers run: all up to the first exit, then until every row has exited.

Depths are Python integers, so the program of a layer may depend on its depth. Weights and the cache are closed
over by the branches and never carried, hence never copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.decode.cache import Block
from dvp_jax.decode.program import DecodeProgram
from dvp_jax.exits.policy import ExitDecision, ExitPolicy, Heads, LayerOutput
from dvp_jax.exits.pruning import Kept


@struct.dataclass
class DepthState:
    """What travels from layer to layer while one token of every row is decoded."""

    hidden: Float[Array, "batch d_model"]  # h_l, frozen at h_e once the row has exited
    exited: Bool[Array, " batch"]  # also True where the text has ended
    exit_layer: Int[Array, " batch"]  # layers run so far; 0 where the text has ended
    token: Int[Array, " batch"]
    confidence: Float[Array, " batch"]
    previous: Float[Array, "batch d_model"] | None  # h_(l-1), for a policy that needs it
    kept: Bool[Array, "batch kept"] | None  # candidates among the kept rows, for a rule that masks them
    recent: Int[Array, "batch recent"] | None  # the likeliest ids where the full vocabulary was read last

    @classmethod
    def start(
        cls,
        embedded: Float[Array, "batch d_model"],
        ended: Bool[Array, " batch"],
        program: DecodeProgram,
        heads: Heads,
        recent: Int[Array, "batch recent"] | None,
    ) -> DepthState:
        """The state before the first layer: h_0, and no row has exited but those whose text has ended."""
        zeros = jnp.zeros(ended.shape, jnp.int32)
        return cls(
            hidden=embedded,
            exited=ended,
            exit_layer=zeros,
            token=zeros + program.config.pad_token_id,
            confidence=zeros.astype(jnp.float32),
            previous=embedded if program.policy.needs_previous_hidden else None,
            kept=heads.vocabulary.kept,
            recent=recent,
        )

    def after_layer(self, depth: int, hidden: Float[Array, "batch d_model"]) -> DepthState:
        """The state after the layer at `depth`, whose output is `hidden`. Exited rows stay as they are."""
        return dataclasses.replace(
            self,
            hidden=jnp.where(self.exited[:, None], self.hidden, hidden),
            exit_layer=jnp.where(self.exited, self.exit_layer, depth),
            previous=None if self.previous is None else self.hidden,
        )

    @property
    def stopped(self) -> Bool[Array, " batch"]:
        """Rows that run no deeper layer."""
        return self.exited

    def output(self, depth: int) -> LayerOutput:
        """What the policy sees at `depth`."""
        return LayerOutput(depth, self.hidden, self.previous, ~self.exited)

    def with_kept(self, kept: Kept) -> DepthState:
        """The state with another mask over the kept rows."""
        return dataclasses.replace(self, kept=kept)

    def exit(self, decision: ExitDecision) -> DepthState:
        """The state after the rows that a decision names have exited."""
        recent = self.recent
        if recent is not None and decision.recent is not None:
            recent = jnp.where(decision.exits[:, None], decision.recent, recent)
        return dataclasses.replace(
            self,
            exited=self.exited | decision.exits,
            token=jnp.where(decision.exits, decision.token, self.token),
            confidence=jnp.where(decision.exits, decision.confidence, self.confidence),
            recent=recent,
        )


def masked(heads: Heads, state: DepthState) -> Heads:
    """The heads with the mask over the kept rows that the shallower depths left."""
    return heads._replace(vocabulary=dataclasses.replace(heads.vocabulary, kept=state.kept))


class Travels(Protocol):
    """What travels from layer to layer, as `DepthState` has it."""

    @property
    def stopped(self) -> Bool[Array, " batch"]:
        """Rows that run no deeper layer."""

    def output(self, depth: int) -> LayerOutput:
        """What the policy sees at `depth`."""

    def with_kept(self, kept: Kept) -> Self:
        """The state with another mask over the kept rows."""


State = TypeVar("State", bound=Travels)


def run_to_first_exit(
    run_layer: Callable[[Heads, int, State], tuple[State, Block]], policy: ExitPolicy, heads: Heads, state: State
) -> tuple[Heads, State, list[Block]]:
    """Runs every layer up to the first exit, and prunes the vocabulary where the policy does.

    Args:
        run_layer: one layer, read through the heads, and what the policy decides after it.
        policy: says when to prune.
        heads: to begin with.
        state: before the first layer.

    Returns:
        What deeper layers are read through, the state, and keys and values of the layers.
    """
    blocks = []
    for depth in range(1, policy.first_exit + 1):
        state, block = run_layer(heads, depth, state)
        blocks.append(block)
        with jax.named_scope(f"prune_{depth}"):
            pruned = policy.prune(state.output(depth), heads.vocabulary)
        if pruned is not heads.vocabulary:
            heads, state = heads._replace(vocabulary=pruned), state.with_kept(pruned.kept)
    return heads, state, blocks


def run_until_exit(
    run_layer: Callable[[int, State], tuple[State, Block]],
    read_final: Callable[[State], State],
    skip: Callable[[int, State], list[Block]],
    groups: Sequence[Sequence[int]],
    state: State,
    blocks: list[Block],
) -> tuple[State, list[Block]]:
    """Runs groups of layers until every row has exited; a layer that is skipped costs nothing.

    run(groups) = all exited ? skip the layers that are left : run the first group, then run(others)

    Within a group all layers run. A row that exits there keeps the state of its exit, as it does in a batch whose
    other rows go on, so the outputs do not depend on the grouping.

    Args:
        run_layer: one layer, and what the policy decides after it.
        read_final: reads the rows that reached the last depth.
        skip: keys and values of the layers after a depth, where none of them runs: state propagation.
        groups: depths of the layers that are left, in order.
        state: before the first of them.
        blocks: keys and values of the layers that ran.

    Returns:
        The state with every row exited, and the blocks of all layers.
    """
    if not groups:
        return read_final(state), blocks

    def skip_all(state: State) -> tuple[State, list[Block]]:
        return state, skip(groups[0][0] - 1, state)

    def run_group(state: State) -> tuple[State, list[Block]]:
        ran = []
        for depth in groups[0]:
            state, block = run_layer(depth, state)
            ran.append(block)
        return run_until_exit(run_layer, read_final, skip, groups[1:], state, ran)

    state, deeper_blocks = lax.cond(jnp.all(state.stopped), skip_all, run_group, state)
    return state, blocks + deeper_blocks


def grouped(depths: Sequence[int], candidates: Sequence[int], every: int) -> list[list[int]]:
    """Splits depths into groups that end where rows may have exited, at least `every` depths apart.

    Args:
        depths: of the layers after the first exit, in order.
        candidates: depths at which rows may exit.
        every: the fewest layers of a group, but for the last one.
    """
    groups: list[list[int]] = []
    for depth in depths:
        if not groups or (len(groups[-1]) >= every and depth - 1 in candidates):
            groups.append([])
        groups[-1].append(depth)
    return groups


MOST_BRANCHES = 8
"""How many conditionals may be nested in one another on a device where a branch is dear."""


def branch_every(backend: str, num_deeper: int) -> int:
    """How many layers to run between two branches (docs/performance.md).

    On CPU a branch costs nothing. On a GPU or TPU it costs as much as several kernels.

    Args:
        backend: of JAX, such as "cpu".
        num_deeper: layers after the first exit.
    """
    return 1 if backend == "cpu" else max(2, -(-num_deeper // MOST_BRANCHES))
