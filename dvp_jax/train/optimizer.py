"""The optimisers and learning-rate schedules of a training run, from optax."""

from __future__ import annotations

import jax
import optax

from dvp_jax.t5.model import Params

OPTIMIZERS = ("adafactor", "adamw")
SCHEDULES = ("constant", "linear", "cosine", "inverse_sqrt")


def make_schedule(schedule: str, learning_rate: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """Makes a schedule of linear warm-up followed by the named decay.

    Args:
        schedule: "constant"; "linear" or "cosine", which reach zero at `steps`; or "inverse_sqrt", with which T5
            was pre-trained (arXiv 1910.10683, section 3.1.2).
        learning_rate: the highest learning rate.
        warmup_steps: the number of steps until it is reached.
        steps: the number of steps of the whole run.
    """
    # At least 1, since a run may end during its warm-up.
    decay_steps = max(steps - warmup_steps, 1)
    decay = {
        "constant": optax.constant_schedule(learning_rate),
        "linear": optax.linear_schedule(learning_rate, 0.0, decay_steps),
        "cosine": optax.cosine_decay_schedule(learning_rate, decay_steps),
        "inverse_sqrt": lambda count: (
            learning_rate * (max(warmup_steps, 1) / (max(warmup_steps, 1) + count)) ** 0.5
        ),
    }[schedule]
    if not warmup_steps:
        return decay
    # Starts at learning_rate / warmup_steps: a rate of 0 would waste the first step.
    warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, warmup_steps - 1)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimizer(
    optimizer: str, schedule: optax.Schedule, *, weight_decay: float, clip_norm: float | None
) -> optax.GradientTransformation:
    """Makes an optimiser that first clips the global norm of the gradient.

    Args:
        optimizer: "adamw", or "adafactor" as T5 uses it: factored second moments, updates relative to the
            parameter's scale, no momentum.
        schedule: the learning rate. For Adafactor it is relative to each parameter's root mean square.
        weight_decay: the weight decay of AdamW, on matrices only. Adafactor has none.
        clip_norm: the largest norm of the gradient; None for no clipping.
    """

    def is_matrix(params: Params) -> Params:
        return jax.tree.map(lambda x: x.ndim > 1, params)

    if optimizer == "adafactor":
        transformation = optax.adafactor(schedule)
    else:
        transformation = optax.adamw(schedule, weight_decay=weight_decay, mask=is_matrix)
    if clip_norm is None:
        return transformation
    return optax.chain(optax.clip_by_global_norm(clip_norm), transformation)
