"""Translation, from parallel text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from sacrebleu.metrics import BLEU

from dvp_jax.data.rows import Row, read_lines, read_rows
from dvp_jax.data.task import Example
from dvp_jax.decode.text import check_text
from dvp_jax.metrics.translation import bleu, bleu_tokenizer, suits_13a, translation_scores


@dataclasses.dataclass(frozen=True)
class Translation:
    """Translation with T5's prompt, "translate English to German: ".

    Attributes:
        source_path: a text file with one source a line; None to read the hub data set instead.
        target_path: a text file with the reference of each line.
        source_language: the language's English name, for the prompt.
        target_language: the language's English name, for the prompt and for the tokenizer of BLEU.
        dataset: id of a hub data set whose rows have both sentences.
        subset: name of its configuration, if it has several.
        split: split of the hub data set.
        source_column: name of the column with the source, or its key inside a column `translation`.
        target_column: name of the column with the reference, or its key inside a column `translation`.
        bleu_tokenizer: name of the tokenizer of BLEU in `sacrebleu`; None for that of the target language: "zh",
            "ja-mecab" and "ko-mecab" for Chinese, Japanese and Korean, and "13a" for others.

    Raises:
        ValueError: an impossible value.
        ImportError: a package that the tokenizer of BLEU needs is missing.
    """

    source_path: str | None = None
    target_path: str | None = None
    source_language: str = "English"
    target_language: str = "German"
    dataset: str = "bentrevett/multi30k"
    subset: str | None = None
    split: str = "test"
    source_column: str = "en"
    target_column: str = "de"
    bleu_tokenizer: str | None = None
    name: str = dataclasses.field(default="translation", init=False)
    measure: str = dataclasses.field(default="chrf", init=False)
    max_source_length: int = 512
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if (self.source_path is None) != (self.target_path is None):
            raise ValueError(
                f"source_path is {self.source_path!r} and target_path {self.target_path!r}; "
                "allowed: both or neither"
            )
        for field in ("source_language", "target_language"):
            check_text(field, getattr(self, field))
        bleu(self._tokenizer)

    def load(self) -> list[Example]:
        """Reads all sentence pairs. See `Task.load`."""
        pairs = self._pairs()
        if self.bleu_tokenizer is None and self._tokenizer == "13a" and not suits_13a([y for _, y in pairs]):
            raise ValueError(
                f"target_language is {self.target_language!r}, but BLEU does not find the references' words so; "
                f"allowed: Chinese, Japanese, Korean, or a bleu_tokenizer: {', '.join(BLEU.TOKENIZERS)}"
            )
        prompt = f"translate {self.source_language} to {self.target_language}: "
        return [Example(str(index), prompt + source, (target,)) for index, (source, target) in enumerate(pairs)]

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Computes BLEU and chrF of the corpus."""
        return translation_scores(predictions, [example.references[0] for example in examples], self._tokenizer)

    @property
    def _tokenizer(self) -> str:
        return bleu_tokenizer(self.target_language) if self.bleu_tokenizer is None else self.bleu_tokenizer

    def _pairs(self) -> list[tuple[str, str]]:
        if self.source_path is None or self.target_path is None:
            columns = (self.source_column, self.target_column)
            rows = read_rows(columns, path=None, dataset=self.dataset, split=self.split, subset=self.subset)
            rows = [_sentences(row) for row in rows]
            return [(row.text(self.source_column), row.text(self.target_column)) for row in rows]
        sources, targets = (read_lines(path) for path in (self.source_path, self.target_path))
        if len(sources) != len(targets):
            raise ValueError(
                f"{self.source_path} has {len(sources)} lines and {self.target_path} {len(targets)}; "
                "allowed: as many in both"
            )
        for path, lines in ((self.source_path, sources), (self.target_path, targets)):
            for number, line in enumerate(lines, start=1):
                check_text(f"{path}, line {number}", line)
        return list(zip(sources, targets, strict=True))


def _sentences(row: Row) -> Row:
    """The row, or what its column `translation` holds where that is an object."""
    inner = row.cells.get("translation")
    return Row(row.where, inner) if isinstance(inner, Mapping) else row
