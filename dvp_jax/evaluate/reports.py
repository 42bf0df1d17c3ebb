"""The plots and reports of `evaluate` and `sweep`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dvp_jax.evaluate.evaluation import describe, results_table
from dvp_jax.report.html import Section, tables_of, write_report
from dvp_jax.report.pareto import pareto_frontier
from dvp_jax.report.plots import heat_map, measures_compared, quality_against_cost

Row = Mapping[str, Any]
Plots = list[tuple[str, Path]]


def report_evaluation(
    workdir: Path, rows: Sequence[Row], provenance: Mapping[str, Any], traces: Sequence[Mapping[str, Any]]
) -> None:
    """Writes report.html, and the plots in it, from the rows of results.json."""
    sections = [
        Section(
            task,
            tables=tables_of(results_table(of_task)),
            plots=(*_measures(workdir, of_task), *_quality_against_costs(workdir, of_task)),
        )
        for task, of_task in _by_task(rows)
    ]
    write_report(workdir / "report.html", "Evaluation", sections, provenance, traces)


def report_sweep(
    workdir: Path, cells: Sequence[Row], provenance: Mapping[str, Any], traces: Sequence[Mapping[str, Any]]
) -> None:
    """Writes report.html, and the plots in it, from the cells of sweep.json."""
    sections = []
    for task, of_task in _by_task(cells):
        best = pareto_frontier([work(cell) for cell in of_task], [quality(cell) for cell in of_task])
        plots = [
            *_measures(workdir, of_task),
            *_quality_against_costs(workdir, of_task),
            *_heat_maps(workdir, of_task),
        ]
        sections += [
            Section(
                f"{task}: what to use",
                f"{advice(of_task)} The table has the cells that no other one beats in both.",
                tables_of(results_table([of_task[index] for index in best])),
                tuple(plots),
            ),
            Section(f"{task}: all cells", tables=tables_of(results_table(of_task))),
        ]
    write_report(workdir / "report.html", "Sweep", sections, provenance, traces)


def quality(row: Row) -> float:
    """A row's first metric, the one to quote."""
    return next(iter(row["metric"].values()))


def work(row: Row) -> float:
    """FLOPs per token of decoder layers and unembedding: unlike times, the same in every run."""
    return row["layer_flops_per_token"] + row["unembedding_flops_per_token"]


def advice(cells: Sequence[Row], loss: float = 1.0) -> str:
    """Which cell to use: the one with the least work of those within `loss` points of the full model's quality."""
    full = next((cell for cell in cells if cell["method"] == "full"), None)
    aim = quality(full) if full else max(map(quality, cells))
    good = [cell for cell in cells if quality(cell) >= aim - loss]
    best = min(good, key=work)
    metric, whom = next(iter(best["metric"])), "the full model" if full else "the best cell"
    name = ", ".join(filter(None, (best["method"], describe(best))))
    return (
        f"{len(good)} of {len(cells)} cells are within {loss:g} of {whom}'s {metric}, {aim:.2f}. Of them the "
        f"fewest FLOPs (layers and unembedding) takes {name}: {metric} {quality(best):.2f}, mean exit "
        f"{best['mean_exit_layer']:.2f} of {best['num_layers']}, {best['ms_per_token']:.2f} ms a token. That is "
        "seen on these texts, and no guarantee for others."
    )


def _by_task(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    names = dict.fromkeys(row["task"] for row in rows)
    return [(name, [row for row in rows if row["task"] == name]) for name in names]


def _quality_against_costs(workdir: Path, rows: Sequence[Row]) -> Plots:
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
    """Where there are several measures: each method with each of them, over its thresholds."""
    if len({cell["confidence"] for cell in cells} - {None}) < 2:
        return []
    curves: dict[str, dict[str, Any]] = {}
    for cell in cells:
        method, measure = cell["method"], cell["confidence"]
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
    """Quality and mean exit over (p, K), a map for each setting of what else was swept."""
    metric, task = next(iter(cells[0]["metric"])), cells[0]["task"]
    groups: dict[str, list[Row]] = {}
    for cell in cells:
        if cell["prune_layer"]:
            others = {**cell, "prune_layer": None, "prune_size": None, "min_exit_layer": None}
            groups.setdefault(describe(others), []).append(cell)
    values: dict[str, Callable[[Row], float]] = {
        metric: quality,
        "mean exit": lambda cell: cell["mean_exit_layer"],
    }
    plots = []
    for number, (rest, group) in enumerate(groups.items(), start=1):
        for name, value in values.items():
            path = workdir / f"{task}_{name.replace(' ', '_')}_over_p_and_K_{number}.svg"
            heat_map({(cell["prune_layer"], cell["prune_size"]): value(cell) for cell in group}, path, label=name)
            plots.append((f"{name} over p and K, {rest}", path))
    return plots
