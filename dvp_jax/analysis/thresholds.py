"""Thresholds of each depth from data: the smallest whose exits agree with the full model often enough (FlexEE)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from dvp_jax.analysis.calibration import matching_threshold
from dvp_jax.analysis.tokens import TokenTable
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.exits.confidence import HIDDEN_MEASURES, LOGIT_MEASURES, MEASURES_BY_CLASSIFIER

NEVER = 1.0
"""The threshold of a depth at which no token may leave."""


def check_share(share: float) -> None:
    """Raises ValueError outside (0, 1]."""
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share is {share}; allowed: above 0, to 1")


def depth_thresholds(
    confidences: Float[np.ndarray, "tokens depths"], agrees: Bool[np.ndarray, "tokens depths"], share: float
) -> list[float]:
    """At each depth the smallest threshold for which at least `share` of the exits agree with the full model.

    Depth after depth: what counts at one are the tokens that no shallower one has let go. So of all exits together
    at least the share agrees too.

    Args:
        confidences: at each candidate depth, in [0, 1].
        agrees: whether the depth's candidate is the full model's token.
        share: tau, in (0, 1].

    Returns:
        A threshold for each depth, `NEVER` where none lets enough agreeing tokens leave.

    Raises:
        ValueError: share outside (0, 1].
    """
    check_share(share)
    thresholds = []
    staying = np.ones(len(confidences), bool)
    for column in range(confidences.shape[1]):
        depth = [column]
        found = matching_threshold(confidences[staying][:, depth], agrees[staying][:, depth], share)
        thresholds.append(NEVER if found is None else found)
        staying &= confidences[:, column] <= thresholds[-1]
    return thresholds


def variants(methods: Mapping[str, DecodeConfig], has_classifier: bool) -> dict[str, DecodeConfig]:
    """Every `calm` and `dvp` method under each measure that it takes, named after both.

    Args:
        methods: of an evaluation config.
        has_classifier: whether the model has CALM's meta classifier.

    Raises:
        ValueError: none of the methods leaves early by confidence.
    """
    hidden = [name for name in HIDDEN_MEASURES if has_classifier or name not in MEASURES_BY_CLASSIFIER]
    measures = {"calm": [*LOGIT_MEASURES, *hidden], "dvp": [*LOGIT_MEASURES]}
    found = {
        f"{name}_{measure}": dataclasses.replace(cfg, confidence=measure, thresholds_per_depth=None)
        for name, cfg in methods.items()
        for measure in measures.get(cfg.method, ())
    }
    if not found:
        raise ValueError(f"config.methods has {', '.join(methods)}, none of method 'calm' or 'dvp'; allowed: one")
    return found


def threshold_report(table: TokenTable, methods: Mapping[str, DecodeConfig], share: float) -> list[dict[str, Any]]:
    """Thresholds of each method's candidate depths, and what they did to the tokens that they were found on.

    Args:
        table: of the full model's own texts, with a reading under the name of each method.
        methods: `calm` and `dvp`.
        share: tau.

    Returns:
        Rows of "name", "settings" (fields of `DecodeConfig`, thresholds_per_depth among them), the "exits" of each
        depth 1..L, how many of them are "agreeing", and the "mean_exit_layer".
    """
    rows = []
    layers = table.ranks.shape[1]
    for name, cfg in methods.items():
        candidates = slice(cfg.min_exit_layer - 1, layers - 1)
        confidences, agrees = table.readings[name].confidences[:, candidates], table.agrees(name)[:, candidates]
        thresholds = depth_thresholds(confidences, agrees, share)
        leaves = confidences > np.array(thresholds)
        first = leaves & (np.cumsum(leaves, axis=1) == 1)
        shallower = [NEVER] * (cfg.min_exit_layer - 1)
        depths = np.arange(cfg.min_exit_layer, layers)
        stayed = len(first) - first.sum()
        rows.append(
            {
                "name": name,
                "settings": dataclasses.asdict(
                    dataclasses.replace(cfg, thresholds_per_depth=(*shallower, *thresholds, NEVER))
                ),
                "exits": [0] * len(shallower) + first.sum(axis=0).tolist() + [int(stayed)],
                "agreeing": [0] * len(shallower) + (first & agrees).sum(axis=0).tolist() + [int(stayed)],
                "mean_exit_layer": float(((first * depths).sum() + stayed * layers) / len(first)),
            }
        )
    return rows


def threshold_table(rows: list[dict[str, Any]]) -> str:
    """A `threshold_report` as Markdown: each depth's threshold and, in brackets, how many leave there."""
    layers = len(rows[0]["exits"])
    head = ["method and measure", *(f"depth {depth}" for depth in range(1, layers)), "mean exit", "agreement, %"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for row in rows:
        *cells, _ = [
            f"{threshold:.3f} ({exits})" if exits else ""
            for threshold, exits in zip(row["settings"]["thresholds_per_depth"], row["exits"], strict=True)
        ]
        early, right = sum(row["exits"][:-1]), sum(row["agreeing"][:-1])
        agreement = f"{100 * right / early:.2f}" if early else "none leaves"
        lines.append("| " + " | ".join([row["name"], *cells, f"{row['mean_exit_layer']:.2f}", agreement]) + " |")
    return "\n".join(lines)
