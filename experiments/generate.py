"""Generates from prompts, and shows after how many layers each token exited.

    python -m experiments.generate --model=google-t5/t5-large --prompt="translate English to German: Hello."

The text of one prompt appears as it is decoded; on a terminal with colours, blue tokens exited early and red ones
late. A table of its tokens follows. --prompts=FILE reads a prompt from each line, and --json writes a line of JSON
for each text. With --verbosity=1 it generates twice, and prints to stderr how many seconds loading the model,
compiling, and generating the texts took.

Where a flag is not given, the checkpoint's generation_config.json (or config.json, where there is none) counts
before the default. A warning names what it sets.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from dvp_jax.data.rows import read_lines
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.engine import Engine, generate_text
from dvp_jax.decode.text import GeneratedText, check_text, token_pieces, token_rows
from dvp_jax.report.table import visible
from dvp_jax.runs import launch
from dvp_jax.t5.load import Model, load_model
from dvp_jax.t5.sharding import make_mesh
from experiments.decode_flags import define_decode_flags

_MODEL = flags.DEFINE_string("model", None, "Checkpoint folder or hub id.", required=True)
_PROMPT = flags.DEFINE_string("prompt", None, "The text to read, with the task's prefix.")
_PROMPTS = flags.DEFINE_string("prompts", None, "A file with a prompt in each line, instead of --prompt.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Dtype of the weights: float32 or bfloat16.")
_MESH = flags.DEFINE_list("mesh", None, "Sizes of the axes data and model of a mesh of devices, such as 4,2.")
_SEQUENCES = flags.DEFINE_integer("num_return_sequences", 1, "Texts for each prompt, with a temperature above 0.")
_JSON = flags.DEFINE_bool("json", False, "Write a line of JSON for each text.")
_PLAIN = flags.DEFINE_bool("plain", False, "Write no colours. There are none in a pipe or file, in any case.")
_config = define_decode_flags()

_COLOURS = (33, 39, 43, 78, 148, 214, 208, 196)
"""Of the terminal's 256 colours: from blue, for the first layers, to red, for the last one."""


def main() -> None:
    """Generates and prints."""
    _config()  # a bad flag is said before the model is loaded
    prompts = _prompts()
    sizes: Any = _MESH.value and [int(size) if size.isdigit() else size for size in _MESH.value]
    mesh = make_mesh(sizes)
    start = time.perf_counter()
    model = load_model(_MODEL.value, _DTYPE.value, progress=True, mesh=mesh)
    load_s = time.perf_counter() - start
    cfg = _config(model.generation_config)
    streams = len(prompts) == 1 and _SEQUENCES.value == 1 and not _JSON.value and mesh is None
    first_s = 0.0
    if logging.get_verbosity() >= logging.DEBUG:
        start = time.perf_counter()
        if streams:
            _stream(model, prompts[0], cfg, show=False)
        else:
            _generate(model, prompts, cfg)
        first_s = time.perf_counter() - start
    start = time.perf_counter()
    texts = [_stream(model, prompts[0], cfg)] if streams else _generate(model, prompts, cfg)
    texts_s = time.perf_counter() - start
    if first_s:
        print(
            f"load {load_s:.2f} s, compile {max(first_s - texts_s, 0.0):.2f} s, first text {texts_s:.2f} s",
            file=sys.stderr,
        )
    for index, text in enumerate(texts):
        if _JSON.value:
            print(json.dumps({"prompt": prompts[index // _SEQUENCES.value], **dataclasses.asdict(text)}))
            continue
        if not streams:
            print(visible(text.text, lines=True))
        if len(texts) == 1:
            _print_tokens(model, cfg, text)


def _prompts() -> list[str]:
    """The prompts of the flags. Raises ValueError where one is no text, or not exactly one flag is given."""
    prompt, path = _PROMPT.value, _PROMPTS.value
    if prompt is not None and path is None:
        return [check_text("prompt", prompt)]
    if path is not None and prompt is None:
        lines = enumerate(read_lines(path, may_be_pipe=True), start=1)
        return [check_text(f"{path}, line {number}", line) for number, line in lines]
    given = "none is given" if prompt is None else "both are given"
    raise ValueError(f"of prompt and prompts {given}; allowed: one of them")


def _generate(model: Model, prompts: Sequence[str], cfg: DecodeConfig) -> list[GeneratedText]:
    return generate_text(model, prompts, cfg, num_return_sequences=_SEQUENCES.value)


def _stream(model: Model, prompt: str, cfg: DecodeConfig, *, show: bool = True) -> GeneratedText:
    """Generates one text, and shows it as it comes."""
    if model.tokenizer is None:
        raise ValueError("model.tokenizer is None; allowed: a checkpoint folder that holds a tokenizer")
    (ids,) = token_rows(model.tokenizer, [prompt], 512, "prompts")
    whole = None
    for piece in Engine(model, cfg, slots=1).stream(ids):
        whole = piece.whole
        if show:
            layer = round(statistics.fmean(piece.exit_layers))  # drafts come several at a time
            print(_coloured(visible(piece.text, lines=True), layer, model), end="", flush=True)
    if show:
        print()
    assert whole is not None  # the last piece has it
    return whole


def _coloured(text: str, exit_layer: int, model: Model) -> str:
    """A text in the colour of an exit layer, where the terminal has colours."""
    if _PLAIN.value or not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    colour = _COLOURS[(exit_layer - 1) * (len(_COLOURS) - 1) // max(1, model.config.num_decoder_layers - 1)]
    return f"\033[38;5;{colour}m{text}\033[0m"


def _print_tokens(model: Model, cfg: DecodeConfig, out: GeneratedText) -> None:
    """Prints each token with its exit layer and confidence."""
    print(f"\n{'token':20} exit layer of {model.config.num_decoder_layers}   confidence")
    assert model.tokenizer is not None  # a model without one was refused
    pieces = map(visible, token_pieces(model.tokenizer, out.tokens))
    for place, (piece, layer, confidence) in enumerate(zip(pieces, out.exit_layers, out.confidences, strict=True)):
        replaced = "   replaced a draft" if place in out.corrected else ""
        print(f"{_coloured(f'{piece:20}', layer, model)} {layer:10} {confidence:18.3f}{replaced}")
    print(f"{'mean':20} {sum(out.exit_layers) / len(out.exit_layers):10.2f}")
    if cfg.method == "lossless":
        print(f"layers run one after the other, per token {out.layers_run / len(out.tokens):10.2f}")


if __name__ == "__main__":
    launch.run(main)
