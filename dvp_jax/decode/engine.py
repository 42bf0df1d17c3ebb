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
import math
import textwrap
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dvp_jax.decode.api import as_array, decode_policy, generate, row_settings
from dvp_jax.decode.config import DecodeConfig, request_config
from dvp_jax.decode.generation_config import with_generation_config
from dvp_jax.decode.lanes import Asked, Lane, Result
from dvp_jax.decode.program import Settings
from dvp_jax.decode.text import GeneratedText, Piece, check_text, source_bucket, to_text, tokenize, unpad_rows
from dvp_jax.exits.policy import check_integer
from dvp_jax.t5.load import Model
from dvp_jax.t5.sharding import round_up_rows

Request = str | ArrayLike
"""A text, or token ids with the end token: a list, or an array of any library that numpy reads."""

_READ_AHEAD = 4
"""Requests that `run` holds, as a multiple of the slots: enough to fill the slots of several buckets."""
_PATIENCE = 16
"""Requests that may be submitted after one before its bucket is stepped next, as a multiple of the slots."""


class Engine:
    """Decodes any number of requests in a fixed number of slots. Each text equals that of the request alone.

    Every request that is submitted gets one result: a text or an error. Threads may share an engine: a call waits
    while another thread steps, and only one of them may `run` at a time.

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
            check_integer(name, value, 1, None)
        decode_policy(model, cfg)
        self._model, self._cfg, self._steps = model, cfg, steps
        self._default = row_settings(cfg, model.config, np.zeros(1, int))  # of a request
        self._num_slots = round_up_rows(model.mesh, slots)
        self._max_source_length = max_source_length
        self._lanes: dict[int, Lane] = {}
        self._results: dict[int, Result] = {}  # that nobody has taken yet
        self._num_requests = 0
        self._claimed: set[int] = set()  # requests whose results only their own call takes
        self._lock = threading.RLock()  # held while anything above changes
        self._runs = threading.Lock()  # held by the one `run`
        self.work: dict[str, float] = {"steps": 0, "tokens": 0, "layers": 0, "encode_s": 0.0}
        """Steps taken, tokens decoded, layers run (in each step as many as its deepest row), and seconds of the
        encoder."""

    def submit(self, request: Request, **settings: Any) -> int:
        """Queues a request. A bad request gets an error as its result.

        Args:
            request: a text, or token ids with the end token.
            **settings: of this request, instead of those of the engine's config: `threshold`, `max_new_tokens` (at
                most the config's), where the config samples `temperature` and `seed`, and those of `top_k`,
                `top_p`, `min_new_tokens` and `forced_bos_token_id` that it sets. The seed is the config's plus the
                request's id by default. Nothing is compiled for them.

        Returns:
            Its id: 0, 1, ...
        """
        with self._lock:
            request_id, self._num_requests = self._num_requests, self._num_requests + 1
            try:
                ids = self._ids(request)
                own = self._settings({"seed": self._cfg.seed + request_id, **settings})
            except Exception as error:  # also what a tokenizer raises
                self._results[request_id] = Result(request_id, None, error)
                return request_id
            bucket = source_bucket(len(ids))
            if bucket not in self._lanes:
                lane = Lane(self._model, self._cfg, self._num_slots, self._results, self.work)
                self._lanes[bucket] = lane
            self._lanes[bucket].waiting[request_id] = Asked(ids, own)
            return request_id

    def cancel(self, request_id: int) -> bool:
        """Drops a request; its result is an error that says so. False where the request is unknown or done."""
        with self._lock:
            if dropped := self._drop(request_id):
                self._results[request_id] = Result(request_id, None, ValueError("request was cancelled"))
            return dropped

    def step(self) -> list[Result]:
        """Steps the slots of one bucket, and returns the results since the last call, in no order.

        Where the device or a policy raises an error, the requests that it has met get it as their result.
        """
        with self._lock:
            self._step()
            ids = self._results.keys() - self._claimed
            return [self._results.pop(request_id) for request_id in ids]

    def run(self, requests: Iterable[Request], *, in_order: bool = False) -> Iterator[Result]:
        """Decodes requests, taken one by one as there is room for them.

        Args:
            requests: any number; at most `_READ_AHEAD` times the slots are read ahead.
            in_order: yield results in the order of the requests; otherwise as they end.

        Yields:
            Results of these requests, and of others that were submitted before or meanwhile. Results that are not
            taken, because the loop over them or `requests` ends with an error, stay for the next call.

        Raises:
            RuntimeError: another `run` of this engine has not ended.
        """
        if not self._runs.acquire(blocking=False):
            raise RuntimeError("another run of this engine has not ended; allowed: one at a time")
        try:
            upcoming = iter(requests)
            while True:
                room, num_read = _READ_AHEAD * self._num_slots - sum(map(len, self._busy_lanes())), 0
                for request in itertools.islice(upcoming, max(room, 0)):
                    self.submit(request)
                    num_read += 1
                with self._lock:
                    self._step()
                    oldest = min((lane.oldest(self._claimed) for lane in self._busy_lanes()), default=math.inf)
                    ended = sorted(i for i in self._results.keys() - self._claimed if not in_order or i < oldest)
                for request_id in ended:
                    if result := self._results.pop(request_id, None):  # None: `step` has returned it meanwhile
                        yield result
                if num_read < room and not ended and oldest == math.inf:
                    return
        finally:
            self._runs.release()

    def stream(self, request: Request, **settings: Any) -> Iterator[Piece]:
        """Decodes a request token by token. Others of its source bucket go on meanwhile.

        Args:
            request: as for `submit`.
            **settings: as for `submit`.

        Yields:
            What is new of the text. Drafts of "lossless" come when they are verified.

        Raises:
            ValueError: the request or a setting is bad, logits are not finite, or it was cancelled.
            Exception: of the device or a policy, while it decoded.
        """
        with self._lock:
            request_id = self.submit(request, **settings)
            self._claimed.add(request_id)
        shown, num_tokens = "", 0
        try:
            while True:
                with self._lock:
                    text, result = None, self._results.pop(request_id, None)
                    if not result and (lane := self._lane_of(request_id)) is not None:
                        lane.step(1)
                        text = lane.so_far(request_id)
                if result and result.error:
                    raise result.error
                text = result.output if result else text
                if text is not None:
                    piece = Piece.after(shown, num_tokens, text, is_whole=result is not None)
                    shown, num_tokens = shown + piece.text, len(text.tokens)
                    if piece.tokens or piece.whole:
                        yield piece
                if result:
                    return
        finally:
            self._forget([request_id])

    def texts(self, requests: Iterable[Request]) -> list[GeneratedText]:
        """Decodes requests that must all be valid, the longest sources first, which keeps slots busier.

        Returns:
            Their texts, in the order of the requests. Look at `GeneratedText.error`.

        Raises:
            ValueError: the error of the first bad request; nothing is decoded then.
            Exception: of the device or a policy, while it decoded. None of the requests stays in the engine.
        """
        sources = [self._ids(request) for request in requests]
        order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
        with self._lock:
            indices = {self.submit(sources[index], seed=self._cfg.seed + index): index for index in order}
            self._claimed |= indices.keys()
        texts: dict[int, GeneratedText] = {}
        try:
            while len(texts) < len(sources):
                with self._lock:
                    self._step()
                    ended = [self._results.pop(request_id) for request_id in indices.keys() & self._results.keys()]
                for result in ended:
                    if result.output is None:
                        assert result.error is not None
                        raise result.error
                    texts[indices[result.request_id]] = result.output
        finally:
            self._forget(indices)
        return [texts[index] for index in range(len(sources))]

    def _forget(self, request_ids: Iterable[int]) -> None:
        """Drops requests that their caller no longer waits for."""
        with self._lock:
            for request_id in request_ids:
                self._drop(request_id)
                self._results.pop(request_id, None)
                self._claimed.discard(request_id)

    def _drop(self, request_id: int) -> bool:
        """Forgets a request that runs or waits. False where there is none."""
        lane = self._lane_of(request_id)
        if lane is not None:
            lane.drop(request_id)
        return lane is not None

    def _lane_of(self, request_id: int) -> Lane | None:
        """The lane in which a request runs or waits."""
        return next((lane for lane in self._lanes.values() if request_id in lane), None)

    def _busy_lanes(self) -> list[Lane]:
        """The lanes with requests that run or wait."""
        with self._lock:
            return [lane for lane in self._lanes.values() if len(lane)]

    def _settings(self, changes: Mapping[str, Any]) -> Settings:
        """The settings of a request, one row of numpy arrays.

        Raises:
            ValueError: a setting that the engine's program does not have, or an impossible value.
        """
        own = request_config(self._cfg, changes)
        settings = self._default
        if changes.keys() != {"seed"}:
            settings = row_settings(own, self._model.config, np.zeros(1, int), self._cfg)
        if settings.sampling is None:
            return settings
        seeds: Any = np.array([own.seed % 2**32], np.uint32)
        return dataclasses.replace(settings, sampling=dataclasses.replace(settings.sampling, seeds=seeds))

    def _step(self) -> None:
        """Steps the lane with the most requests to step together, or the one with the request that waited long."""
        if not (lanes := self._busy_lanes()):
            return
        oldest = min(lanes, key=lambda lane: lane.oldest())
        fullest = max(lanes, key=lambda lane: min(len(lane), self._num_slots))
        waited_long = self._num_requests - oldest.oldest() > _PATIENCE * self._num_slots
        (oldest if waited_long else fullest).step(self._steps)

    def _ids(self, request: Request) -> list[int]:
        """The token ids of a request.

        Raises:
            ValueError: it is empty, too long, or neither text nor ids.
        """
        if isinstance(request, str):
            check_text("request", request)
            if self._model.tokenizer is None:
                raise ValueError("model.tokenizer is None; allowed: token ids, or a model that has a tokenizer")
            request = self._model.tokenizer(request)["input_ids"]
        ids = as_array("request", request)
        if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
            shown = textwrap.shorten(repr(request), 100, placeholder=" ...")
            raise ValueError(f"request is {shown}; allowed: a text, or at least one token id")
        if ids.min() < 0 or ids.max() >= self._model.config.vocab_size:
            most = self._model.config.vocab_size - 1
            raise ValueError(f"request has ids from {ids.min()} to {ids.max()}; allowed: 0 to {most}")
        if len(ids) > self._max_source_length:
            raise ValueError(f"request has {len(ids)} tokens; allowed: at most {self._max_source_length}")
        return ids.tolist()


def generate_text(
    model: Model,
    prompts: Sequence[str],
    cfg: DecodeConfig | None = None,
    *,
    max_source_length: int = 512,
    slots: int = 16,
    num_return_sequences: int = 1,
) -> list[GeneratedText]:
    """Generates from texts: as one batch, or through an engine where there are more texts than slots.

    Args:
        model: with a tokenizer.
        prompts: at least one, none empty.
        cfg: how to decode. Where it samples, text i draws with the seed `cfg.seed + i`. None takes what the
            checkpoint's generation_config.json (or config.json) says, which a warning names, and else the
            defaults.
        max_source_length: longer prompts are truncated, with a warning that counts them.
        slots: the most rows that are decoded together.
        num_return_sequences: texts for each prompt. More than one only where cfg samples.

    Returns:
        The texts of each prompt, in order.

    Raises:
        ValueError: there are no prompts, one is empty, the model has no tokenizer, slots or num_return_sequences
            is not allowed, cfg does not fit the model, or a prompt gives logits that are not finite.
    """
    if cfg is None:
        cfg = with_generation_config(DecodeConfig(), model.generation_config)
    check_integer("num_return_sequences", num_return_sequences, 1, None)
    if num_return_sequences > 1 and not cfg.samples:
        allowed = "1 with temperature 0, which always gives the same text"
        raise ValueError(f"num_return_sequences is {num_return_sequences}; allowed: {allowed}")
    engine = Engine(model, cfg, slots=slots, max_source_length=max_source_length)
    ids, mask = (np.repeat(x, num_return_sequences, axis=0) for x in tokenize(model, prompts, max_source_length))
    if len(ids) <= slots:
        out = generate(model, ids, mask, cfg)
        texts = [to_text(model, out, row) for row in range(len(ids))]
    else:
        texts = engine.texts(unpad_rows(ids, mask))
    for index, text in enumerate(texts):
        if text.error is not None:
            raise ValueError(f"prompts[{index // num_return_sequences}]: {text.error}")
    return texts
