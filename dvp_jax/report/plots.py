"""Plots, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def accuracy_per_depth(curves: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draws the accuracy of each depth.

    Args:
        curves: accuracies in [0, 1] at the depths 1..L, under the name of each curve.
        path: of the SVG.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes()
    for name, accuracies in curves.items():
        axes.plot(
            range(1, len(accuracies) + 1), [100 * accuracy for accuracy in accuracies], marker="o", label=name
        )
    axes.set(xlabel="depth (decoder layers run)", ylabel="teacher-forced accuracy of the next token, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, path)


def time_against_depth(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws ms per token against exit depth, a line for each method, with the bound of memory dashed.

    Args:
        rows: of one run of experiments.benchmark.
        path: of the SVG.
    """
    figure, axes = _axes()
    ours = sorted((row for row in rows if row.get("bound_ms") and row["depth"]), key=lambda row: row["depth"])
    for index, method in enumerate(dict.fromkeys(row["method"] for row in ours)):
        curve = [row for row in ours if row["method"] == method]
        depths, colour = [row["depth"] for row in curve], f"C{index}"
        axes.plot(depths, [row["ms_per_token"] for row in curve], marker="o", color=colour, label=method)
        axes.plot(depths, [row["bound_ms"] for row in curve], linestyle="--", marker=".", color=colour, alpha=0.6)
    axes.plot([], [], linestyle="--", color="grey", label="bytes / bandwidth")
    axes.set(xlabel="exit depth (decoder layers run)", ylabel="ms per token", ylim=(0, None))
    _save(figure, path)


def confidence_against_vocabulary(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the time of confidence against vocabulary size: of each method, less `static` at the same exits.

    Args:
        runs: of experiments.benchmark; those with a vocab_size are drawn.
        path: of the SVG.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for run in runs:
        if run["vocab_size"]:
            times = {row["method"]: row["ms_per_token"] for row in run["rows"]}
            for method in ("calm", "dvp"):
                curves.setdefault(method, []).append((run["vocab_size"], times[method] - times["static"]))
    figure, axes = _axes()
    for method, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=method)
    axes.set(xscale="log", xlabel="vocabulary size", ylabel="ms per token beyond static exit at the same depth")
    _save(figure, path)


def _axes() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    import matplotlib

    figure.axes[0].legend()
    with matplotlib.rc_context({"svg.hashsalt": "dvp_jax"}):  # the same curves give the same file
        figure.savefig(path, metadata={"Date": None})
