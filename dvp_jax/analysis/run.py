"""Whole analyses: from an evaluation config to a data file, plots and a report in a folder of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvp_jax.analysis.calibration import VOCABULARIES, calibration_report, calibration_table
from dvp_jax.analysis.failures import failure_report, failure_table
from dvp_jax.analysis.ranks import prune_sizes, rank_report, rank_table
from dvp_jax.analysis.scaling import coverage_rows
from dvp_jax.analysis.thresholds import check_share, threshold_report, threshold_table, variants
from dvp_jax.analysis.tokens import (
    WHOLE,
    Sources,
    decode_texts,
    full_model_texts,
    load_sources,
    reference_texts,
    token_table,
)
from dvp_jax.data.task import Task
from dvp_jax.evaluate.experiment import Experiment, open_experiment
from dvp_jax.report.html import Section, tables_of, write_report
from dvp_jax.report.plots import (
    agreement_per_depth,
    coverage_per_size,
    failure_rates,
    rank_boxes,
    reliability_diagrams,
)
from dvp_jax.runs.files import write_json

Report = dict[str, Any]
Plots = dict[str, Path]


def run_ranks(config: Mapping[str, Any], workdir: str | Path) -> str:
    """Where the full model's choices stood at every depth: ranks.json, three plots a task and report.html.

    Args:
        config: of an evaluation, as `experiments/configs/common.py` makes it.
        workdir: made where it is missing.

    Returns:
        The tables, as Markdown.

    Raises:
        ValueError: bad settings or data.
        OSError: files that are missing, or a workdir that is in use or cannot be written.
    """
    with open_experiment(config, workdir) as experiment:
        found = _Found(experiment, "ranks", "How early the decoder knows its choice")
        for task, methods in experiment.tasks:
            sources = _sources(experiment, task, config)
            texts = full_model_texts(experiment.model, sources, task.max_new_tokens)
            table = token_table(experiment.model, sources, texts, WHOLE)
            report = rank_report(table, "whole", prune_sizes(methods.values(), experiment.model.config.vocab_size))
            plots: Plots = {}
            for name, caption, draw in (
                ("ranks", "Rank of the token that the full model chooses", rank_boxes),
                ("coverage", "Share of choices among the K likeliest", coverage_per_size),
                ("agreement", "Confidence, and agreement with the full model", agreement_per_depth),
            ):
                plots[caption] = experiment.workdir / f"{name}_{task.name}.svg"
                draw(report, plots[caption])
            title = f"{task.name}, {report['tokens']} tokens of {report['texts']} texts"
            found.add([task.name], title, report, rank_table(report), plots)
        return found.write()


def run_failures(config: Mapping[str, Any], workdir: str | Path, *, examples: int) -> str:
    """Which choices of the full model each dvp method loses: failures.json, a plot each and report.html.

    Args:
        config: of an evaluation, with at least one dvp method.
        workdir: made where it is missing.
        examples: worked examples to show for each method.

    Returns:
        The tables, as Markdown.

    Raises:
        ValueError: bad settings or data.
        OSError: files that are missing, or a workdir that is in use or cannot be written.
    """
    with open_experiment(config, workdir, only="dvp") as experiment:
        found = _Found(experiment, "failures", "What pruning loses")
        for task, methods in experiment.tasks:
            sources = _sources(experiment, task, config)
            full = full_model_texts(experiment.model, sources, task.max_new_tokens)
            table = token_table(experiment.model, sources, full, WHOLE)
            for name, cfg in methods.items():
                report = failure_report(table, cfg, decode_texts(experiment.model, sources, cfg), sources)
                plot = experiment.workdir / f"failures_{task.name}_{name}.svg"
                failure_rates(report, plot)
                plots = {"Share of tokens that pruning loses, with 95 % intervals": plot}
                shown = failure_table(report, examples)
                found.add([task.name, name], f"{task.name}, {name}", report, shown, plots)
        return found.write()


def run_calibration(config: Mapping[str, Any], workdir: str | Path, *, threshold: float, bins: int) -> str:
    """What confidence means with and without pruning: calibration.json, diagrams and report.html.

    Args:
        config: of an evaluation, with at least one dvp method.
        workdir: made where it is missing.
        threshold: on the whole vocabulary's scale, to match on the pruned one.
        bins: of the reliability diagrams.

    Returns:
        The tables, as Markdown.

    Raises:
        ValueError: bad settings or data.
        OSError: files that are missing, or a workdir that is in use or cannot be written.
    """
    with open_experiment(config, workdir, only="dvp") as experiment:
        found = _Found(experiment, "calibration", "What confidence means, with and without pruning")
        for task, methods in experiment.tasks:
            sources = _sources(experiment, task, config)
            texts = (
                full_model_texts(experiment.model, sources, task.max_new_tokens),
                reference_texts(sources, task.max_new_tokens),
            )
            for name, cfg in methods.items():
                readings = dict(zip(VOCABULARIES, (dataclasses.replace(cfg, method="calm"), cfg), strict=True))
                own, reference = (token_table(experiment.model, sources, each, readings) for each in texts)
                report = calibration_report(own, reference, cfg, threshold=threshold, bins=bins)
                plots = {}
                for target in ("full model", "reference"):
                    plot = experiment.workdir / f"reliability_{task.name}_{name}_{target.split()[0]}.svg"
                    reliability_diagrams(report, target, plot)
                    plots[f"Reliability against the {target}"] = plot
                found.add([task.name, name], f"{task.name}, {name}", report, calibration_table(report), plots)
        return found.write()


def run_thresholds(config: Mapping[str, Any], workdir: str | Path, *, share: float) -> str:
    """The threshold of each depth for every method and measure: thresholds.json and report.html.

    Args:
        config: of an evaluation, with at least one calm or dvp method.
        workdir: made where it is missing.
        share: of the exits of each depth, that must agree with the full model.

    Returns:
        The tables, as Markdown.

    Raises:
        ValueError: bad settings or data, share outside (0, 1].
        OSError: files that are missing, or a workdir that is in use or cannot be written.
    """
    check_share(share)
    with open_experiment(config, workdir) as experiment:
        found = _Found(experiment, "thresholds", f"Thresholds for which {100 * share:g} % of the exits agree")
        for task, methods in experiment.tasks:
            ways = variants(methods, "meta" in experiment.model.params)
            sources = _sources(experiment, task, config)
            texts = full_model_texts(experiment.model, sources, task.max_new_tokens)
            report = threshold_report(token_table(experiment.model, sources, texts, ways), ways, share)
            found.add([task.name], task.name, report, threshold_table(report), {})
        return found.write()


def needed_sizes(experiment: Experiment, config: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The K that keeps nearly all of the full model's choices at the depths p of the dvp methods.

    Args:
        experiment: of the config, with dvp methods only.
        config: of an evaluation.

    Returns:
        `coverage_rows` under the name of each task.
    """
    found = {}
    for task, methods in experiment.tasks:
        sources = _sources(experiment, task, config)
        texts = full_model_texts(experiment.model, sources, task.max_new_tokens)
        layers = [cfg.prune_layer for cfg in methods.values()]
        table = token_table(experiment.model, sources, texts, WHOLE)
        found[task.name] = coverage_rows(table, layers, experiment.model.config.vocab_size)
    return found


