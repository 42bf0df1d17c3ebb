"""The Pareto frontier of cost and quality."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pareto_frontier(costs: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """Finds the points that no other point beats.

    A point beats another if it is at least as cheap and at least as good, and better in one of the two.

    Args:
        costs: the cost of each point; lower is better.
        qualities: the quality of each point; higher is better.

    Returns:
        Indices of the points, from the cheapest to the best. Points with equal cost and quality are all returned.

    Raises:
        ValueError: costs and qualities differ in number, or one is NaN.
    """
    cost, quality = np.asarray(costs, np.float64), np.asarray(qualities, np.float64)
    if cost.ndim != 1 or cost.shape != quality.shape:
        raise ValueError(f"costs has shape {cost.shape} and qualities {quality.shape}; allowed: (N,) for both")
    if np.isnan(cost).any() or np.isnan(quality).any():
        raise ValueError("costs or qualities holds NaN; allowed: numbers")
    points = list(zip(cost.tolist(), quality.tolist(), strict=True))
    frontier: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        best = points[frontier[-1]] if frontier else None
        if best is None or points[index][1] > best[1] or points[index] == best:
            frontier.append(index)
    return frontier
