"""What a decode program is compiled for, and what it reads while it decodes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from dvp_jax.exits.policy import ExitPolicy, Heads
from dvp_jax.exits.vocabulary import Vocabulary
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.int8 import Int8Unembedding
from dvp_jax.t5.layers import KeysValues, rms_norm
from dvp_jax.t5.model import Params, unembedding


@dataclasses.dataclass(frozen=True)
class DecodeProgram:
    """The static key of a compiled decode program, beside the shapes of its arguments.

    Attributes:
        config: of the model.
        policy: after which layer a token exits.
        max_new_tokens: the most tokens to generate.
        branch_every: how many layers run between two questions whether every row has exited.
    """

    config: T5Config
    policy: ExitPolicy
    max_new_tokens: int
    branch_every: int = 1


@struct.dataclass
class Encoded:
    """The sources as the decoder reads them, computed once per request."""

    cross: list[KeysValues]  # cross-attention keys and values of each decoder layer
    mask: Bool[Array, "batch source"]  # False at padding
    active: Bool[Array, " batch"]  # False in rows that only fill the batch


@struct.dataclass
class StackedKeysValues:
    """The self-attention key and value weights of all decoder layers, to propagate a state in one product.

    7 % more memory for T5-large; on a GPU one kernel instead of two for each layer that is skipped.
    """

    weights: Float[Array, "layers 2 inner d_model"]
    scales: Float[Array, "layers d_model"]  # of the norms before self-attention

    def keys_values(
        self, depth: int, hidden: Float[Array, "batch d_model"], config: T5Config
    ) -> Float[Array, "left 2 batch num_heads 1 d_kv"]:
        """Keys and values of the layers after `depth`, from the state h_e that a token exited with."""
        weights, scales = self.weights[depth:], self.scales[depth:]
        ones = jnp.ones_like(hidden[0])
        normed = rms_norm(hidden, ones, config.layer_norm_epsilon)
        scaled = (scales.astype(jnp.float32)[:, None] * hidden).astype(weights.dtype)  # (left, batch, d_model)
        out = jnp.einsum("lbd,lkid->lkbi", scaled, weights, preferred_element_type=jnp.float32) * normed.factor
        heads = out.reshape(*out.shape[:3], config.num_heads, 1, config.d_kv)
        return heads.astype(weights.dtype)


@jax.jit
def stack_keys_values(params: Params) -> StackedKeysValues:
    """The stacked weights of a model."""
    decoder = params["decoder"]
    layers = [decoder[f"layers_{index}"] for index in range(sum(name.startswith("layers_") for name in decoder))]
    pairs = [jnp.stack([layer["self_attention"][name] for name in ("key", "value")]) for layer in layers]
    return StackedKeysValues(jnp.stack(pairs), jnp.stack([layer["self_attention_norm"]["scale"] for layer in layers]))


@struct.dataclass
class DecodeInputs:
    """What a decode program reads and never changes."""

    params: Params
    int8: Int8Unembedding | None  # the copy of the unembedding to read instead of it; None to read it
    stacked: StackedKeysValues | None  # for state propagation in one product; None for a product a layer
    encoded: Encoded
    thresholds: Float[Array, "max_new_tokens num_depths"]  # [t, l - 1]: for the token after t others, at depth l


def full_heads(config: T5Config, params: Params, int8: Int8Unembedding | None = None) -> Heads:
    """What reads a hidden state over the full vocabulary, through the decoder's final norm."""
    vocabulary = Vocabulary(
        rows=unembedding(config, params),
        ids=None,
        norm=params["decoder"]["final_norm"]["scale"],
        int8=int8,
        epsilon=config.layer_norm_epsilon,
        scale=config.logit_scale,
    )
    return Heads(vocabulary, params.get("meta"))
