"""Checks on a model that settings which must give the same tokens do so."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from dvp_jax.decode.api import generate, row_settings, teacher_forced_logits
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.token_loop import Decoded
from dvp_jax.t5.load import Model


@dataclasses.dataclass(frozen=True)
class Check:
    """Two decodings that must agree.

    Attributes:
        name: which decodings.
        differences: a description of the first difference in each row; empty if they agree.
    """

    name: str
    differences: list[str]


def check_model(
    model: Model,
    input_ids: Int[np.ndarray, "batch source"],
    attention_mask: Bool[np.ndarray, "batch source"],
    cfg: DecodeConfig,
) -> list[Check]:
    """Compares pairs of decodings that must agree on the given prompts.

    Args:
        model: from `load_model`.
        input_ids: token ids of the prompts, padded on the right.
        attention_mask: False at padding.
        cfg: the depths, threshold, K and length to check with. Its method is not used.

    Returns:
        One `Check` for each pair. A decoder of one layer has pairs of "full" only.

    Raises:
        ValueError: cfg does not fit the model.
    """
    layers, vocab = model.config.num_decoder_layers, model.config.vocab_size

    def run(**changes: object) -> Decoded:
        return generate(model, input_ids, attention_mask, dataclasses.replace(cfg, **changes))  # type: ignore[arg-type]

    full = run(method="full")
    checks = [
        Check("full against a greedy teacher-forced pass", _greedy(model, input_ids, attention_mask, cfg, full)),
        Check("static at the last depth = full", _compare(run(method="static", static_exit_layer=layers), full)),
    ]
    batches = {"full": full}
    if layers > 1:  # else no token exits early
        calm, dvp, lossless = (run(method=method) for method in ("calm", "dvp", "lossless"))
        everything = run(method="dvp", prune_size=vocab, prune_rule="fixed")
        checks += [
            Check("calm, threshold 1 = full", _compare(run(method="calm", threshold=1.0), full)),
            Check("dvp, threshold 1 = full", _compare(run(method="dvp", threshold=1.0), full)),
            Check("lossless, tokens = full", _compare(lossless, full, depths=False)),
            Check("dvp, prune_size V = calm", _compare(everything, calm)),
        ]
        batches |= {"calm": calm, "dvp": dvp, "lossless": lossless}
    for method, batch in batches.items():
        branching = _compare(run(method=method, branch_every=3), run(method=method, branch_every=1))
        checks.append(Check(f"{method}, branch_every 3 = 1", branching))
        differences = []
        for row in range(len(input_ids)):
            source = input_ids[row][attention_mask[row]][None]
            alone = generate(model, source, np.ones_like(source), dataclasses.replace(cfg, method=method))
            differences += _compare(_rows(batch, [row]), alone, first_row=row)
        checks.append(Check(f"{method}, each row of the batch = the row alone", differences))
    return checks


def _rows(out: Decoded, rows: list[int]) -> Decoded:
    return Decoded(out.tokens[rows], out.lengths[rows], out.exit_layers[rows], out.confidences[rows])


def _compare(first: Decoded, second: Decoded, first_row: int = 0, depths: bool = True) -> list[str]:
    """Describes the first difference of each row, in tokens or depths. Later ones may follow from it."""
    differences = []
    for row in range(len(first.tokens)):
        unequal = first.tokens[row] != second.tokens[row]
        if depths:
            unequal |= first.exit_layers[row] != second.exit_layers[row]
        if unequal.any():
            t = int(np.argmax(unequal))
            described = [
                f"token {out.tokens[row, t]} at exit {out.exit_layers[row, t]}, "
                f"confidence {out.confidences[row, t]:.6f}"
                for out in (first, second)
            ]
            differences.append(f"row {first_row + row}, position {t}: {described[0]} against {described[1]}")
    return differences


def _greedy(
    model: Model, input_ids: np.ndarray, attention_mask: np.ndarray, cfg: DecodeConfig, full: Decoded
) -> list[str]:
    """Describes where a token of `full` is not the likeliest one after its prefix, in a teacher-forced pass."""
    start = np.full((len(full.tokens), 1), model.config.decoder_start_token_id)
    prefix = np.concatenate([start, full.tokens[:, :-1]], axis=1)
    logits = teacher_forced_logits(model, input_ids, attention_mask, prefix)
    if (constraints := row_settings(cfg, model.config, np.zeros(len(start), int)).constraints) is not None:
        banned = constraints.banned_throughout(model.config, jnp.asarray(full.tokens))
        logits = jnp.where(banned.reshape(logits.shape), -jnp.inf, logits)
    best = np.asarray(jnp.argmax(logits, axis=-1))
    differences = []
    for row, length in enumerate(full.lengths):
        unequal = best[row, :length] != full.tokens[row, :length]
        if unequal.any():
            t = int(np.argmax(unequal))
            pair = logits[row, t, np.array([full.tokens[row, t], best[row, t]])]
            differences.append(
                f"row {row}, position {t}: token {full.tokens[row, t]} against {best[row, t]}, "
                f"logits {pair[0]:.6f} and {pair[1]:.6f}"
            )
    return differences
