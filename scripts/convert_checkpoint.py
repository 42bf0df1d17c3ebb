"""Converts a T5 checkpoint between Hugging Face's format and Orbax.

    python scripts/convert_checkpoint.py --source=google-t5/t5-large --output=t5-large-orbax --format=orbax
    python scripts/convert_checkpoint.py --source=t5-large-orbax --output=t5-large-bf16 --dtype=bfloat16

The source is a Hugging Face folder, a folder written by this script, or a hub id. The tokenizer is copied too.
"""

from __future__ import annotations

from absl import flags

from dvp_jax.runs import launch
from dvp_jax.runs.files import write_folder
from dvp_jax.t5.load import FORMATS, load_model, write_model

_SOURCE = flags.DEFINE_string("source", None, "Checkpoint folder or hub id.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write: a new or an empty one.", required=True)
_FORMAT = flags.DEFINE_enum("format", "huggingface", FORMATS, "Format to write.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Dtype to write: float32 or bfloat16.")


def main() -> None:
    """Loads the checkpoint and saves it in the other format."""
    with write_folder(_OUTPUT.value) as folder:
        write_model(folder, load_model(_SOURCE.value, _DTYPE.value, progress=True), _FORMAT.value)


if __name__ == "__main__":
    launch.run(main, compile_cache=False)
