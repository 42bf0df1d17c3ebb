"""Trains CALM's meta classifier, which predicts whether a depth already agrees with the last one.

The model is frozen. Teacher forcing shows for each token and depth whether the argmax of its logits is that of the
last depth. A linear classifier on norm(h_l), the same for all depths, learns to predict this (CALM, arXiv
2207.07061, section 3).
"""

from __future__ import annotations

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float
from tqdm import tqdm

from dvp_jax.t5.config import T5Config
from dvp_jax.t5.exit_classifier import ExitClassifier
from dvp_jax.t5.layers import linear
from dvp_jax.t5.load import Model
from dvp_jax.t5.model import T5, Params, unembedding
from dvp_jax.train.batches import Batch, Batches, shift_right

LOSSES = ("independent", "geometric")


def agreement(
    config: T5Config, params: Params, batch: Batch
) -> tuple[Float[Array, "depths batch target d_model"], Bool[Array, "depths batch target"]]:
    """Runs the model once with teacher forcing.

    Returns:
        norm(h_l) of the depths 1..L-1, and whether their argmax is that of depth L.
    """

    def readouts(model: T5) -> Array:
        hidden = model.depths(batch.input_ids, batch.mask, shift_right(config, batch.targets))
        return model.readout(jnp.stack(hidden))

    readout = nn.apply(readouts, T5(config))({"params": params})  # [depths, batch, target, d_model]

    def best_tokens(carry: None, readout: Array) -> tuple[None, Array]:
        logits = linear(readout, unembedding(config, params))  # [batch, target, vocab]
        return carry, jnp.argmax(logits, axis=-1)

    _, best = lax.scan(best_tokens, None, readout)  # [depths, batch, target]
    return readout[:-1] / config.logit_scale, best[:-1] == best[-1]


def independent_loss(
    logits: Float[Array, "depths batch target"], agrees: Bool[Array, "depths batch target"]
) -> Float[Array, "batch target"]:
    """Returns the binary cross-entropy of each token, as the mean over depths (CALM's "independent" objective)."""
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, agrees.astype(jnp.float32)), axis=0)


def geometric_loss(
    logits: Float[Array, "depths batch target"], agrees: Bool[Array, "depths batch target"]
) -> Float[Array, "batch target"]:
    """Returns -log of the probability to exit at the first depth that agrees (CALM's "geometric" objective).

    If no depth agrees, it is the probability to exit at none.
    """
    before = jnp.cumsum(agrees, axis=0) == 0  # depths before the first one that agrees
    first = agrees & (jnp.cumsum(agrees, axis=0) == 1)
    return -jnp.sum(before * jax.nn.log_sigmoid(-logits) + first * jax.nn.log_sigmoid(logits), axis=0)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _step(
    config: T5Config,
    optimizer: optax.GradientTransformation,
    loss: str,
    params: Params,
    meta: ExitClassifier,
    state: optax.OptState,
    batch: Batch,
) -> tuple[ExitClassifier, optax.OptState, Array]:
    normed, agrees = agreement(config, params, batch)
    loss_of_token = independent_loss if loss == "independent" else geometric_loss

    def mean_loss(meta: ExitClassifier) -> Array:
        losses = loss_of_token(meta.logit(normed), agrees)
        return jnp.sum(losses * batch.target_mask) / jnp.maximum(jnp.sum(batch.target_mask), 1)

    value, gradient = jax.value_and_grad(mean_loss)(meta)
    updates, state = optimizer.update(gradient, state, meta)
    return optax.apply_updates(meta, updates), state, value


@partial(jax.jit, static_argnums=0)
def _counts(config: T5Config, params: Params, meta: ExitClassifier, batch: Batch) -> Array:
    """Counts for each depth below the last: tokens, tokens that agree, tokens that the classifier is right about.

    Returns:
        Counts of shape [3, depths].
    """
    normed, agrees = agreement(config, params, batch)
    right = (meta.logit(normed) > 0) == agrees
    is_token = jnp.broadcast_to(batch.target_mask, agrees.shape)
    return jnp.stack([jnp.sum(x & is_token, axis=(1, 2)) for x in (is_token, agrees, right)])


def train_meta(
    model: Model, batches: Batches, *, steps: int, loss: str = "independent", learning_rate: float = 1e-2
) -> Model:
    """Trains a meta classifier.

    Args:
        model: the model, which is not changed.
        batches: prompts and labels.
        steps: the number of optimiser steps.
        loss: "independent" or "geometric".
        learning_rate: the learning rate of Adam.

    Returns:
        The model with the classifier, in place of an earlier one.

    Raises:
        ValueError: an unknown loss, steps or learning_rate out of range, a decoder of one layer, or a loss that is
            not finite.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; allowed: {', '.join(LOSSES)}")
    if steps < 1:
        raise ValueError(f"steps is {steps}; allowed: at least 1")
    if not 0.0 < learning_rate < np.inf:
        raise ValueError(f"learning_rate is {learning_rate}; allowed: a finite number above 0")
    if model.config.num_decoder_layers == 1:
        raise ValueError("the decoder has 1 layer; allowed: at least 2, since the last depth always agrees")
    meta = ExitClassifier(jnp.zeros(model.config.d_model), jnp.float32(0.0))
    optimizer = optax.adam(learning_rate)
    state = optimizer.init(meta)
    for step in tqdm(range(1, steps + 1), desc="meta classifier", unit="step"):
        with model.context():
            meta, state, value = _step(
                model.config, optimizer, loss, model.params, meta, state, batches.at(step - 1)
            )
        if not np.isfinite(value):
            raise ValueError(f"step {step}: the loss is {float(value)}; a lower learning_rate may help")
    return dataclasses.replace(model, params={**model.params, "meta": meta})


def validate_meta(model: Model, batches: Batches) -> dict[str, list[float]]:
    """Measures how often each depth agrees with the last one, and how often the classifier is right about it.

    Returns:
        "agreement" and "accuracy", in [0, 1], as lists over the depths 1..L-1.
    """
    meta = model.params["meta"]
    with model.context():
        counts = [np.asarray(_counts(model.config, model.params, meta, batch)) for batch in batches.once()]
    tokens, agree, right = np.sum(counts, axis=0)
    return {"agreement": (agree / tokens).tolist(), "accuracy": (right / tokens).tolist()}
