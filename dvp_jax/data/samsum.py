"""SamSum (Gliwa et al., 2019): summaries of messenger dialogues."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence

from dvp_jax.data.task import Example, load_hub, naming_columns, read_text
from dvp_jax.metrics.rouge import rouge_scores

_COLUMNS = ("id", "dialogue", "summary")


@dataclasses.dataclass(frozen=True)
class Samsum:
    """SamSum with T5's prompt.

    Attributes:
        path: a CSV file with the columns id, dialogue and summary; None to read the hub data set instead.
        dataset: id of the hub data set.
        split: split of the hub data set; the published figures are of "validation".
    """

    path: str | None = None
    dataset: str = "knkarthick/samsum"
    split: str = "validation"
    name: str = dataclasses.field(default="samsum", init=False)
    measure: str = dataclasses.field(default="rougeL", init=False)
    max_source_length: int = 512
    max_new_tokens: int = 128

    def load(self) -> list[Example]:
        """Reads all dialogues. See `Task.load`."""
        rows = self._from_file(self.path) if self.path is not None else load_hub(self.dataset, self.split)
        with naming_columns(self.dataset):
            texts = [(row["id"], row["dialogue"] or "", row["summary"] or "") for row in rows]
        examples = [
            Example(str(key), f"summarize: {dialogue}", (summary,))
            for key, dialogue, summary in texts
            if dialogue.strip() and summary.strip()  # the published data contain an empty dialogue
        ]
        if not examples:
            raise ValueError(f"{self.path or self.dataset} holds no dialogues with summaries")
        return examples

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Computes ROUGE-L, ROUGE-1, ROUGE-2 and ROUGE-Lsum, in percent."""
        return rouge_scores(predictions, [example.references[0] for example in examples])

    @staticmethod
    def _from_file(path: str) -> list[dict[str, str]]:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        rows = []
        line = 1  # where the current row begins; a row may span several lines
        try:
            if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
                raise ValueError(f"{path}, line 1: no column {', '.join(missing)}")
            line = reader.line_num + 1
            for row in reader:
                if None in row or any(row[name] is None for name in _COLUMNS):
                    raise ValueError(f"{path}, line {line}: not {len(reader.fieldnames or ())} columns")
                rows.append(row)
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{path}, line {line}: not CSV: {error}") from None
        return rows
