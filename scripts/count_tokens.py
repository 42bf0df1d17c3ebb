"""Counts the tokens of a text and writes the commonest beside a checkpoint, for `prune_rule="recent"`.

    python -m scripts.count_tokens --model=PATH --text=train.de

Take text as the model generates it, for example the targets that it was trained on. `load_model` reads the file,
common_tokens.json.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from dvp_jax.data.rows import read_lines
from dvp_jax.runs import launch
from dvp_jax.t5.common_tokens import COMMON_TOKENS_FILE, count_tokens, write_common_tokens
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.load import load_tokenizer

_MODEL = flags.DEFINE_string("model", None, "Checkpoint folder with a tokenizer.", required=True)
_TEXT = flags.DEFINE_string("text", None, "Text file, a text in each line.", required=True)
_KEEP = flags.DEFINE_integer("keep", 4096, "How many tokens to write at most.", lower_bound=1)


def main() -> None:
    """Writes common_tokens.json."""
    folder = Path(_MODEL.value)
    lines = [line for line in read_lines(_TEXT.value) if line.strip()]
    config = T5Config.from_folder(folder)
    tokenizer = load_tokenizer(folder, config.vocab_size)
    if tokenizer is None:
        raise ValueError(f"model is {folder}; allowed: a checkpoint folder that holds a tokenizer")
    rows = tokenizer(lines)["input_ids"]
    write_common_tokens(folder, count_tokens(rows, config.vocab_size)[: _KEEP.value], config.vocab_size)
    print(f"{folder / COMMON_TOKENS_FILE}: the commonest tokens of {len(lines)} lines")


if __name__ == "__main__":
    launch.run(main, compile_cache=False)
