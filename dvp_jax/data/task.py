"""What a task is, and the reading of files that all tasks share."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt as the model reads it, and the references that its output is compared with."""

    id: str
    prompt: str
    references: tuple[str, ...]


class Task(Protocol):
    """A data set with its prompt, its lengths and its metric."""

    @property
    def name(self) -> str:
        """Name in configs and results."""

    @property
    def measure(self) -> str:
        """What tells the quality of a single text; a name in `dvp_jax.metrics.quality.MEASURES`."""

    @property
    def max_source_length(self) -> int:
        """Source tokens at most; longer prompts are truncated."""

    @property
    def max_new_tokens(self) -> int:
        """Tokens generated at most."""

    def load(self) -> list[Example]:
        """All examples, at least one.

        Raises:
            FileNotFoundError: a data file is missing.
            ValueError: a data file is empty or malformed; names file and line.
        """

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Metrics in percent, the one to quote first."""


def read_text(path: str | Path) -> str:
    """A UTF-8 file's text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: empty, or not UTF-8.
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
    """A UTF-8 file's lines, without their ends. Raises as `read_text`."""
    # Not str.splitlines: it also splits at characters that stand inside sentences.
    return [line.removesuffix("\r") for line in read_text(path).removesuffix("\n").split("\n")]


@contextlib.contextmanager
def naming_columns(dataset: str) -> Iterator[None]:
    """Turns a column that the rows of a hub data set lack into a ValueError that names both."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"data set {dataset} has no column {error}") from None


def load_hub(dataset: str, split: str, subset: str | None = None) -> Any:
    """A data set of the hub, or of a local folder in one of the forms that `datasets` knows.

    Raises:
        FileNotFoundError: it cannot be found or reached.
    """
    import datasets

    try:
        return datasets.load_dataset(dataset, subset, split=split)
    except (OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise FileNotFoundError(f"data set {dataset} cannot be loaded: {error}") from None
