"""How much of a trained model's vocabulary must be kept? The K that keeps 99 % of the full model's choices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dvp_jax.analysis.ranks import COVERAGE, size_for_coverage
from dvp_jax.analysis.run import task_texts
from dvp_jax.analysis.tokens import FULL_VOCABULARY, TokenTable
from dvp_jax.evaluate.experiment import Experiment
from dvp_jax.report.table import Table


def needed_sizes(experiment: Experiment) -> dict[str, list[dict[str, Any]]]:
    """Finds the needed K for every task of an experiment with dvp methods only, at the depths p of these methods.

    Returns:
        The `coverage_rows` of each task by its name.
    """
    return {
        texts.task.name: coverage_rows(
            texts.table(texts.full_model(), FULL_VOCABULARY),
            [cfg.prune_layer for cfg in texts.methods.values()],
            experiment.model.config.vocab_size,
        )
        for texts in task_texts(experiment)
    }


def coverage_rows(table: TokenTable, prune_layers: Iterable[int], vocab_size: int) -> list[dict[str, Any]]:
    """Finds the K that keeps `COVERAGE` of the full model's choices at each depth p.

    Args:
        table: the tokens of the full model's texts.
        prune_layers: values of p. Each is reported once.
        vocab_size: size of the model's vocabulary.

    Returns:
        Rows of "prune_layer", "coverage", "prune_size" (the K), "vocab_size" and "tokens" (how many were seen).
    """
    return [
        {
            "prune_layer": layer,
            "coverage": COVERAGE,
            "prune_size": size_for_coverage(table.ranks[:, layer - 1], COVERAGE),
            "vocab_size": vocab_size,
            "tokens": len(table.token),
        }
        for layer in sorted(set(prune_layers))
    ]


def coverage_table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """Shows the `coverage_rows` of several tasks, which are given by name."""
    fields = ("prune_layer", "prune_size", "vocab_size", "tokens")
    lines = [
        [task, *(str(row[field]) for field in fields)] for task, task_rows in rows.items() for row in task_rows
    ]
    return Table(["task", "p", f"K for {COVERAGE:.0%}", "of", "tokens seen"], lines)
