"""The interface of a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Example:
    """One source of a data set.

    Attributes:
        id: the data set's own id, or the position of the row.
        prompt: the text that the model reads, with the task's prefix.
        references: the texts that its output is compared with.
    """

    id: str
    prompt: str
    references: tuple[str, ...]


class Task(Protocol):
    """A data set with its prompt, its lengths and its metrics."""

    @property
    def name(self) -> str:
        """The task's name in configs and results."""

    @property
    def measure(self) -> str:
        """The measure of a single text's quality, a key of `dvp_jax.metrics.quality.MEASURES`."""

    @property
    def max_source_length(self) -> int:
        """The most source tokens; longer prompts are truncated."""

    @property
    def max_new_tokens(self) -> int:
        """The most tokens to generate."""

    def load(self) -> list[Example]:
        """Reads all examples, at least one.

        Raises:
            FileNotFoundError: a data file is missing, or a data set cannot be reached.
            ValueError: a data file is empty or malformed, or a text is missing or cannot be tokenized. The message
                names the file and the line, or the data set and the row.
        """

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Scores predictions.

        Args:
            predictions: a generated text for each example.
            examples: as `load` returned them.

        Returns:
            Metrics in percent under their names; the main one comes first.
        """


class LoadedTask:
    """A task whose examples have been read once, so that a file that changes during a run changes nothing.

    Args:
        task: any task. It raises as `Task.load`.
    """

    def __init__(self, task: Task) -> None:
        self.name, self.measure = task.name, task.measure
        self.max_source_length, self.max_new_tokens = task.max_source_length, task.max_new_tokens
        self.score = task.score
        self._examples = tuple(task.load())

    def load(self) -> list[Example]:
        return list(self._examples)
