"""Slots on the device: the rows of one source bucket that are stepped together and refilled as their texts end."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Set
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Int

from dvp_jax.decode.api import decode_arguments, encode
from dvp_jax.decode.cache import Columns, cleared, restarted
from dvp_jax.decode.compiling import ProgramJit
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.program import DecodeInputs, DecodeProgram, Encoded, Settings
from dvp_jax.decode.text import GeneratedText, pad_rows, to_text
from dvp_jax.decode.token_loop import DecodeState, initial_state, next_token
from dvp_jax.t5.load import Model
from dvp_jax.t5.sharding import place_rows, to_host


@struct.dataclass
class Slots:
    """What the slots of a lane hold."""

    encoded: Encoded
    settings: Settings
    state: DecodeState


@struct.dataclass
class StepCounts:
    """How much work was done."""

    steps: Int[Array, ""]
    tokens: Int[Array, ""]  # decoded
    layers: Int[Array, ""]  # run: in each step as many as its deepest row needed


@partial(jax.jit, static_argnums=0)
def _empty_slots(program: DecodeProgram, inputs: DecodeInputs) -> Slots:
    return Slots(inputs.encoded, inputs.settings, initial_state(program, inputs.encoded))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _refill(
    program: DecodeProgram,
    slots: Slots,
    pool: Encoded,
    settings: Settings,
    sources: Int[Array, " slots"],
    slot_indices: Int[Array, " slots"],
    count: Int[Array, ""],
) -> Slots:
    """Starts source sources[i] of the pool in slot slot_indices[i] with settings i, for i < count.

    The other slots go on. From count on, slot_indices lie outside the slots.
    """

    def start(i: Array, filled: tuple[Encoded, Settings, Columns]) -> tuple[Encoded, Settings, Columns]:
        def put(slot_rows: Array, row: Array) -> Array:
            return lax.dynamic_update_index_in_dim(slot_rows, row, slot_indices[i], axis=0)

        encoded, own, columns = filled
        return (
            jax.tree.map(lambda slot_rows, rows: put(slot_rows, rows[sources[i]]), encoded, pool),
            jax.tree.map(lambda slot_rows, rows: put(slot_rows, rows[i]), own, settings),
            cleared(columns, slot_indices[i]),
        )

    state, decoded = slots.state, slots.state.decoded
    is_new = jnp.zeros(slot_indices.shape, bool).at[slot_indices].set(True, mode="drop")
    drafts = decoded.drafts
    if drafts is not None:
        drafts = dataclasses.replace(drafts, layers_run=jnp.where(is_new, 0, drafts.layers_run))
    filled = slots.encoded, slots.settings, state.cache.columns
    encoded, own, columns = lax.fori_loop(0, count, start, filled)
    return Slots(
        encoded,
        own,
        dataclasses.replace(
            state,
            token=jnp.where(is_new, program.config.decoder_start_token_id, state.token),
            ended=state.ended & ~is_new,
            cache=restarted(program, dataclasses.replace(state.cache, columns=columns), is_new),
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


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a request.

    Attributes:
        request_id: as `Engine.submit` returned it.
        output: the generated text; None where there is none.
        error: why there is no output, or why it means nothing: logits that are not finite.
    """

    request_id: int
    output: GeneratedText | None
    error: Exception | None = None


class Asked(NamedTuple):
    """A request as a lane decodes it."""

    ids: list[int]
    settings: Settings  # of one row


@dataclasses.dataclass
class _OnDevice:
    """What a lane keeps on the device from its first encoded request on."""

    program: DecodeProgram
    inputs: DecodeInputs
    slots: Slots


