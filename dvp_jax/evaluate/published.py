"""Published figures of T5-large with early exits, and the table that shows them beside our own results."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from dvp_jax.decode.config import DecodeConfig
from dvp_jax.evaluate.evaluation import make_methods
from dvp_jax.report.table import Table

SOURCES = {
    "paper": "Dynamic Vocabulary Pruning in Early-Exit LLMs (arXiv 2410.18952), results; code: GitHub repository "
    "MatteoNulli/Vocabulary_pruning",
    "blog post": "GitHub repository joanvelja/Confidently_Exiting (the paper's predecessor), blogpost.md, figures "
    "7 and 8; threshold 0.9, FLOPs averaged over 100 examples",
    "notebook": "GitHub repository joanvelja/Confidently_Exiting, src/plots/plots_mn.ipynb",
}
"""Where the figures can be found. The two repositories count FLOPs differently: compare ratios only."""

PRETRAINED = "google-t5/t5-large"
FINETUNED = {"squad": "jvelja/t5-squad", "samsum": "jvelja/t5-samsum"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """One published figure with the settings that it was measured at.

    Attributes:
        checkpoint: id on the Hugging Face hub.
        task: "squad" or "samsum".
        value: F1 or ROUGE-L, both from 0 to 100.
        method: "full", "calm" (confidence over the full vocabulary) or "dvp" (over the pruned one).
        min_exit_layer: the first exit depth, at which "dvp" prunes too (p); None for "full".
        prune_size: K; "decaying" if it shrinks with depth; "not known"; None without pruning.
        confidence: the confidence measure. We have no "jensen_shannon", so no row of ours matches those figures.
        threshold: of the confidence.
        source: a key of `SOURCES`.
        inferred: names of the fields above that the source does not state; empty if all of them are known.
        num_examples: how many examples the value was measured on, where the source says so.
        mean_exit_block: mean number of decoder blocks run, where published.
        confidence_flops: FLOPs of confidence per example, where published.
    """

    checkpoint: str
    task: str
    value: float
    method: str
    min_exit_layer: int | None = None
    prune_size: int | str | None = None
    confidence: str = "softmax_diff"
    threshold: float = 0.9
    source: str
    inferred: tuple[str, ...] = ()
    num_examples: int | None = None
    mean_exit_block: float | None = None
    confidence_flops: float | None = None

    @property
    def metric(self) -> str:
        """Name of the metric that `value` is of."""
        return {"squad": "F1", "samsum": "ROUGE-L"}[self.task]

    def matches(self, checkpoint: str, task: str, cfg: DecodeConfig) -> bool:
        """Whether a result of `checkpoint` on `task`, decoded with `cfg`, can be compared with this figure."""
        if (self.checkpoint, self.task, self.method) != (checkpoint, task, cfg.method):
            return False
        if self.method == "full":
            return True
        exits = (cfg.min_exit_layer, cfg.threshold, cfg.confidence)
        if (self.min_exit_layer, self.threshold, self.confidence) != exits:
            return False
        return self.method == "calm" or (self.min_exit_layer, self.prune_size) == (cfg.prune_layer, _size(cfg))

    def describe(self) -> str:
        """The value and, in brackets, its source and what of it is inferred: a cell of a table."""
        notes = [self.source]
        if self.num_examples is not None:
            notes.append(f"{self.num_examples} examples")
        if self.inferred:
            notes.append("inferred: " + ", ".join(self.inferred).replace("min_exit_layer", "p"))
        return f"{self.value:g} ({'; '.join(notes)})"


def _size(cfg: DecodeConfig) -> int | str | None:
    """`Published.prune_size` of a config; None if no published figure is of its pruning rule."""
    if cfg.prune_rule == "fixed":
        return cfg.prune_size
    return "decaying" if cfg.prune_rule == "decay" else None


def published_beside(checkpoint: str, task: str, cfg: DecodeConfig) -> list[Published]:
    """The published figures that can stand beside a result.

    Args:
        checkpoint: the checkpoint's id on the Hugging Face hub, even if a local copy of it was decoded.
        task: the task's name.
        cfg: how it was decoded.
    """
    return [figure for figure in PUBLISHED if figure.matches(checkpoint, task, cfg)]


def comparison_table(results: Mapping[str, tuple[Mapping[str, Any], Sequence[Mapping[str, Any]] | str]]) -> Table:
    """Our results, row by row, beside the published figures at the same settings.

    Args:
        results: for each config's name the config, with the published checkpoint's id as its model, and the rows
            of its results.json; or, instead of rows, why it was not run.
    """
    rows = []
    for name, (config, result_rows) in results.items():
        (task,) = config["tasks"]
        calm_flops = {}  # by first exit depth
        for key, cfg in make_methods(config["methods"], max_new_tokens=1).items():
            figures = published_beside(config["model"], task, cfg)
            pruned, exits = cfg.method == "dvp", cfg.method != "full"
            settings = [str(cfg.min_exit_layer) if exits else "", str(cfg.prune_size) if pruned else ""]
            cells = [name, cfg.name, *settings, "; ".join(map(Published.describe, figures)) or "not known"]
            if isinstance(result_rows, str):
                cells += ["not run", "not run", "not run"]
            else:
                (row,) = [row for row in result_rows if row["name"] == key]
                flops, quality = row["confidence_flops_per_token"], next(iter(row["metric"].values()))
                if cfg.method == "calm":
                    calm_flops[cfg.min_exit_layer] = flops
                fewer = f"{calm_flops[cfg.min_exit_layer] / flops:.1f}x" if pruned else ""
                cells += [f"{quality:.2f}", f"{row['speed_up']:.2f}x", fewer]
            rows.append(cells)
    head = [
        "config",
        "method",
        "p",
        "K",
        "published F1 or ROUGE-L",
        "ours",
        "speed-up",
        "confidence FLOPs below calm",
    ]
    return Table(head, rows)


def published_table() -> Table:
    """All published figures with what is known of how they were measured."""
    head = ["checkpoint", "metric", "method", "confidence", "exits from", "K", "published", "mean exit block"]
    head += ["confidence FLOPs per example"]
    rows = [
        [
            figure.checkpoint,
            f"{figure.task} {figure.metric}",
            figure.method,
            figure.confidence,
            _cell(figure.min_exit_layer),
            _cell(figure.prune_size),
            figure.describe(),
            _cell(figure.mean_exit_block),
            "" if figure.confidence_flops is None else f"{figure.confidence_flops:.3g}",
        ]
        for figure in PUBLISHED
    ]
    return Table(head, rows)


def _cell(value: float | str | None) -> str:
    return "" if value is None else str(value)


def _paper() -> list[Published]:
    """The two figures of the paper that we know. Task, K and value are known; checkpoint and p are inferred.

    With exits from 7 or 19, pre-trained T5-large reaches ROUGE-L 22.7 to 23.8 in the predecessor's files, so 43.1
    is of the fine-tuned model. F1 90.6 is close to the fine-tuned model (89.7 to 90.6) and to the pre-trained one
    with exits from 7 (90.3), so it stands at both. p = 2 fits the paper's 7x fewer confidence FLOPs:
    21 / (3 + 18 * 64 / 32128) if tokens exit near depth 20.
    """
    figure = functools.partial(Published, method="dvp", source="paper", inferred=("checkpoint", "min_exit_layer"))
    return [
        figure(checkpoint=FINETUNED["squad"], task="squad", value=90.6, min_exit_layer=2, prune_size=64),
        figure(checkpoint=PRETRAINED, task="squad", value=90.6, min_exit_layer=7, prune_size=64),
        figure(checkpoint=FINETUNED["samsum"], task="samsum", value=43.1, min_exit_layer=2, prune_size=512),
    ]


def _blog_post() -> list[Published]:
    """Pre-trained with exits from 7, fine-tuned with exits from 2: no pruning, fixed K, decaying K."""
    figures = []
    for checkpoint, task, qualities, flops in (
        (PRETRAINED, "squad", (90.43, 90.29, 87.14), (1.60e12, 3.99e10, 2.17e10)),
        (FINETUNED["squad"], "squad", (89.71, 89.71, 86.60), (1.93e11, 5.22e9, 2.42e9)),
        (PRETRAINED, "samsum", (23.16, 22.95, 22.66), (2.05e13, 4.93e11, 2.76e11)),
        (FINETUNED["samsum"], "samsum", (42.76, 42.79, 41.64), (1.18e13, 6.44e11, 2.25e11)),
    ):
        depth, fixed = (7, 842) if checkpoint == PRETRAINED else (2, 2781)
        prune_sizes: tuple[int | str | None, ...] = (None, fixed, "decaying")
        figures += [
            Published(
                checkpoint=checkpoint,
                task=task,
                value=value,
                method="calm" if prune_size is None else "dvp",
                min_exit_layer=depth,
                prune_size=prune_size,
                source="blog post",
                confidence_flops=cost,
            )
            for prune_size, value, cost in zip(prune_sizes, qualities, flops, strict=True)
        ]
    return figures


def _notebook_exits_from_19() -> list[Published]:
    """Exits from 19: softmax over V, Jensen-Shannon divergence, the latter over a pruned vocabulary."""
    variants = (
        ("calm", "softmax_diff", None),
        ("calm", "jensen_shannon", None),
        ("dvp", "jensen_shannon", "not known"),
    )
    squad, samsum = FINETUNED["squad"], FINETUNED["samsum"]
    figures = []
    for checkpoint, task, qualities, blocks, flops in (
        (PRETRAINED, "squad", (92.446, 91.47, 91.34), (20.56, 19.71, 19.71), (3.02e11, 2.15e11, 5.98e10)),
        (squad, "squad", (90.63, 90.59, 90.59), (19.16, 19.06, 19.06), (1.52e11, 1.43e11, 2.81e9)),
        (PRETRAINED, "samsum", (23.767, 23.649, 23.213), (21.34, 20.35, 20.38), (4.26e12, 2.70e12, 1.04e12)),
        (samsum, "samsum", (43.505, 43.801, 43.787), (21.57, 20.47, 20.47), (2.59e12, 1.95e12, 6.35e11)),
    ):
        figures += [
            Published(
                checkpoint=checkpoint,
                task=task,
                value=value,
                method=method,
                min_exit_layer=19,
                prune_size=prune_size,
                confidence=confidence,
                source="notebook",
                mean_exit_block=block,
                confidence_flops=cost,
            )
            for (method, confidence, prune_size), value, block, cost in zip(
                variants, qualities, blocks, flops, strict=True
            )
        ]
    return figures


def _notebook_first_exits() -> list[Published]:
    """The pre-trained model by first exit depth, softmax over V. Exits from 24 of 24 are the full model."""
    depths = (24, 20, 15, 6, 3, 2)
    figures = []
    for task, values, num_examples in (
        ("squad", (96.07, 96.07, 96.27, 96.27, 69.90, 38.78), 100),
        ("samsum", (21.28, 16.63, 14.90, 20.02, 3.56, 2.67), 3),
    ):
        figure = functools.partial(
            Published, checkpoint=PRETRAINED, task=task, source="notebook", num_examples=num_examples
        )
        figures.append(figure(value=values[0], method="full"))
        figures += [
            figure(value=value, method="calm", min_exit_layer=depth, inferred=("threshold",))
            for depth, value in zip(depths[1:], values[1:], strict=True)
        ]
    return figures


PUBLISHED = (*_paper(), *_blog_post(), *_notebook_exits_from_19(), *_notebook_first_exits())
"""All published figures that we know."""
