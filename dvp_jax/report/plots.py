"""Plots, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvp_jax.report.pareto import pareto_frontier

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def accuracy_per_depth(curves: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draws the accuracy of each depth.

    Args:
        curves: accuracies in [0, 1] at the depths 1..L, under the name of each curve.
        path: of the SVG.
    """
    figure, axes = _axes()
    for name, accuracies in curves.items():
        axes.plot(
            range(1, len(accuracies) + 1), [100 * accuracy for accuracy in accuracies], marker="o", label=name
        )
    axes.set(xlabel=_DEPTH, ylabel="teacher-forced accuracy of the next token, %")
    _whole_numbers(axes)
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


def rank_boxes(report: Mapping[str, Any], path: Path) -> None:
    """Draws the rank of the full model's choice at each depth: quartiles, and whiskers from 5 to 95 %.

    Args:
        report: of analysis.ranks.
        path: of the SVG.
    """
    figure, axes = _axes()
    names = {"whislo": "5", "q1": "25", "med": "50", "q3": "75", "whishi": "95"}
    depths = report["depths"]
    boxes = [{key: depth["rank_percentiles"][name] for key, name in names.items()} for depth in depths]
    axes.bxp(boxes, positions=[depth["depth"] for depth in depths], showfliers=False)
    axes.set(xlabel=_DEPTH, ylabel="rank of the full model's choice (1 the likeliest)", yscale="log")
    axes.set_ylim(0.8, report["sizes"][-1])
    _save(figure, path)