class Lane:
    """The slots of one source bucket, with the requests that run in them or wait for them.

    A request goes from `waiting` through the prefilled pool (encoded on the device) into a slot. It stays admitted
    until its result is written.

    Args:
        model: from `load_model`.
        cfg: how to decode.
        num_slots: rows that are stepped together.
        results: of the engine, by request id; the lane adds its own.
        work: of the engine; the lane adds its own.
    """

    def __init__(
        self, model: Model, cfg: DecodeConfig, num_slots: int, results: dict[int, Result], work: dict[str, float]
    ) -> None:
        self._model, self._cfg, self._results, self._work = model, cfg, results, work
        self.waiting: OrderedDict[int, Asked] = OrderedDict()  # by request id
        self._admitted: dict[int, Asked] = {}  # likewise: encoded or in a slot
        self._prefilled: deque[tuple[int, int]] = deque()  # request ids, and their rows of the pool
        self._running: list[int | None] = [None] * num_slots  # the request id in each slot
        self._pool: Encoded
        self._device: _OnDevice | None = None

    def __len__(self) -> int:
        return len(self._admitted) + len(self.waiting)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self.waiting or request_id in self._admitted

    def oldest(self, but: Set[int] = frozenset()) -> float:
        """The smallest id of the requests that run or wait, but for some; infinity where there is no other."""
        first_waiting = (request_id for request_id in self.waiting if request_id not in but)
        ids = (*self._admitted.keys() - but, *itertools.islice(first_waiting, 1))
        return min(ids, default=math.inf)

    def drop(self, request_id: int) -> None:
        """Forgets a request of this lane. Its slot is free at the next step."""
        self.waiting.pop(request_id, None)
        self._admitted.pop(request_id, None)
        self._prefilled = deque(item for item in self._prefilled if item[0] != request_id)
        if self._device is not None and request_id in self._running:
            slot = self._running.index(request_id)
            self._running[slot] = None
            state = self._device.slots.state
            state = dataclasses.replace(state, ended=state.ended.at[slot].set(True))
            self._device.slots = dataclasses.replace(self._device.slots, state=state)

    def so_far(self, request_id: int) -> GeneratedText | None:
        """The text of a running request so far, without drafts that wait. None until it runs."""
        if self._device is None or request_id not in self._running:
            return None
        slot, state = self._running.index(request_id), self._device.slots.state
        decoded, policy = jax.tree.map(to_host, state.decoded), self._device.program.policy
        if policy.verifies:
            assert state.cache.waiting is not None
            drafts = to_host(state.cache.waiting.depths)[:, :-1] < policy.last_depth
            decoded = dataclasses.replace(decoded, lengths=decoded.lengths - drafts.sum(axis=1))
        return to_text(self._model, decoded, slot)

    def step(self, max_steps: int) -> None:
        """Refills the slots and steps them. Adds results of the requests that have ended.

        An error, such as of the device or of a user's policy, becomes the result of all requests that were
        admitted. The others go on. An interrupt is raised; the admitted requests then wait again.

        Args:
            max_steps: the most tokens to decode in each slot before returning.
        """
        try:
            self._fill()
            if self._device is not None and len(self._admitted):
                self._advance(self._device, max_steps)
        except BaseException as error:
            # Arrays that were donated are lost, so that all that is on the device is made again.
            admitted = {i: asked for i, asked in self._admitted.items() if i not in self._results}
            traceback.clear_frames(error.__traceback__)  # their variables hold what is on the device
            if isinstance(error, Exception):
                self._results |= {request_id: Result(request_id, None, error) for request_id in admitted}
            else:
                self.waiting = OrderedDict(admitted | self.waiting)
            self._admitted, self._device, self._running = {}, None, [None] * len(self._running)
            self._prefilled.clear()
            if not isinstance(error, Exception):
                raise

    def _advance(self, device: _OnDevice, max_steps: int) -> None:
        num_free, num_slots = self._running.count(None), len(self._running)
        is_asked_for = len(self.waiting) + len(self._prefilled) > 0
        stop_at_ended = num_free + max(1, num_slots // 8) if is_asked_for else num_slots
        inputs = dataclasses.replace(device.inputs, encoded=device.slots.encoded, settings=device.slots.settings)
        with self._model.context():
            state, counts = _advance(device.program, inputs, device.slots.state, max_steps, stop_at_ended)
        device.slots = dataclasses.replace(device.slots, state=state)
        self._collect(state)
        for name in ("steps", "tokens", "layers"):
            self._work[name] += int(getattr(counts, name))

    def _collect(self, state: DecodeState) -> None:
        """Frees the slots whose text has ended, and adds the results of their requests."""
        ended = to_host(state.ended)
        finished = [
            (slot, request_id)
            for slot, request_id in enumerate(self._running)
            if request_id is not None and ended[slot]
        ]
        if not finished:
            return
        decoded = jax.tree.map(to_host, state.decoded)
        for slot, request_id in finished:
            try:
                text = to_text(self._model, decoded, slot)
                self._finish(Result(request_id, text, text.error))
            except Exception as error:  # whatever a tokenizer raises
                self._finish(Result(request_id, None, error))
            self._running[slot] = None

    def _finish(self, result: Result) -> None:
        self._results[result.request_id] = result
        del self._admitted[result.request_id]

    def _fill(self) -> None:
        """Gives each free slot a request: a prefilled one, or else a waiting one."""
        num_slots = len(self._running)
        while self._prefilled or self.waiting:
            free = [slot for slot, request_id in enumerate(self._running) if request_id is None]
            if not free:
                return
            if not self._prefilled:
                self._prefill()
                continue
            count = min(len(free), len(self._prefilled))
            sources, slot_indices = np.zeros(num_slots, np.int32), np.full(num_slots, num_slots, np.int32)
            settings = []
            for i, slot in enumerate(free[:count]):
                request_id, sources[i] = self._prefilled.popleft()
                self._running[slot], slot_indices[i] = request_id, slot
                settings.append(self._admitted[request_id].settings)
            settings += settings[:1] * (num_slots - count)
            rows = jax.tree.map(lambda *rows: np.concatenate(rows), *settings)
            device = self._device
            assert device is not None
            device.slots = _refill(device.program, device.slots, self._pool, rows, sources, slot_indices, count)

    def _prefill(self) -> None:
        """Encodes as many waiting requests as there are slots; one alone, or all of them in one shape.

        An error becomes the result of these requests.
        """
        begin = time.perf_counter()
        num_slots = len(self._running)
        chosen = dict(itertools.islice(self.waiting.items(), num_slots))
        self._admitted |= chosen
        for request_id in chosen:
            del self.waiting[request_id]
        rows = [asked.ids for asked in chosen.values()]
        source = pad_rows(rows, len(rows), max(map(len, rows)), self._model.config.pad_token_id)
        pool_rows = 1 if len(rows) == 1 else num_slots
        try:
            self._pool = jax.block_until_ready(encode(self._model, *source, rows=pool_rows))
        except Exception as error:  # such as of the device, out of memory
            for request_id in chosen:
                self._finish(Result(request_id, None, error))
            return
        self._work["encode_s"] += time.perf_counter() - begin
        self._prefilled = deque((request_id, row) for row, request_id in enumerate(chosen))
        if self._device is None:
            empty = jax.tree.map(lambda x: jnp.zeros((num_slots, *x.shape[1:]), x.dtype), self._pool)
            empty = place_rows(self._model.mesh, empty)  # no row is active
            program, inputs = decode_arguments(self._model, empty, self._cfg)
            self._device = _OnDevice(program, inputs, _empty_slots(program, inputs))
