"""SamSum (Gliwa et al., 2019): summaries of messenger dialogues."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dvp_jax.data.rows import read_rows
from dvp_jax.data.task import Example
from dvp_jax.metrics.rouge import rouge_scores

_COLUMNS = ("id", "dialogue", "summary")


@dataclasses.dataclass(frozen=True)
class Samsum:
    """SamSum with T5's prompt.

    Attributes:
        path: a .csv, .tsv, .json or .jsonl file with the columns id, dialogue and summary; None to read the hub
            data set instead.
        dataset: id of the hub data set, or a folder.
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
        rows = read_rows(_COLUMNS, path=self.path, dataset=self.dataset, split=self.split)
        texts = [(r.id(), r.text("dialogue", optional=True), r.text("summary", optional=True)) for r in rows]
        examples = [
            Example(key, f"summarize: {dialogue}", (summary,))
            for key, dialogue, summary in texts
            if dialogue.strip() and summary.strip()  # the published data contain an empty dialogue
        ]
        if not examples:
            raise ValueError(f"{self.path or self.dataset} holds no dialogues with summaries")
        return examples

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Computes ROUGE-L, ROUGE-1, ROUGE-2 and ROUGE-Lsum, in percent."""
        return rouge_scores(predictions, [example.references[0] for example in examples])
