"""Any data set of sources and targets: JSON, JSON lines, CSV, TSV, or a data set of the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dvp_jax.data.rows import read_rows
from dvp_jax.data.task import Example
from dvp_jax.decode.text import check_text
from dvp_jax.metrics.rouge import rouge_scores


@dataclasses.dataclass(frozen=True)
class TextToText:
    """Sources and targets from two columns, with a prefix of the user's choice.

    Attributes:
        path: a .json, .jsonl, .csv or .tsv file; None to read the hub data set instead.
        dataset: id of the hub data set, or a folder.
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
        check_text("prefix", self.prefix, may_be_blank=True)

    def load(self) -> list[Example]:
        """Reads all rows. See `Task.load`."""
        columns = (self.source_column, self.target_column)
        rows = read_rows(columns, path=self.path, dataset=self.dataset, split=self.split, subset=self.subset)
        return [
            Example(str(index), self.prefix + row.text(self.source_column), (row.text(self.target_column),))
            for index, row in enumerate(rows)
        ]

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Computes ROUGE-L, ROUGE-1, ROUGE-2 and ROUGE-Lsum, in percent."""
        return rouge_scores(predictions, [example.references[0] for example in examples])
