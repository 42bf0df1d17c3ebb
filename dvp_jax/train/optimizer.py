"""Optimisers and learning rates, from optax."""

from __future__ import annotations

import jax
import optax

from dvp_jax.t5.model import Params

OPTIMIZERS = ("adafactor", "adamw")
SCHEDULES = ("constant", "linear", "cosine", "inverse_sqrt")


def make_schedule(schedule: str, learning_rate: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """Linear warm-up to `learning_rate`, then the named decay.

    Args:
        schedule: "constant"; "linear" or "cosine" to zero at `steps`; "inverse_sqrt", T5's own for pretraining.
        learning_rate: the highest.
        warmup_steps: steps until it is reached.
        steps: of the whole run.
    """
    # At least 1: a run may end within its warm-up, or with it.
    rest = max(steps - warmup_steps, 1)
    decay = {
        "constant": optax.constant_schedule(learning_rate),
        "linear": optax.linear_schedule(learning_rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(learning_rate, rest),
        "inverse_sqrt": lambda count: (
            learning_rate * (max(warmup_steps, 1) / (max(warmup_steps, 1) + count)) ** 0.5
        ),
    }[schedule]
    if not warmup_steps:
        return decay
    # From 1 / warmup_steps, since a rate of 0 wastes the first step.
    warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, warmup_steps - 1)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimizer(
    optimizer: str, schedule: optax.Schedule, *, weight_decay: float, clip_norm: float | None
) -> optax.GradientTransformation:
    """The named optimiser behind clipping of the whole gradient's norm.

    Args:
        optimizer: "adafactor" as T5 uses it (factored second moments, updates relative to the parameter's scale,
            no momentum), or "adamw".
        schedule: the learning rate; for Adafactor relative to each parameter's root mean square.
        weight_decay: of AdamW, on matrices only; Adafactor takes none.
        clip_norm: of the gradient, None for no clipping.
    """

    def matrices(params: Params) -> Params:
        return jax.tree.map(lambda x: x.ndim > 1, params)

    if optimizer == "adafactor":
        chosen = optax.adafactor(schedule)
    else:
        chosen = optax.adamw(schedule, weight_decay=weight_decay, mask=matrices)
    return chosen if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), chosen)
