"""Texts to rows of token ids."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, what: str
) -> list[list[int]]:
    """The ids of each text, the end token last; longer ones are truncated, with a warning that counts them.

    Args:
        tokenizer: adds the end token.
        texts: any.
        max_length: tokens at most, the end token counted.
        what: the texts' name in the warning.
    """
    rows: list[list[int]] = tokenizer(list(texts))["input_ids"]
    if truncated := sum(len(row) > max_length for row in rows):
        warnings.warn(
            f"{truncated} of {len(rows)} {what} are longer than {max_length} tokens and were truncated",
            stacklevel=3,
        )
    # The end token stays: T5 expects each sequence to close with it.
    return [row if len(row) <= max_length else [*row[: max_length - 1], row[-1]] for row in rows]
