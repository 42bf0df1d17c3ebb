"""Which threshold at which depth? The smallest whose exits agree with the full model often enough (FlexEE)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from dvp_jax.analysis.early_exits import matching_threshold
from dvp_jax.analysis.run import Answer, TaskTexts
from dvp_jax.analysis.tokens import TokenTable
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.exits.confidence import HIDDEN_MEASURES, LOGIT_MEASURES, MEASURES_BY_CLASSIFIER
from dvp_jax.exits.thresholds import NEVER
from dvp_jax.report.table import Section, Table


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The question for `run_analysis`: thresholds.json, for every calm and dvp method and every measure.

    Attributes:
        share: the share of the exits of each depth that must agree with the full model, in (0, 1].
    """

    share: float

    name = "thresholds"
    only = None

    def __post_init__(self) -> None:
        check_share(self.share)

    @property
    def title(self) -> str:
        return f"Thresholds for which {100 * self.share:g} % of the exits agree"

    def answer(self, texts: TaskTexts) -> Answer:
        methods = variants(texts.methods, "meta" in texts.model.params)
        table = texts.table(texts.full_model(), methods)
        rows = threshold_report(table, methods, self.share)
        return Answer(rows, [Section(texts.task.name, (threshold_table(rows),))])


def check_share(share: float) -> None:
    """Raises ValueError if share is outside (0, 1]."""
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share is {share}; allowed: above 0, to 1")


def depth_thresholds(
    confidences: Float[np.ndarray, "tokens depths"], agrees: Bool[np.ndarray, "tokens depths"], share: float
) -> list[float]:
    """Finds each depth's smallest threshold for which at least `share` of the exits agree with the full model.

    Depths are taken in order: a depth counts only the tokens that no shallower depth lets exit. So at least the
    share of all exits together agrees as well.

    Args:
        confidences: in [0, 1], at each candidate depth.
        agrees: whether the token that the depth would produce is the full model's.
        share: in (0, 1].

    Returns:
        A threshold for each depth; `NEVER` if at none enough exits agree.

    Raises:
        ValueError: share is outside (0, 1].
    """
    check_share(share)
    thresholds = []
    remaining = np.ones(len(confidences), bool)  # (tokens,)
    for column in range(confidences.shape[1]):
        depth = [column]
        threshold = matching_threshold(confidences[remaining][:, depth], agrees[remaining][:, depth], share)
        thresholds.append(NEVER if threshold is None else threshold)
        remaining &= confidences[:, column] <= thresholds[-1]
    return thresholds


def variants(methods: Mapping[str, DecodeConfig], has_classifier: bool) -> dict[str, DecodeConfig]:
    """Combines every calm and dvp method with every measure that it can use. Names are those of both.

    Args:
        methods: settings of an evaluation config.
        has_classifier: whether the model has CALM's exit classifier.

    Raises:
        ValueError: none of the methods is calm or dvp.
    """
    hidden = [name for name in HIDDEN_MEASURES if has_classifier or name not in MEASURES_BY_CLASSIFIER]
    measures = {"calm": [*LOGIT_MEASURES, *hidden], "dvp": [*LOGIT_MEASURES]}
    combinations = {
        f"{name}_{measure}": dataclasses.replace(cfg, confidence=measure, thresholds_per_depth=None)
        for name, cfg in methods.items()
        for measure in measures.get(cfg.name, ())
    }
    if not combinations:
        raise ValueError(f"config.methods has {', '.join(methods)}, none of method 'calm' or 'dvp'; allowed: one")
    return combinations


def threshold_report(table: TokenTable, methods: Mapping[str, DecodeConfig], share: float) -> list[dict[str, Any]]:
    """Finds the thresholds of each method, and what they do to the tokens that they were found on.

    Args:
        table: the tokens of the full model's texts, with a reading under the name of each method.
        methods: settings of calm and dvp methods, by name.
        share: the share of the exits of each depth that must agree with the full model, in (0, 1].

    Returns:
        For each method: "name", "settings" (fields of `DecodeConfig`, with thresholds_per_depth), "exits" (how
        many tokens exit at each depth 1 to L), "agreeing" (how many of these are the full model's) and
        "mean_exit_layer".
    """
    return [_threshold_row(table, name, cfg, share) for name, cfg in methods.items()]


def _threshold_row(table: TokenTable, name: str, cfg: DecodeConfig, share: float) -> dict[str, Any]:
    num_layers = table.ranks.shape[1]
    candidates = np.array(cfg.candidates(num_layers))  # depths
    confidences = table.readings[name].confidences[:, candidates - 1]  # (tokens, candidates)
    agrees = table.agrees(name)[:, candidates - 1]
    thresholds = depth_thresholds(confidences, agrees, share)
    exceeds = confidences > np.array(thresholds)
    exits = exceeds & (np.cumsum(exceeds, axis=1) == 1)  # (tokens, candidates), at most one in each row
    num_last = int(len(exits) - exits.sum())  # tokens that exit at the last depth
    found = dict(zip(candidates.tolist(), thresholds, strict=True))
    depths = range(1, num_layers + 1)

    def counts(tokens: Bool[np.ndarray, "tokens candidates"]) -> list[int]:
        of_depth = dict(zip(candidates.tolist(), tokens.sum(axis=0).tolist(), strict=True))
        return [of_depth.get(depth, 0) for depth in depths[:-1]] + [num_last]

    per_depth = tuple(found.get(depth, NEVER) for depth in depths)
    return {
        "name": name,
        "settings": dataclasses.asdict(dataclasses.replace(cfg, thresholds_per_depth=per_depth)),
        "exits": counts(exits),
        "agreeing": counts(exits & agrees),
        "mean_exit_layer": float(((exits * candidates).sum() + num_last * num_layers) / len(exits)),
    }


def threshold_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Shows a `threshold_report`: the threshold of each depth, and in brackets how many tokens exit there."""
    num_layers = len(rows[0]["exits"])
    depths = [f"depth {depth}" for depth in range(1, num_layers)]
    lines = []
    for row in rows:
        *cells, _ = [
            f"{threshold:.3f} ({exits})" if exits else ""
            for threshold, exits in zip(row["settings"]["thresholds_per_depth"], row["exits"], strict=True)
        ]
        num_early, num_right = sum(row["exits"][:-1]), sum(row["agreeing"][:-1])
        agreement = f"{100 * num_right / num_early:.2f}" if num_early else "none leaves"
        lines.append([row["name"], *cells, f"{row['mean_exit_layer']:.2f}", agreement])
    return Table(["method and measure", *depths, "mean exit", "agreement, %"], lines)
