"""Chooses p, K and threshold from data: the cheapest setting whose texts are as good as was promised."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dvp_jax.data.task import Example
from dvp_jax.evaluate.experiment import Experiment, decode_cells, open_experiment, sweep_methods
from dvp_jax.evaluate.learn_then_test import check_promise, choose, learn_then_test, smallest_delta
from dvp_jax.evaluate.reports import work
from dvp_jax.metrics.quality import text_quality
from dvp_jax.runs.files import write_json

KINDS = {
    "textual": "the distance (1 - {measure}) between its text and the full model's",
    "risk": "what its text loses in {measure} against the references, where the full model's is better,",
}
"""The two promises of CALM (arXiv 2207.07061): textual consistency and risk consistency."""

FEW = 20
"""Calibration examples below which to warn."""


@dataclasses.dataclass(frozen=True)
class Promise:
    """That a loss of each text, in [0, 1], is at most `delta` on average.

    Attributes:
        kind: "textual": the loss is 1 - quality, the full model's text being the reference. "risk": it is
            max(0, quality of the full model's text - quality of the text), both against the references.
        delta: the tolerance, in (0, 1).
        epsilon: how often, over the draw of the calibration examples, the promise may be broken, in (0, 1).
        measure: of quality, a name in `MEASURES`; None for the task's own.
        p_value: a name in `P_VALUES`.
    """

    kind: str = "textual"
    delta: float = 0.05
    epsilon: float = 0.05
    measure: str | None = None
    p_value: str = "hoeffding_bentkus"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"promise is {self.kind!r}; allowed: {', '.join(KINDS)}")
        check_promise(self.delta, self.epsilon, self.p_value)
        if self.measure is not None:
            text_quality(self.measure, "", [""])

    def losses(
        self, texts: Sequence[str], full_texts: Sequence[str], examples: Sequence[Example]
    ) -> Float[np.ndarray, " examples"]:
        """The loss of each text, in [0, 1]; 0 where it is the full model's. `measure` must be set."""
        return np.array([self._loss(*each) for each in zip(texts, full_texts, examples, strict=True)])

    def _loss(self, text: str, full_text: str, example: Example) -> float:
        assert self.measure is not None
        if text == full_text:
            return 0.0
        if self.kind == "textual":
            return 1.0 - text_quality(self.measure, text, [full_text])
        quality, full_quality = (text_quality(self.measure, x, example.references) for x in (text, full_text))
        return max(0.0, full_quality - quality)


def select(
    config: Mapping[str, Any],
    workdir: str | Path,
    promise: Promise,
    *,
    guarantee: bool = True,
    task: str | None = None,
    check: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Decodes a grid over the calibration examples and returns the cheapest setting that keeps the promise.

    Cost is FLOPs per token of decoder layers and unembedding. With a guarantee, the setting is the cheapest that
    `learn_then_test` certifies, on one path for each combination of p, K and what else the grid has, from the
    highest threshold to the lowest ("static": from the deepest exit). What it asks: that the examples are
    independent draws of what the setting will be used on (questions on one paragraph are not quite), and that
    grid, delta, epsilon, measure and p-value were chosen before their texts were looked at; of several
    deltas each is kept with its own probability, and not all at once.

    Without, it is the cheapest whose mean loss on these examples is at most delta, for a quick look: of many
    settings the one that seems to keep a promise is often one that was lucky.

    Cells are those of `run_sweep`: what was decoded in this workdir is not decoded again.

    Args:
        config: of a sweep, as `experiments/configs/common.py` makes it.
        workdir: made where it is missing.
        promise: what to keep.
        guarantee: whether to test it.
        task: which of the config's tasks; None where there is one.
        check: a config whose task of that name holds other examples; there the loss of the returned setting is
            measured once more. Decoded into a folder of its own under workdir.
        output: of the result as JSON; None for workdir/selected.json.

    Returns:
        "config", as `load_decode_config` reads it, with what was promised, seen and tested.

    Raises:
        ValueError: bad settings or data.
        OSError: files that are missing, or a workdir that is in use or cannot be written.
    """
    config = _with_task({**config, "sweep": {"full": {}, **config["sweep"]}}, task)
    methods = sweep_methods(config["sweep"])
    paths = ordered_paths(methods)
    with open_experiment({**config, "methods": methods}, workdir) as experiment:
        ((of_task, cfgs),) = experiment.tasks
        promise = dataclasses.replace(promise, measure=promise.measure or of_task.measure)
        n = len(of_task.load()[: config["limit"]])
        if guarantee:
            _warn_of_reach(n, promise, len(paths))
        rows, losses = _decode(experiment, promise)
        full = next(iter(rows.values()))
        settings, certificate = _test(rows, losses, paths, promise, guarantee)
        allowed = np.array([setting["rejected" if guarantee else "within"] for setting in settings], bool)
        costs = np.array([setting["flops_per_token"] for setting in settings])
        index = int(choose(costs, allowed, work(full)))
        returned = full["name"] if index < 0 else settings[index]["name"]
        seen = {"calibration": _seen(rows, losses, returned)}
        if check is not None:
            checking = {
                **_with_task(check, of_task.name),
                **{name: config[name] for name in ("model", "dtype", "batch_size", "explore")},
                "methods": {name: methods[name] for name in (full["name"], returned)},
            }
            with open_experiment(checking, experiment.workdir / "check", model=experiment.model) as held_out:
                seen["check"] = _seen(*_decode(held_out, promise), returned)
        result = {
            "config": dataclasses.asdict(cfgs[returned]),
            "returned": returned,
            "guaranteed": guarantee,
            "statement": _statement(promise, n, guarantee, bool(allowed.any()), returned == full["name"]),
            "promise": dataclasses.asdict(promise),
            "certificate": certificate,
            "settings": settings,
            "seen": seen,
            "made_by": experiment.made_by,
        }
        write_json(Path(output) if output else experiment.workdir / "selected.json", result)
    return result


def ordered_paths(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The order in which settings are tested; of the settings alone, so that it is fixed before any text is seen.

    Args:
        methods: fields of `DecodeConfig` under the name of each setting; "full" needs no test.

    Returns:
        Under the name of each path, settings that differ in nothing but their threshold, from the highest to the
        lowest; of "static" in nothing but their exit, from the deepest. Both are orders of falling cost.
    """
    paths: dict[str, list[str]] = {}
    for name, fields in methods.items():
        if fields["method"] != "full":
            fixed = [
                f"{field}={value}" for field, value in fields.items() if field not in ("method", _ordered(fields))
            ]
            paths.setdefault(",".join([fields["method"], *fixed]), []).append(name)
    return {
        path: sorted(names, key=lambda name: -methods[name].get(_ordered(methods[name]), 0))
        for path, names in paths.items()
    }


def _ordered(fields: Mapping[str, Any]) -> str:
    return "static_exit_layer" if fields["method"] == "static" else "threshold"


def _with_task(config: Mapping[str, Any], task: str | None) -> dict[str, Any]:
    """The config with one of its tasks."""
    tasks = config["tasks"]
    name = next(iter(tasks)) if task is None and len(tasks) == 1 else task
    if name not in tasks:
        raise ValueError(f"task is {name!r}; allowed: one of {', '.join(tasks)}")
    return {**config, "tasks": {name: tasks[name]}}


def _warn_of_reach(n: int, promise: Promise, num_paths: int) -> None:
    reach = smallest_delta(n, promise.epsilon / max(num_paths, 1), promise.p_value)
    if n < FEW or promise.delta < reach:
        warnings.warn(
            f"{n} calibration examples certify a delta of {reach:.3g} at best, where no text loses anything "
            f"(epsilon {promise.epsilon:g}, {num_paths} paths); asked is {promise.delta:g}",
            stacklevel=3,
        )


def _decode(
    experiment: Experiment, promise: Promise
) -> tuple[dict[str, dict[str, Any]], dict[str, Float[np.ndarray, " examples"]]]:
    """Rows and losses of each method of a experiment of one task, the full model first."""
    cells = decode_cells(experiment)
    ((task, _),) = experiment.tasks
    examples = task.load()[: experiment.made_by["config"]["limit"]]
    texts = {cell["rows"][0]["name"]: [line["text"] for line in cell["predictions"]] for cell in cells}
    full_texts = next(iter(texts.values()))
    losses = {name: promise.losses(own, full_texts, examples) for name, own in texts.items()}
    return {cell["rows"][0]["name"]: cell["rows"][0] for cell in cells}, losses


def _test(
    rows: Mapping[str, Mapping[str, Any]],
    losses: Mapping[str, Float[np.ndarray, " examples"]],
    paths: Mapping[str, Sequence[str]],
    promise: Promise,
    guarantee: bool,
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """What is known of each setting, path by path in the order of testing, and what holds for all of them."""
    settings: list[dict[str, Any]] = [
        {
            "name": name,
            "path": path,
            "risk": float(losses[name].mean()),
            "within": bool(losses[name].mean() <= promise.delta),
            "flops_per_token": work(rows[name]),
            "mean_exit_layer": rows[name]["mean_exit_layer"],
            "speed_up": rows[name]["speed_up"],
        }
        for path, names in paths.items()
        for name in names
    ]
    if not guarantee:
        return settings, None
    n = len(next(iter(losses.values())))
    indices = [[i for i, setting in enumerate(settings) if setting["path"] == path] for path in paths]
    risks = np.array([setting["risk"] for setting in settings])
    found = learn_then_test(
        risks, n, indices, delta=promise.delta, epsilon=promise.epsilon, p_value=promise.p_value
    )
    for i, setting in enumerate(settings):
        setting |= {
            "p_value": float(found.p_values[i]),
            "level": found.level,
            "tested": bool(found.tested[i]),
            "rejected": bool(found.rejected[i]),
        }
    return settings, {
        "n": n,
        "paths": list(paths),
        "level": found.level,
        "smallest_delta": smallest_delta(n, found.level, promise.p_value),
    }


def _seen(
    rows: Mapping[str, Mapping[str, Any]], losses: Mapping[str, Float[np.ndarray, " examples"]], name: str
) -> dict[str, Any]:
    """What one set of examples says of the setting that was returned."""
    row, full = rows[name], next(iter(rows.values()))
    return {
        "num_examples": len(losses[name]),
        "risk": float(losses[name].mean()),
        "metric": row["metric"],
        "full_metric": full["metric"],
        "mean_exit_layer": row["mean_exit_layer"],
        "num_layers": row["num_layers"],
        "flops": work(row) / work(full),
        "speed_up": row["speed_up"],
    }


def _statement(promise: Promise, n: int, guarantee: bool, any_allowed: bool, is_full: bool) -> str:
    """What the result says, in words."""
    kept = "is certified" if guarantee else "keeps the promise on these examples"
    if is_full and any_allowed:
        return f"Returned is the full model: no setting that {kept} takes fewer FLOPs."
    if is_full:
        return f"Returned is the full model: no setting {kept}."
    loss = KINDS[promise.kind].format(measure=promise.measure)
    if not guarantee:
        return f"No guarantee: of these {n} examples alone, {loss} is at most {promise.delta:g} on average."
    return (
        f"With probability at least {1 - promise.epsilon:g} over the draw of the {n} calibration examples, "
        f"{loss} is at most {promise.delta:g} on average."
    )


def selection_table(result: Mapping[str, Any]) -> str:
    """What was promised beside what was seen, as a Markdown table."""
    seen = result["seen"]
    metrics = list(seen["calibration"]["metric"])
    head = ["examples", "promised", "seen", *metrics, "mean exit", "FLOPs of full", "speed-up"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for name, found in seen.items():
        cells = [f"{name}, {found['num_examples']}", f"{result['promise']['delta']:g}", f"{found['risk']:.4f}"]
        cells += [f"{found['metric'][metric]:.2f} (full {found['full_metric'][metric]:.2f})" for metric in metrics]
        cells += [f"{found['mean_exit_layer']:.2f} of {found['num_layers']}", f"{100 * found['flops']:.0f} %"]
        lines.append("| " + " | ".join([*cells, f"{found['speed_up']:.2f}x"]) + " |")
    return "\n".join(lines)


def promises_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Several results of `select` as a Markdown table; mean exit and costs on the examples to check on, if any."""
    head = ["promise", "promised", "seen", "seen on others", "mean exit", "FLOPs of full", "speed-up", "returned"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 2) + " --- |"]
    for result in results:
        calibration, check = result["seen"]["calibration"], result["seen"].get("check")
        cost = check or calibration
        cells = [result["promise"]["kind"], f"{result['promise']['delta']:g}", f"{calibration['risk']:.4f}"]
        cells += [
            f"{check['risk']:.4f}" if check else "",
            f"{cost['mean_exit_layer']:.2f} of {cost['num_layers']}",
        ]
        cells += [f"{100 * cost['flops']:.0f} %", f"{cost['speed_up']:.2f}x", f"`{result['returned']}`"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
