"""Rows of results.json, which hold the settings, quality and cost of one method on one task, and their tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from dvp_jax.decode.config import DecodeConfig
from dvp_jax.exits.cost import decoder_layer_flops, paper_confidence_flops, unembedding_flops
from dvp_jax.exits.policy import ExitPolicy
from dvp_jax.report.table import Section, Table
from dvp_jax.runs.predictions import Line
from dvp_jax.t5.config import T5Config

Row = Mapping[str, Any]

SETTINGS = (
    "threshold",
    "thresholds_per_depth",
    "decay_temperature",
    "confidence",
    "min_exit_layer",
    "exit_depths",
    "prune_layer",
    "prune_size",
    "prune_rule",
    "prune_mass",
    "prune_size_min",
    "final_vocab",
    "static_exit_layer",
    "max_waiting",
    "oracle_states",
    "temperature",
    "top_k",
    "top_p",
    "seed",
)
"""Fields of `DecodeConfig` that every row has. A field is None where it does not matter to the method."""

_SHORT = {
    "threshold": "threshold",
    "decay_temperature": "decay",
    "min_exit_layer": "min exit",
    "exit_depths": "exit depths",
    "prune_layer": "p",
    "prune_size": "K",
    "prune_size_min": "K min",
    "prune_mass": "mass",
    "static_exit_layer": "exit",
    "max_waiting": "waiting",
    "oracle_states": "states",
    "temperature": "temperature",
    "top_k": "top k",
    "top_p": "top p",
    "seed": "seed",
}
"""What `describe` calls a setting."""
_OTHER_COLUMNS = frozenset(
    {
        "name",
        "method",
        "task",
        "metric",
        "mean_exit_layer",
        "num_layers",
        "layers_run_per_token",
        "drafts_accepted",
        "confidence_flops_per_token",
        "unembedding_flops_per_token",
        "layer_flops_per_token",
        "ms_per_token",
        "confidence_ms_per_token",
        "num_tokens",
        "num_not_finite",
        "encoder_ms_per_example",
        "num_examples",
        "speed_up",
    }
)
"""Columns of a row that are no settings."""


def result_row(
    name: str,
    cfg: DecodeConfig,
    policy: ExitPolicy,
    config: T5Config,
    *,
    task: str,
    metric: Mapping[str, float],
    lines: Sequence[Line],
    source_lengths: Int[np.ndarray, " examples"],
) -> dict[str, Any]:
    """Makes one row, without the speed-up that `compare_with_full` adds.

    Args:
        name: name of the method's settings in the experiment's config.
        cfg: the settings.
        policy: the exit policy of the settings on this model.
        config: shape of the model.
        task: name of the task.
        metric: scores in percent, the one to quote first.
        lines: what the method generated for each example.
        source_lengths: tokens of each example's prompt.
    """
    return {
        "name": name,
        "method": cfg.name,
        **dict.fromkeys(SETTINGS),
        **cfg.settings(policy),
        "task": task,
        "metric": metric,
        **_cost(policy, config, lines, source_lengths),
        "num_examples": len(lines),
    }


def _cost(
    policy: ExitPolicy, config: T5Config, lines: Sequence[Line], source_lengths: Int[np.ndarray, " examples"]
) -> dict[str, Any]:
    """Mean exit layer, layers that ran one after the other, and FLOPs and milliseconds per token."""
    exit_layers = np.concatenate([line["exit_layers"] for line in lines])  # (tokens,)
    num_drafts = int((exit_layers < policy.last_depth).sum()) if policy.verifies else 0
    num_corrected = sum(len(line["corrected"]) for line in lines)
    # The prompt length of each token's example, (tokens,).
    lengths = np.repeat(source_lengths, [len(line["tokens"]) for line in lines])
    confidence_s = [line["decode_s"] - line["replay_s"] for line in lines if "replay_s" in line]
    return {
        "mean_exit_layer": float(exit_layers.mean()),
        "num_layers": config.num_decoder_layers,
        "layers_run_per_token": sum(line["layers_run"] for line in lines) / len(exit_layers),
        "drafts_accepted": 1.0 - num_corrected / num_drafts if num_drafts else None,
        "confidence_flops_per_token": float(paper_confidence_flops(exit_layers, policy, config).mean()),
        "unembedding_flops_per_token": float(unembedding_flops(exit_layers, policy, config).mean()),
        "layer_flops_per_token": float(decoder_layer_flops(exit_layers, policy, config, lengths).mean()),
        "ms_per_token": sum(line["decode_s"] for line in lines) * 1e3 / len(exit_layers),
        "confidence_ms_per_token": sum(confidence_s) * 1e3 / len(exit_layers) if confidence_s else None,
        "num_tokens": len(exit_layers),
        "num_not_finite": sum(None in line["confidences"] for line in lines),
        "encoder_ms_per_example": sum(line["encode_s"] for line in lines) * 1e3 / len(lines),
    }


def finite(values: Iterable[float]) -> list[float | None]:
    """Returns the values as JSON can hold them: None for NaN and infinity, as logits that overflow give."""
    return [value if math.isfinite(value) else None for value in values]


def compare_with_full(rows: Iterable[dict[str, Any]]) -> None:
    """Adds "speed_up" to each row: the full model's ms per token divided by the row's, None without a full model.

    Args:
        rows: rows of one task. Each is changed in place.
    """
    rows = list(rows)
    full = full_model(rows)
    for row in rows:
        row["speed_up"] = full["ms_per_token"] / row["ms_per_token"] if full else None


def full_model(rows: Iterable[Row]) -> Row | None:
    """Finds the row of the full model."""
    return next((row for row in rows if row["method"] == "full"), None)


def quality(row: Row) -> float:
    """The first metric of a row, which is the one to quote."""
    return next(iter(row["metric"].values()))


def work(row: Row) -> float:
    """FLOPs per token of the decoder layers and the unembedding. Unlike times they are the same in every run."""
    return row["layer_flops_per_token"] + row["unembedding_flops_per_token"]


def describe(row: Row) -> str:
    """Describes the settings of a row in a few words.

    The confidence measure and the pruning rule are left out where they are the default ones, and min exit where it
    equals p. Settings that only a policy of the user has keep their own names.
    """
    names = _SHORT | {field: field for field in row if field not in _OTHER_COLUMNS and field not in SETTINGS}
    if row["min_exit_layer"] == row["prune_layer"]:
        del names["min_exit_layer"]
    words = [f"{name} {row[field]}" for field, name in names.items() if row[field] is not None]
    if row["thresholds_per_depth"] is not None:
        values = [f"{value:g}" for value in row["thresholds_per_depth"]]
        last = len(list(itertools.takewhile(lambda value: value == values[-1], reversed(values))))
        if last > 1:
            values[-last:] = ["then", values[-1]]
        words.insert(0, f"thresholds {' '.join(values)}")
    for field in ("prune_rule", "confidence"):
        if row[field] not in (None, getattr(DecodeConfig, field)):
            words.insert(0, row[field])
    return ", ".join(words)


def rows_per_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Groups rows by the name of their task."""
    return {
        task: [row for row in rows if row["task"] == task] for task in dict.fromkeys(row["task"] for row in rows)
    }


