"""Pruning rules: which tokens `dvp` keeps at depth p, and at the depths after it.

Shapes are fixed inside `jit`, so a rule says how many rows of the unembedding are gathered at p (`rows`). All of
them are read at every candidate depth after p. Where a row of the batch keeps fewer tokens, the rest is masked:
its logits become -inf, and confidence sees the kept tokens alone.

A rule is a frozen dataclass, part of its policy. A new rule is one class, in your own code if you like:
`DecodeConfig(method="dvp", prune_rule=MyRule(64))`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.exits.vocabulary import Vocabulary
from dvp_jax.t5.top_k import top_k

Kept = Bool[Array, "batch kept"] | None
"""Which of the gathered rows are candidates. None: all of them, at every depth."""


class Hints(NamedTuple):
    """What is known of the next token before its first layer runs. Ids may repeat."""

    source: Int[Array, "batch source"]  # ids of the source; padding is an id, too
    recent: Int[Array, "batch recent"]  # the likeliest ids where the full vocabulary was read last
    common: Int[Array, " common"]  # the commonest ids of some text, the commonest first


@dataclasses.dataclass(frozen=True)
class PruningRule:
    """Keeps the `prune_size` likeliest tokens at p, at every depth after it. The base of every rule.

    A subclass overrides `prune` to choose other tokens at p, `shrink` to drop tokens at deeper depths, and `rows`
    where it gathers fewer than `prune_size` rows.

    Attributes:
        prune_size: K, the most tokens that are kept.
    """

    prune_size: int

    @property
    def num_recent(self) -> int:
        """How many of the likeliest ids to remember where the full vocabulary is read, for `guess`.

        Where it is not 0 the set is guessed before the first layer runs, and W is not read at p.
        """
        return 0

    def guess(self, hints: Hints, vocabulary: Vocabulary) -> Vocabulary:
        """The vocabulary to read at every candidate depth, where `num_recent` is not 0.

        Args:
            hints: at least as many ids as `prune_size`.
            vocabulary: the full one.
        """
        return vocabulary

    def rows(self, prune_layer: int) -> int:
        """How many rows of the unembedding are gathered at p = `prune_layer` and read after it."""
        return self.prune_size

    def prune(self, prune_layer: int, logits: Float[Array, "batch vocab"], vocabulary: Vocabulary) -> Vocabulary:
        """The vocabulary kept at p. To keep fewer tokens in a row, set its `kept`, a mask in the order of `ids`.

        Args:
            prune_layer: p.
            logits: z_p over the full vocabulary.
            vocabulary: the full one.
        """
        return vocabulary.prune(logits, self.rows(prune_layer))

    def shrink(
        self, depth: int, logits: Float[Array, "batch kept"], kept: Kept
    ) -> tuple[Float[Array, "batch kept"], Kept]:
        """Drops tokens at a candidate depth after p.

        Args:
            depth: l > p.
            logits: z_l of the gathered rows, -inf where masked.
            kept: the mask so far.

        Returns:
            The logits to read at this depth, and the mask for deeper ones.
        """
        return logits, kept

    def settings(self) -> dict[str, Any]:
        """The settings of the rule and its name, by their names in `DecodeConfig`."""
        name = next((name for name, kind in RULES.items() if kind is type(self)), type(self).__name__)
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields.pop("num_layers", None)
        return {"prune_rule": name, **fields}


@dataclasses.dataclass(frozen=True)
class Fixed(PruningRule):
    """The K likeliest tokens at p, at every depth after it (DVP, arXiv 2410.18952). This is what the base does."""


@dataclasses.dataclass(frozen=True)
class Mass(PruningRule):
    """The smallest set of tokens whose probability at p reaches `prune_mass`, and at most `prune_size` tokens.

    Probabilities are the softmax over the full vocabulary. Each row of a batch keeps a set of its own size. Not in
    DVP; the set is the nucleus of Holtzman et al. (arXiv 1904.09751), who sample from it.
    """

    prune_mass: float

    def prune(self, prune_layer: int, logits: Array, vocabulary: Vocabulary) -> Vocabulary:
        pruned = super().prune(prune_layer, logits, vocabulary)
        assert pruned.ids is not None
        # Back from ascending ids to the order of likelihood.
        likeliest, indices = top_k(jnp.take_along_axis(logits, pruned.ids, axis=1), self.prune_size)
        probabilities = jnp.exp(likeliest - jax.nn.logsumexp(logits, axis=1, keepdims=True))
        # A token is needed while the tokens before it, without itself, hold less than the mass.
        needed = jnp.cumsum(probabilities, axis=1) - probabilities < self.prune_mass
        return dataclasses.replace(pruned, kept=_mask(indices, needed, self.prune_size))


@dataclasses.dataclass(frozen=True)
class Decay(PruningRule):
    """A set that shrinks with depth, from `prune_size` = K_max at depth 0 to `prune_size_min` = K_min at depth L.

        K_l = max(K_min, K_max / (1 + (K_max - K_min) / K_min * l / L)), rounded down

    This is the law of DVP's published code. At p the full logits z_p choose S_p, the K_p likeliest tokens. At each
    candidate depth l after p the logits z_l of the tokens that are still kept choose S_l, the K_l likeliest of
    them. Confidence at depth l is read from S_l, and the next candidate depth chooses from S_l. A last depth that
    reads the pruned vocabulary counts as a candidate depth.
    """

    prune_size_min: int
    num_layers: int

    def size_at(self, depth: int) -> int:
        """K_l, computed in integers."""
        most, least = self.prune_size, self.prune_size_min
        return max(least, most * least * self.num_layers // (least * self.num_layers + (most - least) * depth))

    def rows(self, prune_layer: int) -> int:
        return self.size_at(prune_layer)

    def prune(self, prune_layer: int, logits: Array, vocabulary: Vocabulary) -> Vocabulary:
        pruned = super().prune(prune_layer, logits, vocabulary)
        assert pruned.ids is not None
        return dataclasses.replace(pruned, kept=jnp.ones(pruned.ids.shape, bool))

    def shrink(self, depth: int, logits: Array, kept: Kept) -> tuple[Array, Kept]:
        _, indices = top_k(logits, self.size_at(depth))
        kept = _mask(indices, True, logits.shape[1])
        return jnp.where(kept, logits, -jnp.inf), kept


@dataclasses.dataclass(frozen=True)
class Recent(PruningRule):
    """A guess, known before the first layer runs: ids of the source, the likeliest ids where the full vocabulary
    was read last, and the commonest ids; `prune_size` in all, fewer where they repeat.

    The unembedding is not read to choose them, so p does not matter. At an exit no other token can be chosen. With
    drafts that the full model verifies this costs no quality. Not in DVP.
    """

    @property
    def num_recent(self) -> int:
        return max(1, self.prune_size // 4)

    def guess(self, hints: Hints, vocabulary: Vocabulary) -> Vocabulary:
        batch = len(hints.source)
        source = hints.source[:, : self.prune_size // 4]
        num_common = self.prune_size - source.shape[1] - self.num_recent
        common = jnp.broadcast_to(hints.common[:num_common], (batch, num_common))
        ids = jnp.sort(jnp.concatenate([source, hints.recent, common], axis=1), axis=1)
        is_first = jnp.concatenate([jnp.ones((batch, 1), bool), ids[:, 1:] != ids[:, :-1]], axis=1)
        rows = jnp.take(vocabulary.rows, ids, axis=0)
        return dataclasses.replace(vocabulary, rows=rows, ids=ids, int8=None, kept=is_first)


RULES: dict[str, type[PruningRule]] = {"fixed": Fixed, "mass": Mass, "decay": Decay, "recent": Recent}
"""The rules that `DecodeConfig.prune_rule` names."""


def _mask(
    indices: Int[Array, "batch some"], values: Bool[Array, "batch some"] | bool, size: int
) -> Bool[Array, "batch size"]:
    """`values` at the given indices of each row, False elsewhere."""
    rows = jnp.arange(len(indices))[:, None]
    return jnp.zeros((len(indices), size), bool).at[rows, indices].set(values)
