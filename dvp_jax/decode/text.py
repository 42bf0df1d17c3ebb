"""Texts to rows of token ids and back: tokenizing, padding, and the shapes that batches are padded to."""

from __future__ import annotations

import dataclasses
import functools
import re
import reprlib
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int

from dvp_jax.decode.token_loop import Decoded
from dvp_jax.t5.load import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SOURCE_BUCKETS = (32, 64, 128, 256, 512)
"""Lengths that sources are padded to, so that a data set compiles a handful of programs."""


@dataclasses.dataclass(frozen=True)
class GeneratedText:
    """One generated text.

    Attributes:
        text: without special tokens; "" where the model has no tokenizer.
        tokens: ids, up to and including the end token.
        exit_layers: layers run, of each token.
        confidences: that decided each token's exit, or of the last depth; NaN where the logits that the token was
            read from are not finite.
        corrected: places of drafts that the full model replaced; empty where no token is a draft.
        layers_run: decoder layers that ran one after the other for the whole text.
    """

    text: str
    tokens: list[int]
    exit_layers: list[int]
    confidences: list[float]
    corrected: list[int]
    layers_run: int

    @property
    def error(self) -> ValueError | None:
        """Says which token's logits are not finite, so that the text means nothing; else None."""
        wrong = np.flatnonzero(np.isnan(self.confidences))
        if not len(wrong):
            return None
        return ValueError(
            f"logits of token {wrong[0] + 1} are not finite; allowed: a model that does not overflow"
        )


@dataclasses.dataclass(frozen=True)
class Piece:
    """What is new of a text that is being decoded.

    Attributes:
        text: what it adds to the text; "" while the last characters may still change.
        tokens: their ids.
        exit_layers: layers run, of each token.
        confidences: as in `GeneratedText`.
        whole: the whole text, with its last piece; else None.
    """

    text: str
    tokens: list[int]
    exit_layers: list[int]
    confidences: list[float]
    whole: GeneratedText | None

    @classmethod
    def after(cls, shown: str, num_tokens: int, text: GeneratedText, is_whole: bool) -> Piece:
        """What a text has beyond what was shown.

        Args:
            shown: the pieces so far.
            num_tokens: of these pieces.
            text: these tokens, and more.
            is_whole: whether no token follows.
        """
        # The bytes of a character that is not whole become U+FFFD, and may take whole characters before along.
        certain = text.text if is_whole else text.text.rstrip("\ufffd")
        new = slice(num_tokens, None)
        return cls(
            text=certain[len(shown) :] if certain.startswith(shown) else "",
            tokens=text.tokens[new],
            exit_layers=text.exit_layers[new],
            confidences=text.confidences[new],
            whole=text if is_whole else None,
        )


def to_text(model: Model, decoded: Decoded, row: int) -> GeneratedText:
    """One row of a decoded batch as text.

    Args:
        model: with or without a tokenizer.
        decoded: numpy arrays.
        row: index into the batch.
    """
    length, tokenizer, drafts = int(decoded.lengths[row]), model.tokenizer, decoded.drafts
    exit_layers = decoded.exit_layers[row, :length].tolist()
    tokens = decoded.tokens[row, :length].tolist()
    return GeneratedText(
        text=decode_tokens(tokenizer, tokens, skip_special_tokens=True) if tokenizer is not None else "",
        tokens=tokens,
        exit_layers=exit_layers,
        confidences=decoded.confidences[row, :length].tolist(),
        corrected=np.flatnonzero(drafts.corrected[row]).tolist() if drafts is not None else [],
        layers_run=int(drafts.layers_run[row]) if drafts is not None else sum(exit_layers),
    )


def decode_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], *, skip_special_tokens: bool = False
) -> str:
    """The text of tokens, without ids that the tokenizer has no piece for: a model may embed more ids."""
    pieces = _ids(tokenizer)
    known = [token for token in tokens if token in pieces]
    return str(tokenizer.decode(known, skip_special_tokens=skip_special_tokens))