def coverage_per_size(report: Mapping[str, Any], path: Path) -> None:
    """Draws how many of the full model's choices the K likeliest tokens of each depth hold.

    Args:
        report: of analysis.ranks.
        path: of the SVG.
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
    """Draws the mean confidence of each depth, and how often its own choice is the full model's.

    Args:
        report: of analysis.ranks.
        path: of the SVG.
    """
    figure, axes = _axes()
    depths = [depth["depth"] for depth in report["depths"]]
    for field, label in (("agreement", "agrees with the full model"), ("confidence", "mean confidence")):
        axes.plot(depths, [depth[field] for depth in report["depths"]], marker="o", label=label)
    axes.set(xlabel=_DEPTH, ylabel="share of tokens, or confidence", ylim=(0, 1.02))
    _whole_numbers(axes)
    _save(figure, path)


def failure_rates(report: Mapping[str, Any], path: Path) -> None:
    """Draws the share of tokens whose choice was pruned away, with its interval, for each group of tokens.

    Args:
        report: of analysis.failures.
        path: of the SVG.
    """
    rates = report["rates"]
    figure, axes = _axes(height=1 + 0.22 * len(rates))
    labels = [row["group"] if row["by"] == "all" else f"{row['by']}: {row['group']}" for row in rates]
    for place, row in enumerate(rates):
        low, middle, high = (100 * row[end] for end in ("low", "rate", "high"))
        axes.errorbar(middle, place, xerr=[[middle - low], [high - middle]], fmt="o", color="C0", capsize=3)
    axes.set_yticks(range(len(rates)), labels)
    axes.invert_yaxis()
    axes.set(xlabel="tokens whose choice is not kept, %, with 95 % intervals", xlim=(0, None))
    _save(figure, path)


def reliability_diagrams(report: Mapping[str, Any], target: str, path: Path) -> None:
    """Draws accuracy against confidence: a column a depth, the whole vocabulary above the pruned one.

    Args:
        report: of analysis.calibration.
        target: what a token must agree with, "full model" or "reference".
        path: of the SVG.
    """
    from matplotlib.figure import Figure

    rows = {(row["vocabulary"], row["depth"]): row for row in report["reliability"] if row["target"] == target}
    depths = _spread(sorted({depth for _, depth in rows}), most=8)
    figure = Figure(figsize=(1.7 * len(depths) + 0.6, 4.2), layout="constrained")
    grid = figure.subplots(2, len(depths), sharex=True, sharey=True, squeeze=False)
    for line, vocabulary in zip(grid, ("whole", "pruned"), strict=True):
        for axes, depth in zip(line, depths, strict=True):
            row = rows[vocabulary, depth]
            held = [each for each in row["bins"] if each["tokens"]]
            most = max(each["tokens"] for each in held)
            axes.plot([0, 1], [0, 1], linestyle="--", color="grey", linewidth=0.8)
            axes.plot([each["confidence"] for each in held], [each["accuracy"] for each in held], color="C0")
            axes.scatter(  # the more tokens in a bin, the larger its point
                [each["confidence"] for each in held],
                [each["accuracy"] for each in held],
                s=[4 + 60 * each["tokens"] / most for each in held],
            )
            axes.set_title(f"depth {depth}, {vocabulary}\nECE {row['ece']:.3f}", fontsize=8)
            axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    figure.supxlabel("confidence", fontsize=9)
    figure.supylabel(f"agreement with the {target}", fontsize=9)
    _save(figure, path)


def vocabulary_scaling(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the time and the FLOPs of confidence against vocabulary size, a line a method.

    Args:
        rows: of experiments.vocab_scaling.
        path: of the SVG.
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
    """Draws quality against cost, a colour a method, with the Pareto frontier drawn and labelled.

    Args:
        points: each with "label", "method", "cost" and "quality"; at least one.
        path: of the SVG.
        cost: what is paid, with its unit.
        quality: what is got, with its unit.
    """
    figure, axes = _axes()
    for method in dict.fromkeys(point["method"] for point in points):
        mine = [point for point in points if point["method"] == method]
        axes.scatter([point["cost"] for point in mine], [point["quality"] for point in mine], label=method)
    best = pareto_frontier([point["cost"] for point in points], [point["quality"] for point in points])
    frontier = [points[index] for index in best]
    axes.plot(
        [point["cost"] for point in frontier],
        [point["quality"] for point in frontier],
        drawstyle="steps-post",  # what costs less than the next point can do no better than the last
        color="grey",
        linewidth=0.8,
        zorder=0,
        label="Pareto frontier",
    )
    for point in frontier:
        place = (point["cost"], point["quality"])
        axes.annotate(point["label"], place, (4, -9), textcoords="offset points", fontsize=7)
    axes.set(xlabel=cost, ylabel=quality)
    _save(figure, path)


def measures_compared(curves: Sequence[Mapping[str, Any]], path: Path, *, quality: str = "quality") -> None:
    """Draws quality against mean exit and against ms per token: a colour a measure, a line style a method.

    Args:
        curves: each with "label", "method", "measure" and "points", which have "mean_exit", "ms" and "quality" and
            are joined in their order. Where "measure" is None they are not joined. The oracle has stars, and no
            time that means anything: there a line at its quality.
        path: of the SVG.
        quality: what is got, with its unit.
    """
    from matplotlib.figure import Figure

    asked = [curve for curve in curves if curve["measure"]]
    measures = list(dict.fromkeys(curve["measure"] for curve in asked))
    methods = list(dict.fromkeys(curve["method"] for curve in asked))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for curve in curves:
        style: dict[str, Any] = {"linestyle": "", "marker": "D", "color": "grey"}
        if curve["measure"]:
            line = ("-", "--", ":", "-.")[methods.index(curve["method"]) % 4]
            style = {"linestyle": line, "marker": ".", "color": f"C{measures.index(curve['measure'])}"}
        elif curve["method"] == "oracle":
            style = {"linestyle": "", "marker": "*", "color": "black", "markersize": 13}
        qualities = [point["quality"] for point in curve["points"]]
        for axes, cost in zip(panels, ("mean_exit", "ms"), strict=True):
            if cost == "ms" and curve["method"] == "oracle":
                axes.axhline(qualities[0], color="black", linestyle=":", linewidth=0.8, zorder=0)
            else:
                axes.plot([point[cost] for point in curve["points"]], qualities, label=curve["label"], **style)
        if curve["method"] == "oracle":
            place = curve["points"][0]["mean_exit"], qualities[0]
            panels[0].annotate(curve["label"], place, (-4, 9), textcoords="offset points", fontsize=7)
    for axes, label in zip(panels, (f"mean exit {_DEPTH}", "ms per token"), strict=True):
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(quality)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    _save(figure, path)


def promised_against_seen(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the mean loss that was seen against the one promised, a line for each promise and set of examples.

    Args:
        results: of selection.select, for several deltas.
        path: of the SVG.
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
    """Draws one figure for every p and K, written into its cell; cells without one stay white.

    Args:
        values: under (p, K), at least one.
        path: of the SVG.
        label: what the values are.
    """
    layers = sorted({layer for layer, _ in values})
    sizes = sorted({size for _, size in values})
    figure, axes = _axes(width=1.6 + 0.75 * len(sizes), height=1.4 + 0.4 * len(layers))
    cells = [[values.get((layer, size), float("nan")) for size in sizes] for layer in layers]
    image = axes.imshow(cells, aspect="auto")
    middle = (min(values.values()) + max(values.values())) / 2
    for (layer, size), value in values.items():
        place = sizes.index(size), layers.index(layer)
        dark = value <= middle
        axes.text(*place, f"{value:.4g}", ha="center", va="center", color="white" if dark else "black", fontsize=8)
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
    """Ticks of depth fall on depths."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _spread(values: list[int], most: int) -> list[int]:
    """At most `most` of the values, evenly spread, first and last among them."""
    if len(values) <= most:
        return values
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]


def _save(figure: Figure, path: Path) -> None:
    import matplotlib

    if not figure.legends and figure.axes[0].get_legend_handles_labels()[1]:
        figure.axes[0].legend()
    with matplotlib.rc_context({"svg.hashsalt": "dvp_jax"}):  # the same curves give the same file
        figure.savefig(path, metadata={"Date": None})
