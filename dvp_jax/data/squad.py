"""SQuAD 1.1 (Rajpurkar et al., 2016): extractive question answering as text to text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from dvp_jax.data.task import Example, load_hub, naming_columns, read_text
from dvp_jax.metrics.squad import squad_scores


@dataclasses.dataclass(frozen=True)
class Squad:
    """SQuAD with T5's prompt. Long prompts are truncated at the end, so a long context may lose the answer.

    Attributes:
        path: a JSON file in the format of SQuAD 1.1; None to read the hub data set instead.
        dataset: id of the hub data set.
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
        rows = self._from_file(self.path) if self.path is not None else self._from_hub()
        return [
            Example(key, f"question: {question.lstrip()} context: {context.lstrip()}", tuple(answers))
            for key, question, context, answers in rows
        ]

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Computes F1 and exact match, in percent."""
        return squad_scores(predictions, [example.references for example in examples])

    def _from_hub(self) -> Iterator[tuple[str, str, str, list[str]]]:
        with naming_columns(self.dataset):
            for row in load_hub(self.dataset, self.split):
                yield row["id"], row["question"], row["context"], row["answers"]["text"]

    @staticmethod
    def _from_file(path: str) -> list[tuple[str, str, str, list[str]]]:
        try:
            content: Any = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None
        rows = []
        where = "the top level"
        try:
            for i, article in enumerate(content["data"]):
                where = f"data[{i}]"
                for j, paragraph in enumerate(article["paragraphs"]):
                    where = f"data[{i}].paragraphs[{j}]"
                    for k, qa in enumerate(paragraph["qas"]):
                        where = f"data[{i}].paragraphs[{j}].qas[{k}]"
                        answers = [answer["text"] for answer in qa["answers"]]
                        rows.append((str(qa["id"]), qa["question"], paragraph["context"], answers))
                        if not answers or not all(
                            isinstance(text, str) for text in rows[-1][1:3] + tuple(answers)
                        ):
                            raise TypeError("question, context or answers are not text")
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: not SQuAD 1.1 JSON at {where}: {error!r}") from None
        if not rows:
            raise ValueError(f"{path} holds no questions")
        return rows
