"""HTML reports of an evaluation and of a sweep: which tables and plots they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dvp_jax.evaluate.results import Row, describe, full_model, quality, results_table, rows_per_task, work
from dvp_jax.report.html import write_report
from dvp_jax.report.pareto import pareto_frontier
from dvp_jax.report.plots import heat_map, measures_compared, quality_against_cost, spread
from dvp_jax.report.table import Section

_MAX_HEAT_MAPS = 6
"""Each takes a second. Combinations of settings are evenly spread, with the first and the last."""

Plots = list[tuple[str, Path]]  # captions and SVG files


def report_evaluation(
    workdir: Path, rows: Sequence[Row], provenance: Mapping[str, Any], traces: Sequence[Mapping[str, Any]]
) -> None:
    """Writes report.html and its plots.

    Args:
        workdir: an existing folder.
        rows: rows of results.json.
        provenance: where the figures come from, for the end of the report.
        traces: rows of traces.jsonl, for the explorer of the report.
    """
    sections = [
        Section(
            task,
            (results_table(task_rows),),
            (*_measures(workdir, task_rows), *_quality_against_costs(workdir, task_rows)),
        )
        for task, task_rows in rows_per_task(rows).items()
    ]
    write_report(workdir / "report.html", "Evaluation", sections, provenance, traces)


def report_sweep(
    workdir: Path, cells: Sequence[Row], provenance: Mapping[str, Any], traces: Sequence[Mapping[str, Any]]
) -> None:
    """Writes report.html and its plots.

    Args:
        workdir: an existing folder.
        cells: cells of sweep.json.
        provenance: where the figures come from, for the end of the report.
        traces: rows of traces.jsonl, for the explorer of the report.
    """
    sections = []
    for task, task_cells in rows_per_task(cells).items():
        best = pareto_frontier([work(cell) for cell in task_cells], [quality(cell) for cell in task_cells])
        cells_to_use = [task_cells[index] for index in best]
        if (exact := _fastest_lossless(task_cells)) and exact not in cells_to_use:
            cells_to_use.append(exact)
        text = f"{advice(task_cells)} The table has them, and the cells that no other one beats in both."
        plots = [
            *_measures(workdir, task_cells),
            *_quality_against_costs(workdir, task_cells),
            *_heat_maps(workdir, task_cells),
        ]
        sections += [
            Section(f"{task}: what to use", (text, results_table(cells_to_use)), plots),
            Section(f"{task}: all cells", (results_table(task_cells),)),
        ]
    write_report(workdir / "report.html", "Sweep", sections, provenance, traces)


def advice(cells: Sequence[Row], loss: float = 1.0) -> str:
    """Recommends the cell with the least work among those whose quality is close to the full model's.

    Beside it the fastest cell whose drafts are verified, if there are such cells: its text is the full model's.

    Args:
        cells: cells of one task.
        loss: how many points of the first metric a cell may be below the full model, or below the best cell if the
            full model is not among the cells.
    """
    full = full_model(cells)
    target = quality(full) if full else max(map(quality, cells))
    good = [cell for cell in cells if quality(cell) >= target - loss]
    best = min(good, key=work)
    metric, reference = next(iter(best["metric"])), "the full model" if full else "the best cell"
    advice = (
        f"{len(good)} of {len(cells)} cells are within {loss:g} of {reference}'s {metric}, {target:.2f}. Of them "
        f"the fewest FLOPs (layers and unembedding) takes {_name(best)}: {metric} {quality(best):.2f}, mean exit "
        f"{best['mean_exit_layer']:.2f} of {best['num_layers']}, {best['ms_per_token']:.2f} ms a token. That is "
        "seen on these texts, and no guarantee for others."
    )
    if exact := _fastest_lossless(cells):
        advice += (
            f" Of the cells whose text is always the full model's the fastest is {_name(exact)}: "
            f"{exact['layers_run_per_token']:.2f} of {exact['num_layers']} layers in turn, "
            f"{exact['ms_per_token']:.2f} ms a token{_against_full(exact)}."
        )
    return advice


def _fastest_lossless(cells: Sequence[Row]) -> Row | None:
    """The cell with the least time among those whose drafts are verified, if there are such cells."""
    lossless = [cell for cell in cells if cell["drafts_accepted"] is not None]
    return min(lossless, key=lambda cell: cell["ms_per_token"], default=None)


def _against_full(cell: Row) -> str:
    return "" if cell["speed_up"] is None else f", {cell['speed_up']:.2f} times as fast as full"


def _name(cell: Row) -> str:
    return ", ".join(filter(None, (cell["method"], describe(cell))))


def _quality_against_costs(workdir: Path, rows: Sequence[Row]) -> Plots:
    """Draws quality against confidence FLOPs, and against time."""
    metric, task = next(iter(rows[0]["metric"])), rows[0]["task"]
    plots = []
    for field, cost in (
        ("confidence_flops_per_token", "confidence FLOPs per token"),
        ("ms_per_token", "ms per token"),
    ):
        path = workdir / f"{task}_{metric}_against_{field}.svg"
        points = [
            {"label": describe(row), "method": row["method"], "cost": row[field], "quality": quality(row)}
            for row in rows
        ]
        quality_against_cost(points, path, cost=cost, quality=metric)
        plots.append((f"{metric} against {cost}", path))
    return plots


def _measures(workdir: Path, cells: Sequence[Row]) -> Plots:
    """Draws quality against cost for each method and confidence measure, if there are several measures."""
    if len({cell["confidence"] for cell in cells} - {None}) < 2:
        return []
    curves: dict[str, dict[str, Any]] = {}
    for cell in cells:
        method, measure = cell["method"], cell["confidence"]
        # The points of a curve differ in their threshold only.
        settings = describe({**cell, "threshold": None, "confidence": None})
        label = ", ".join(filter(None, (method, measure, settings)))
        curve = curves.setdefault(label, {"label": label, "method": method, "measure": measure, "points": []})
        curve["points"].append(
            {"mean_exit": cell["mean_exit_layer"], "ms": cell["ms_per_token"], "quality": quality(cell)}
        )
    metric, task = next(iter(cells[0]["metric"])), cells[0]["task"]
    path = workdir / f"{task}_{metric}_per_measure.svg"
    measures_compared(list(curves.values()), path, quality=metric)
    return [(f"{metric} of each measure", path)]


def _heat_maps(workdir: Path, cells: Sequence[Row]) -> Plots:
    """Draws quality and mean exit over p and K, for at most `_MAX_HEAT_MAPS` of the other settings."""
    metric, task = next(iter(cells[0]["metric"])), cells[0]["task"]
    groups: dict[str, list[Row]] = {}
    for cell in cells:
        if cell["prune_layer"]:
            other_settings = {**cell, "prune_layer": None, "prune_size": None, "min_exit_layer": None}
            groups.setdefault(describe(other_settings), []).append(cell)
    values: dict[str, Callable[[Row], float]] = {
        metric: quality,
        "mean exit": lambda cell: cell["mean_exit_layer"],
    }
    plots = []
    drawn = dict(spread(list(groups.items()), _MAX_HEAT_MAPS))
    for number, (settings, group) in enumerate(drawn.items(), start=1):
        for name, value in values.items():
            path = workdir / f"{task}_{name.replace(' ', '_')}_over_p_and_K_{number}.svg"
            heat_map({(cell["prune_layer"], cell["prune_size"]): value(cell) for cell in group}, path, label=name)
            plots.append((f"{name} over p and K, {settings}", path))
    return plots
