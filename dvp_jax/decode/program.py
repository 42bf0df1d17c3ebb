"""What a decode program is compiled for, and what it reads while it decodes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.exits.constraints import Constraints
from dvp_jax.exits.policy import ExitPolicy, Heads
from dvp_jax.exits.pruning import Hints
from dvp_jax.exits.sampling import Sampling
from dvp_jax.exits.vocabulary import Vocabulary
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.int8 import Int8Unembedding
from dvp_jax.t5.layers import KeysValues
from dvp_jax.t5.model import Params, unembedding
from dvp_jax.t5.stacked import StackedKeysValues

CompilerOptions = tuple[tuple[str, str | int], ...]
"""XLA's options by name."""


@dataclasses.dataclass(frozen=True)
class DecodeProgram:
    """The static key of a compiled decode program, beside the shapes of its arguments.

    Attributes:
        config: of the model.
        policy: after which layer a token exits.
        max_new_tokens: the most tokens to generate.
        branch_every: how many layers run between two questions whether every row has exited.
        compiler_options: for XLA.
    """

    config: T5Config
    policy: ExitPolicy
    max_new_tokens: int
    branch_every: int = 1
    compiler_options: CompilerOptions = ()


@struct.dataclass
class Encoded:
    """The sources as the decoder reads them, computed once per request."""

    cross: list[KeysValues]  # cross-attention keys and values of each decoder layer
    ids: Int[Array, "batch source"]
    mask: Bool[Array, "batch source"]  # False at padding
    active: Bool[Array, " batch"]  # False in rows that only fill the batch


@struct.dataclass
class Settings:
    """The settings that each row has for itself. Arrays are data: other values never recompile."""

    thresholds: Float[Array, "batch max_new_tokens num_depths"]  # [b, t, l - 1]: after t tokens, at depth l
    max_new_tokens: Int[Array, " batch"]  # at most that of the program
    sampling: Sampling | None  # None: every row takes the likeliest token
    constraints: Constraints | None  # None: any token may stand at any place

    def with_thresholds(self, thresholds: Float[Array | np.ndarray, "max_new_tokens num_depths"]) -> Settings:
        """These thresholds in every row, to force exits."""
        rows = len(self.max_new_tokens)
        # By numpy where they are numpy's, as `dvp_jax.decode.api.row_settings` does.
        repeated: Any = thresholds[None].repeat(rows, axis=0)
        return dataclasses.replace(self, thresholds=repeated)


@struct.dataclass
class DecodeInputs:
    """What a decode program reads and never changes."""

    params: Params
    int8: Int8Unembedding | None  # the copy of the unembedding to read instead of it; None to read it
    stacked: StackedKeysValues | None  # for state propagation in one product; None for a product a layer
    encoded: Encoded
    common: Int[Array, " common"] | None  # the commonest tokens, for a rule that guesses; else None
    settings: Settings


def full_heads(
    config: T5Config,
    params: Params,
    int8: Int8Unembedding | None = None,
    banned: Bool[Array, "batch vocab"] | None = None,
) -> Heads:
    """What reads a hidden state over the full vocabulary, through the decoder's final norm."""
    vocabulary = Vocabulary(
        rows=unembedding(config, params),
        ids=None,
        norm=params["decoder"]["final_norm"]["scale"],
        int8=int8,
        epsilon=config.layer_norm_epsilon,
        scale=config.logit_scale,
        banned=banned,
    )
    return Heads(vocabulary, params.get("meta"))


def heads_at(
    program: DecodeProgram,
    inputs: DecodeInputs,
    text: Int[Array, "batch max_new_tokens"],
    places: Int[Array, "batch some"],
) -> Heads:
    """What reads tokens at places of each row's text over the full vocabulary: batch * some rows.

    Args:
        program: model and policy.
        inputs: parameters and settings.
        text: tokens of each row. At a place those before it count.
        places: 0 is that of the first token.
    """
    config, constraints, sampling = program.config, inputs.settings.constraints, inputs.settings.sampling
    banned = None if constraints is None else constraints.banned(config, text, places)
    heads = full_heads(config, inputs.params, inputs.int8, banned)
    return heads if sampling is None else heads._replace(draws=sampling.draws(places, config.vocab_size))


def heads_of(
    program: DecodeProgram,
    inputs: DecodeInputs,
    text: Int[Array, "batch max_new_tokens"],
    lengths: Int[Array, " batch"],
    recent: Int[Array, "batch recent"] | None,
) -> tuple[Heads, Heads]:
    """What reads the next token of each row: over the full vocabulary, and up to the depth that prunes it.

    The two are the same unless the policy guesses.

    Args:
        program: model and policy.
        inputs: parameters and settings.
        text: tokens of each row.
        lengths: how many of them it has so far.
        recent: likeliest ids where the full vocabulary was read last, for a guess.
    """
    full = heads_at(program, inputs, text, lengths[:, None])
    if recent is None or inputs.common is None:
        return full, full
    hints = Hints(inputs.encoded.ids, recent, inputs.common)
    return full, full._replace(vocabulary=program.policy.guess(hints, full.vocabulary))
