"""Which tokens does pruning lose? Those whose full-model choice is not among the K kept at depth p."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from dvp_jax.analysis.kinds import (
    KINDS,
    frequency_deciles,
    letter_cases,
    marks_words,
    position_groups,
    token_kinds,
)
from dvp_jax.analysis.run import Answer, TaskTexts
from dvp_jax.analysis.tokens import FULL_VOCABULARY, Sources, TokenTable
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.text import GeneratedText, decode_tokens, token_pieces
from dvp_jax.metrics.bootstrap import rate_interval
from dvp_jax.report import plots
from dvp_jax.report.table import Section, Table
from dvp_jax.runs.files import file_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OUTCOMES = ("another token", "the same token", "already another text")
"""What the pruned decoder did at a lost token; see `outcome`."""
CONTEXT = 12
"""How many tokens before a lost token are shown."""


@dataclasses.dataclass(frozen=True)
class Failures:
    """The question for `run_analysis`: failures.json, and a plot for each task and dvp method.

    Attributes:
        examples: how many lost tokens to show for each method.
    """

    examples: int

    name = "failures"
    title = "What pruning loses"
    only = "dvp"

    def answer(self, texts: TaskTexts) -> Answer:
        table = texts.table(texts.full_model(), FULL_VOCABULARY)
        data, sections = {}, []
        for name, cfg in texts.methods.items():
            report = failure_report(table, cfg, texts.decode(cfg), texts.sources)
            plot = texts.workdir / f"failures_{texts.task.name}_{file_name(name)}.svg"
            plots.failure_rates(report, plot)
            caption = "Share of tokens that pruning loses, with 95 % intervals"
            content = failure_content(report, self.examples)
            data[name] = report
            sections.append(Section(f"{texts.task.name}, {name}", content, [(caption, plot)]))
        return Answer(data, sections)


def failure_report(
    table: TokenTable, cfg: DecodeConfig, pruned: Sequence[GeneratedText], sources: Sources
) -> dict[str, Any]:
    """Reports the tokens that pruning at depth p to K tokens loses.

    Args:
        table: the tokens of the full model's texts.
        cfg: settings of the pruned decoder; gives p and K.
        pruned: the text that this decoder generated for each source.
        sources: the sources of the texts.

    Returns:
        "prune_layer", "prune_size" and "threshold" of cfg; "tokens", "texts" and "failures" (how many there are);
        "rates" (see `failure_rates`); "outcomes" (how often each of `OUTCOMES` happened) and "cases" (each lost
        token, see `_case`).
    """
    ranks = table.ranks[:, cfg.prune_layer - 1]  # (tokens,)
    failed = ranks >= cfg.prune_size
    groups = token_groups(table, sources.tokenizer)
    text_starts = np.flatnonzero(table.position == 0)
    full = [tokens.tolist() for tokens in np.split(table.token, text_starts[1:])]
    cases = []
    for row in np.flatnonzero(failed).tolist():
        text, position = int(table.text[row]), int(table.position[row])
        case = _case(sources.tokenizer, full[text], pruned[text], position, groups["kind"][row], int(ranks[row]))
        cases.append({"id": sources.examples[text].id, **case})
    outcomes = Counter(case["outcome"] for case in cases)
    return {
        "prune_layer": cfg.prune_layer,
        "prune_size": cfg.prune_size,
        "threshold": cfg.threshold,
        "tokens": len(failed),
        "texts": len(full),
        "failures": len(cases),
        "rates": failure_rates(failed, table, groups),
        "outcomes": {name: outcomes[name] for name in OUTCOMES},
        "cases": cases,
    }


def _case(
    tokenizer: PreTrainedTokenizerBase,
    full: list[int],
    pruned: GeneratedText,
    position: int,
    kind: str,
    rank: int,
) -> dict[str, Any]:
    """A lost token with the text before it, and what the pruned decoder produced instead at which exit layer.

    "rank" is 1 for the likeliest token. "produced" and "exit_layer" are None if the texts had parted before.
    """
    result = outcome(full, pruned.tokens, position)
    parted = result == "already another text"
    return {
        "position": position,
        "before": decode_tokens(tokenizer, full[max(position - CONTEXT, 0) : position]),
        "token": token_pieces(tokenizer, [full[position]])[0],
        "kind": kind,
        "rank": rank + 1,
        "outcome": result,
        "produced": None if parted else token_pieces(tokenizer, [pruned.tokens[position]])[0],
        "exit_layer": None if parted else pruned.exit_layers[position],
        "full_text": decode_tokens(tokenizer, full, skip_special_tokens=True),
        "pruned_text": pruned.text,
    }


def outcome(full: Sequence[int], pruned: Sequence[int], position: int) -> str:
    """Says what the pruned decoder did at a token of the full model's text.

    Args:
        full: token ids of the full model's text.
        pruned: token ids of the pruned decoder's text for the same source.
        position: position of the token in `full`.

    Returns:
        "another token": the texts part at this token. "the same token": the pruned decoder produced it all the
        same, at the last depth, which reads the full vocabulary. "already another text": the texts parted before,
        so that their tokens cannot be compared.
    """
    common = 0  # length of the common prefix
    while common < min(len(full), len(pruned)) and full[common] == pruned[common]:
        common += 1
    if position < common:
        return "the same token"
    return "another token" if position == common else "already another text"


def token_groups(table: TokenTable, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[str]]:
    """Groups tokens by kind, letter case, frequency and position.

    Returns:
        For each of these, the name of every token's group; "" for tokens without one.
    """
    pieces = token_pieces(tokenizer, table.token.tolist())
    without_piece = set(table.token.tolist()) - set(tokenizer.get_vocab().values())
    special = token_pieces(tokenizer, [*tokenizer.all_special_ids, *without_piece])
    marked, end = marks_words(tokenizer), str(tokenizer.eos_token)
    kinds: list[str] = []
    for text in np.split(np.array(pieces, object), np.flatnonzero(np.diff(table.text)) + 1):
        kinds += token_kinds(text.tolist(), marked=marked, end=end, special=special)
    return {
        "kind": kinds,
        "letters": letter_cases(pieces, kinds),
        "frequency decile": [str(decile) for decile in frequency_deciles(table.token)],
        "position": position_groups(table.position),
    }


def failure_rates(
    failed: Bool[np.ndarray, " tokens"], table: TokenTable, groups: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Computes how often tokens of each group are lost, with 95 % intervals from resampling texts.

    Args:
        failed: whether each token is lost.
        table: the tokens.
        groups: from `token_groups`.

    Returns:
        Rows of "by" (what the tokens are grouped by), "group", "failures", "tokens", "rate", "low" and "high". The
        first row is about all tokens.
    """
    num_texts = int(table.text[-1]) + 1
    rows = []
    for by, names in {"all": ["all"] * len(failed), **groups}.items():
        labels = np.array(names)
        for group in sorted(set(labels.tolist()) - {""}, key=_order):
            in_group = labels == group
            hits = np.bincount(table.text[in_group & failed], minlength=num_texts)  # (texts,)
            tokens = np.bincount(table.text[in_group], minlength=num_texts)  # (texts,)
            counts = {"failures": int(hits.sum()), "tokens": int(tokens.sum())}
            rows.append({"by": by, "group": group, **counts, **rate_interval(hits, tokens)._asdict()})
    return rows


