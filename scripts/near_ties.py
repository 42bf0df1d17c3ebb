"""Are the texts of `lossless` those of `full`? Counts the texts that differ, and shows the tie each begins with.

    python -m scripts.near_ties --model=CHECKPOINT --text=test_2016_flickr.en --dtype=bfloat16 \
        --prefix="translate English to German: "

A device may round the products of several rows otherwise than those of one. Two tokens that are nearly as likely
can then change places. Where two texts differ first, this prints the gap between the logits of the two tokens,
with the same weights in float32, and the share of all tokens of `full` whose best two are as near.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dvp_jax.data.rows import read_lines
from dvp_jax.decode.api import teacher_forced_logits
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.engine import Engine
from dvp_jax.decode.text import pad_rows, source_bucket, token_rows
from dvp_jax.report.table import Table
from dvp_jax.runs import launch
from dvp_jax.t5.load import Model, load_model

_MODEL = flags.DEFINE_string("model", None, "Checkpoint folder with a tokenizer.", required=True)
_TEXT = flags.DEFINE_string("text", None, "Text file, a source in each line.", required=True)
_PREFIX = flags.DEFINE_string("prefix", "", "What comes before each source.")
_LIMIT = flags.DEFINE_integer("limit", 200, "How many lines to decode.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Dtype of the weights.")
_THRESHOLD = flags.DEFINE_float("threshold", 0.5, "Threshold of the drafts.")
_MAX_WAITING = flags.DEFINE_integer("max_waiting", 8, "Drafts that are verified together.", lower_bound=1)
_SLOTS = flags.DEFINE_integer("slots", 1, "Rows decoded together.", lower_bound=1)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 64, "The most tokens to generate.", lower_bound=1)

Tokens = list[int]


def decode_all(model: Model, sources: Sequence[Tokens], method: str) -> list[Tokens]:
    """The tokens of each source."""
    cfg = DecodeConfig(
        method=method,
        threshold=_THRESHOLD.value,
        min_exit_layer=2,
        max_waiting=_MAX_WAITING.value,
        max_new_tokens=_MAX_NEW_TOKENS.value,
    )
    results = Engine(model, cfg, slots=_SLOTS.value).run(sources, in_order=True)
    return [result.output.tokens for result in results if result.output is not None]


def next_logits(model: Model, source: Tokens, text: Tokens) -> np.ndarray:
    """(tokens, V) logits that each token of a text was chosen by."""
    start = [model.config.decoder_start_token_id, *text[:-1]]
    length = _MAX_NEW_TOKENS.value  # of all texts, so that few programs are compiled
    pad = model.config.pad_token_id
    ids, mask = pad_rows([source], 1, source_bucket(len(source)), pad)
    targets, _ = pad_rows([start], 1, length, pad)
    return np.asarray(teacher_forced_logits(model, ids, mask, targets))[0, : len(text)]


def main() -> None:
    """Prints the texts that differ, and a summary."""
    lines = read_lines(_TEXT.value)[: _LIMIT.value]
    model = load_model(_MODEL.value, _DTYPE.value)
    if model.tokenizer is None:
        raise ValueError(f"model is {_MODEL.value}; allowed: a checkpoint folder that holds a tokenizer")
    sources = token_rows(model.tokenizer, [_PREFIX.value + line for line in lines], 512, "sources")
    full, lossless = (decode_all(model, sources, method) for method in ("full", "lossless"))
    exact = dataclasses.replace(model, params=jax.tree.map(lambda x: x.astype(jnp.float32), model.params))
    logits = [next_logits(exact, source, text) for source, text in zip(sources, full, strict=True)]
    best_two = [np.sort(rows, axis=1)[:, -2:] for rows in logits]
    gaps = np.concatenate([best[:, 1] - best[:, 0] for best in best_two])
    rows = []
    for number, (ours, theirs) in enumerate(zip(lossless, full, strict=True)):
        if ours == theirs:
            continue
        place = next(i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1])
        gap = abs(float(logits[number][place, ours[place]] - logits[number][place, theirs[place]]))
        pieces = model.tokenizer.convert_ids_to_tokens([theirs[place], ours[place]])
        share = f"{100 * (gaps <= gap).mean():.2f} %"
        rows.append([str(number + 1), str(place + 1), *pieces, f"{gap:.4f}", share])
    head = ["line", "token", "full", "lossless", "gap", "tokens as near"]
    if rows:
        print(Table(head, rows).markdown() + "\n")
    median = f"the median gap of all {len(gaps)} tokens is {np.median(gaps):.2f}"
    print(f"{len(rows)} of {len(full)} texts differ; {median}")


if __name__ == "__main__":
    launch.run(main)
