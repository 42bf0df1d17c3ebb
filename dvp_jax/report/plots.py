"""Plots, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def accuracy_per_depth(curves: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draws the accuracy of each depth.

    Args:
        curves: accuracies in [0, 1] at the depths 1..L, under the name of each curve.
        path: of the SVG.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, accuracies in curves.items():
        axes.plot(
            range(1, len(accuracies) + 1), [100 * accuracy for accuracy in accuracies], marker="o", label=name
        )
    axes.set(xlabel="depth (decoder layers run)", ylabel="teacher-forced accuracy of the next token, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})  # the same curves give the same file
