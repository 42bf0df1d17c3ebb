"""Does pruning make confidence lie? Reliability before and after, and thresholds that mean the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from dvp_jax.analysis.tokens import TokenTable
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.metrics.reliability import reliability

VOCABULARIES = ("whole", "pruned")
"""Names of the two readings: at depths after p they differ, at p and at the last depth they do not."""


class Leaving(NamedTuple):
    """What a threshold does to tokens."""

    share: float  # of all tokens, that leave
    agreement: float | None  # share of those that leave with the full model's token; None where none leaves


def leaving(
    confidences: Float[np.ndarray, "tokens depths"], agrees: Bool[np.ndarray, "tokens depths"], threshold: float
) -> Leaving:
    """Every token leaves at the first of the given depths whose confidence exceeds the threshold, if at any.

    Args:
        confidences: at each candidate depth.
        agrees: whether the depth's candidate is the full model's token.
        threshold: what confidence must exceed.
    """
    leaves = confidences > threshold
    gone = leaves.any(axis=1)
    first = agrees[np.arange(len(agrees)), leaves.argmax(axis=1)]
    return Leaving(float(gone.mean()), float(first[gone].mean()) if gone.any() else None)


def matching_threshold(
    confidences: Float[np.ndarray, "tokens depths"], agrees: Bool[np.ndarray, "tokens depths"], agreement: float
) -> float | None:
    """The lowest threshold in [0, 1] at which the tokens that leave agree at least so often.

    The lowest is the one that lets most tokens leave: it may lie below the threshold that `agreement` was read at,
    even on one and the same scale. Agreement changes only where the threshold passes a
    confidence that occurs, so that 0 and those are all there is to try.

    Args:
        confidences: at each candidate depth, in [0, 1].
        agrees: whether the depth's candidate is the full model's token.
        agreement: to reach, in [0, 1].

    Returns:
        None where no threshold reaches it.
    """
    # A token leaves at depth l while max(c of the depths before l) <= threshold < c_l.
    before = np.maximum.accumulate(confidences, axis=1)[:, :-1]
    before = np.concatenate([np.full((len(confidences), 1), -np.inf), before], axis=1)
    record = confidences > before
    ends, begins, right = confidences[record], before[record], agrees[record]
    thresholds = np.unique(np.append(confidences, 0.0))

    def standing(ends: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """How many intervals [begin, end) hold each threshold."""
        begun = np.searchsorted(np.sort(begins), thresholds, side="right")
        return begun - np.searchsorted(np.sort(ends), thresholds, side="right")

    left, agreed = standing(ends, begins), standing(ends[right], begins[right])
    reached = (left > 0) & (agreed >= agreement * left)
    return float(thresholds[reached.argmax()]) if reached.any() else None


def reliability_rows(table: TokenTable, target: str, depths: Iterable[int], bins: int) -> list[dict[str, Any]]:
    """ECE, MCE and reliability diagram of each depth, of the whole and of the pruned vocabulary.

    Args:
        table: with the readings `VOCABULARIES`; its tokens are what is right.
        target: what the tokens are, for the rows.
        depths: from 1.
        bins: of the diagrams.
    """
    rows = []
    for vocabulary in VOCABULARIES:
        for depth in depths:
            confidences = table.readings[vocabulary].confidences[:, depth - 1]
            correct = table.agrees(vocabulary)[:, depth - 1]
            diagram = reliability(confidences, correct, bins)
            held = zip(diagram.confidence.tolist(), diagram.accuracy.tolist(), diagram.count.tolist(), strict=True)
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
                        for confidence, accuracy, count in held
                    ],
                }
            )
    return rows


def threshold_rows(table: TokenTable, depths: Iterable[int], threshold: float) -> list[dict[str, Any]]:
    """What the pruned scale must be cut at for the agreement that `threshold` gives on the whole one.

    Matched is the share, among the tokens that leave, of those whose candidate is the full model's token. Of one
    depth the tokens that leave are those whose confidence there exceeds the threshold, whatever shallower depths
    say; of all depths together ("depth" None) each token leaves at the first whose confidence does.

    Args:
        table: of the full model's own texts, with the readings `VOCABULARIES`.
        depths: the candidates, from 1.
        threshold: on the whole vocabulary's scale.

    Returns:
        Rows of "depth" and, each a `Leaving`, "whole" and "pruned" at the same threshold, "matched" at
        "matching_threshold"; these two are None where no token leaves on the whole scale, or where no
        threshold on the pruned one agrees as often.
    """
    rows: list[dict[str, Any]] = []
    candidates = list(depths)
    for depth, columns in [(None, candidates), *((depth, [depth]) for depth in candidates)]:
        index = np.array(columns) - 1
        whole, pruned = (
            (table.readings[name].confidences[:, index], table.agrees(name)[:, index]) for name in VOCABULARIES
        )
        on_whole = leaving(*whole, threshold)
        matching = None if on_whole.agreement is None else matching_threshold(*pruned, on_whole.agreement)
        rows.append(
            {
                "depth": depth,
                "threshold": threshold,
                "whole": on_whole._asdict(),
                "pruned": leaving(*pruned, threshold)._asdict(),
                "matching_threshold": matching,
                "matched": None if matching is None else leaving(*pruned, matching)._asdict(),
            }
        )
    return rows


def calibration_report(
    own: TokenTable, reference: TokenTable, cfg: DecodeConfig, *, threshold: float, bins: int
) -> dict[str, Any]:
    """Reliability against the full model and against the reference, and matching thresholds.

    Args:
        own: of the full model's own texts, with the readings `VOCABULARIES`.
        reference: of the reference texts, the same.
        cfg: of the pruned reading; gives p, K and the first candidate depth.
        threshold: on the whole vocabulary's scale.
        bins: of the reliability diagrams.

    Returns:
        "prune_layer", "prune_size", "min_exit_layer", "confidence" (the measure), "reliability" rows of the depths
        from p on and "thresholds" of the candidate depths.
    """
    layers = own.ranks.shape[1]
    depths = range(cfg.prune_layer, layers + 1)
    return {
        "prune_layer": cfg.prune_layer,
        "prune_size": cfg.prune_size,
        "min_exit_layer": cfg.min_exit_layer,
        "confidence": cfg.confidence,
        "reliability": reliability_rows(own, "full model", depths, bins)
        + reliability_rows(reference, "reference", depths, bins),
        "thresholds": threshold_rows(own, range(cfg.min_exit_layer, layers), threshold),
    }


def calibration_table(report: Mapping[str, Any]) -> str:
    """A `calibration_report` as Markdown."""
    cells = {(row["target"], row["vocabulary"], row["depth"]): row for row in report["reliability"]}
    lines = [
        "| against | depth | accuracy, % (whole, pruned) | confidence | ECE | MCE |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for target, depth in dict.fromkeys((target, depth) for target, _, depth in cells):
        both = [cells[target, vocabulary, depth] for vocabulary in VOCABULARIES]
        shares = ", ".join(f"{100 * row['accuracy']:.2f}" for row in both)
        others = [", ".join(f"{row[field]:.3f}" for row in both) for field in ("confidence", "ece", "mce")]
        lines.append(f"| {target} | {depth} | {shares} | {' | '.join(others)} |")
    lines += [
        "",
        "| depth | threshold | agreement, % (leaving, %): whole | pruned | matching threshold | pruned there |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in report["thresholds"]:
        matching = "none" if row["matching_threshold"] is None else f"{row['matching_threshold']:.4f}"
        lines.append(
            f"| {row['depth'] or 'all'} | {row['threshold']} | {_describe(row['whole'])} | "
            f"{_describe(row['pruned'])} | {matching} | {_describe(row['matched'])} |"
        )
    return "\n".join(lines)


def _describe(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    agreement = "none leaves" if found["agreement"] is None else f"{100 * found['agreement']:.2f}"
    return f"{agreement} ({100 * found['share']:.1f})"
