"""A tiny model that exits at every depth, settings of every policy, and short ways to decode with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

import dvp_jax
from dvp_jax.decode.token_loop import Decoded
from tests.models import both

MODEL = ("t5", 0, 4.0, 4.0)
"""Arguments of `both`. test_reference.py shows that this model exits at every depth."""
COMMON = np.arange(211)[::-1]
"""Common tokens of the model, for the rule that guesses."""
prompts = st.lists(st.lists(st.integers(2, 210), min_size=1, max_size=30), min_size=3, max_size=4)
"""3 or 4 rows of ids. Both run in a batch of 4, so that all draws share a program, with an idle row or without."""

CALM = dvp_jax.DecodeConfig(method="calm", max_new_tokens=8, threshold=0.4, min_exit_layer=1)
DVP = dataclasses.replace(CALM, method="dvp", prune_layer=1, prune_size=10)
FULL = dataclasses.replace(CALM, method="full")
STATE = dataclasses.replace(CALM, confidence="state", threshold=0.8)
MASS = dataclasses.replace(DVP, prune_rule="mass", prune_mass=0.8, confidence="softmax_max", threshold=0.7)
DECAY = dataclasses.replace(
    DVP, prune_rule="decay", prune_size_min=2, confidence="entropy", threshold=0.85, final_vocab="pruned"
)
ORACLE = dataclasses.replace(CALM, method="oracle")
LOSSLESS = dataclasses.replace(DVP, method="lossless", max_waiting=3)
SHALLOW = dataclasses.replace(CALM, method="shallow_deep", min_exit_layer=2, max_waiting=3)


def padded(
    rows: Sequence[Sequence[int]], width: int | None = None, left: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of the rows, each (rows, width), padded on the right or on the left."""
    width = max(map(len, rows)) if width is None else width
    ids, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.int32)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    return ids, mask


def run(rows: Sequence[Sequence[int]], cfg: dvp_jax.DecodeConfig, **padding: Any) -> Decoded:
    """Decodes rows of ids in one batch."""
    model = dataclasses.replace(both(*MODEL)[1], common_tokens=COMMON)
    return dvp_jax.generate(model, *padded(rows, **padding), cfg)


def assert_same(one: Decoded, other: Decoded, rows: Any = slice(None)) -> None:
    """Expects these rows of one batch to equal the other batch."""
    np.testing.assert_array_equal(one.tokens[rows], other.tokens)
    np.testing.assert_array_equal(one.exit_layers[rows], other.exit_layers)
    np.testing.assert_array_equal(one.lengths[rows], other.lengths)
    np.testing.assert_allclose(one.confidences[rows], other.confidences, atol=1e-4)
    if one.drafts is not None and other.drafts is not None:
        np.testing.assert_array_equal(one.drafts.corrected[rows], other.drafts.corrected)
        np.testing.assert_array_equal(one.drafts.layers_run[rows], other.drafts.layers_run)


class Letters:
    """A tokenizer of letters: a is 2, b is 3, and so on; 1 ends a text."""

    def __call__(self, texts, truncation=False, max_length=0):
        kept = slice(max_length - 1 if truncation else None)
        return {"input_ids": [[*(ord(letter) - ord("a") + 2 for letter in text[kept]), 1] for text in texts]}

    def decode(self, tokens, skip_special_tokens):
        assert skip_special_tokens
        return " ".join(str(token) for token in tokens if token > 1)

    def get_vocab(self):
        return {str(token): token for token in range(211)}


def lettered() -> dvp_jax.Model:
    """The tiny model with a tokenizer of letters."""
    return dataclasses.replace(both(*MODEL)[1], tokenizer=Letters())
