"""SQuAD 1.1 (Rajpurkar et al., 2016): extractive question answering as text to text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dvp_jax.data.rows import Row, read_json, read_rows
from dvp_jax.data.task import Example
from dvp_jax.decode.text import check_text
from dvp_jax.metrics.squad import squad_scores

_COLUMNS = ("id", "question", "context", "answers")


@dataclasses.dataclass(frozen=True)
class Squad:
    """SQuAD with T5's prompt. Long prompts are truncated at the end, so a long context may lose the answer.

    Attributes:
        path: a JSON file in the format of SQuAD 1.1, or a .jsonl file with a row of the hub data set in each line;
            None to read the hub data set instead.
        dataset: id of the hub data set, or a folder.
        split: split of the hub data set.
    """

    path: str | None = None
    dataset: str = "rajpurkar/squad"
    split: str = "validation"
    name: str = dataclasses.field(default="squad", init=False)
    measure: str = dataclasses.field(default="f1", init=False)
    max_source_length: int = 512
    max_new_tokens: int = 30

    def load(self) -> list[Example]:
        """Reads all questions. See `Task.load`."""
        if self.path is None or Path(self.path).suffix.lower() in (".jsonl", ".ndjson"):
            rows = read_rows(_COLUMNS, path=self.path, dataset=self.dataset, split=self.split)
        else:
            rows = _file_rows(self.path)
        return [_example(row) for row in rows]

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Computes F1 and exact match, in percent."""
        return squad_scores(predictions, [example.references for example in examples])


def _example(row: Row) -> Example:
    texts = row.cell("answers")
    if isinstance(texts, Mapping):  # in the hub's data set
        texts = texts.get("text")
    elif isinstance(texts, list):  # in files each answer is an object
        texts = [answer["text"] for answer in texts] if all(map(_has_text, texts)) else None
    if not isinstance(texts, list):
        raise ValueError(f"{row.where} has no list of texts in its answers")
    if not texts:
        raise ValueError(
            f"{row.where} has no answers, as in SQuAD 2.0; allowed: SQuAD 1.1, an answer or more to each question"
        )
    prompt = f"question: {row.text('question').lstrip()} context: {row.text('context').lstrip()}"
    return Example(row.id(), prompt, tuple(check_text(f"{row.where}: answer", text) for text in texts))


def _has_text(answer: Any) -> bool:
    return isinstance(answer, Mapping) and "text" in answer


def _file_rows(path: str) -> list[Row]:
    """The questions of a file as rows of the hub."""
    content = read_json(path)
    rows = []
    where = "the top level"
    try:
        for i, article in enumerate(content["data"]):
            where = f"data[{i}]"
            for j, paragraph in enumerate(article["paragraphs"]):
                where = f"data[{i}].paragraphs[{j}]"
                for k, qa in enumerate(paragraph["qas"]):
                    where = f"data[{i}].paragraphs[{j}].qas[{k}]"
                    rows.append(Row(f"{path}, {where}", {**qa, "context": paragraph["context"]}))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not SQuAD 1.1 JSON at {where}: {error!r}") from None
    if not rows:
        raise ValueError(f"{path} holds no questions")
    return rows
