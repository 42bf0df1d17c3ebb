"""Batches of examples of similar length.

All examples are tokenised before the first step. A batch is then a pure function of the step, so that a resumed
run sees the same batches as one that was not interrupted.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from dvp_jax.data.task import Task
from dvp_jax.decode.text import length_bucket, pad_rows, token_rows
from dvp_jax.runs.provenance import digest
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.load import Model
from dvp_jax.t5.sharding import place_rows

Lengths = tuple[int, int]
"""The padded lengths of a batch: of sources and of targets, in tokens."""

SOURCE_LENGTHS = (32, 64, 96, 128, 256, 384, 512)
TARGET_LENGTHS = (8, 16, 24, 32, 64, 128)


@struct.dataclass
class Batch:
    """Sources and targets, padded on the right. A batch with too few examples is filled up with masked rows."""

    input_ids: Int[Array, "batch source"]
    mask: Bool[Array, "batch source"]
    targets: Int[Array, "batch target"]
    target_mask: Bool[Array, "batch target"]


def shift_right(config: T5Config, targets: Int[Array, "batch target"]) -> Int[Array, "batch target"]:
    """Returns the decoder's input that predicts `targets`: the start token, then all targets but the last."""
    start = jnp.full_like(targets[:, :1], config.decoder_start_token_id)
    return jnp.concatenate([start, targets[:, :-1]], axis=1)


class Batches:
    """The batches of a data set.

    Every epoch visits each example once, in an order drawn from the seed and the epoch. All examples of a batch
    have their lengths in the same pair of buckets, so that a data set compiles only a few programs.

    Args:
        sources: the token ids of each example.
        targets: the token ids of each example's label.
        pad_token_id: the id that rows are padded with.
        batch_size: the number of rows of a batch.
        seed: decides the order.
        mesh: the rows of a batch are divided over its axis "data". None for the default device.
    """

    def __init__(
        self,
        sources: Sequence[list[int]],
        targets: Sequence[list[int]],
        *,
        pad_token_id: int,
        batch_size: int,
        seed: int = 0,
        mesh: Mesh | None = None,
    ) -> None:
        self._sources, self._targets = sources, targets
        self._pad, self._batch_size, self._seed = pad_token_id, batch_size, seed
        self._mesh = mesh
        self._buckets: dict[Lengths, list[int]] = {}  # indices of the examples
        for index, (source, target) in enumerate(zip(sources, targets, strict=True)):
            lengths = length_bucket(len(source), SOURCE_LENGTHS), length_bucket(len(target), TARGET_LENGTHS)
            self._buckets.setdefault(lengths, []).append(index)

    @property
    def fingerprint(self) -> str:
        """A hash of all examples."""
        return digest([self._sources, self._targets])

    def __len__(self) -> int:
        """Returns the number of batches of an epoch."""
        return sum(-(-len(indices) // self._batch_size) for indices in self._buckets.values())

    def at(self, step: int) -> Batch:
        """Returns the batch of a step. Steps count from 0 over all epochs."""
        epoch, index = divmod(step, len(self))
        return self._make(*self._epoch(epoch)[index])

    def once(self) -> Iterator[Batch]:
        """Yields each example once, bucket by bucket."""
        for lengths, indices in self._buckets.items():
            for start in range(0, len(indices), self._batch_size):
                yield self._make(lengths, indices[start : start + self._batch_size])

    @functools.lru_cache(maxsize=1)  # noqa: B019 - the batches live as long as the run
    def _epoch(self, epoch: int) -> list[tuple[Lengths, list[int]]]:
        """Returns the lengths and the examples' indices of each batch of an epoch."""
        random = np.random.default_rng((self._seed, epoch))
        batches = []
        for lengths, indices in self._buckets.items():
            shuffled = random.permutation(indices).tolist()
            batches += [
                (lengths, shuffled[start : start + self._batch_size])
                for start in range(0, len(shuffled), self._batch_size)
            ]
        return [batches[index] for index in random.permutation(len(batches))]

    def _make(self, lengths: Lengths, indices: list[int]) -> Batch:
        arrays: list[np.ndarray] = []
        for rows, length in zip((self._sources, self._targets), lengths, strict=True):
            arrays += pad_rows([rows[index] for index in indices], self._batch_size, length, self._pad)
        return Batch(*place_rows(self._mesh, arrays))


def batches_of(
    model: Model, tasks: Sequence[Task], *, batch_size: int, seed: int = 0, limit: int | None = None
) -> Batches:
    """Tokenises the examples of all tasks and mixes them in batches.

    Args:
        model: a model with a tokenizer.
        tasks: give the prompts, and the first reference of each as its label. Texts longer than the task allows
            are truncated, and a warning counts them.
        batch_size: the number of rows of a batch.
        seed: decides the order.
        limit: how many examples of each task are used, from the first; None for all.

    Raises:
        ValueError: no tasks, a task without examples, bad data, or a model without a tokenizer.
        FileNotFoundError: a data file is missing.
    """
    if not tasks:
        raise ValueError("tasks is empty; allowed: at least one")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; allowed: at least 1")
    if model.tokenizer is None:
        raise ValueError("model.tokenizer is None; allowed: a checkpoint folder that holds a tokenizer")
    sources: list[list[int]] = []
    targets: list[list[int]] = []
    for task in tasks:
        examples = task.load()[:limit]
        if not examples:
            raise ValueError(f"task {task.name} holds no examples; allowed: at least one")
        prompts = [example.prompt for example in examples]
        labels = [example.references[0] for example in examples]
        sources += token_rows(model.tokenizer, prompts, task.max_source_length, f"prompts of {task.name}")
        targets += token_rows(model.tokenizer, labels, task.max_new_tokens, f"labels of {task.name}")
    return Batches(
        sources,
        targets,
        pad_token_id=model.config.pad_token_id,
        batch_size=batch_size,
        seed=seed,
        mesh=model.mesh,
    )
