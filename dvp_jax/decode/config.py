"""`DecodeConfig`: every knob of decoding, checked, and the exit policy that it names."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvp_jax.exits.confidence import HIDDEN_MEASURES, LOGIT_MEASURES
from dvp_jax.exits.policy import CALM, DVP, HiddenCALM, Oracle, Static
from dvp_jax.exits.pruning import Decay, Fixed, Mass, PruningRule
from dvp_jax.t5.int8 import screening_pays

METHODS = ("full", "static", "calm", "dvp", "shallow_deep", "oracle")
CONFIDENCES = (*LOGIT_MEASURES, *HIDDEN_MEASURES)
PRUNE_RULES = ("fixed", "mass", "decay")
FINAL_VOCABS = ("full", "pruned")
ORACLE_STATES = ("own", "full")
SCREENS = ("auto", "none", "int8")
LAYER_LOOPS = ("auto", "while", "cond")

WAITING = {"shallow_deep": 8}
"""How many tokens at most wait to be caught up with where the config does not say; 1 for other methods."""


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How to decode. Greedy; batches in which every row exits by itself.

    `threshold`, `thresholds_per_depth` and `decay_temperature` are data: changing them never recompiles. All else
    is structure.

    Attributes:
        method: "full" runs every layer; "static" stops after `static_exit_layer`; "calm" exits at the first
            depth whose confidence over the whole vocabulary exceeds the threshold; "dvp" reads that
            confidence from the `prune_size` likeliest tokens of depth `prune_layer`; "shallow_deep" asks at
            `min_exit_layer` only and runs the other layers later, for several tokens together (FREE); "oracle"
            exits at the first depth whose likeliest token is the full model's, a bound for analysis that runs
            every layer.
        max_new_tokens: tokens to generate at most, the end token counted.
        threshold: in [0, 1]; a confidence must exceed it, so 1 never exits.
        thresholds_per_depth: instead of `threshold`, one for each depth 1..L (experiments.thresholds finds
            them); that of L has no effect.
        min_exit_layer: first depth (layers run) at which a token may leave.
        prune_layer: depth p at which "dvp" chooses the kept tokens; at most min_exit_layer.
        prune_size: K, how many tokens "dvp" keeps, at most.
        prune_rule: how many: "fixed" K; "mass" the fewest that hold the probability `prune_mass` at p, at most K;
            "decay" fewer with depth, from K towards `prune_size_min` (`dvp_jax.exits.pruning`).
        prune_mass: of "mass", in (0, 1].
        prune_size_min: of "decay", from 1 to K.
        confidence: the confidence measure: "softmax_diff" (best minus second probability), "softmax_max" (best
            probability) and "entropy" (1 minus the normalised entropy) read logits; "state" (cosine of a depth's
            state and the one before) and "meta" (a classifier, which the model must have) do not, and so leave
            "dvp" nothing to prune.
        static_exit_layer: the depth of "static".
        final_vocab: what "dvp" reads a token from that reached the last depth: the "full" vocabulary, as
            published, or the "pruned" one.
        decay_temperature: None for a constant threshold, else CALM's decay over the output.
        max_waiting: how many tokens may wait until the layers that they left out catch up with them, side by side:
            for "calm" and "dvp" with their keys and values (deferred state propagation; None or 1: at once), for
            "shallow_deep" with the layers themselves (None: 8). The tokens are the same.
        oracle_states: what later tokens of "oracle" attend to: the states of its "own" exits, propagated, or
            those of the "full" model.
        screen: how the whole vocabulary is read: "none" multiplies with the unembedding; "int8" finds the
            likeliest tokens through an int8 copy of it, for a quarter of the bytes and provably the same ones,
            and sums the tail of the softmax, for confidence and for `prune_mass`, from that copy
            (docs/performance.md bounds the error). "auto": "int8" for "dvp" where it was measured to be faster.
        layer_loop: "while" is a `lax.while_loop` over depth, "cond" an unrolled chain of `lax.cond`; the
            tokens are the same. "auto" takes the one that was measured to be faster on the backend.
    """

    method: str = "dvp"
    max_new_tokens: int = 64
    threshold: float = 0.9
    thresholds_per_depth: tuple[float, ...] | None = None
    min_exit_layer: int = 2
    prune_layer: int = 2
    prune_size: int = 64
    prune_rule: str = "fixed"
    prune_mass: float | None = None
    prune_size_min: int | None = None
    confidence: str = "softmax_diff"
    static_exit_layer: int | None = None
    final_vocab: str = "full"
    decay_temperature: float | None = None
    max_waiting: int | None = None
    oracle_states: str = "own"
    screen: str = "auto"
    layer_loop: str = "auto"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("method", METHODS),
            ("confidence", CONFIDENCES),
            ("prune_rule", PRUNE_RULES),
            ("final_vocab", FINAL_VOCABS),
            ("oracle_states", ORACLE_STATES),
            ("screen", SCREENS),
            ("layer_loop", LAYER_LOOPS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        for name in ("max_new_tokens", "min_exit_layer", "prune_layer", "prune_size"):
            _check_integer(name, getattr(self, name), 1, None)
        if not _is_number(self.threshold) or not 0.0 <= self.threshold <= 1.0:  # NaN fails too
            raise ValueError(f"threshold is {self.threshold!r}; allowed: a number from 0 to 1")
        self._check_thresholds_per_depth()
        decay = self.decay_temperature
        if decay is not None and not (_is_number(decay) and math.isfinite(decay) and decay >= 0.0):
            raise ValueError(f"decay_temperature is {decay!r}; allowed: None or a number of at least 0")
        self._check_pruning()
        if self.method == "static" and self.static_exit_layer is None:
            raise ValueError("static_exit_layer is None; allowed with method 'static': a depth of at least 1")
        if self.static_exit_layer is not None:
            _check_integer("static_exit_layer", self.static_exit_layer, 1, None)
        if self.max_waiting is not None:
            _check_integer("max_waiting", self.max_waiting, 1, None)
        if self.method == "dvp" and self.confidence not in LOGIT_MEASURES:
            raise ValueError(
                f"confidence is {self.confidence!r}; allowed with method 'dvp', which prunes what a measure of "
                f"logits reads: {', '.join(LOGIT_MEASURES)}"
            )
        if self.method == "dvp" and self.prune_layer > self.min_exit_layer:
            raise ValueError(
                f"prune_layer is {self.prune_layer}; allowed: at most min_exit_layer, {self.min_exit_layer}"
            )

    def _check_thresholds_per_depth(self) -> None:
        values = self.thresholds_per_depth
        if values is None:
            return
        if isinstance(values, list):  # as JSON has it
            values = tuple(values)
            object.__setattr__(self, "thresholds_per_depth", values)
        if not isinstance(values, tuple) or not all(_is_number(x) and 0.0 <= x <= 1.0 for x in values):
            raise ValueError(f"thresholds_per_depth is {values!r}; allowed: None or numbers from 0 to 1")

    def _check_pruning(self) -> None:
        mass, least = self.prune_mass, self.prune_size_min
        if mass is not None and not (_is_number(mass) and 0.0 < mass <= 1.0):
            raise ValueError(f"prune_mass is {mass!r}; allowed: a number above 0, to 1")
        if least is not None:
            _check_integer("prune_size_min", least, 1, None)
            if least > self.prune_size:
                raise ValueError(f"prune_size_min is {least}; allowed: at most prune_size, {self.prune_size}")
        for rule, name, needed in (
            ("mass", "prune_mass", "a number above 0, to 1"),
            ("decay", "prune_size_min", "an integer from 1 to prune_size"),
        ):
            if self.prune_rule == rule and getattr(self, name) is None:
                raise ValueError(f"{name} is None; prune_rule {rule!r} needs {needed}")

    @property
    def window(self) -> int:
        """How many tokens are caught up with together, this one counted."""
        if self.method not in ("calm", "dvp", "shallow_deep"):
            return 1  # no layer is left out
        return WAITING.get(self.method, 1) if self.max_waiting is None else self.max_waiting

    def screens(self, backend: str, batch: int) -> bool:
        """Whether the whole vocabulary is read through an int8 copy of the unembedding."""
        auto = self.screen == "auto" and self.method == "dvp" and screening_pays(backend, batch)
        return auto or self.screen == "int8"

    def policy(self, num_layers: int, vocab_size: int) -> Static:
        """The exit policy of this config on a decoder of `num_layers` layers: the one branch on the method.

        Raises:
            ValueError: a depth or the prune size is beyond the model, or thresholds_per_depth has another length.
        """
        per_depth = self.thresholds_per_depth
        if per_depth is not None and len(per_depth) != num_layers:
            raise ValueError(
                f"thresholds_per_depth has {len(per_depth)} values; allowed: {num_layers}, one for each layer of "
                "this model"
            )
        if self.method == "full":
            return Static(num_layers, self.confidence)
        if self.method == "static":
            assert self.static_exit_layer is not None
            _check_integer("static_exit_layer", self.static_exit_layer, 1, num_layers)
            return Static(self.static_exit_layer, self.confidence)
        if self.method == "dvp":
            _check_integer("prune_layer", self.prune_layer, 1, num_layers - 1)
        together = self.method == "shallow_deep"
        _check_integer("min_exit_layer", self.min_exit_layer, 1, num_layers - together)
        if self.method == "oracle":
            return Oracle(num_layers, self.confidence, self.min_exit_layer, self.oracle_states)
        if self.method in ("calm", "shallow_deep"):
            kind = CALM if self.confidence in LOGIT_MEASURES else HiddenCALM
            return kind(num_layers, self.confidence, self.min_exit_layer, all_or_none=together)
        _check_integer("prune_size", self.prune_size, 1, vocab_size)
        return DVP(
            num_layers,
            self.confidence,
            self.min_exit_layer,
            self.prune_layer,
            self._pruning_rule(num_layers),
            self.final_vocab,
        )

    def _pruning_rule(self, num_layers: int) -> PruningRule:
        if self.prune_rule == "mass":
            assert self.prune_mass is not None
            return Mass(self.prune_size, self.prune_mass)
        if self.prune_rule == "decay":
            assert self.prune_size_min is not None
            return Decay(self.prune_size, self.prune_size_min, num_layers)
        return Fixed(self.prune_size)


def make_config(fields: Mapping[str, Any], where: str) -> DecodeConfig:
    """A config from its fields by name; those that are not there keep their defaults.

    Args:
        fields: of `DecodeConfig`.
        where: what the fields belong to, for the error.

    Raises:
        ValueError: a field that there is not, or an impossible value.
    """
    allowed = [field.name for field in dataclasses.fields(DecodeConfig)]
    if unknown := [name for name in fields if name not in allowed]:
        raise ValueError(f"{where} has no {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    return DecodeConfig(**fields)


def load_decode_config(path: str | Path) -> DecodeConfig:
    """The config in a JSON file, under "config", as `experiments.select` writes it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, no "config", a field that there is not, or an impossible value.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise ValueError(f'{path} has no "config"; allowed: an object with the fields of DecodeConfig')
    return make_config(content["config"], f"{path}: config")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_integer(name: str, value: Any, least: int, most: int | None) -> None:
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integer or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most} for this model"
        raise ValueError(f"{name} is {value!r}; allowed: an integer {bounds}")