def results_table(rows: Sequence[Row]) -> Table:
    """Shows the rows of one task.

    Where a method verifies drafts there are two columns more: the layers that ran one after the other per token,
    and the share of drafts that the full model confirmed. Where the time of confidence was asked for there is a
    column for it. A row with texts whose logits were not finite says so.
    """
    metrics = list(rows[0]["metric"])
    drafts = any(row["drafts_accepted"] is not None for row in rows)
    timed = any(row.get("confidence_ms_per_token") is not None for row in rows)
    head = ["method", "settings", *metrics, "mean exit", *(["layers in turn", "accepted"] if drafts else [])]
    return Table(
        [
            *head,
            "confidence FLOPs/token",
            *(["confidence ms/token"] if timed else []),
            "ms/token",
            "speed-up",
        ],
        [
            [
                row["method"],
                describe(row) + _not_finite(row),
                *(f"{row['metric'][name]:.2f}" for name in metrics),
                f"{row['mean_exit_layer']:.2f} of {row['num_layers']}",
                *([f"{row['layers_run_per_token']:.2f}", _percent(row["drafts_accepted"])] if drafts else []),
                f"{row['confidence_flops_per_token']:.3g}",
                *([_milliseconds(row["confidence_ms_per_token"])] if timed else []),
                f"{row['ms_per_token']:.2f}",
                "" if row["speed_up"] is None else f"{row['speed_up']:.2f}x",
            ]
            for row in rows
        ],
    )


def _not_finite(row: Row) -> str:
    count = row.get("num_not_finite", 0)
    return f" (NOT FINITE in {count} of {row['num_examples']} texts)" if count else ""


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def results_sections(rows: Sequence[Row]) -> list[Section]:
    """A section with a table for each task. The title, the task's name, is left out if there is one task only."""
    tables = {task: results_table(task_rows) for task, task_rows in rows_per_task(rows).items()}
    return [Section(task if len(tables) > 1 else "", (table,)) for task, table in tables.items()]
