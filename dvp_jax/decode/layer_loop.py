"""How the layers after the first exit run: until every row has exited, or all of them or none.

Depths are Python integers, so the program of a layer may depend on its depth. Weights and the cache are closed
over by the branches and never carried, hence never copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.decode.cache import Block, CachedDecoder
from dvp_jax.decode.program import DecodeProgram
from dvp_jax.exits.policy import ExitDecision, LayerOutput


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

    @classmethod
    def start(
        cls, embedded: Float[Array, "batch d_model"], ended: Bool[Array, " batch"], program: DecodeProgram
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
            kept=None,
        )

    def after_layer(self, depth: int, hidden: Float[Array, "batch d_model"]) -> DepthState:
        """The state after the layer at `depth`, whose output is `hidden`. Exited rows stay as they are."""
        return dataclasses.replace(
            self,
            hidden=jnp.where(self.exited[:, None], self.hidden, hidden),
            exit_layer=jnp.where(self.exited, self.exit_layer, depth),
            previous=None if self.previous is None else self.hidden,
        )

    def output(self, depth: int) -> LayerOutput:
        """What the policy sees at `depth`."""
        return LayerOutput(depth, self.hidden, self.previous, ~self.exited)

    def exit(self, decision: ExitDecision) -> DepthState:
        """The state after the rows that a decision names have exited."""
        return dataclasses.replace(
            self,
            exited=self.exited | decision.exits,
            token=jnp.where(decision.exits, decision.token, self.token),
            confidence=jnp.where(decision.exits, decision.confidence, self.confidence),
        )


RunLayer = Callable[[int, DepthState], tuple[DepthState, Block]]


def run_until_exit(
    run_layer: RunLayer,
    read_final: Callable[[DepthState], DepthState],
    decoder: CachedDecoder,
    groups: Sequence[Sequence[int]],
    state: DepthState,
    blocks: list[Block],
) -> tuple[DepthState, list[Block]]:
    """Runs groups of layers until every row has exited; a layer that is skipped costs nothing.

    run(groups) = all exited ? propagate state to the layers that are left : run the first group, then run(others)

    Within a group all layers run. A row that exits there keeps the state of its exit, as it does in a batch whose
    other rows go on, so the outputs do not depend on the grouping.

    Args:
        run_layer: one layer, and what the policy decides after it.
        read_final: reads the rows that reached the last depth.
        decoder: for state propagation.
        groups: depths of the layers that are left, in order.
        state: before the first of them.
        blocks: keys and values of the layers that ran.

    Returns:
        The state with every row exited, and the blocks of all layers.
    """
    if not groups:
        return read_final(state), blocks

    def propagate(state: DepthState) -> tuple[DepthState, list[Block]]:
        return state, decoder.propagate(groups[0][0] - 1, state.hidden)

    def run_group(state: DepthState) -> tuple[DepthState, list[Block]]:
        ran = []
        for depth in groups[0]:
            state, block = run_layer(depth, state)
            ran.append(block)
        return run_until_exit(run_layer, read_final, decoder, groups[1:], state, ran)

    state, deeper_blocks = lax.cond(jnp.all(state.exited), propagate, run_group, state)
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


def run_together(
    decoder: CachedDecoder, depths: Sequence[int], state: DepthState
) -> tuple[Int[Array, ""], DepthState, list[Block]]:
    """Shallow-deep (FREE, section 3): all deeper layers run, for this token and the waiting ones, or none does.

    They run where a row has not exited, and at the end of a block. A token that exited then has the keys and
    values of the full model.

    Args:
        decoder: the layers and the cache.
        depths: of the deeper layers, in order.
        state: before the first of them.

    Returns:
        How many of the layers ran (all or 0), the state after them, and their blocks, as they were where none ran.
    """

    def skip(state: DepthState) -> tuple[Array, DepthState, list[Block]]:
        return jnp.int32(0), state, [decoder.block_so_far(depth) for depth in depths]

    def run(state: DepthState) -> tuple[Array, DepthState, list[Block]]:
        alone = decoder.nothing_waits(depths[0])
        (hidden, previous), blocks = lax.cond(alone, run_alone, run_with_waiting, state.hidden)
        state = dataclasses.replace(
            state,
            hidden=jnp.where(state.exited[:, None], state.hidden, hidden),
            previous=None
            if state.previous is None
            else jnp.where(state.exited[:, None], state.previous, previous),
            exit_layer=jnp.where(state.exited, state.exit_layer, depths[-1]),
        )
        return jnp.int32(len(depths)), state, blocks

    def run_alone(hidden: Array) -> tuple[tuple[Array, Array], list[Block]]:
        previous, blocks = hidden, []
        for depth in depths:
            previous = hidden
            hidden, block = decoder.run(depth, hidden)
            blocks.append(block)
        return (hidden, previous), blocks

    def run_with_waiting(hidden: Array) -> tuple[tuple[Array, Array], list[Block]]:
        states = previous = decoder.block_states(hidden)  # (batch, block, d_model)
        blocks = []
        for depth in depths:
            previous = states
            states, block = decoder.run_block(depth, states)
            blocks.append(block)
        own = (lax.dynamic_index_in_dim(x, decoder.column, axis=1, keepdims=False) for x in (states, previous))
        return tuple(own), blocks

    return lax.cond(jnp.all(state.exited) & ~decoder.block_ends, skip, run, state)
