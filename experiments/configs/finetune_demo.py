"""Trains the demo's model from scratch: 4 encoder and 14 decoder layers, made-up questions and dialogues.

The loss is over four depths, since over all of them the large vocabulary would take most of the time. Depths
between them learn to predict too. scripts/make_demo.py runs this and exports the model; with --only_data it makes
the texts and the tokenizer alone. To train the shipped model further instead:

    python scripts/make_demo.py --workdir=runs/make_demo --only_data
    python -m experiments.finetune --config=experiments/configs/finetune_demo.py --workdir=runs/finetune_demo \
        --config.model=dvp_jax/demo/model --config.train.steps=50
"""

from ml_collections import ConfigDict

from experiments.configs.common import finetuning

VOCAB_SIZE = 16_384
"""As much as eight decoder layers, so that reading the vocabulary weighs as it does in models of ordinary size."""


def get_config(data: str = "runs/make_demo/data") -> ConfigDict:
    """The config.

    Args:
        data: the folder of the texts.
    """

    lengths = {"max_source_length": 128, "max_new_tokens": 40}

    def tasks(split: str) -> dict[str, dict[str, object]]:
        return {
            "squad": {"path": f"{data}/squad_{split}.json", **lengths},
            "samsum": {"path": f"{data}/samsum_{split}.csv", **lengths},
        }

    config = finetuning(
        shape={
            "vocab_size": VOCAB_SIZE,
            "d_model": 128,
            "d_kv": 32,
            "d_ff": 512,
            "num_heads": 4,
            "num_layers": 4,
            "num_decoder_layers": 14,
            "dropout_rate": 0.0,
        },
        tasks=tasks("train"),
        validation_tasks=tasks("validation"),
        train={
            "steps": 5600,
            "batch_size": 32,
            "loss": "layers",
            "loss_layers": (1, 3, 6, 14),
            "optimizer": "adafactor",
            "learning_rate": 1e-2,
            "schedule": "cosine",
            "warmup_steps": 200,
            "checkpoint_every": 200,
        },
    )
    config.tokenizer = f"{data}/tokenizer"
    return config
