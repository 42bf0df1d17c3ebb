"""finetune_multi30k.py made larger: a T5 that translates well enough to judge early exit by it.

    python -m experiments.finetune --config=experiments/configs/finetune_multi30k_larger.py \
        --workdir=runs/finetune_multi30k_larger

Result: BLEU 35.15 on test_2016_flickr, the first table of "What it does on real text" in docs/results.md. It sees
each sentence 8.8 times, in 70 minutes on two CPU cores, which had other work for a part of it (jax 0.11.2). Its
log is docs/finetune_multi30k_larger.jsonl. The data set is given as for finetune_multi30k.py.
"""

from ml_collections import ConfigDict

from experiments.configs import finetune_multi30k


def get_config() -> ConfigDict:
    """The config."""
    config = finetune_multi30k.get_config()
    config.shape.update(vocab_size=8000, d_model=256, d_kv=64, d_ff=1024)
    config.train.update(
        steps=4000,
        batch_size=64,
        dropout_rate=0.1,
        label_smoothing=0.1,
        dtype="bfloat16",
        warmup_steps=300,
        checkpoint_every=500,
    )
    return config
