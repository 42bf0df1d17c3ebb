"""Trains the demo's model from scratch: 4 encoder and 8 decoder layers, made-up questions and dialogues.

CALM's anytime loss is over all depths, with more weight on deeper ones. scripts/make_demo.py runs this
and exports the model; with --only_data it only makes the texts. To train the shipped model further instead:

    python scripts/make_demo.py --workdir=runs/make_demo --only_data
    python -m experiments.finetune --config=experiments/configs/finetune_demo.py --workdir=runs/finetune_demo \
        --config.model=dvp_jax/demo/model --config.train.steps=50
"""

from ml_collections import ConfigDict

from experiments.configs.common import finetuning


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

    return finetuning(
        shape={
            "vocab_size": 5500,
            "d_model": 128,
            "d_kv": 32,
            "d_ff": 512,
            "num_heads": 4,
            "num_layers": 4,
            "num_decoder_layers": 8,
            "dropout_rate": 0.0,
        },
        tasks=tasks("train"),
        validation_tasks=tasks("validation"),
        train={
            "steps": 6000,
            "batch_size": 32,
            "loss": "weighted",
            "optimizer": "adafactor",
            "learning_rate": 1e-2,
            "schedule": "cosine",
            "warmup_steps": 200,
            "checkpoint_every": 250,
        },
    )
