"""How early does the decoder know its choice? Ranks of the full model's token at every depth (DVP, section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from dvp_jax.analysis.run import Answer, TaskTexts
from dvp_jax.analysis.tokens import FULL_VOCABULARY, TokenTable
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.report.plots import agreement_per_depth, coverage_per_size, rank_boxes
from dvp_jax.report.table import Section, Table

PERCENTILES = (5, 25, 50, 75, 95)
COVERAGE = 0.99
"""The share of tokens that "size_for_coverage" in a report keeps."""


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The question for `run_analysis`: ranks.json, and three plots for each task."""

    name = "ranks"
    title = "How early the decoder knows its choice"
    only = None

    def answer(self, texts: TaskTexts) -> Answer:
        table = texts.table(texts.full_model(), FULL_VOCABULARY)
        sizes = prune_sizes(texts.methods.values(), texts.model.config.vocab_size)
        report = rank_report(table, "full", sizes)
        plots = []
        for name, caption, draw in (
            ("ranks", "Rank of the token that the full model chooses", rank_boxes),
            ("coverage", "Share of choices among the K likeliest", coverage_per_size),
            ("agreement", "Confidence, and agreement with the full model", agreement_per_depth),
        ):
            path = texts.workdir / f"{name}_{texts.task.name}.svg"
            draw(report, path)
            plots.append((caption, path))
        title = f"{texts.task.name}, {report['tokens']} tokens of {report['texts']} texts"
        return Answer(report, [Section(title, (rank_table(report),), plots)])


def size_for_coverage(ranks: Int[np.ndarray, " tokens"], share: float) -> int:
    """Finds the smallest K such that at least `share` of the tokens are among the K likeliest.

    Args:
        ranks: the rank of each token, 0 for the likeliest.
        share: in (0, 1].

    Raises:
        ValueError: there are no ranks, or share is outside (0, 1].
    """
    if not len(ranks):
        raise ValueError("ranks is empty; allowed: at least one")
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share is {share}; allowed: above 0, to 1")
    covered = np.arange(1, len(ranks) + 1) / len(ranks)
    return int(np.sort(ranks)[np.argmax(covered >= share)]) + 1


def prune_sizes(methods: Iterable[DecodeConfig], vocab_size: int) -> list[int]:
    """Lists the values of K to report: powers of two, the vocabulary size, and the K of every dvp method."""
    powers = {1 << bits for bits in range(vocab_size.bit_length())}
    return sorted(
        powers | {vocab_size} | {cfg.prune_size for cfg in methods if cfg.name == "dvp" and cfg.prune_size}
    )


def rank_report(table: TokenTable, name: str, sizes: Sequence[int]) -> dict[str, Any]:
    """Reports ranks, coverage, confidence and agreement of each depth.

    Args:
        table: the tokens of the full model's texts.
        name: name of the table's reading of the full vocabulary.
        sizes: values of K.

    Returns:
        "tokens" and "texts" (how many there are), "sizes", and "depths". For each depth: "rank_percentiles" (1 for
        the likeliest token), "coverage" (the share of tokens among the K likeliest, for each size),
        "size_for_coverage" (the smallest K whose coverage is at least `COVERAGE`), "confidence" (the mean) and
        "agreement" (how often the depth's likeliest token is the full model's).
    """
    depths = []
    for index in range(table.ranks.shape[1]):
        ranks = table.ranks[:, index]
        # "inverted_cdf" gives ranks that occur, never the mean of two.
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


def rank_table(report: Mapping[str, Any]) -> Table:
    """Shows a `rank_report`, one row for each depth."""
    return Table(
        ["depth", "agreement, %", "mean confidence", "median rank", "95 % of ranks", f"K for {COVERAGE:.0%}"],
        [
            [
                str(row["depth"]),
                f"{100 * row['agreement']:.2f}",
                f"{row['confidence']:.3f}",
                str(row["rank_percentiles"]["50"]),
                f"up to {row['rank_percentiles']['95']}",
                str(row["size_for_coverage"]),
            ]
            for row in report["depths"]
        ],
    )
