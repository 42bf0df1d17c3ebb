"""Generates from one prompt, and shows after how many layers each token exited.

    python -m experiments.generate --model=google-t5/t5-large --prompt="translate English to German: Hello."

With --verbosity=1 it generates twice, and prints to stderr how many seconds loading the model, compiling, and
generating the text took.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from absl import flags, logging

from dvp_jax.data.rows import check_text
from dvp_jax.decode.config import METHODS, DecodeConfig, parse_exit_depths
from dvp_jax.decode.engine import generate_text
from dvp_jax.decode.text import GeneratedText, token_pieces
from dvp_jax.report.table import visible
from dvp_jax.runs import launch
from dvp_jax.t5.load import Model, load_model
from dvp_jax.t5.sharding import make_mesh

_MODEL = flags.DEFINE_string("model", None, "Checkpoint folder or hub id.", required=True)
_PROMPT = flags.DEFINE_string("prompt", None, "The text to read, with the task's prefix.", required=True)
_DTYPE = flags.DEFINE_string("dtype", "float32", "Dtype of the weights: float32 or bfloat16.")
_METHOD = flags.DEFINE_enum("method", "dvp", METHODS, "How to decode.")
_THRESHOLD = flags.DEFINE_float("threshold", 0.9, "The confidence that a token must exceed to exit.")
_MIN_EXIT_LAYER = flags.DEFINE_integer("min_exit_layer", 2, "First depth at which a token may exit.")
_EXIT_DEPTHS = flags.DEFINE_string(
    "exit_depths",
    None,
    "Depths at which a token may exit: 4 for every fourth from min_exit_layer on, 4,8,12 for these. Default: all.",
)
_PRUNE_LAYER = flags.DEFINE_integer("prune_layer", 2, "Depth at which the vocabulary is pruned.")
_PRUNE_SIZE = flags.DEFINE_integer("prune_size", 64, "K, the tokens that are kept.")
_PRUNE_RULE = flags.DEFINE_enum("prune_rule", "fixed", ["fixed", "recent"], "Which tokens are kept.")
_MAX_WAITING = flags.DEFINE_integer("max_waiting", 8, "Drafts that are verified together, for method lossless.")
_STATIC = flags.DEFINE_integer("static_exit_layer", None, "Depth at which every token exits, for method static.")
_MESH = flags.DEFINE_list("mesh", None, "Sizes of the axes data and model of a mesh of devices, such as 4,2.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 64, "The most tokens to generate.")


def main() -> None:
    """Generates, and prints each token with its exit layer and confidence."""
    cfg = DecodeConfig(
        method=_METHOD.value,
        max_new_tokens=_MAX_NEW_TOKENS.value,
        threshold=_THRESHOLD.value,
        min_exit_layer=_MIN_EXIT_LAYER.value,
        exit_depths=parse_exit_depths(_EXIT_DEPTHS.value),
        prune_layer=_PRUNE_LAYER.value,
        prune_size=_PRUNE_SIZE.value,
        prune_rule=_PRUNE_RULE.value,
        max_waiting=_MAX_WAITING.value,
        static_exit_layer=_STATIC.value,
    )
    check_text("prompt", _PROMPT.value)
    sizes: Any = _MESH.value and [int(size) if size.isdigit() else size for size in _MESH.value]
    mesh = make_mesh(sizes)
    start = time.perf_counter()
    model = load_model(_MODEL.value, _DTYPE.value, progress=True, mesh=mesh)
    load_s = time.perf_counter() - start
    (out,), first_s = _generate(model, cfg)
    if logging.get_verbosity() >= logging.DEBUG:
        _, text_s = _generate(model, cfg)  # nothing is compiled any more
        print(
            f"load {load_s:.2f} s, compile {max(first_s - text_s, 0.0):.2f} s, first text {text_s:.2f} s",
            file=sys.stderr,
        )
    print(visible(out.text, lines=True))
    print(f"\n{'token':20} exit layer of {model.config.num_decoder_layers}   confidence")
    assert model.tokenizer is not None  # generate_text has refused a model without one
    pieces = map(visible, token_pieces(model.tokenizer, out.tokens))
    for place, (piece, layer, confidence) in enumerate(zip(pieces, out.exit_layers, out.confidences, strict=True)):
        replaced = "   replaced a draft" if place in out.corrected else ""
        print(f"{piece:20} {layer:10} {confidence:18.3f}{replaced}")
    print(f"{'mean':20} {sum(out.exit_layers) / len(out.exit_layers):10.2f}")
    if cfg.method == "lossless":
        print(f"layers run one after the other, per token {out.layers_run / len(out.tokens):10.2f}")


def _generate(model: Model, cfg: DecodeConfig) -> tuple[list[GeneratedText], float]:
    """The text of the prompt, and the seconds that it took."""
    start = time.perf_counter()
    texts = generate_text(model, [_PROMPT.value], cfg)
    return texts, time.perf_counter() - start


if __name__ == "__main__":
    launch.run(main)
