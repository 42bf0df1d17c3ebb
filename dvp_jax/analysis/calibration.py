"""Does pruning make confidence lie? Reliability with and without pruning, and thresholds that mean the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dvp_jax.analysis.early_exits import early_exits, matching_threshold
from dvp_jax.analysis.run import Answer, TaskTexts
from dvp_jax.analysis.tokens import TokenTable, reference_texts
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.metrics.reliability import reliability
from dvp_jax.report.plots import reliability_diagrams
from dvp_jax.report.table import Section, Table
from dvp_jax.runs.files import file_name

VOCABULARIES = ("whole", "pruned")
"""Names of the readings of the full and the pruned vocabulary. They differ after depth p, but not at depth L."""
TARGETS = ("full model", "reference")
"""What a token is compared with: the full model's own text, or the reference."""


@dataclasses.dataclass(frozen=True)
class Reliability:
    """The question for `run_analysis`: calibration.json, and diagrams for each task and dvp method.

    Attributes:
        threshold: a threshold on confidence over the full vocabulary, to be matched on the pruned one.
        bins: number of bins of the reliability diagrams.
    """

    threshold: float
    bins: int

    name = "calibration"
    title = "What confidence means, with and without pruning"
    only = "dvp"

    def answer(self, texts: TaskTexts) -> Answer:
        full, references = texts.full_model(), reference_texts(texts.sources, texts.task.max_new_tokens)
        data, sections = {}, []
        for name, cfg in texts.methods.items():
            readings = dict(zip(VOCABULARIES, (dataclasses.replace(cfg, method="calm"), cfg), strict=True))
            data[name] = reliability_report(
                texts.table(full, readings),
                texts.table(references, readings),
                cfg,
                threshold=self.threshold,
                bins=self.bins,
            )
            plots = []
            for target in TARGETS:
                plot = f"reliability_{texts.task.name}_{file_name(name)}_{target.split()[0]}.svg"
                path = texts.workdir / plot
                reliability_diagrams(data[name], target, path)
                plots.append((f"Reliability against the {target}", path))
            tables = reliability_table(data[name]), threshold_table(data[name])
            sections.append(Section(f"{texts.task.name}, {name}", tables, plots))
        return Answer(data, sections)


def reliability_report(
    full: TokenTable, reference: TokenTable, cfg: DecodeConfig, *, threshold: float, bins: int
) -> dict[str, Any]:
    """Reports reliability against the full model and against the reference, and matching thresholds.

    Args:
        full: the tokens of the full model's texts, with the readings `VOCABULARIES`.
        reference: the tokens of the reference texts, with the same readings.
        cfg: settings of the pruned reading; gives p, K, the first candidate depth and the measure.
        threshold: a threshold on confidence over the full vocabulary.
        bins: number of bins of the reliability diagrams.

    Returns:
        "prune_layer", "prune_size", "min_exit_layer", "confidence" (the measure), "reliability"
        (`reliability_rows` of the depths from p to the last) and "thresholds" (`threshold_rows` of the candidate
        depths).
    """
    num_layers = full.ranks.shape[1]
    depths = range(cfg.prune_layer, num_layers + 1)
    return {
        "prune_layer": cfg.prune_layer,
        "prune_size": cfg.prune_size,
        "min_exit_layer": cfg.min_exit_layer,
        "confidence": cfg.confidence,
        "reliability": [
            row
            for target, table in zip(TARGETS, (full, reference), strict=True)
            for row in reliability_rows(table, target, depths, bins)
        ],
        "thresholds": threshold_rows(full, cfg.candidates(num_layers), threshold),
    }