def token_pieces(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[str]:
    """The piece of each token, or "<id 32110>" where the tokenizer has none."""
    pieces = _ids(tokenizer)
    return [
        str(tokenizer.convert_ids_to_tokens(token)) if token in pieces else f"<id {token}>" for token in tokens
    ]


@functools.lru_cache(maxsize=4)
def _ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    return frozenset(tokenizer.get_vocab().values())


def tokenize(
    model: Model, prompts: Sequence[str], max_source_length: int
) -> tuple[Int[np.ndarray, "batch source"], Bool[np.ndarray, "batch source"]]:
    """Ids and mask of a batch of prompts, padded on the right to the longest.

    Args:
        model: with a tokenizer.
        prompts: at least one, none empty.
        max_source_length: longer prompts are truncated, with a warning that counts them.

    Raises:
        ValueError: there are no prompts, one is not text, has no token or half a surrogate pair, or the model has
            no tokenizer.
    """
    if model.tokenizer is None:
        raise ValueError("model.tokenizer is None; allowed: a checkpoint folder that holds a tokenizer")
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"prompts is {prompts!r}; allowed: a list of at least one text")
    for index, prompt in enumerate(prompts):
        check_text(f"prompts[{index}]", prompt)
    rows = token_rows(model.tokenizer, prompts, max_source_length, "prompts")
    return pad_rows(rows, len(rows), max(map(len, rows)), model.config.pad_token_id)


def check_text(name: str, value: Any, *, may_be_blank: bool = False) -> str:
    """Returns a text that a tokenizer can read.

    Args:
        name: what the value is, for errors.
        value: any value.
        may_be_blank: whether white space alone is allowed.

    Raises:
        ValueError: the value is not text, is blank, or holds half of a character (a surrogate without its pair).
    """
    if not isinstance(value, str) or not (may_be_blank or value.strip()):
        raise ValueError(f"{name} is {reprlib.repr(value)}; allowed: a text that is not empty")
    if half := re.search("[\ud800-\udfff]", value):
        where = f"half a surrogate pair, as character {half.start() + 1}"
        raise ValueError(f"{name} has {half[0]!r}, {where}; allowed: whole characters")
    return value


def token_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, name: str
) -> list[list[int]]:
    """The ids of each text. The tokenizer truncates longer ones, and a warning counts them.

    Args:
        tokenizer: of the model.
        texts: any number.
        max_length: the most tokens, with those that the tokenizer adds, such as the end token.
        name: of the texts, for the warning and the error.

    Raises:
        ValueError: the tokenizer finds no token in a text.
    """
    rows: list[list[int]] = tokenizer(list(texts))["input_ids"]
    if [] in rows:
        index = rows.index([])
        raise ValueError(f"{name}[{index}] is {reprlib.repr(texts[index])}; allowed: a text that has a token")
    if truncated := [index for index, row in enumerate(rows) if len(row) > max_length]:
        warnings.warn(
            f"{len(truncated)} of {len(rows)} {name} are longer than {max_length} tokens and were truncated",
            stacklevel=3,
        )
        # Only the tokenizer knows which tokens it adds, and on which side it truncates.
        cut = tokenizer([texts[index] for index in truncated], truncation=True, max_length=max_length)
        for index, row in zip(truncated, cut["input_ids"], strict=True):
            rows[index] = row
        tokenizer("")  # sets the truncation back, which it would save
    return rows


def pad_rows(
    rows: Sequence[list[int]], count: int, length: int, pad_token_id: int
) -> tuple[Int[np.ndarray, "count length"], Bool[np.ndarray, "count length"]]:
    """Ids and mask of rows, padded on the right to `length`, and with masked rows up to `count`."""
    ids = np.full((count, length), pad_token_id, np.int32)
    mask = np.zeros(ids.shape, bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = True
    return ids, mask


def unpad_rows(ids: Int[np.ndarray, "rows length"], mask: Bool[np.ndarray, "rows length"]) -> list[list[int]]:
    """The rows without their padding: the inverse of `pad_rows`."""
    return [row[real].tolist() for row, real in zip(ids, mask, strict=True)]


def source_batches(
    ids: Int[np.ndarray, "rows length"], mask: Bool[np.ndarray, "rows length"], batch_size: int
) -> Iterator[tuple[slice, Int[np.ndarray, "batch longest"], Bool[np.ndarray, "batch longest"]]]:
    """Splits right-padded rows into batches, each cut to its longest row.

    Yields:
        Which rows, their ids and their mask.
    """
    lengths = mask.sum(axis=1)
    for start in range(0, len(ids), batch_size):
        rows = slice(start, min(start + batch_size, len(ids)))
        longest = lengths[rows].max()
        yield rows, ids[rows, :longest], mask[rows, :longest]


def source_bucket(length: int) -> int:
    """The length that a source is padded to."""
    return length_bucket(length, SOURCE_BUCKETS)


def length_bucket(length: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `length`; beyond the last bucket, the next multiple of it."""
    for bucket in buckets:
        if length <= bucket:
            return bucket
    return -(-length // buckets[-1]) * buckets[-1]


def batch_bucket(size: int) -> int:
    """The number of rows that a batch is padded to: the next power of two."""
    return 1 << (size - 1).bit_length()
