"""The commonest tokens of a text, in a file beside a checkpoint: part of the guess of `prune_rule="recent"`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from dvp_jax.runs.files import write_whole
from dvp_jax.t5.files import read_json

COMMON_TOKENS_FILE = "common_tokens.json"
"""Of a checkpoint folder: an object with "vocab_size" and "tokens", ids in descending order of frequency."""


def count_tokens(rows: Iterable[Sequence[int]], vocab_size: int) -> Int[np.ndarray, " vocab"]:
    """All ids of a vocabulary, the commonest first; of equally common ones the smaller id first.

    Args:
        rows: token ids of texts.
        vocab_size: V.
    """
    counts = np.zeros(vocab_size, np.int64)
    for token, count in Counter(token for row in rows for token in row).items():
        counts[token] = count
    return np.argsort(-counts, kind="stable").astype(np.int32)


def write_common_tokens(folder: Path, tokens: Int[np.ndarray, " some"], vocab_size: int) -> None:
    """Writes the file into a checkpoint folder."""
    content = {"vocab_size": vocab_size, "tokens": np.asarray(tokens).tolist()}
    write_whole(folder / COMMON_TOKENS_FILE, [json.dumps(content) + "\n"])


def read_common_tokens(folder: Path, vocab_size: int) -> Int[np.ndarray, " some"] | None:
    """Reads the file of a checkpoint folder; None if there is none.

    Raises:
        ValueError: it is damaged, or counts another vocabulary.
    """
    path = folder / COMMON_TOKENS_FILE
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        counted, tokens = content["vocab_size"], np.asarray(content["tokens"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None
    if counted != vocab_size:
        raise ValueError(f"{path} has vocab_size {counted}; allowed: {vocab_size}, that of this model")
    is_ids = tokens.ndim == 1 and np.issubdtype(tokens.dtype, np.integer)
    if not is_ids or len(set(tokens.tolist())) < len(tokens) or tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(f"{path} has other tokens than different ids from 0 to {vocab_size - 1}")
    return tokens.astype(np.int32)
