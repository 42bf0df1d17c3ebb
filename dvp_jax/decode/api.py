"""The public functions: encode, decode, generate, and teacher-forced logits."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

from dvp_jax.decode.compiling import compiler_options
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.layer_loop import branch_every
from dvp_jax.decode.program import DecodeInputs, DecodeProgram, Encoded, Settings
from dvp_jax.decode.text import batch_bucket, source_bucket
from dvp_jax.decode.token_loop import Decoded, decode_tokens
from dvp_jax.exits.confidence import HIDDEN_MEASURES, LOGIT_MEASURES, MEASURES_BY_CLASSIFIER
from dvp_jax.exits.constraints import make_constraints
from dvp_jax.exits.policy import ExitPolicy
from dvp_jax.exits.sampling import make_sampling
from dvp_jax.exits.thresholds import threshold_schedule
from dvp_jax.t5.backend import backend
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.layers import KeysValues
from dvp_jax.t5.load import Model
from dvp_jax.t5.model import T5, Params
from dvp_jax.t5.sharding import place, place_rows, round_up_rows, to_host
from dvp_jax.t5.stacked import stacking_pays


def generate(model: Model, input_ids: ArrayLike, attention_mask: ArrayLike, cfg: DecodeConfig) -> Decoded:
    """Generates from a batch of sources. Each row is decoded as if it were alone.

    Args:
        model: from `load_model`.
        input_ids: (B, S) integers, padded on any side.
        attention_mask: (B, S), 1 or True; 0 or False at padding.
        cfg: how to decode. Where it samples, row i draws with the seed `cfg.seed + i`.

    Returns:
        `Decoded` with numpy arrays of B rows: tokens, exit_layers (int32) and confidences (float32) of shape
        (B, max_new_tokens), lengths (int32) of shape (B,). The confidence of a token that was read from logits
        that are not finite is NaN.

    Raises:
        ValueError: cfg does not fit the model; wrong shapes or dtypes; ids outside the vocabulary; a mask of
            other values; a row that is all padding.
    """
    decode_policy(model, cfg)  # before the encoder's time is spent
    encoded = encode(model, input_ids, attention_mask)
    rows = np.shape(input_ids)[0]
    return jax.tree.map(lambda x: to_host(x)[:rows], decode(model, encoded, cfg))


def encode(model: Model, input_ids: ArrayLike, attention_mask: ArrayLike, *, rows: int | None = None) -> Encoded:
    """Runs the encoder and projects cross-attention keys and values.

    The batch is padded to a bucket of lengths and to a power of two of rows, or to more rows where the mesh's data
    axis does not divide that. `Encoded.active` marks the real rows.

    Args:
        model: from `load_model`.
        input_ids: (B, S) integers, padded on any side.
        attention_mask: (B, S), 1 or True; 0 or False at padding.
        rows: number of rows to pad to instead, at least B.

    Raises:
        ValueError: wrong shapes or dtypes, ids outside the vocabulary, a mask of other values, a row that is
            all padding.
    """
    ids, mask = _check_source(model.config, input_ids, attention_mask)
    count, length = ids.shape
    padded_rows = round_up_rows(model.mesh, rows or batch_bucket(count))
    padding = ((0, padded_rows - count), (0, source_bucket(length) - length))
    ids, mask = np.pad(ids, padding, constant_values=model.config.pad_token_id), np.pad(mask, padding)
    ids, mask, active = place_rows(model.mesh, (ids, mask, mask.any(axis=1)))
    with model.context():
        return Encoded(_encode(model.config, model.params, ids, mask), ids, mask, active)


@partial(jax.jit, static_argnums=0)
def _encode(
    config: T5Config, params: Params, input_ids: Int[Array, "batch source"], mask: Bool[Array, "batch source"]
) -> list[KeysValues]:
    def keys_values(model: T5) -> list[KeysValues]:
        return model.cross_keys_values(model.encode(input_ids, mask))

    return nn.apply(keys_values, T5(config))({"params": params})


def decode(
    model: Model,
    encoded: Encoded,
    cfg: DecodeConfig,
    thresholds: Float[Array | np.ndarray, "tokens depths"] | None = None,
) -> Decoded:
    """Decodes encoded sources.

    Args:
        model: from `load_model`.
        encoded: from `encode`.
        cfg: how to decode. Where it samples, row i draws with the seed `cfg.seed + i`.
        thresholds: float32 (max_new_tokens, L), of each token and depth, instead of cfg's thresholds: to force
            exits.

    Returns:
        `Decoded` with arrays on the device. It has as many rows as `encoded`; rows that are not active are empty.

    Raises:
        ValueError: cfg does not fit the model, or thresholds has another shape.
    """
    program, inputs = decode_arguments(model, encoded, cfg, thresholds)
    with model.context():
        return decode_tokens(program, inputs)


def lower_decode(
    model: Model, encoded: Encoded, cfg: DecodeConfig, thresholds: Float[Array, "tokens depths"] | None = None
) -> tuple[jax.stages.Lowered, DecodeInputs]:
    """The program of `decode`, to compile and to look at, and the argument of the compiled program.

    Args and Raises as `decode`.
    """
    program, inputs = decode_arguments(model, encoded, cfg, thresholds)
    with model.context():
        return decode_tokens.lower(program, inputs), inputs


def decode_arguments(
    model: Model, encoded: Encoded, cfg: DecodeConfig, thresholds: Array | np.ndarray | None = None
) -> tuple[DecodeProgram, DecodeInputs]:
    """The arguments of the jitted loop. Args and Raises as `decode`."""
    policy = decode_policy(model, cfg)
    num_rows = encoded.active.shape[0]
    settings = row_settings(cfg, model.config, cfg.seed % 2**32 + np.arange(num_rows))
    if thresholds is not None:
        allowed = settings.thresholds.shape[1:]
        if thresholds.shape != allowed:
            raise ValueError(f"thresholds has shape {thresholds.shape}; allowed: {allowed}")
        settings = settings.with_thresholds(thresholds)
    reads_int8 = model.mesh is None and cfg.reads_int8(policy, model.config, backend(), num_rows)
    int8 = model.int8_unembedding if reads_int8 else None
    stacks = model.mesh is None and policy.propagates_state and stacking_pays(backend())
    stacked = model.stacked_keys_values if stacks and policy.first_exit < policy.last_depth else None
    every = cfg.branch_every or branch_every(backend(), policy.last_depth - policy.first_exit)
    options = compiler_options(cfg.capture, policy, backend())
    program = DecodeProgram(model.config, policy, cfg.max_new_tokens, every, options)
    common = None
    if policy.num_recent:
        assert model.common_tokens is not None  # as `decode_policy` checked
        common = place(model.mesh, jnp.asarray(model.common_tokens[: policy.kept_rows]))
    settings = place_rows(model.mesh, settings)
    return program, DecodeInputs(model.params, int8, stacked, encoded, common, settings)


def row_settings(
    cfg: DecodeConfig, config: T5Config, seeds: Int[np.ndarray, " rows"], compiled: DecodeConfig | None = None
) -> Settings:
    """The settings of rows that are all decoded by one config.

    Args:
        cfg: how to decode.
        config: of the model.
        seeds: of each row.
        compiled: the config that the program was compiled for; None for cfg.
    """
    compiled = cfg if compiled is None else compiled
    threshold = cfg.threshold if cfg.thresholds_per_depth is None else cfg.thresholds_per_depth
    num_layers = config.num_decoder_layers
    schedule = threshold_schedule(threshold, cfg.max_new_tokens, num_layers, cfg.decay_temperature)
    unused = compiled.max_new_tokens - cfg.max_new_tokens
    # By numpy: JAX would compile a program for each length.
    thresholds: Any = np.repeat(np.pad(schedule, ((0, unused), (0, 0)))[None], len(seeds), axis=0)
    max_new_tokens: Any = np.full(len(seeds), cfg.max_new_tokens, np.int32)
    sampling = make_sampling(cfg.temperature, cfg.top_k, cfg.top_p, seeds) if compiled.samples else None
    constraints = None
    if compiled.is_constrained:
        constraints = make_constraints(
            cfg.min_new_tokens, cfg.no_repeat_ngram_size, cfg.forced_bos_token_id, len(seeds)
        )
    return Settings(thresholds, max_new_tokens, sampling, constraints)


def decode_policy(model: Model, cfg: DecodeConfig) -> ExitPolicy:
    """The exit policy of cfg on a model.

    Raises:
        ValueError: cfg does not fit the model.
    """
    policy = cfg.policy(model.config.num_decoder_layers, model.config.vocab_size)
    if policy.confidence in MEASURES_BY_CLASSIFIER and "meta" not in model.params:
        others = [name for name in (*LOGIT_MEASURES, *HIDDEN_MEASURES) if name not in MEASURES_BY_CLASSIFIER]
        raise ValueError(
            f"confidence is {policy.confidence!r}, but the model has no meta classifier; "
            f"allowed: {', '.join(others)}, or a model that experiments.finetune_meta wrote"
        )
    if policy.num_recent and (model.common_tokens is None or len(model.common_tokens) < policy.kept_rows):
        had = "none" if model.common_tokens is None else len(model.common_tokens)
        raise ValueError(
            f"prune_rule guesses {policy.kept_rows} tokens, but the model has {had} common tokens; allowed: a "
            "smaller prune_size, or a checkpoint folder with common_tokens.json, which scripts.count_tokens writes"
        )
    if cfg.unembedding == "int8" and model.mesh is not None:
        raise ValueError("unembedding is 'int8'; allowed on a mesh: auto, float")
    return policy


def teacher_forced_logits(
    model: Model, input_ids: ArrayLike, attention_mask: ArrayLike, decoder_input_ids: ArrayLike
) -> Float[Array, "batch target vocab"]:
    """The logits of the last depth for given decoder inputs.

    Args:
        model: from `load_model`.
        input_ids: (B, S) integers.
        attention_mask: (B, S), 1 or True; 0 or False at padding.
        decoder_input_ids: (B, T) integers, the start token first.

    Returns:
        (B, T, V) float32.

    Raises:
        ValueError: wrong shapes or dtypes, or ids outside the vocabulary.
    """
    ids, mask = _check_source(model.config, input_ids, attention_mask)
    targets = _check_ids("decoder_input_ids", decoder_input_ids, model.config.vocab_size)
    if len(targets) != len(ids):
        raise ValueError(f"decoder_input_ids has {len(targets)} rows; allowed: {len(ids)}, as input_ids")
    padding = ((0, round_up_rows(model.mesh, len(ids)) - len(ids)), (0, 0))
    placed = place_rows(model.mesh, tuple(np.pad(x, padding) for x in (ids, mask, targets)))
    with model.context():
        logits = _forward(model.config, model.params, *placed)
    return logits[: len(ids)]


@partial(jax.jit, static_argnums=0)
def _forward(config: T5Config, params: Params, ids: Array, mask: Array, targets: Array) -> Array:
    return nn.apply(lambda model: model(ids, mask, targets), T5(config))({"params": params})


def as_array(name: str, value: ArrayLike) -> np.ndarray:
    """Returns a value as an array.

    Raises:
        ValueError: it is a list of rows that differ in length.
    """
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} has rows of different lengths; allowed: one length") from None


def _check_ids(name: str, value: ArrayLike, vocab_size: int) -> Int[np.ndarray, "rows length"]:
    ids = as_array(name, value)
    if ids.ndim != 2 or 0 in ids.shape or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} has shape {ids.shape} and dtype {ids.dtype}; allowed: (B, S) integers")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(f"{name} spans {ids.min()} to {ids.max()}; allowed: ids from 0 to {vocab_size - 1}")
    return ids.astype(np.int32)


def _check_source(
    config: T5Config, input_ids: ArrayLike, attention_mask: ArrayLike
) -> tuple[Int[np.ndarray, "batch source"], Bool[np.ndarray, "batch source"]]:
    ids = _check_ids("input_ids", input_ids, config.vocab_size)
    mask = as_array("attention_mask", attention_mask)
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask has shape {mask.shape}; allowed: that of input_ids, {ids.shape}")
    if (wrong := np.argwhere((mask != 0) & (mask != 1))).size:
        row, column = wrong[0]
        raise ValueError(f"attention_mask[{row}, {column}] is {mask[row, column]}; allowed: 1, or 0 at padding")
    mask = mask.astype(bool)
    if not mask.any(axis=1).all():
        empty = np.flatnonzero(~mask.any(axis=1)).tolist()
        raise ValueError(f"attention_mask is 0 throughout rows {empty}; allowed: at least one token a row")
    return ids, mask