def reliability_rows(table: TokenTable, target: str, depths: Iterable[int], bins: int) -> list[dict[str, Any]]:
    """Measures reliability at each depth, over the full and over the pruned vocabulary.

    Args:
        table: has the readings `VOCABULARIES`. A depth is right if it would produce the table's token.
        target: what the table's tokens are, one of `TARGETS`.
        depths: depths from 1.
        bins: number of bins of the diagrams.

    Returns:
        For each vocabulary and depth: "target", "vocabulary", "depth", "tokens" (how many), "confidence" (the
        mean), "accuracy", "ece", "mce" and "bins" ("confidence" and "accuracy", None in an empty bin; "tokens").
    """
    rows = []
    for vocabulary in VOCABULARIES:
        for depth in depths:
            confidences = table.readings[vocabulary].confidences[:, depth - 1]  # (tokens,)
            correct = table.agrees(vocabulary)[:, depth - 1]  # (tokens,)
            diagram = reliability(confidences, correct, bins)
            rows.append(
                {
                    "target": target,
                    "vocabulary": vocabulary,
                    "depth": depth,
                    "tokens": len(correct),
                    "confidence": float(confidences.mean(dtype=np.float64)),
                    "accuracy": float(correct.mean()),
                    "ece": diagram.expected_error,
                    "mce": diagram.maximum_error,
                    "bins": [
                        {
                            "confidence": confidence if count else None,
                            "accuracy": accuracy if count else None,
                            "tokens": count,
                        }
                        for confidence, accuracy, count in zip(
                            diagram.confidence.tolist(),
                            diagram.accuracy.tolist(),
                            diagram.count.tolist(),
                            strict=True,
                        )
                    ],
                }
            )
    return rows


def threshold_rows(table: TokenTable, depths: Iterable[int], threshold: float) -> list[dict[str, Any]]:
    """Finds thresholds on the pruned vocabulary that give the agreement of `threshold` on the full one.

    Agreement is the share of exiting tokens that are the full model's. In the row of a depth, every token exits
    whose confidence at that depth exceeds the threshold, whatever shallower depths say. One row, with the depth
    None, is about all depths together: every token exits at the first depth whose confidence exceeds the
    threshold.

    Args:
        table: the tokens of the full model's texts, with the readings `VOCABULARIES`.
        depths: the candidate depths, from 1.
        threshold: a threshold on confidence over the full vocabulary.

    Returns:
        Rows of "depth", "threshold", "whole" and "pruned" (the `EarlyExits` at the threshold over the full and the
        pruned vocabulary), "matching_threshold" and "matched" (the `EarlyExits` at that over the pruned one). The
        last two are None if no token exits over the full vocabulary, or if no threshold reaches the agreement.
    """
    rows: list[dict[str, Any]] = []
    candidates = list(depths)
    for depth, columns in [(None, candidates), *((depth, [depth]) for depth in candidates)]:
        index = np.array(columns) - 1
        full, pruned = (
            (table.readings[name].confidences[:, index], table.agrees(name)[:, index]) for name in VOCABULARIES
        )
        full_exits = early_exits(*full, threshold)
        matching = None if full_exits.agreement is None else matching_threshold(*pruned, full_exits.agreement)
        rows.append(
            {
                "depth": depth,
                "threshold": threshold,
                "whole": full_exits._asdict(),
                "pruned": early_exits(*pruned, threshold)._asdict(),
                "matching_threshold": matching,
                "matched": None if matching is None else early_exits(*pruned, matching)._asdict(),
            }
        )
    return rows


def reliability_table(report: Mapping[str, Any]) -> Table:
    """Shows the reliability of a `reliability_report`, one row for each target and depth."""
    by_key = {(row["target"], row["vocabulary"], row["depth"]): row for row in report["reliability"]}
    lines = []
    for target, depth in dict.fromkeys((target, depth) for target, _, depth in by_key):
        both = [by_key[target, vocabulary, depth] for vocabulary in VOCABULARIES]
        accuracies = ", ".join(f"{100 * row['accuracy']:.2f}" for row in both)
        errors = [", ".join(f"{row[field]:.3f}" for row in both) for field in ("confidence", "ece", "mce")]
        lines.append([target, str(depth), accuracies, *errors])
    return Table(["against", "depth", "accuracy, % (whole, pruned)", "confidence", "ECE", "MCE"], lines)


def threshold_table(report: Mapping[str, Any]) -> Table:
    """Shows the thresholds of a `reliability_report`, one row for each depth."""
    return Table(
        [
            "depth",
            "threshold",
            "agreement, % (leaving, %): whole",
            "pruned",
            "matching threshold",
            "pruned there",
        ],
        [
            [
                str(row["depth"] or "all"),
                str(row["threshold"]),
                _describe(row["whole"]),
                _describe(row["pruned"]),
                "none" if row["matching_threshold"] is None else f"{row['matching_threshold']:.4f}",
                "" if row["matched"] is None else _describe(row["matched"]),
            ]
            for row in report["thresholds"]
        ],
    )


def _describe(exits: Mapping[str, Any]) -> str:
    agreement = "none leaves" if exits["agreement"] is None else f"{100 * exits['agreement']:.2f}"
    return f"{agreement} ({100 * exits['share']:.1f})"
