"""`run_analysis` answers a question about the tasks of an evaluation config, and writes data and a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dvp_jax.analysis.tokens import (
    Sources,
    TokenTable,
    decode_texts,
    full_model_texts,
    load_sources,
    token_table,
)
from dvp_jax.data.task import Task
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.text import GeneratedText
from dvp_jax.evaluate.experiment import Experiment, open_experiment
from dvp_jax.report.html import write_report
from dvp_jax.report.table import Section
from dvp_jax.runs.files import write_json
from dvp_jax.t5.load import Model


class Answer(NamedTuple):
    """What an analysis says about one task."""

    data: Any  # JSON values
    sections: list[Section]


@dataclasses.dataclass(frozen=True)
class TaskTexts:
    """One task of an experiment, with all that a question needs to look at its texts.

    Attributes:
        model: the experiment's model.
        task: the task.
        methods: the experiment's settings for this task, by name.
        sources: the task's examples, tokenized.
        workdir: where plots go.
    """

    model: Model
    task: Task
    methods: Mapping[str, DecodeConfig]
    sources: Sources
    workdir: Path

    def decode(self, cfg: DecodeConfig) -> list[GeneratedText]:
        """Generates a text for every example."""
        return decode_texts(self.model, self.sources, cfg)

    def full_model(self) -> list[list[int]]:
        """Token ids of the full model's text for every example."""
        return full_model_texts(self.model, self.sources, self.task.max_new_tokens)

    def table(self, texts: Sequence[list[int]], cfgs: Mapping[str, DecodeConfig]) -> TokenTable:
        """Reads given texts at every depth; see `dvp_jax.analysis.tokens.token_table`."""
        return token_table(self.model, self.sources, texts, cfgs)


class Question(Protocol):
    """A question about the tokens of real texts: what `run_analysis` needs to answer it."""

    @property
    def name(self) -> str:
        """Name of the data file, without its ending."""

    @property
    def title(self) -> str:
        """Title of the HTML report."""

    @property
    def only(self) -> str | None:
        """The one method whose settings the question is about; None for settings of all methods."""

    def answer(self, texts: TaskTexts) -> Answer:
        """Answers the question for one task and draws the plots.

        Raises:
            ValueError: settings that do not fit the question or the model.
        """


def run_analysis(config: Mapping[str, Any], workdir: str | Path, question: Question) -> list[Section]:
    """Answers a question about every task of an evaluation config.

    Writes the data as JSON, the plots and report.html.

    Args:
        config: an evaluation config, as `experiments/configs/common.py` makes it.
        workdir: the folder for results. It is made if it is missing.
        question: what to answer, such as `dvp_jax.analysis.ranks.Ranks()`.

    Returns:
        The sections of the report.

    Raises:
        ValueError: bad settings or data, or no settings of the method that the question is about.
        OSError: a file is missing, or workdir is in use or cannot be written.
    """
    with open_experiment(config, workdir, only=question.only, decodes=question.only is not None) as experiment:
        answers = {texts.task.name: question.answer(texts) for texts in task_texts(experiment)}
        sections = [section for answer in answers.values() for section in answer.sections]
        data = {task: answer.data for task, answer in answers.items()}
        (experiment.workdir / "report.html").unlink(missing_ok=True)  # it never stands beside data of another run
        write_json(experiment.workdir / f"{question.name}.json", {"tasks": data, **experiment.made_by})
        write_report(experiment.workdir / "report.html", question.title, sections, experiment.made_by)
    return sections


def task_texts(experiment: Experiment) -> Iterator[TaskTexts]:
    """Reads the examples of every task of an experiment."""
    config = experiment.made_by["config"]
    for task, methods in experiment.tasks:
        sources = load_sources(experiment.model, task, batch_size=config["batch_size"], limit=config["limit"])
        yield TaskTexts(experiment.model, task, methods, sources, experiment.workdir)
