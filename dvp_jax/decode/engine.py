"""Batches that never wait: rows that end make room for waiting requests while the others go on.

Iteration-level batching (EE serving, arXiv 2407.20272): an engine holds slots, steps all of them together inside
one jitted call, and refills those whose text has ended. Rows of different age stand side by side in the ring of
`dvp_jax.decode.cache`, each exits by itself, and a layer runs while a row still needs it.

Requests of one source bucket share a lane: slots of their own, and a pool of sources encoded ahead. What is held
is bounded by the slots and the buckets in use, however many requests come.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from dvp_jax.decode.api import decode_arguments, decode_policy, encode, generate
from dvp_jax.decode.cache import DecodeProgram, Encoded
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.text import GeneratedText, pad_rows, source_bucket, to_text, tokenize, unpad_rows
from dvp_jax.decode.token_loop import DecodeState, new_state, next_place, next_token
from dvp_jax.t5.load import Model
from dvp_jax.t5.model import Params
from dvp_jax.t5.sharding import gathered, place_rows, rows_over, using

Request = str | Sequence[int]
"""A text, or token ids with the end token."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a request."""

    request_id: int  # of `submit`
    output: GeneratedText | None  # "" as its text where the model has no tokenizer
    error: ValueError | None = None  # where there is no output


@struct.dataclass
class Slots:
    """What the rows of a lane hold."""

    encoded: Encoded
    state: DecodeState


@struct.dataclass
class StepCounts:
    """How much was done."""

    steps: Int[Array, ""]
    tokens: Int[Array, ""]  # decoded
    layers: Int[Array, ""]  # run: in each step as many as its deepest row needed


@partial(jax.jit, static_argnums=0)
def _empty(structure: DecodeProgram, encoded: Encoded) -> Slots:
    return Slots(encoded, new_state(structure, encoded))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _refill(
    structure: DecodeProgram,
    slots: Slots,
    pool: Encoded,
    sources: Int[Array, " slots"],
    places: Int[Array, " slots"],
    count: Int[Array, ""],
) -> Slots:
    """Slot places[i] begins source sources[i] of the pool, for i below count; the others go on.

    Beyond count, places are outside the slots. Nothing is cleared: a row of age 0 sees no column.
    """

    def begin(i: Array, encoded: Encoded) -> Encoded:
        def put(to: Array, rows: Array) -> Array:
            return lax.dynamic_update_index_in_dim(to, rows[sources[i]], places[i], axis=0)

        return jax.tree.map(put, encoded, pool)

    config, state, decoded = structure.config, slots.state, slots.state.decoded
    new = jnp.zeros(places.shape, bool).at[places].set(True, mode="drop")
    return Slots(
        lax.fori_loop(0, count, begin, slots.encoded),
        dataclasses.replace(
            state,
            token=jnp.where(new, config.decoder_start_token_id, state.token),
            ended=state.ended & ~new,
            memory=dataclasses.replace(state.memory, age=jnp.where(new, 0, state.memory.age)),
            decoded=dataclasses.replace(decoded, lengths=jnp.where(new, 0, decoded.lengths)),
        ),
    )


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def _advance(
    structure: DecodeProgram,
    params: Params,
    encoded: Encoded,
    state: DecodeState,
    thresholds: Float[Array, "max_new_tokens num_depths"],
    steps: Int[Array, ""],
    ended: Int[Array, ""],
) -> tuple[DecodeState, StepCounts]:
    """At most `steps` steps, fewer where `ended` rows have ended."""

    def unfinished(carry: tuple[DecodeState, StepCounts]) -> Array:
        state, work = carry
        return (work.steps < steps) & (jnp.sum(state.ended) < ended)

    def step(carry: tuple[DecodeState, StepCounts]) -> tuple[DecodeState, StepCounts]:
        old, work = carry
        state = next_token(structure, params, encoded, thresholds, old)
        depth = jnp.max(jnp.where(next_place(structure, old), state.decoded.exit_layers, 0))
        return state, StepCounts(work.steps + 1, work.tokens + jnp.sum(~old.ended), work.layers + depth)

    return lax.while_loop(unfinished, step, (state, StepCounts(*[jnp.int32(0)] * 3)))


