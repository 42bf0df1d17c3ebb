"""Selects p, K and threshold from data: the cheapest setting whose texts are as good as promised."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dvp_jax.data import make_task
from dvp_jax.data.task import Example
from dvp_jax.evaluate.experiment import Experiment, decode_cells, open_experiment, sweep_methods
from dvp_jax.evaluate.learn_then_test import check_promise, choose, learn_then_test, smallest_delta
from dvp_jax.evaluate.results import Row, work
from dvp_jax.metrics.quality import text_quality
from dvp_jax.metrics.translation import suits_13a
from dvp_jax.report.table import Table
from dvp_jax.runs.config import EVALUATION, SWEEP, check_fields
from dvp_jax.runs.files import check_output, write_json

KINDS = {
    "textual": "the distance (1 - {measure}) between its text and the full model's",
    "risk": "what its text loses in {measure} against the references, where the full model's is better,",
}
"""The two promises of CALM (arXiv 2207.07061), textual and risk consistency, and the loss that each is about."""

FEW = 20
"""With fewer calibration examples there is a warning."""


@dataclasses.dataclass(frozen=True)
class Promise:
    """The promise that the mean loss of a setting's texts is at most `delta`.

    Attributes:
        kind: how the loss of a text is computed, in [0, 1]. "textual": 1 - quality, with the full model's text
            as the reference. "risk": max(0, quality of the full model's text - quality of the text), both with
            the task's references.
        delta: the tolerance, in (0, 1).
        epsilon: the probability, over the draw of the calibration examples, that the promise is broken, in (0, 1).
        measure: the measure of quality, a name in `dvp_jax.metrics.quality.MEASURES`; None for the task's own.
        p_value: a name in `dvp_jax.evaluate.learn_then_test.P_VALUES`.

    Raises:
        ValueError: an unknown name, or a value outside its bounds.
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
        """Computes the loss of each text; `measure` must be set.

        Args:
            texts: the texts of a setting.
            full_texts: the full model's texts for the same examples.
            examples: the examples, with their references.

        Returns:
            Losses in [0, 1]. The loss is 0 for a text that equals the full model's.
        """
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
    """Decodes a grid of settings on the calibration examples and selects the cheapest one that keeps the promise.

    The cost of a setting is its FLOPs per token, in the decoder layers and the unembedding.

    With a guarantee, the selected setting is the cheapest that `learn_then_test` certifies. A path has the
    settings that differ in their threshold only, from the highest to the lowest, or for "static" in their exit
    layer only, from the deepest. The guarantee holds if the examples are independent draws of the texts that the
    setting will be used on (questions about one paragraph are not quite independent), and if grid, delta,
    epsilon, measure and p-value were chosen before the texts were seen. Each of several deltas is kept with its
    own probability, not all at once.

    Without a guarantee, the selected setting is the cheapest whose mean loss on these examples is at most delta.
    This is for a quick look: the best of many settings is often one that was lucky.

    Cells are decoded as by `run_sweep`. Cells that are in workdir already are not decoded again.

    Args:
        config: a sweep config, as `experiments/configs/common.py` makes it. Its examples are the calibration
            examples.
        workdir: the folder for results. It is made if it is missing.
        promise: the promise to keep.
        guarantee: whether to test the promise.
        task: name of one of the config's tasks; None if there is one task only.
        check: a config whose task of the same name has other examples. The loss of the selected setting is
            measured on them too. They are decoded into the folder "check" under workdir.
        output: path of the JSON file for the result; None for workdir/selected.json.

    Returns:
        What is written to the JSON file: "config", which `load_decode_config` reads, and what was promised,
        measured and tested.

    Raises:
        ValueError: bad settings or data.
        OSError: a file is missing, or workdir is in use or cannot be written.
    """
    if output is not None:
        output = check_output(output)
    check_fields(config, SWEEP)
    config = _with_task({**config, "sweep": {"full": {}, **config["sweep"]}}, task)
    methods = sweep_methods(config["sweep"])
    for name, fields in methods.items():
        if fields["method"] == "lossless":
            raise ValueError(
                f"sweep has {name}; allowed: methods whose text may differ from that of full. With lossless there "
                "is nothing to certify, and experiments.sweep finds its fastest setting"
            )
    paths = ordered_paths(methods)
    if check is not None:
        check_fields({**config, "methods": methods, **check}, EVALUATION)
        check = _with_task(check, next(iter(config["tasks"])))
        for name, fields in check["tasks"].items():
            make_task(name, **fields).load()  # bad data is refused before the grid is decoded
    with open_experiment({**config, "methods": methods}, workdir) as experiment:
        ((the_task, cfgs),) = experiment.tasks
        promise = dataclasses.replace(promise, measure=promise.measure or the_task.measure)
        examples = the_task.load()[: experiment.made_by["config"]["limit"]]
        n = len(examples)
        if promise.measure == "bleu" and not suits_13a([text for x in examples for text in x.references]):
            raise ValueError("measure is 'bleu', which does not find the words of these references; allowed: chrf")
        if guarantee:
            _warn_of_reach(n, promise, len(paths))
        rows, losses = _decode(experiment, promise)
        full = next(iter(rows.values()))
        settings = _describe_settings(rows, losses, paths, promise)
        certificate = _certify(settings, n, paths, promise) if guarantee else None
        allowed = np.array([setting["rejected" if guarantee else "within"] for setting in settings], bool)
        costs = np.array([setting["flops_per_token"] for setting in settings])
        index = int(choose(costs, allowed, work(full)))
        returned = full["name"] if index < 0 else settings[index]["name"]
        measured = {"calibration": _measured(rows, losses, returned)}
        if check is not None:
            compared = {name: methods[name] for name in (full["name"], returned)}
            check = {**check, "methods": compared}
            measured["check"] = _measure_on_other_examples(experiment, check, promise, returned)
        result = {
            "config": dataclasses.asdict(cfgs[returned]),
            "returned": returned,
            "guaranteed": guarantee,
            "statement": _statement(promise, n, guarantee, bool(allowed.any()), returned == full["name"]),
            "promise": dataclasses.asdict(promise),
            "certificate": certificate,
            "settings": settings,
            "seen": measured,
            "made_by": experiment.made_by,
        }
        write_json(output or experiment.workdir / "selected.json", result)
    return result


def ordered_paths(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Orders settings into paths for testing. The order depends on the settings only, not on their texts.

    Args:
        methods: for each setting, fields of `DecodeConfig`. The setting "full" needs no test and is skipped.

    Returns:
        For each path, names of settings that differ in their threshold only, from the highest to the lowest, or in
        their static exit layer only, from the deepest. Both are orders of falling cost.
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
    """The field by which the settings of a path are ordered."""
    return "static_exit_layer" if "static_exit_layer" in fields else "threshold"


def _with_task(config: Mapping[str, Any], task: str | None) -> dict[str, Any]:
    """The config with one of its tasks only."""
    tasks = config["tasks"]
    name = next(iter(tasks)) if task is None and len(tasks) == 1 else task
    if name not in tasks:
        raise ValueError(f"task is {name!r}; allowed: one of {', '.join(tasks)}")
    return {**config, "tasks": {name: tasks[name]}}


def _warn_of_reach(n: int, promise: Promise, num_paths: int) -> None:
    """Warns if there are few examples, or too few to certify the promised delta."""
    reach = smallest_delta(n, promise.epsilon / max(num_paths, 1), promise.p_value)
    if n < FEW or promise.delta < reach:
        warnings.warn(
            f"{n} calibration examples certify a delta of {reach:.3g} at best, where no text loses anything "
            f"(epsilon {promise.epsilon:g}, {num_paths} paths); asked is {promise.delta:g}",
            stacklevel=3,
        )


def _decode(
    experiment: Experiment, promise: Promise
) -> tuple[dict[str, Row], dict[str, Float[np.ndarray, " examples"]]]:
    """Decodes the cells of an experiment with one task.

    Returns:
        The row of results and the losses of each cell by its name, the full model first.
    """
    ((task, _),) = experiment.tasks
    examples = task.load()[: experiment.made_by["config"]["limit"]]
    rows: dict[str, Row] = {}
    losses = {}
    full_texts: list[str] = []
    for cell in decode_cells(experiment, predictions=True):
        ((row,), texts) = cell["rows"], [line["text"] for line in cell["predictions"]]
        full_texts = full_texts or texts
        rows[row["name"]], losses[row["name"]] = row, promise.losses(texts, full_texts, examples)
    return rows, losses


def _describe_settings(
    rows: Mapping[str, Row],
    losses: Mapping[str, Float[np.ndarray, " examples"]],
    paths: Mapping[str, Sequence[str]],
    promise: Promise,
) -> list[dict[str, Any]]:
    """Mean loss and cost of each setting, path by path in the order of testing."""
    return [
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


def _certify(
    settings: Sequence[dict[str, Any]], n: int, paths: Mapping[str, Sequence[str]], promise: Promise
) -> dict[str, Any]:
    """Tests settings by `learn_then_test`, adds the outcome to each, and returns what holds for all of them."""
    certificate = learn_then_test(
        np.array([setting["risk"] for setting in settings]),
        n,
        [[index for index, setting in enumerate(settings) if setting["path"] == path] for path in paths],
        delta=promise.delta,
        epsilon=promise.epsilon,
        p_value=promise.p_value,
    )
    for index, setting in enumerate(settings):
        setting |= {
            "p_value": float(certificate.p_values[index]),
            "level": certificate.level,
            "tested": bool(certificate.tested[index]),
            "rejected": bool(certificate.rejected[index]),
        }
    return {
        "n": n,
        "paths": list(paths),
        "level": certificate.level,
        "smallest_delta": smallest_delta(n, certificate.level, promise.p_value),
    }


def _measure_on_other_examples(
    experiment: Experiment, check: Mapping[str, Any], promise: Promise, name: str
) -> dict[str, Any]:
    """Decodes the examples of another config with the experiment's model, and measures the setting `name`."""
    config = experiment.made_by["config"]
    same = {field: config[field] for field in ("model", "dtype", "batch_size", "explore")}
    with open_experiment({**check, **same}, experiment.workdir / "check", model=experiment.model) as held_out:
        return _measured(*_decode(held_out, promise), name)


def _measured(
    rows: Mapping[str, Row], losses: Mapping[str, Float[np.ndarray, " examples"]], name: str
) -> dict[str, Any]:
    """Loss, quality and cost of one setting on one set of examples."""
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
    """The result in words."""
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


def selection_table(result: Mapping[str, Any]) -> Table:
    """Shows what was promised and what was measured, one row for each set of examples.

    Args:
        result: from `select`.
    """
    metrics = list(result["seen"]["calibration"]["metric"])
    return Table(
        ["examples", "promised", "seen", *metrics, "mean exit", "FLOPs of full", "speed-up"],
        [
            [
                f"{name}, {measured['num_examples']}",
                f"{result['promise']['delta']:g}",
                f"{measured['risk']:.4f}",
                *(
                    f"{measured['metric'][metric]:.2f} (full {measured['full_metric'][metric]:.2f})"
                    for metric in metrics
                ),
                *_cost_cells(measured),
            ]
            for name, measured in result["seen"].items()
        ],
    )


def promises_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Shows several results of `select`. Mean exit and costs are those on the check examples, if there are any."""
    rows = []
    for result in results:
        calibration, check = result["seen"]["calibration"], result["seen"].get("check")
        rows.append(
            [
                result["promise"]["kind"],
                f"{result['promise']['delta']:g}",
                f"{calibration['risk']:.4f}",
                f"{check['risk']:.4f}" if check else "",
                *_cost_cells(check or calibration),
                f"`{result['returned']}`",
            ]
        )
    return Table(
        ["promise", "promised", "seen", "seen on others", "mean exit", "FLOPs of full", "speed-up", "returned"],
        rows,
    )


def _cost_cells(measured: Mapping[str, Any]) -> list[str]:
    return [
        f"{measured['mean_exit_layer']:.2f} of {measured['num_layers']}",
        f"{100 * measured['flops']:.0f} %",
        f"{measured['speed_up']:.2f}x",
    ]
