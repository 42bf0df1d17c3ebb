"""Any data set of sources and targets: JSON, JSON lines, CSV, TSV, or a data set of the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dvp_jax.data.task import Example, load_hub, naming_columns
from dvp_jax.metrics.rouge import rouge_scores

_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv"}


@dataclasses.dataclass(frozen=True)
class TextToText:
    """Sources and targets from two columns, with a prefix of the user's choice.

    Attributes:
        path: a .json, .jsonl, .csv or .tsv file; None to read the hub data set instead.
        dataset: id of the hub data set, or a folder that `datasets` can read.
        subset: name of its configuration, if it has several.
        split: split of the hub data set.
        source_column: name of the column with the text to read.
        target_column: name of the column with the text to generate.
        prefix: text before each source, such as "summarize: ".
    """

    path: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str = "test"
    source_column: str = "source"
    target_column: str = "target"
    prefix: str = ""
    name: str = dataclasses.field(default="text_to_text", init=False)
    measure: str = dataclasses.field(default="rougeL", init=False)
    max_source_length: int = 512
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if (self.path is None) == (self.dataset is None):
            raise ValueError(f"path is {self.path!r} and dataset {self.dataset!r}; allowed: one of the two")

    def load(self) -> list[Example]:
        """Reads all rows. See `Task.load`."""
        where = self.path or str(self.dataset)
        rows = self._from_file(Path(where)) if self.path else load_hub(where, self.split, self.subset)
        examples = []
        with naming_columns(where):
            for index, row in enumerate(rows):
                source, target = row[self.source_column], row[self.target_column]
                if not (isinstance(source, str) and source.strip() and isinstance(target, str) and target.strip()):
                    raise ValueError(f"{where}, row {index + 1}: source or target is empty or not text")
                examples.append(Example(str(index), self.prefix + source, (target,)))
        if not examples:
            raise ValueError(f"{where} holds no rows")
        return examples

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Computes ROUGE-L, ROUGE-1, ROUGE-2 and ROUGE-Lsum, in percent."""
        return rouge_scores(predictions, [example.references[0] for example in examples])

    @staticmethod
    def _from_file(path: Path) -> Any:
        import datasets

        if path.suffix not in _READERS:
            raise ValueError(f"path is {str(path)!r}; allowed endings: {', '.join(_READERS)}")
        if not path.is_file():
            raise FileNotFoundError(f"no data file {path}")
        if not path.read_bytes().strip():
            raise ValueError(f"{path} is empty")
        options = {"delimiter": "\t"} if path.suffix == ".tsv" else {}
        try:
            return datasets.load_dataset(_READERS[path.suffix], data_files=str(path), split="train", **options)
        except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as {path.suffix}: {error.__cause__ or error}") from None
