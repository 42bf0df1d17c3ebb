"""Length-bucketed batches: tokenised once, ahead of the first step, and then a pure function of the step.

An interrupted run needs nothing but its step to go on with the same batches.
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

SOURCE_LENGTHS = (32, 64, 96, 128, 256, 384, 512)
TARGET_LENGTHS = (8, 16, 24, 32, 64, 128)


@struct.dataclass
class Batch:
    """Sources and targets, padded on the right; rows that only fill up the batch are masked throughout."""

    input_ids: Int[Array, "batch source"]
    mask: Bool[Array, "batch source"]
    targets: Int[Array, "batch target"]
    target_mask: Bool[Array, "batch target"]


def shift_right(config: T5Config, targets: Int[Array, "batch target"]) -> Int[Array, "batch target"]:
    """What the decoder reads to predict `targets`: the start token, and each target but the last."""
    start = jnp.full_like(targets[:, :1], config.decoder_start_token_id)
    return jnp.concatenate([start, targets[:, :-1]], axis=1)


class Batches:
    """Every epoch visits each example once, in an order drawn from the seed and the epoch.

    A batch holds examples of one pair of length buckets, so that a data set compiles a handful of programs.

    Args:
        sources: token ids of each example.
        targets: token ids of each example's label.
        pad_token_id: fills up.
        batch_size: examples in a batch.
        seed: of the order.
        mesh: over whose data axis the rows of a batch are cut; None for the default device.
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
        self._buckets: dict[tuple[int, int], list[int]] = {}
        for index, (source, target) in enumerate(zip(sources, targets, strict=True)):
            lengths = length_bucket(len(source), SOURCE_LENGTHS), length_bucket(len(target), TARGET_LENGTHS)
            self._buckets.setdefault(lengths, []).append(index)

    @property
    def fingerprint(self) -> str:
        """A hash of the examples."""
        return digest([self._sources, self._targets])

    def __len__(self) -> int:
        """Batches in an epoch."""
        return sum(-(-len(indices) // self._batch_size) for indices in self._buckets.values())

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, index = divmod(step, len(self))
        return self._make(*self._epoch(epoch)[index])

    def once(self) -> Iterator[Batch]:
        """Every example once, bucket by bucket."""
        for lengths, indices in self._buckets.items():
            for start in range(0, len(indices), self._batch_size):
                yield self._make(lengths, indices[start : start + self._batch_size])

    @functools.lru_cache(maxsize=1)  # noqa: B019 - as long-lived as the run
    def _epoch(self, epoch: int) -> list[tuple[tuple[int, int], list[int]]]:
        random = np.random.default_rng((self._seed, epoch))
        batches = []
        for lengths, indices in self._buckets.items():
            shuffled = random.permutation(indices).tolist()
            batches += [
                (lengths, shuffled[start : start + self._batch_size])
                for start in range(0, len(shuffled), self._batch_size)
            ]
        return [batches[index] for index in random.permutation(len(batches))]

    def _make(self, lengths: tuple[int, int], indices: list[int]) -> Batch:
        arrays: list[np.ndarray] = []
        for rows, length in zip((self._sources, self._targets), lengths, strict=True):
            arrays += pad_rows([rows[index] for index in indices], self._batch_size, length, self._pad)
        return Batch(*place_rows(self._mesh, arrays))


def batches_of(
    model: Model, tasks: Sequence[Task], *, batch_size: int, seed: int = 0, limit: int | None = None
) -> Batches:
    """The batches of all tasks together.

    Args:
        model: with a tokenizer.
        tasks: prompts, and as labels their first references; longer ones than the task allows are truncated,
            with a warning that counts them.
        batch_size: examples in a batch.
        seed: of the order.
        limit: examples of each task, from the first; None for all.

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
        prompts, labels = [e.prompt for e in examples], [e.references[0] for e in examples]
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
