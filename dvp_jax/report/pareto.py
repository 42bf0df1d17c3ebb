"""Which of many settings are worth choosing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pareto_frontier(costs: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """The points that no other one beats: none is at least as cheap and as good, and better in one of the two.

    Args:
        costs: less is better.
        qualities: more is better.

    Returns:
        Their indices, from the cheapest to the best. Points with the same cost and quality are all there.

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
