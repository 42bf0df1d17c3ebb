"""How early a decoder knows its choice: the rank of the full model's token at every depth (DVP, section 3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from dvp_jax.analysis.tokens import TokenTable
from dvp_jax.decode.config import DecodeConfig

PERCENTILES = (5, 25, 50, 75, 95)
COVERAGE = 0.99
"""The share of tokens that the size in the report keeps."""


def size_for_coverage(ranks: Int[np.ndarray, " tokens"], share: float) -> int:
    """The smallest K whose K likeliest tokens hold the chosen one for at least `share` of the tokens.

    Args:
        ranks: of the chosen tokens, 0 the likeliest.
        share: in (0, 1].

    Raises:
        ValueError: no ranks, or share outside (0, 1].
    """
    if not len(ranks):
        raise ValueError("ranks is empty; allowed: at least one")
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share is {share}; allowed: above 0, to 1")
    covered = np.arange(1, len(ranks) + 1) / len(ranks)
    return int(np.sort(ranks)[np.argmax(covered >= share)]) + 1


def prune_sizes(methods: Iterable[DecodeConfig], vocab_size: int) -> list[int]:
    """Powers of two up to the vocabulary, the vocabulary itself, and the K of every dvp method."""
    powers = {1 << bits for bits in range(vocab_size.bit_length())}
    return sorted(powers | {vocab_size} | {cfg.prune_size for cfg in methods if cfg.method == "dvp"})


def rank_report(table: TokenTable, name: str, sizes: Sequence[int]) -> dict[str, Any]:
    """Ranks, coverage, confidence and agreement of each depth.

    Args:
        table: of the full model's own texts.
        name: of the reading of the whole vocabulary.
        sizes: values of K.

    Returns:
        "tokens", "texts", "sizes" and "depths": for each depth the "rank_percentiles" (1 the likeliest), the
        "coverage" of each size, the "size_for_coverage" that keeps `COVERAGE` of the choices, the mean
        "confidence" and the "agreement" with the full model.
    """
    depths = []
    for index in range(table.ranks.shape[1]):
        ranks = table.ranks[:, index]
        # Ranks that occur, not means of two.
        percentiles = np.percentile(ranks + 1, PERCENTILES, method="inverted_cdf").tolist()
        depths.append(
            {
                "depth": index + 1,
                "rank_percentiles": dict(zip(map(str, PERCENTILES), percentiles, strict=True)),
                "coverage": [float(np.mean(ranks < size)) for size in sizes],
                "size_for_coverage": size_for_coverage(ranks, COVERAGE),
                "confidence": float(table.readings[name].confidences[:, index].mean()),
                "agreement": float(table.agrees(name)[:, index].mean()),
            }
        )
    return {
        "tokens": len(table.token),
        "texts": int(table.text[-1]) + 1,
        "sizes": list(sizes),
        "depths": depths,
    }


def rank_table(report: Mapping[str, Any]) -> str:
    """A `rank_report` as a Markdown table."""
    head = ["depth", "agreement, %", "mean confidence", "median rank", "95 % of ranks", f"K for {COVERAGE:.0%}"]
    lines = ["| " + " | ".join(head) + " |", "|" + " ---: |" * len(head)]
    for row in report["depths"]:
        percentiles = row["rank_percentiles"]
        cells = [row["depth"], f"{100 * row['agreement']:.2f}", f"{row['confidence']:.3f}"]
        cells += [percentiles["50"], f"up to {percentiles['95']}", row["size_for_coverage"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
