"""Checks on your own model that decodings which must agree do agree, and prints the differences.

    python -m experiments.check --model=CHECKPOINT --prompt="translate English to German: Hello."

The exit status is 1 if anything differs. A difference is no error if its confidence is within 1e-5 of the
threshold, or if its two logits are within 1e-5 of each other: there rounding decides.
"""

from __future__ import annotations

import numpy as np
from absl import flags

from dvp_jax.decode.text import tokenize
from dvp_jax.evaluate.check import check_model
from dvp_jax.runs import launch
from dvp_jax.t5.load import load_model
from experiments.decode_flags import define_decode_flags

_MODEL = flags.DEFINE_string("model", None, "Checkpoint folder or hub id.", required=True)
_PROMPTS = flags.DEFINE_multi_string("prompt", None, "A prompt. Repeat the flag for several. Default: random ids.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Dtype of the weights: float32 or bfloat16.")
_OTHERS = ("method", "thresholds_per_depth", "decay_temperature", "final_vocab")
"""Settings that the checks make themselves, or with which a threshold of 1 would not be that of the full model."""
_config = define_decode_flags(
    without=(*_OTHERS, "temperature", "top_k", "top_p", "seed"), threshold=0.5, max_new_tokens=32
)


def main() -> int:
    """Runs all checks and prints the outcome of each."""
    cfg = _config()
    model = load_model(_MODEL.value, _DTYPE.value, progress=True)
    if _PROMPTS.value:
        ids, mask = tokenize(model, _PROMPTS.value, 512)
    else:
        rng = np.random.default_rng(0)
        lengths = np.array([5, 12, 27, 9])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.where(mask, rng.integers(3, model.config.vocab_size, mask.shape), model.config.pad_token_id)
    checks = check_model(model, ids, mask, cfg)
    for check in checks:
        print(f"{'differs' if check.differences else 'same':8} {check.name}")
        for difference in check.differences:
            print(f"         {difference}")
    return int(any(check.differences for check in checks))


if __name__ == "__main__":
    launch.run(main)
