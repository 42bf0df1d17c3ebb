"""Plots. Each function draws one and writes it as an SVG file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dvp_jax.report.pareto import pareto_frontier
from dvp_jax.runs.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Item = TypeVar("Item")


def accuracy_per_depth(
    curves: Mapping[str, Sequence[float]],
    path: Path,
    *,
    label: str = "teacher-forced accuracy of the next token, %",
) -> None:
    """Draws accuracy against depth, one line for each name.

    Args:
        curves: for each name, accuracies in [0, 1] at depths 1 to L.
        path: path of the SVG.
        label: what the accuracies are, in percent.
    """
    figure, axes = _axes()
    for name, accuracies in curves.items():
        axes.plot(
            range(1, len(accuracies) + 1), [100 * accuracy for accuracy in accuracies], marker="o", label=name
        )
    axes.set(xlabel=_DEPTH, ylabel=label)
    _whole_numbers(axes)
    _save(figure, path)


def time_against_depth(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws ms per token against exit depth, one line for each method, and the memory bound as a dashed line.

    Args:
        rows: the rows of one run of experiments.benchmark.
        path: path of the SVG.
    """
    figure, axes = _axes()
    bounded = sorted((row for row in rows if row.get("bound_ms") and row["depth"]), key=lambda row: row["depth"])
    for index, method in enumerate(dict.fromkeys(row["method"] for row in bounded)):
        curve = [row for row in bounded if row["method"] == method]
        depths, colour = [row["depth"] for row in curve], f"C{index}"
        axes.plot(depths, [row["ms_per_token"] for row in curve], marker="o", color=colour, label=method)
        axes.plot(depths, [row["bound_ms"] for row in curve], linestyle="--", marker=".", color=colour, alpha=0.6)
    axes.plot([], [], linestyle="--", color="grey", label="bytes / bandwidth")
    axes.set(xlabel="exit depth (decoder layers run)", ylabel="ms per token", ylim=(0, None))
    _save(figure, path)


