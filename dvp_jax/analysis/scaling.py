"""How the cost of confidence, and the K that it needs, depend on the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dvp_jax.analysis.ranks import COVERAGE, size_for_coverage
from dvp_jax.analysis.tokens import TokenTable
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.exits.cost import paper_confidence_flops, unembedding_flops
from dvp_jax.t5.config import T5Config


def scaling_rows(timed: Sequence[Mapping[str, Any]], config: T5Config) -> list[dict[str, Any]]:
    """Time and FLOPs of confidence of every method but `static`, which asks for none.

    Args:
        timed: rows of "method", "depth" (where every token leaves), "prune_size", "screened" (the whole
            vocabulary is read from an int8 copy) and "ms_per_token"; one is `static` at the same depth,
            unscreened. Candidates and p are `DecodeConfig`'s own.
        config: the shape that was timed.

    Returns:
        Rows of "vocab_size", "method" (with what it reads, if not W), "exit_layer", "prune_size" (None without
        pruning), "ms_per_token", "confidence_ms_per_token" beyond `static`, "confidence_flops_per_token" as the
        paper counts them and "unembedding_flops_per_token" of products beyond the single one of `static`.

    Raises:
        ValueError: no row is `static`.
    """
    static = next((row for row in timed if row["method"] == "static"), None)
    if static is None:
        raise ValueError("timed has no row whose method is 'static'; allowed: one, to take off")
    rows = []
    for row in timed:
        if row["method"] == "static":
            continue
        cfg = DecodeConfig(method=row["method"], prune_size=row["prune_size"])
        policy = cfg.policy(config.num_decoder_layers, config.vocab_size)
        exit_layer = np.array(row["depth"])
        read = 2.0 * config.d_model * config.vocab_size
        rows.append(
            {
                "vocab_size": config.vocab_size,
                "method": f"{row['method']}, int8 copy" if row["screened"] else row["method"],
                "exit_layer": row["depth"],
                "prune_size": row["prune_size"] if row["method"] == "dvp" else None,
                "ms_per_token": row["ms_per_token"],
                "confidence_ms_per_token": row["ms_per_token"] - static["ms_per_token"],
                "confidence_flops_per_token": float(paper_confidence_flops(exit_layer, policy, config)),
                "unembedding_flops_per_token": float(unembedding_flops(exit_layer, policy, config)) - read,
            }
        )
    return rows


def scaling_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """`scaling_rows` of several vocabularies as a Markdown table."""
    lines = [
        "| vocabulary | method | ms/token | of confidence | confidence FLOPs/token | unembedding FLOPs/token |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        times = f"{row['ms_per_token']:.2f} | {row['confidence_ms_per_token']:.2f}"
        flops = f"{row['confidence_flops_per_token']:.3g} | {row['unembedding_flops_per_token']:.3g}"
        lines.append(f"| {row['vocab_size']:,} | {row['method']} | {times} | {flops} |")
    return "\n".join(lines)


def coverage_rows(table: TokenTable, prune_layers: Iterable[int], vocab_size: int) -> list[dict[str, Any]]:
    """The K that keeps `COVERAGE` of the full model's choices at each depth p.

    Args:
        table: of the full model's own texts.
        prune_layers: values of p; each is reported once.
        vocab_size: of the model.
    """
    return [
        {
            "prune_layer": layer,
            "coverage": COVERAGE,
            "prune_size": size_for_coverage(table.ranks[:, layer - 1], COVERAGE),
            "vocab_size": vocab_size,
            "tokens": len(table.token),
        }
        for layer in sorted(set(prune_layers))
    ]


def coverage_table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """`coverage_rows` of several tasks as a Markdown table."""
    lines = [f"| task | p | K for {COVERAGE:.0%} | of | tokens seen |", "| --- | ---: | ---: | ---: | ---: |"]
    for task, of_task in rows.items():
        for row in of_task:
            cells = [row[name] for name in ("prune_layer", "prune_size", "vocab_size", "tokens")]
            lines.append("| " + " | ".join(map(str, [task, *cells])) + " |")
    return "\n".join(lines)
