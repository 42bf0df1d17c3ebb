"""Where pruning fails: tokens whose full-model choice is not among the K that were kept at depth p."""

from __future__ import annotations

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
from dvp_jax.analysis.tokens import Sources, TokenTable
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.text import GeneratedText
from dvp_jax.metrics.bootstrap import rate_interval

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OUTCOMES = ("another token", "the same token", "already another text")
"""What the pruned decoder did at such a token: see `outcome`."""
CONTEXT = 12
"""Tokens shown before a failure."""


def token_groups(table: TokenTable, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[str]]:
    """The group of each token in several respects: kind, letter case, how common, place; "" where it has none."""
    pieces = tokenizer.convert_ids_to_tokens(table.token.tolist())
    special = tokenizer.convert_ids_to_tokens(tokenizer.all_special_ids)
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
    """How often tokens of each group fail, with 95 % intervals from resampling texts.

    Args:
        failed: of each token.
        table: of the tokens.
        groups: of each token, in several respects.

    Returns:
        Rows of "by" (the respect), "group", "failures", "tokens", "rate", "low", "high"; all tokens first.
    """
    rows = []
    for by, names in {"all": ["all"] * len(failed), **groups}.items():
        labels = np.array(names)
        for group in sorted(set(labels.tolist()) - {""}, key=_order):
            mine = labels == group
            texts = int(table.text[-1]) + 1
            hits = np.bincount(table.text[mine & failed], minlength=texts)
            tokens = np.bincount(table.text[mine], minlength=texts)
            interval = rate_interval(hits, tokens)._asdict()
            counts = {"failures": int(hits.sum()), "tokens": int(tokens.sum())}
            rows.append({"by": by, "group": group, **counts, **interval})
    return rows


def _order(group: str) -> tuple[int, str]:
    """Kinds as listed, numbers by size."""
    if group in KINDS:
        return KINDS.index(group), group
    return (int(group.split()[0]), group) if group[0].isdigit() else (0, group)


def outcome(full: Sequence[int], pruned: Sequence[int], position: int) -> str:
    """What the pruned decoder produced at a token of the full model's text.

    Args:
        full: tokens of the full model's text.
        pruned: tokens of the pruned decoder's text of the same source.
        position: of the token in the first.

    Returns:
        "another token": the texts part here. "the same token": it was produced all the same, at the last depth,
        which reads the whole vocabulary. "already another text": they parted before, so nothing can be said.
    """
    same = 0
    while same < min(len(full), len(pruned)) and full[same] == pruned[same]:
        same += 1
    if position < same:
        return "the same token"
    return "another token" if position == same else "already another text"


def failure_report(
    table: TokenTable,
    cfg: DecodeConfig,
    pruned: Sequence[GeneratedText],
    sources: Sources,
) -> dict[str, Any]:
    """Rates, outcomes and every case of the tokens that pruning at p to K leaves out.

    Args:
        table: of the full model's own texts.
        cfg: of the pruned decoder; gives p and K.
        pruned: what that decoder wrote of each source.
        sources: of the texts.

    Returns:
        "prune_layer", "prune_size", "threshold", "tokens", "texts", "failures", the "rates" of groups, counts of
        "outcomes" and the "cases": id of the example, position, the text before, the token (and its kind and
        1-based rank at p), what was produced instead at which exit, and the outcome.
    """
    ranks = table.ranks[:, cfg.prune_layer - 1]
    failed = ranks >= cfg.prune_size
    tokenizer = sources.tokenizer
    groups = token_groups(table, tokenizer)
    starts = np.flatnonzero(table.position == 0)
    full = [tokens.tolist() for tokens in np.split(table.token, starts[1:])]
    cases = []
    for row in np.flatnonzero(failed).tolist():
        text, position = int(table.text[row]), int(table.position[row])
        what = outcome(full[text], pruned[text].tokens, position)
        parted = what == "already another text"
        cases.append(
            {
                "id": sources.examples[text].id,
                "position": position,
                "before": tokenizer.decode(full[text][max(position - CONTEXT, 0) : position]),
                "token": tokenizer.convert_ids_to_tokens(full[text][position]),
                "kind": groups["kind"][row],
                "rank": int(ranks[row]) + 1,
                "outcome": what,
                "produced": None if parted else tokenizer.convert_ids_to_tokens(pruned[text].tokens[position]),
                "exit_layer": None if parted else pruned[text].exit_layers[position],
                "full_text": tokenizer.decode(full[text], skip_special_tokens=True),
                "pruned_text": pruned[text].text,
            }
        )
    outcomes = Counter(case["outcome"] for case in cases)
    return {
        "prune_layer": cfg.prune_layer,
        "prune_size": cfg.prune_size,
        "threshold": cfg.threshold,
        "tokens": len(failed),
        "texts": len(full),
        "failures": len(cases),
        "rates": failure_rates(failed, table, groups),
        "outcomes": {what: outcomes[what] for what in OUTCOMES},
        "cases": cases,
    }


def failure_table(report: Mapping[str, Any], examples: int) -> str:
    """A `failure_report` as Markdown: rates, outcomes and the first cases in which the texts part."""
    lines = ["| tokens | failures | of | rate, % | 95 % interval |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in report["rates"]:
        name = row["group"] if row["by"] == "all" else f"{row['by']}: {row['group']}"
        low, rate, high = (100 * row[end] for end in ("low", "rate", "high"))
        lines.append(f"| {name} | {row['failures']} | {row['tokens']} | {rate:.2f} | {low:.2f} to {high:.2f} |")
    lines += ["", "Produced instead: " + ", ".join(f"{what} {n}" for what, n in report["outcomes"].items()) + "."]
    shown = [case for case in report["cases"] if case["outcome"] == OUTCOMES[0]][:examples]
    if shown:
        lines += ["", "| example | text so far | full model | rank at p | pruned | exit |"]
        lines += ["| --- | --- | --- | ---: | --- | ---: |"]
    for case in shown:
        cells = [case["id"], case["before"], case["token"], case["rank"], case["produced"], case["exit_layer"]]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)
