"""The engine: any number of requests in a fixed number of slots. A row whose text ends makes room for the next.

Batching at iteration level (EE serving, arXiv 2407.20272): the engine steps all slots of a lane inside one jitted
call and refills those whose text has ended. Rows of different lengths stand side by side in the cache of
`dvp_jax.decode.cache`, each exits by itself, and a layer runs while some row needs it.

Requests of one source bucket share a lane (`dvp_jax.decode.lanes`). Memory is bounded by the slots and the buckets
in use, however many requests come.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dvp_jax.decode.api import decode_policy, generate
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.lanes import Lane
from dvp_jax.decode.text import GeneratedText, source_bucket, to_text, tokenize, unpad_rows
from dvp_jax.t5.load import Model
from dvp_jax.t5.sharding import round_up_rows

Request = str | Sequence[int]
"""A text, or token ids with the end token."""

_READ_AHEAD = 4
"""Requests that `run` holds, as a multiple of the slots: enough to fill the slots of several buckets."""
_PATIENCE = 16
"""Requests that may be submitted after one before its bucket is stepped next, as a multiple of the slots."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a request.

    Attributes:
        request_id: as `Engine.submit` returned it.
        output: the generated text; None where there is an error.
        error: why there is no output.
    """

    request_id: int
    output: GeneratedText | None
    error: ValueError | None = None


class Engine:
    """Decodes any number of requests in a fixed number of slots. Each text equals that of the request alone.

    On a mesh of several processes each process has an engine, and all must make the same calls in the same order.

    Args:
        model: from `load_model`.
        cfg: how to decode.
        slots: rows that are stepped together, for each source bucket in use; more where a mesh's data axis does
            not divide them.
        max_source_length: the most tokens of a request.
        steps: the most tokens of each row between two looks at the requests.

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
        self._num_slots = round_up_rows(model.mesh, slots)
        self._max_source_length = max_source_length
        self._lanes: dict[int, Lane] = {}
        self._refused: list[Result] = []
        self._num_requests = 0
        self.work = {"steps": 0, "tokens": 0, "layers": 0, "encode_s": 0.0}
        """Steps taken, tokens decoded, layers run (in each step as many as its deepest row), and seconds of the
        encoder."""

    def submit(self, request: Request) -> int:
        """Queues a request. A bad request gets an error as its result.

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
            lane = self._lanes.setdefault(bucket, Lane(self._model, self._cfg, self._num_slots))
            lane.waiting.append((request_id, ids))
        return request_id

    def cancel(self, request_id: int) -> bool:
        """Drops a request; its result is an error that says so. False where the request is unknown or done."""
        for lane in self._lanes.values():
            if request_id in lane.request_ids:
                lane.cancel(request_id)
                self._refused.append(Result(request_id, None, ValueError("request was cancelled")))
                return True
        return False

    def step(self) -> list[Result]:
        """Steps the slots of one bucket, and returns the results since the last call, in no order."""
        results, self._refused = self._refused, []
        lanes = [(lane, request_ids) for lane in self._lanes.values() if (request_ids := lane.request_ids)]
        if not lanes:
            return results
        oldest, _ = min(lanes, key=lambda item: min(item[1]))
        fullest, _ = max(lanes, key=lambda item: min(len(item[1]), self._num_slots))
        first_waiting = min(min(request_ids) for _, request_ids in lanes)
        waited_long = self._num_requests - first_waiting > _PATIENCE * self._num_slots
        lane = oldest if waited_long else fullest
        texts, work = lane.step(self._steps)
        self.work["encode_s"] += lane.encode_s
        for name in ("steps", "tokens", "layers"):
            self.work[name] += int(getattr(work, name))
        return results + [Result(request_id, text) for request_id, text in texts]

    def run(self, requests: Iterable[Request], *, in_order: bool = False) -> Iterator[Result]:
        """Decodes requests, taken one by one as there is room for them.

        Args:
            requests: any number; at most `_READ_AHEAD` times the slots are read ahead.
            in_order: yield results in the order of the requests; otherwise as they end.
        """
        upcoming, next_id, held = iter(requests), self._num_requests, dict[int, Result]()
        while True:
            room = _READ_AHEAD * self._num_slots - sum(len(lane.request_ids) for lane in self._lanes.values())
            for request in itertools.islice(upcoming, max(room, 0)):
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
        """Decodes requests that must all be valid, the longest sources first, which keeps slots busier.

        Returns:
            Their texts, in the order of the requests.

        Raises:
            ValueError: the error of the first bad request; nothing is decoded then.
        """
        sources = [self._ids(request) for request in requests]
        order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
        texts = {}
        for index, result in zip(order, self.run((sources[i] for i in order), in_order=True), strict=True):
            assert result.output is not None
            texts[index] = result.output
        return [texts[index] for index in range(len(sources))]

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
    """Generates from texts: as one batch, or through an engine where there are more texts than slots.

    Args:
        model: with a tokenizer.
        prompts: at least one, none empty.
        cfg: how to decode.
        max_source_length: longer prompts are truncated, with a warning that counts them.
        slots: the most rows that are decoded together.

    Returns:
        One text for each prompt, in order.

    Raises:
        ValueError: there are no prompts, one is empty, the model has no tokenizer, slots is below 1, or cfg does
            not fit the model.
    """
    ids, mask = tokenize(model, prompts, max_source_length)
    engine = Engine(model, cfg, slots=slots, max_source_length=max_source_length)
    if len(ids) <= slots:
        out = generate(model, ids, mask, cfg)
        return [to_text(model, out, row) for row in range(len(ids))]
    return engine.texts(unpad_rows(ids, mask))