class _Found:
    """What an analysis found so far, for its data file, its report and the terminal."""

    def __init__(self, experiment: Experiment, name: str, title: str) -> None:
        self._experiment, self._name, self._title = experiment, name, title
        self._reports: Report = {}
        self._sections: list[Section] = []
        self._printed: list[str] = []

    def add(self, place: list[str], title: str, report: Any, shown: str, plots: Plots) -> None:
        """Notes the report under the names in `place`, and how it is shown."""
        reports = self._reports
        for name in place[:-1]:
            reports = reports.setdefault(name, {})
        reports[place[-1]] = report
        self._sections.append(Section(title, "", tables_of(shown), tuple(plots.items())))
        self._printed.append(f"{title}:\n\n{shown}")

    def write(self) -> str:
        """Writes the data file and the report; returns what is to be printed."""
        folder, made_by = self._experiment.workdir, self._experiment.made_by
        write_json(folder / f"{self._name}.json", {"tasks": self._reports, **made_by})
        write_report(folder / "report.html", self._title, self._sections, made_by)
        return "\n\n".join(self._printed)


def _sources(experiment: Experiment, task: Task, config: Mapping[str, Any]) -> Sources:
    return load_sources(experiment.model, task, batch_size=config["batch_size"], limit=config["limit"])
