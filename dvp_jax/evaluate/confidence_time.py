"""How long confidence takes: a text is decoded again, as it was, with nothing asked.

Operations within a compiled program cannot be timed one by one. So the same tokens exit at the same layers once
more, by a policy that takes both from data, and the difference is the time of confidence. As in the published code
(DVP, `time_confidence`), that is all that is read at the depths that are asked, from the norm to the softmax, with
the top-k and the gather of pruning. It includes the logits at the exit, which give the token its id, but not those
of tokens that reach the last depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dvp_jax.decode.api import decode_policy
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.exits.confidence import LOGIT_MEASURES
from dvp_jax.exits.policy import ExitDecision, ExitPolicy, Heads, LayerOutput
from dvp_jax.exits.thresholds import NEVER
from dvp_jax.t5.backend import backend
from dvp_jax.t5.load import Model


@dataclasses.dataclass(frozen=True)
class Replay(ExitPolicy):
    """Exits where the thresholds of `replay_thresholds` say, with the token that they say.

    Nothing is read before the last depth. There the logits are computed as `replayed` does, for their time.

    Attributes:
        replayed: the policy that decoded the text.
    """

    replayed: ExitPolicy = dataclasses.field(kw_only=True)

    @property
    def first_exit(self) -> int:
        return self.replayed.first_exit

    @property
    def candidates(self) -> Sequence[int]:
        return [*self.replayed.candidates, self.last_depth]

    def decide(self, output: LayerOutput, threshold: Array, heads: Heads) -> ExitDecision:
        exits = output.active & (threshold < 0)
        token = jnp.where(exits, -1 - threshold, 0).astype(jnp.int32)
        return ExitDecision(exits, token, jnp.zeros(exits.shape), heads.vocabulary.kept)

    def read_final(self, output: LayerOutput, full: Heads, heads: Heads) -> ExitDecision:
        return self.replayed.read_final(output, full, heads)


def replay_config(model: Model, cfg: DecodeConfig) -> DecodeConfig | None:
    """The config that decodes a text again, one text at a time, with `replay_thresholds`.

    Args:
        model: that decoded the text.
        cfg: how it was decoded.

    Returns:
        None where the time of confidence cannot be told apart: no depth is asked, the measure is not of logits,
        skipped layers run later, tokens are drawn or may not stand at some place, or the last depth reads the kept
        tokens.

    Raises:
        ValueError: cfg does not fit the model.
    """
    policy = decode_policy(model, cfg)
    asks = policy.uses_threshold and policy.confidence in LOGIT_MEASURES and policy.loop == "early_exit"
    if not asks or cfg.samples or cfg.is_constrained or getattr(policy, "final_vocab", "full") != "full":
        return None
    replay = Replay(policy.num_layers, policy.confidence, replayed=policy)
    reads_int8 = model.mesh is None and cfg.reads_int8(policy, model.config, backend(), 1)
    unembedding = "int8" if reads_int8 else "float"
    return dataclasses.replace(cfg, method=replay, unembedding=unembedding)


def replay_thresholds(
    tokens: Sequence[int], exit_layers: Sequence[int], max_new_tokens: int, num_layers: int
) -> Float[np.ndarray, "max_new_tokens depths"]:
    """The thresholds, float32, that tell `Replay` a text: -1 - id where a token exits, and NEVER elsewhere.

    Args:
        tokens: ids of the text.
        exit_layers: layers run, of each token.
        max_new_tokens: of the config.
        num_layers: decoder layers of the model, L.
    """
    thresholds = np.full((max_new_tokens, num_layers), NEVER, np.float32)
    thresholds[np.arange(len(tokens)), np.asarray(exit_layers, int) - 1] = -1 - np.asarray(tokens, int)
    return thresholds