class _Lane:
    """The slots of one source bucket, and the requests that run in them or wait for them."""

    def __init__(self, model: Model, cfg: DecodeConfig, num_slots: int) -> None:
        self._model, self._cfg = model, cfg
        self.waiting: deque[tuple[int, list[int]]] = deque()  # ids of requests, and token ids
        self._pooled: deque[tuple[int, int]] = deque()  # ids and rows of the pool that no slot has taken yet
        self._running: list[int | None] = [None] * num_slots  # ids of requests
        self._pool: Encoded
        self._slots: Slots
        self.encode_s = 0.0  # seconds of the last step
        self._program: tuple[DecodeProgram, Params, Array] | None = None  # None: no request was encoded yet

    @property
    def request_ids(self) -> list[int]:
        """Of the requests that run or wait."""
        running = [request_id for request_id in self._running if request_id is not None]
        return running + [request_id for request_id, _ in (*self._pooled, *self.waiting)]

    def cancel(self, request_id: int) -> None:
        """Drops a request that is here; its slot is free at the next step."""
        self.waiting = deque(item for item in self.waiting if item[0] != request_id)
        self._pooled = deque(item for item in self._pooled if item[0] != request_id)
        if request_id in self._running:
            place = self._running.index(request_id)
            self._running[place] = None
            state = self._slots.state
            state = dataclasses.replace(state, ended=state.ended.at[place].set(True))
            self._slots = dataclasses.replace(self._slots, state=state)

    def step(self, steps: int) -> tuple[list[tuple[int, GeneratedText]], StepCounts]:
        """Refills the slots, steps them, and returns the texts that ended."""
        self.encode_s = 0.0
        self._fill()
        free = self._running.count(None)
        more = len(self.waiting) + len(self._pooled) > 0
        enough = free + max(1, len(self._running) // 8) if more else len(self._running)
        assert self._program is not None
        structure, params, thresholds = self._program
        slots = self._slots
        with using(self._model.mesh):
            state, work = _advance(structure, params, slots.encoded, slots.state, thresholds, steps, enough)
        self._slots = dataclasses.replace(slots, state=state)
        ended = gathered(state.ended)
        over = [place for place, request_id in enumerate(self._running) if request_id is not None and ended[place]]
        if not over:
            return [], work
        decoded = jax.tree.map(gathered, state.decoded)
        texts = []
        for place in over:
            request_id, self._running[place] = self._running[place], None
            assert request_id is not None
            texts.append((request_id, to_text(self._model, decoded, place)))
        return texts, work

    def _fill(self) -> None:
        """Gives each free slot a request, of the pool or else of those that wait."""
        while (free := [place for place, request_id in enumerate(self._running) if request_id is None]) and (
            self._pooled or self.waiting
        ):
            if not self._pooled:
                self._encode_pool()
            begin = [self._pooled.popleft() for _ in free[: len(self._pooled)]]
            slots = len(self._running)
            sources, places = np.zeros(slots, np.int32), np.full(slots, slots, np.int32)
            for i, ((request_id, source), place) in enumerate(zip(begin, free, strict=False)):
                self._running[place], sources[i], places[i] = request_id, source, place
            assert self._program is not None
            self._slots = _refill(self._program[0], self._slots, self._pool, sources, places, len(begin))

    def _encode_pool(self) -> None:
        """Encodes as many waiting requests as there are slots; one alone, or all in one shape."""
        begin = time.perf_counter()
        chosen = [self.waiting.popleft() for _ in range(min(len(self.waiting), len(self._running)))]
        rows = [ids for _, ids in chosen]
        source = pad_rows(rows, len(rows), max(map(len, rows)), self._model.config.pad_token_id)
        size = 1 if len(rows) == 1 else len(self._running)
        self._pool = jax.block_until_ready(encode(self._model, *source, rows=size))
        self.encode_s += time.perf_counter() - begin
        self._pooled = deque((request_id, row) for row, (request_id, _) in enumerate(chosen))
        if self._program is None:
            slots = len(self._running)
            nothing = jax.tree.map(lambda x: jnp.zeros((slots, *x.shape[1:]), x.dtype), self._pool)
            nothing = place_rows(self._model.mesh, nothing)  # no row is active
            structure, params, _, thresholds = decode_arguments(self._model, nothing, self._cfg)
            self._program = structure, params, thresholds
            self._slots = _empty(structure, nothing)


class Engine:
    """Decodes any number of requests in a fixed number of slots; each one's text is that of the request alone.

    On a mesh of several processes each has an engine, and all must be asked the same in the same order.

    Args:
        model: from `load_model`.
        cfg: how.
        slots: rows that are stepped together, for each source bucket in use; more where a mesh's data axis does
            not divide them.
        max_source_length: tokens of a request at most.
        steps: tokens of each row between two looks at the requests, at most.

    Raises:
        ValueError: cfg does not fit the model; a number below 1.
    """

    def __init__(
        self,
        model: Model,
        cfg: DecodeConfig,
        *,
        slots: int = 16,
        max_source_length: int = 512,
        steps: int = 32,
    ) -> None:
        for name, value in (("slots", slots), ("max_source_length", max_source_length), ("steps", steps)):
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed: at least 1")
        decode_policy(model, cfg)
        self._model, self._cfg, self._steps = model, cfg, steps
        self._num_slots = rows_over(model.mesh, slots)
        self._max_source_length = max_source_length
        self._lanes: dict[int, _Lane] = {}
        self._refused: list[Result] = []
        self._num_requests = 0
        self.work = {"steps": 0, "tokens": 0, "layers": 0, "encode_s": 0.0}
        """Steps taken, tokens they decoded, layers they ran (of each step as many as its deepest row), and seconds
        that the encoder took."""

    def submit(self, request: Request) -> int:
        """Lets a request wait for a slot; a bad one gets its error as its result.

        Returns:
            Its id: 0, 1, ...
        """
        request_id, self._num_requests = self._num_requests, self._num_requests + 1
        try:
            ids = self._ids(request)
        except ValueError as error:
            self._refused.append(Result(request_id, None, error))
        else:
            bucket = source_bucket(len(ids))
            lane = self._lanes.setdefault(bucket, _Lane(self._model, self._cfg, self._num_slots))
            lane.waiting.append((request_id, ids))
        return request_id

    def cancel(self, request_id: int) -> bool:
        """Drops a request, whose result is an error that says so; False where it is not here (any more)."""
        for lane in self._lanes.values():
            if request_id in lane.request_ids:
                lane.cancel(request_id)
                self._refused.append(Result(request_id, None, ValueError("request was cancelled")))
                return True
        return False

    def step(self) -> list[Result]:
        """Steps the slots of one bucket; returns what has ended since, in no order."""
        results, self._refused = self._refused, []
        lanes = [(lane, request_ids) for lane in self._lanes.values() if (request_ids := lane.request_ids)]
        if not lanes:
            return results
        oldest, _ = min(lanes, key=lambda item: min(item[1]))
        fullest, _ = max(lanes, key=lambda item: min(len(item[1]), self._num_slots))
        waited_long = (
            self._num_requests - min(min(request_ids) for _, request_ids in lanes) > _PATIENCE * self._num_slots
        )
        lane = oldest if waited_long else fullest
        texts, work = lane.step(self._steps)
        self.work["encode_s"] += lane.encode_s
        for name in ("steps", "tokens", "layers"):
            self.work[name] += int(getattr(work, name))
        return results + [Result(request_id, text) for request_id, text in texts]

    def run(self, requests: Iterable[Request], *, in_order: bool = False) -> Iterator[Result]:
        """Decodes requests, taken one by one as there is room for them.

        Args:
            requests: any number; read no further ahead than `_AHEAD` times the slots.
            in_order: results in the order of the requests; else as they end.
        """
        coming, next_id, held = iter(requests), self._num_requests, dict[int, Result]()
        while True:
            room = _AHEAD * self._num_slots - sum(len(lane.request_ids) for lane in self._lanes.values())
            for request in itertools.islice(coming, max(room, 0)):
                self.submit(request)
            results = self.step()
            if not results and not any(lane.request_ids for lane in self._lanes.values()):
                return
            if not in_order:
                yield from results
                continue
            held.update((result.request_id, result) for result in results)
            while next_id in held:
                yield held.pop(next_id)
                next_id += 1

    def texts(self, requests: Iterable[Request]) -> list[GeneratedText]:
        """Decodes requests that must all be good: those of the longest sources first, which keeps slots busier.

        Returns:
            Their texts, in the order of the requests.

        Raises:
            ValueError: that of the first that is not good; nothing is decoded then.
        """
        sources = [self._ids(request) for request in requests]
        order = sorted(range(len(sources)), key=lambda place: -len(sources[place]))
        texts = {}
        for place, result in zip(order, self.run((sources[i] for i in order), in_order=True), strict=True):
            assert result.output is not None
            texts[place] = result.output
        return [texts[place] for place in range(len(sources))]

    def _ids(self, request: Request) -> list[int]:
        """The token ids of a request.

        Raises:
            ValueError: it is empty, too long, or neither text nor ids.
        """
        if isinstance(request, str):
            if not request.strip():
                raise ValueError(f"request is {request!r}; allowed: a text that is not empty")
            if self._model.tokenizer is None:
                raise ValueError("model.tokenizer is None; allowed: token ids, or a model that has a tokenizer")
            request = self._model.tokenizer(request)["input_ids"]
        ids = np.asarray(request if isinstance(request, Sequence | np.ndarray) else None)
        if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"request is {request!r}; allowed: a text, or at least one token id")
        if ids.min() < 0 or ids.max() >= self._model.config.vocab_size:
            most = self._model.config.vocab_size - 1
            raise ValueError(f"request has ids from {ids.min()} to {ids.max()}; allowed: 0 to {most}")
        if len(ids) > self._max_source_length:
            raise ValueError(f"request has {len(ids)} tokens; allowed: at most {self._max_source_length}")
        return ids.tolist()


def generate_text(
    model: Model, prompts: Sequence[str], cfg: DecodeConfig, *, max_source_length: int = 512, slots: int = 16
) -> list[GeneratedText]:
    """Generates from texts: as one batch, or through an engine where there are more of them than slots.

    Args:
        model: with a tokenizer.
        prompts: at least one, none empty.
        cfg: how.
        max_source_length: longer prompts are truncated, with a warning that counts them.
        slots: rows decoded together at most.

    Raises:
        ValueError: no prompts, an empty prompt, a model without a tokenizer, slots below 1, cfg that does not fit
            the model.
    """
    ids, mask = tokenize(model, prompts, max_source_length)
    engine = Engine(model, cfg, slots=slots, max_source_length=max_source_length)
    if len(ids) <= slots:
        out = generate(model, ids, mask, cfg)
        return [to_text(model, out, row) for row in range(len(ids))]
    return engine.texts(unpad_rows(ids, mask))


_AHEAD = 4
"""Requests held in all, times the slots: enough to fill the slots of several buckets."""
_PATIENCE = 16
"""Requests that may come after one before its bucket is stepped next, times the slots."""