def _order(group: str) -> tuple[int, str]:
    """Sorts kinds as `KINDS` does, and numbers by size."""
    if group in KINDS:
        return KINDS.index(group), group
    return (int(group.split()[0]), group) if group[0].isdigit() else (0, group)


def failure_content(report: Mapping[str, Any], examples: int) -> list[str | Table]:
    """Shows a `failure_report`: its rates, its outcomes, and the first cases in which the texts part.

    Args:
        report: from `failure_report`.
        examples: how many cases to show at most.
    """
    rates = []
    for row in report["rates"]:
        name = row["group"] if row["by"] == "all" else f"{row['by']}: {row['group']}"
        low, rate, high = (100 * row[field] for field in ("low", "rate", "high"))
        rates.append([name, str(row["failures"]), str(row["tokens"]), f"{rate:.2f}", f"{low:.2f} to {high:.2f}"])
    outcomes = ", ".join(f"{name} {count}" for name, count in report["outcomes"].items())
    content: list[str | Table] = [
        Table(["tokens", "failures", "of", "rate, %", "95 % interval"], rates),
        f"Produced instead: {outcomes}.",
    ]
    fields = ("id", "before", "token", "rank", "produced", "exit_layer")
    parting = [case for case in report["cases"] if case["outcome"] == OUTCOMES[0]][:examples]
    if parting:
        head = ["example", "text so far", "full model", "rank at p", "pruned", "exit"]
        content.append(Table(head, [[str(case[field]) for field in fields] for case in parting]))
    return content
