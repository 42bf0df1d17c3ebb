"""The interface of a task, and the reading of files and hub data sets that all tasks share."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol


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
            ValueError: a data file is empty or malformed. The message names the file and the line.
        """

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Scores predictions.

        Args:
            predictions: a generated text for each example.
            examples: as `load` returned them.

        Returns:
            Metrics in percent under their names; the main one comes first.
        """


def read_text(path: str | Path) -> str:
    """Reads a UTF-8 text file; a byte order mark is skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty or not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no data file {path}")
    data = path.read_bytes()
    if not data.strip():
        raise ValueError(f"{path} is empty")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8: {error.reason}") from None


def read_lines(path: str | Path) -> list[str]:
    """Reads the lines of a UTF-8 text file, without their line ends. Raises as `read_text`."""
    # str.splitlines would also split at characters that occur inside sentences, such as U+2028.
    return [line.removesuffix("\r") for line in read_text(path).removesuffix("\n").split("\n")]


@contextlib.contextmanager
def naming_columns(dataset: str) -> Iterator[None]:
    """Turns a KeyError of a row into a ValueError that names the data set and its missing column."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"data set {dataset} has no column {error}") from None


def load_hub(dataset: str, split: str, subset: str | None = None) -> Any:
    """Loads a data set from the hub, or from a local folder in a format that `datasets` knows.

    Args:
        dataset: hub id, or a folder.
        split: name of the split.
        subset: name of the configuration, for a data set that has several.

    Raises:
        FileNotFoundError: the data set does not exist or cannot be reached.
    """
    import datasets

    try:
        return datasets.load_dataset(dataset, subset, split=split)
    except (OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise FileNotFoundError(f"data set {dataset} cannot be loaded: {error}") from None