def confidence_against_vocabulary(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the time of confidence against vocabulary size: the time of each method minus that of `static`.

    Args:
        runs: the runs of experiments.benchmark. Only runs with a vocab_size are drawn.
        path: path of the SVG.
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


def rank_boxes(report: Mapping[str, Any], path: Path) -> None:
    """Draws the rank of the full model's token at each depth: quartiles, and whiskers from 5 to 95 %.

    Args:
        report: a report of `dvp_jax.analysis.ranks`.
        path: path of the SVG.
    """
    figure, axes = _axes()
    percentiles = {"whislo": "5", "q1": "25", "med": "50", "q3": "75", "whishi": "95"}
    depths = report["depths"]
    boxes = [{key: depth["rank_percentiles"][name] for key, name in percentiles.items()} for depth in depths]
    axes.bxp(boxes, positions=[depth["depth"] for depth in depths], showfliers=False)
    axes.set(xlabel=_DEPTH, ylabel="rank of the full model's choice (1 the likeliest)", yscale="log")
    axes.set_ylim(0.8, report["sizes"][-1])
    _save(figure, path)


def coverage_per_size(report: Mapping[str, Any], path: Path) -> None:
    """Draws the share of tokens whose full-model choice is among the K likeliest, one line for each depth.

    Args:
        report: a report of `dvp_jax.analysis.ranks`.
        path: path of the SVG.
    """
    import matplotlib

    figure, axes = _axes()
    shades = matplotlib.colormaps["viridis"].resampled(len(report["depths"]))
    for index, depth in enumerate(report["depths"]):
        shares = [100 * share for share in depth["coverage"]]
        axes.plot(report["sizes"], shares, marker=".", color=shades(index), label=f"depth {depth['depth']}")
    axes.set(xscale="log", xlabel="K (tokens kept)", ylabel="tokens whose choice is kept, %")
    _save(figure, path)


def agreement_per_depth(report: Mapping[str, Any], path: Path) -> None:
    """Draws for each depth the mean confidence, and how often its likeliest token is the full model's.

    Args:
        report: a report of `dvp_jax.analysis.ranks`.
        path: path of the SVG.
    """
    figure, axes = _axes()
    depths = [depth["depth"] for depth in report["depths"]]
    for field, label in (("agreement", "agrees with the full model"), ("confidence", "mean confidence")):
        axes.plot(depths, [depth[field] for depth in report["depths"]], marker="o", label=label)
    axes.set(xlabel=_DEPTH, ylabel="share of tokens, or confidence", ylim=(0, 1.02))
    _whole_numbers(axes)
    _save(figure, path)


def failure_rates(report: Mapping[str, Any], path: Path) -> None:
    """Draws the share of tokens that pruning removes, with its interval, for each group of tokens.

    Args:
        report: a report of `dvp_jax.analysis.failures`.
        path: path of the SVG.
    """
    rates = report["rates"]
    figure, axes = _axes(height=1 + 0.22 * len(rates))
    labels = [row["group"] if row["by"] == "all" else f"{row['by']}: {row['group']}" for row in rates]
    for height, row in enumerate(rates):
        low, rate, high = (100 * row[name] for name in ("low", "rate", "high"))
        axes.errorbar(rate, height, xerr=[[rate - low], [high - rate]], fmt="o", color="C0", capsize=3)
    axes.set_yticks(range(len(rates)), labels)
    axes.invert_yaxis()
    axes.set(xlabel="tokens whose choice is not kept, %, with 95 % intervals", xlim=(0, None))
    _save(figure, path)


def reliability_diagrams(report: Mapping[str, Any], target: str, path: Path) -> None:
    """Draws accuracy against confidence. Each depth has a column; the full vocabulary is above the pruned one.

    Args:
        report: a report of `dvp_jax.analysis.calibration`.
        target: what counts as correct: the token of the "full model" or of the "reference".
        path: path of the SVG.
    """
    from matplotlib.figure import Figure

    rows = {(row["vocabulary"], row["depth"]): row for row in report["reliability"] if row["target"] == target}
    depths = spread(sorted({depth for _, depth in rows}), most=8)
    figure = Figure(figsize=(1.7 * len(depths) + 0.6, 4.2), layout="constrained")
    grid = figure.subplots(2, len(depths), sharex=True, sharey=True, squeeze=False)
    for panels, vocabulary in zip(grid, ("whole", "pruned"), strict=True):
        for axes, depth in zip(panels, depths, strict=True):
            row = rows[vocabulary, depth]
            bins = [each for each in row["bins"] if each["tokens"]]
            confidences, accuracies = ([each[name] for each in bins] for name in ("confidence", "accuracy"))
            most = max(each["tokens"] for each in bins)
            axes.plot([0, 1], [0, 1], linestyle="--", color="grey", linewidth=0.8)
            axes.plot(confidences, accuracies, color="C0")
            # The area of a point shows how many tokens its bin has.
            axes.scatter(confidences, accuracies, s=[4 + 60 * each["tokens"] / most for each in bins])
            axes.set_title(f"depth {depth}, {vocabulary}\nECE {row['ece']:.3f}", fontsize=8)
            axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    figure.supxlabel("confidence", fontsize=9)
    figure.supylabel(f"agreement with the {target}", fontsize=9)
    _save(figure, path)


def vocabulary_scaling(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the time and the FLOPs of confidence against vocabulary size, one line for each method.

    Args:
        rows: the rows of experiments.vocab_scaling.
        path: path of the SVG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    time, flops = figure.subplots(1, 2)
    for method in dict.fromkeys(row["method"] for row in rows):
        curve = sorted((row for row in rows if row["method"] == method), key=lambda row: row["vocab_size"])
        sizes = [row["vocab_size"] for row in curve]
        time.plot(sizes, [row["confidence_ms_per_token"] for row in curve], marker="o", label=method)
        flops.plot(sizes, [row["confidence_flops_per_token"] for row in curve], marker="o", label=method)
    for axes, quantity in ((time, "ms"), (flops, "FLOPs")):
        axes.set(xscale="log", xlabel="vocabulary size", ylabel=f"{quantity} of confidence per token")
        axes.grid(alpha=0.3)
    flops.set_yscale("log")
    _save(figure, path)


def quality_against_cost(
    points: Sequence[Mapping[str, Any]], path: Path, *, cost: str = "cost", quality: str = "quality"
) -> None:
    """Draws quality against cost, one colour for each method. The Pareto frontier is drawn and labelled.

    Args:
        points: at least one; each has "label", "method", "cost" and "quality".
        path: path of the SVG.
        cost: label of the cost axis, with the unit.
        quality: label of the quality axis.
    """
    figure, axes = _axes()
    for method in dict.fromkeys(point["method"] for point in points):
        cloud = [point for point in points if point["method"] == method]
        axes.scatter([point["cost"] for point in cloud], [point["quality"] for point in cloud], label=method)
    best = pareto_frontier([point["cost"] for point in points], [point["quality"] for point in points])
    frontier = [points[index] for index in best]
    axes.plot(
        [point["cost"] for point in frontier],
        [point["quality"] for point in frontier],
        drawstyle="steps-post",  # below the cost of the next point, the last one is the best
        color="grey",
        linewidth=0.8,
        zorder=0,
        label="Pareto frontier",
    )
    for point in frontier:
        position = (point["cost"], point["quality"])
        axes.annotate(point["label"], position, (4, -9), textcoords="offset points", fontsize=7)
    axes.set(xlabel=cost, ylabel=quality)
    _save(figure, path)


def measures_compared(curves: Sequence[Mapping[str, Any]], path: Path, *, quality: str = "quality") -> None:
    """Draws quality against mean exit and against ms per token.

    Each measure has a colour and each method a line style. Methods without a measure are single points. The oracle
    is a star; as its time says nothing, the second panel has a line at its quality.

    Args:
        curves: each has "label", "method", "measure" (or None) and "points". Each point has "mean_exit", "ms" and
            "quality". The points of a curve with a measure are joined in their order.
        path: path of the SVG.
        quality: label of the quality axis.
    """
    from matplotlib.figure import Figure

    lines = [curve for curve in curves if curve["measure"]]
    measures = list(dict.fromkeys(curve["measure"] for curve in lines))
    methods = list(dict.fromkeys(curve["method"] for curve in lines))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for curve in curves:
        style: dict[str, Any] = {"linestyle": "", "marker": "D", "color": "grey"}
        if curve["measure"]:
            dashes = ("-", "--", ":", "-.")[methods.index(curve["method"]) % 4]
            style = {"linestyle": dashes, "marker": ".", "color": f"C{measures.index(curve['measure'])}"}
        elif curve["method"] == "oracle":
            style = {"linestyle": "", "marker": "*", "color": "black", "markersize": 13}
        qualities = [point["quality"] for point in curve["points"]]
        for axes, cost in zip(panels, ("mean_exit", "ms"), strict=True):
            if cost == "ms" and curve["method"] == "oracle":
                axes.axhline(qualities[0], color="black", linestyle=":", linewidth=0.8, zorder=0)
            else:
                axes.plot([point[cost] for point in curve["points"]], qualities, label=curve["label"], **style)
        if curve["method"] == "oracle":
            position = curve["points"][0]["mean_exit"], qualities[0]
            panels[0].annotate(curve["label"], position, (-4, 9), textcoords="offset points", fontsize=7)
    for axes, label in zip(panels, (f"mean exit {_DEPTH}", "ms per token"), strict=True):
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(quality)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    _save(figure, path)


def promised_against_seen(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the measured mean loss against the promised one, one line for each promise and set of examples.

    Args:
        results: results of `dvp_jax.evaluate.selection.select` for several deltas.
        path: path of the SVG.
    """
    figure, axes = _axes()
    curves: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        promise = result["promise"]
        for examples, seen in result["seen"].items():
            curves.setdefault(f"{promise['kind']}, {examples}", []).append((promise["delta"], seen["risk"]))
    for label, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    most = max(result["promise"]["delta"] for result in results)
    axes.plot([0, most], [0, most], linestyle="--", color="grey", label="kept below")
    axes.set(xlabel="promised: delta", ylabel="seen: mean loss", xlim=(0, None), ylim=(0, None))
    _save(figure, path)


def heat_map(values: Mapping[tuple[int, int], float], path: Path, *, label: str = "") -> None:
    """Draws a grid of p and K with a value written in each cell. Cells without a value stay white.

    Args:
        values: the value of each (p, K); at least one.
        path: path of the SVG.
        label: what the values are.
    """
    layers = sorted({layer for layer, _ in values})
    sizes = sorted({size for _, size in values})
    figure, axes = _axes(width=1.6 + 0.75 * len(sizes), height=1.4 + 0.4 * len(layers))
    cells = [[values.get((layer, size), float("nan")) for size in sizes] for layer in layers]
    image = axes.imshow(cells, aspect="auto")
    middle = (min(values.values()) + max(values.values())) / 2
    for (layer, size), value in values.items():
        column, row = sizes.index(size), layers.index(layer)
        colour = "white" if value <= middle else "black"
        axes.text(column, row, f"{value:.4g}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(sizes)), map(str, sizes))
    axes.set_yticks(range(len(layers)), map(str, layers))
    axes.set(xlabel="K (tokens kept)", ylabel="p (depth of pruning)")
    axes.grid(False)
    figure.colorbar(image, label=label)
    _save(figure, path)


_DEPTH = "depth (decoder layers run)"


def _axes(width: float = 6, height: float = 4) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _whole_numbers(axes: Axes) -> None:
    """Restricts the ticks of the depth axis to whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def spread(values: list[Item], most: int) -> list[Item]:
    """Returns at most `most` of the values, evenly spread, with the first and the last."""
    if len(values) <= most:
        return values
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]


def _save(figure: Figure, path: Path) -> None:
    import matplotlib
    from matplotlib.ticker import ScalarFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(formatter := axis.get_major_formatter(), ScalarFormatter):
                formatter.set_useOffset(False)  # where all values are nearly one: "100.2", not "+1e2" aside
    svg = io.StringIO()
    if not figure.legends and figure.axes[0].get_legend_handles_labels()[1]:
        figure.axes[0].legend()
    with matplotlib.rc_context({"svg.hashsalt": "dvp_jax"}):  # the same data give the same file
        figure.savefig(svg, format="svg", metadata={"Date": None})
    write_whole(path, [svg.getvalue()])
