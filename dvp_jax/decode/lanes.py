"""Slots on the device: the rows of one source bucket that are stepped together and refilled as their texts end."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Int

from dvp_jax.decode.api import decode_arguments, encode
from dvp_jax.decode.cache import restarted
from dvp_jax.decode.compiling import ProgramJit
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.program import DecodeInputs, DecodeProgram, Encoded
from dvp_jax.decode.text import GeneratedText, pad_rows, to_text
from dvp_jax.decode.token_loop import DecodeState, initial_state, next_token
from dvp_jax.t5.load import Model
from dvp_jax.t5.sharding import place_rows, to_host


@struct.dataclass
class Slots:
    """What the slots of a lane hold."""

    encoded: Encoded
    state: DecodeState


@struct.dataclass
class StepCounts:
    """How much work was done."""

    steps: Int[Array, ""]
    tokens: Int[Array, ""]  # decoded
    layers: Int[Array, ""]  # run: in each step as many as its deepest row needed


@partial(jax.jit, static_argnums=0)
def _empty_slots(program: DecodeProgram, encoded: Encoded) -> Slots:
    return Slots(encoded, initial_state(program, encoded))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _refill(
    program: DecodeProgram,
    slots: Slots,
    pool: Encoded,
    sources: Int[Array, " slots"],
    slot_indices: Int[Array, " slots"],
    count: Int[Array, ""],
) -> Slots:
    """Starts source sources[i] of the pool in slot slot_indices[i], for i < count. The other slots go on.

    From count on, slot_indices lie outside the slots. No key is cleared: a row of length 0 attends to no column.
    """

    def start(i: Array, encoded: Encoded) -> Encoded:
        def put(slot_rows: Array, pool_rows: Array) -> Array:
            return lax.dynamic_update_index_in_dim(slot_rows, pool_rows[sources[i]], slot_indices[i], axis=0)

        return jax.tree.map(put, encoded, pool)

    state, decoded = slots.state, slots.state.decoded
    is_new = jnp.zeros(slot_indices.shape, bool).at[slot_indices].set(True, mode="drop")
    drafts = decoded.drafts
    if drafts is not None:
        drafts = dataclasses.replace(drafts, layers_run=jnp.where(is_new, 0, drafts.layers_run))
    return Slots(
        lax.fori_loop(0, count, start, slots.encoded),
        dataclasses.replace(
            state,
            token=jnp.where(is_new, program.config.decoder_start_token_id, state.token),
            ended=state.ended & ~is_new,
            cache=restarted(program, state.cache, is_new),
            decoded=dataclasses.replace(decoded, lengths=jnp.where(is_new, 0, decoded.lengths), drafts=drafts),
        ),
    )


def _take_steps(
    program: DecodeProgram,
    inputs: DecodeInputs,
    state: DecodeState,
    max_steps: Int[Array, ""],
    stop_at_ended: Int[Array, ""],
) -> tuple[DecodeState, StepCounts]:
    """Takes at most `max_steps` steps, and fewer where `stop_at_ended` rows have ended."""

    def goes_on(carry: tuple[DecodeState, StepCounts]) -> Array:
        state, counts = carry
        return (counts.steps < max_steps) & (jnp.sum(state.ended) < stop_at_ended)

    def step(carry: tuple[DecodeState, StepCounts]) -> tuple[DecodeState, StepCounts]:
        before, counts = carry
        state, num_layers = next_token(program, inputs, before)
        num_tokens = jnp.sum(state.decoded.lengths - before.decoded.lengths)
        return state, StepCounts(counts.steps + 1, counts.tokens + num_tokens, counts.layers + jnp.max(num_layers))

    return lax.while_loop(goes_on, step, (state, StepCounts(*[jnp.int32(0)] * 3)))


_advance = ProgramJit(_take_steps, donate_argnums=2)


class Lane:
    """The slots of one source bucket, with the requests that run in them or wait for them.

    A request goes from `waiting` (token ids), through the prefilled pool (encoded on the device), into a slot.

    Args:
        model: from `load_model`.
        cfg: how to decode.
        num_slots: rows that are stepped together.
    """

    def __init__(self, model: Model, cfg: DecodeConfig, num_slots: int) -> None:
        self._model, self._cfg = model, cfg
        self.waiting: deque[tuple[int, list[int]]] = deque()  # request ids, and their token ids
        self._prefilled: deque[tuple[int, int]] = deque()  # request ids, and their rows of the pool
        self._running: list[int | None] = [None] * num_slots  # the request id in each slot
        self._pool: Encoded
        self._slots: Slots
        self._program: DecodeProgram | None = None  # None until the first request is encoded
        self._inputs: DecodeInputs
        self.encode_s = 0.0
        """Seconds that the encoder took in the last step."""

    @property
    def request_ids(self) -> list[int]:
        """The ids of the requests that run or wait."""
        running = [request_id for request_id in self._running if request_id is not None]
        return running + [request_id for request_id, _ in (*self._prefilled, *self.waiting)]

    def cancel(self, request_id: int) -> None:
        """Drops a request of this lane. Its slot is free at the next step."""
        self.waiting = deque(item for item in self.waiting if item[0] != request_id)
        self._prefilled = deque(item for item in self._prefilled if item[0] != request_id)
        if request_id in self._running:
            slot = self._running.index(request_id)
            self._running[slot] = None
            state = self._slots.state
            state = dataclasses.replace(state, ended=state.ended.at[slot].set(True))
            self._slots = dataclasses.replace(self._slots, state=state)

    def step(self, max_steps: int) -> tuple[list[tuple[int, GeneratedText]], StepCounts]:
        """Refills the slots and steps them.

        Args:
            max_steps: the most tokens to decode in each slot before returning.

        Returns:
            Request ids and texts of the slots whose text has ended, and the work done.
        """
        self.encode_s = 0.0
        self._fill()
        assert self._program is not None
        num_free, num_slots = self._running.count(None), len(self._running)
        is_asked_for = len(self.waiting) + len(self._prefilled) > 0
        stop_at_ended = num_free + max(1, num_slots // 8) if is_asked_for else num_slots
        inputs = dataclasses.replace(self._inputs, encoded=self._slots.encoded)
        with self._model.context():
            state, counts = _advance(self._program, inputs, self._slots.state, max_steps, stop_at_ended)
        self._slots = dataclasses.replace(self._slots, state=state)
        return self._collect(state), counts

    def _collect(self, state: DecodeState) -> list[tuple[int, GeneratedText]]:
        """Frees the slots whose text has ended, and returns their request ids and texts."""
        ended = to_host(state.ended)
        finished = [
            (slot, request_id)
            for slot, request_id in enumerate(self._running)
            if request_id is not None and ended[slot]
        ]
        if not finished:
            return []
        decoded = jax.tree.map(to_host, state.decoded)
        for slot, _ in finished:
            self._running[slot] = None
        return [(request_id, to_text(self._model, decoded, slot)) for slot, request_id in finished]

    def _fill(self) -> None:
        """Gives each free slot a request: a prefilled one, or else a waiting one."""
        num_slots = len(self._running)
        while self._prefilled or self.waiting:
            free = [slot for slot, request_id in enumerate(self._running) if request_id is None]
            if not free:
                return
            if not self._prefilled:
                self._prefill()
            count = min(len(free), len(self._prefilled))
            sources, slot_indices = np.zeros(num_slots, np.int32), np.full(num_slots, num_slots, np.int32)
            for i, slot in enumerate(free[:count]):
                self._running[slot], sources[i] = self._prefilled.popleft()
                slot_indices[i] = slot
            assert self._program is not None
            self._slots = _refill(self._program, self._slots, self._pool, sources, slot_indices, count)

    def _prefill(self) -> None:
        """Encodes as many waiting requests as there are slots; one alone, or all of them in one shape."""
        begin = time.perf_counter()
        num_slots = len(self._running)
        chosen = [self.waiting.popleft() for _ in range(min(len(self.waiting), num_slots))]
        rows = [ids for _, ids in chosen]
        source = pad_rows(rows, len(rows), max(map(len, rows)), self._model.config.pad_token_id)
        pool_rows = 1 if len(rows) == 1 else num_slots
        self._pool = jax.block_until_ready(encode(self._model, *source, rows=pool_rows))
        self.encode_s += time.perf_counter() - begin
        self._prefilled = deque((request_id, row) for row, (request_id, _) in enumerate(chosen))
        if self._program is None:
            empty = jax.tree.map(lambda x: jnp.zeros((num_slots, *x.shape[1:]), x.dtype), self._pool)
            empty = place_rows(self._model.mesh, empty)  # no row is active
            self._program, self._inputs = decode_arguments(self._model, empty, self._cfg)
            self._slots = _empty_slots(self._program, empty)
