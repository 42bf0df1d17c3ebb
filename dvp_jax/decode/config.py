"""`DecodeConfig`: every setting of decoding, checked, and the exit policy that it names."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvp_jax.exits.confidence import HIDDEN_MEASURES, LOGIT_MEASURES
from dvp_jax.exits.policy import CALM, DVP, ExitPolicy, Full, Lossless, Oracle, ShallowDeep, Static, check_integer
from dvp_jax.exits.pruning import RULES, PruningRule
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.int8 import copy_pays, int8_pays

POLICIES: dict[str, type[ExitPolicy]] = {
    "full": Full,
    "static": Static,
    "calm": CALM,
    "dvp": DVP,
    "lossless": Lossless,
    "shallow_deep": ShallowDeep,
    "oracle": Oracle,
}
"""The exit policy that each method names. Their fields are filled from the fields of `DecodeConfig` by name."""

METHODS = tuple(POLICIES)
CONFIDENCES = (*LOGIT_MEASURES, *HIDDEN_MEASURES)
FINAL_VOCABS = ("full", "pruned")
ORACLE_STATES = ("own", "full")
UNEMBEDDINGS = ("auto", "float", "int8")

_ANY_DEPTH = sys.maxsize
"""A number of layers that every setting fits."""
_ANY_RANK = 2**31 - 1
"""A top_k that every vocabulary fits."""


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How to decode, in batches whose rows exit independently.

    `threshold`, `thresholds_per_depth` and `decay_temperature` are data: changing them never recompiles. All other
    fields are structure, but for those of sampling.

    Attributes:
        method: "full" runs every layer. "static" exits after `static_exit_layer`. "calm" exits at the first depth
            whose confidence over the full vocabulary exceeds the threshold. "dvp" reads that confidence from the
            `prune_size` likeliest tokens of depth `prune_layer`. "lossless" exits as "dvp" with drafts, which the
            full model confirms or replaces, several side by side: its tokens are those of "full". "shallow_deep"
            asks at `min_exit_layer` only and runs the other layers later, for several tokens together (FREE).
            "oracle" exits at the first depth whose likeliest token is the full model's: a bound, for analysis. Or
            an `ExitPolicy` of your own.
        max_new_tokens: the most tokens to generate, the end token included.
        threshold: in [0, 1]. A confidence must exceed it, so 1 never exits.
        thresholds_per_depth: instead of `threshold`, one for each depth 1..L (`experiments.thresholds` finds
            them). The one of L has no effect.
        min_exit_layer: first depth (layers run) at which a token may exit.
        exit_depths: depths at which "calm", "dvp" and "oracle" may exit before the last one; no confidence is
            computed elsewhere. None: every depth from `min_exit_layer` on. An integer n: every n-th from there.
            A tuple: these, whatever `min_exit_layer` is. The last depth need not be named.
        prune_layer: depth p at which "dvp" chooses the kept tokens; at most the first depth that may exit.
        prune_size: K, the most tokens that "dvp" keeps. None, with "lossless" only: drafts are read from the full
            vocabulary, as "calm" reads.
        prune_rule: which tokens it keeps. "fixed": the K likeliest. "mass": the fewest that hold the probability
            `prune_mass` at p, at most K. "decay": fewer with depth, from K towards `prune_size_min`. "recent": a
            guess before the first layer runs, for which the model must have common tokens. Or a `PruningRule` of
            your own.
        prune_mass: for "mass", in (0, 1].
        prune_size_min: for "decay", from 1 to K.
        confidence: the confidence measure. "softmax_diff" (best minus second probability), "softmax_max" (best
            probability) and "entropy" (1 minus the normalised entropy) read logits. "state" (cosine of a depth's
            hidden state and the one before) and "meta" (a classifier, which the model must have) read the hidden
            state, so that "dvp" has nothing to prune for them.
        static_exit_layer: the depth of "static".
        final_vocab: what "dvp" reads a token from that reached the last depth: the "full" vocabulary, as
            published, or the "pruned" one.
        decay_temperature: None for a constant threshold, else that of CALM's decaying threshold.
        max_waiting: for "lossless" and "shallow_deep": the most tokens that run the skipped layers together.
            Tokens are the same.
        oracle_states: what later tokens of "oracle" attend to: the states of its "own" exits, propagated, or
            those of the "full" model.
        temperature: 0 takes the likeliest token. Above 0 each token is drawn from the distribution that it exits
            with, softmax(logits / temperature): over the full vocabulary or the kept tokens. "lossless" draws what
            "full" draws. Changed above 0 it never recompiles, nor do `top_k`, `top_p` and `seed`.
        top_k: draws from that many of the likeliest tokens only. None: from all.
        top_p: then from the fewest of the likeliest that hold this probability, in (0, 1]. None: from all.
        seed: of the first request; the others count on from it. A request's draws depend on its seed alone.
        min_new_tokens: how many tokens precede the end token at least, up to `max_new_tokens`.
        no_repeat_ngram_size: n, so that no n tokens stand twice in a text. 0: they may.
        forced_bos_token_id: the first token of every text, such as a language's. None: any.
        branch_every: the fewest layers between two branches that skip the layers which are left. Outputs
            are the same. None takes what the backend needs (`dvp_jax.decode.layer_loop.branch_every`).
        capture: whether a GPU runs the token loop as one CUDA graph. None: where that form has run on a device
            (`dvp_jax.decode.compiling.compiler_options`). Outputs are the same.
        unembedding: how the full vocabulary is read. "float" multiplies with the unembedding. "int8" finds the
            likeliest tokens through an int8 copy, for a quarter of the bytes; they are proven to be the same up to
            the rounding of float32's sums, as between two batch sizes. The tail of the softmax, for confidence and
            `prune_mass`, comes from the copy (docs/performance.md bounds the error). "auto": "int8" where tokens
            are pruned and it was measured to be faster: on a CPU, one row at a time, with a large W, without
            sampling and constraints.

    Raises:
        ValueError: an impossible value, or fields that do not fit together.
    """

    method: str | ExitPolicy = "dvp"
    max_new_tokens: int = 64
    threshold: float = 0.9
    thresholds_per_depth: tuple[float, ...] | None = None
    min_exit_layer: int = 2
    exit_depths: int | tuple[int, ...] | None = None
    prune_layer: int = 2
    prune_size: int | None = 64
    prune_rule: str | PruningRule = "fixed"
    prune_mass: float | None = None
    prune_size_min: int | None = None
    confidence: str = "softmax_diff"
    static_exit_layer: int | None = None
    final_vocab: str = "full"
    decay_temperature: float | None = None
    max_waiting: int = 8
    oracle_states: str = "own"
    unembedding: str = "auto"
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    forced_bos_token_id: int | None = None
    branch_every: int | None = None
    capture: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, ExitPolicy):
            _check_choice("method", self.method, METHODS)
        if not isinstance(self.prune_rule, PruningRule):
            _check_choice("prune_rule", self.prune_rule, tuple(RULES))
        for name, allowed in (
            ("confidence", CONFIDENCES),
            ("final_vocab", FINAL_VOCABS),
            ("oracle_states", ORACLE_STATES),
            ("unembedding", UNEMBEDDINGS),
        ):
            _check_choice(name, getattr(self, name), allowed)
        if self.capture not in (None, True, False):
            raise ValueError(f"capture is {self.capture!r}; allowed: None, True, False")
        for name in ("max_new_tokens", "min_exit_layer", "prune_layer", "max_waiting"):
            check_integer(name, getattr(self, name), 1, None)
        if self.prune_size is not None or self.method != "lossless":
            check_integer("prune_size", self.prune_size, 1, None)
        for name in ("static_exit_layer", "branch_every"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1, None)
        if isinstance(self.exit_depths, list):  # from JSON
            object.__setattr__(self, "exit_depths", tuple(self.exit_depths))
        self._check_thresholds()
        self._check_pruning()
        self._check_sampling()
        self._check_constraints()
        self._make_policy(_ANY_DEPTH)  # a policy checks its own settings

    def _check_thresholds(self) -> None:
        if not _is_number(self.threshold) or not 0.0 <= self.threshold <= 1.0:  # NaN fails too
            raise ValueError(f"threshold is {self.threshold!r}; allowed: a number from 0 to 1")
        values = self.thresholds_per_depth
        if isinstance(values, list):  # from JSON
            values = tuple(values)
            object.__setattr__(self, "thresholds_per_depth", values)
        is_tuple = values is None or isinstance(values, tuple)
        if not is_tuple or not all(_is_number(value) and 0.0 <= value <= 1.0 for value in values or ()):
            raise ValueError(f"thresholds_per_depth is {values!r}; allowed: None or numbers from 0 to 1")
        decay = self.decay_temperature
        if decay is not None and not (_is_number(decay) and math.isfinite(decay) and decay >= 0.0):
            raise ValueError(f"decay_temperature is {decay!r}; allowed: None or a number of at least 0")

    def _check_pruning(self) -> None:
        mass, least = self.prune_mass, self.prune_size_min
        if mass is not None and not (_is_number(mass) and 0.0 < mass <= 1.0):
            raise ValueError(f"prune_mass is {mass!r}; allowed: a number above 0, to 1")
        if least is not None:
            check_integer("prune_size_min", least, 1, None)
            if self.prune_size is not None and least > self.prune_size:
                raise ValueError(f"prune_size_min is {least}; allowed: at most prune_size, {self.prune_size}")
        for rule, name, needed in (
            ("mass", "prune_mass", "a number above 0, to 1"),
            ("decay", "prune_size_min", "an integer from 1 to prune_size"),
        ):
            if self.prune_rule == rule and getattr(self, name) is None:
                raise ValueError(f"{name} is None; prune_rule {rule!r} needs {needed}")

    def _check_sampling(self) -> None:
        if not (_is_number(self.temperature) and math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise ValueError(f"temperature is {self.temperature!r}; allowed: a number of at least 0")
        if self.top_k is not None:
            check_integer("top_k", self.top_k, 1, None)
        if self.top_p is not None and not (_is_number(self.top_p) and 0.0 < self.top_p <= 1.0):
            raise ValueError(f"top_p is {self.top_p!r}; allowed: a number above 0, to 1")
        check_integer("seed", self.seed, 0, None)
        if self.samples and self.method == "oracle":
            raise ValueError(f"temperature is {self.temperature}; allowed with method 'oracle': 0")
        if self.samples and self.unembedding == "int8":
            raise ValueError("unembedding is 'int8'; allowed with a temperature above 0: auto, float")

    def _check_constraints(self) -> None:
        check_integer("min_new_tokens", self.min_new_tokens, 0, None)
        check_integer("no_repeat_ngram_size", self.no_repeat_ngram_size, 0, None)
        if self.forced_bos_token_id is not None:
            check_integer("forced_bos_token_id", self.forced_bos_token_id, 0, None)
        if self.is_constrained and self.unembedding == "int8":
            raise ValueError(
                "unembedding is 'int8'; allowed with min_new_tokens, no_repeat_ngram_size or forced_bos_token_id: "
                "auto, float"
            )

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0.0

    @property
    def is_constrained(self) -> bool:
        """Whether some token may not stand at some place."""
        return bool(self.min_new_tokens or self.no_repeat_ngram_size) or self.forced_bos_token_id is not None

    @property
    def name(self) -> str:
        """Name of the method: that of the class where the method is a policy object."""
        return self.method if isinstance(self.method, str) else type(self.method).__name__

    def policy(self, num_layers: int, vocab_size: int) -> ExitPolicy:
        """The exit policy on a model: the one place that chooses it by the method.

        Args:
            num_layers: L, of the decoder.
            vocab_size: V.

        Raises:
            ValueError: a depth or the prune size is beyond the model, or thresholds_per_depth has another length.
        """
        policy = self._make_policy(num_layers)
        policy.check(num_layers, vocab_size)
        if self.forced_bos_token_id is not None:
            check_integer("forced_bos_token_id", self.forced_bos_token_id, 0, vocab_size - 1)
        per_depth = self.thresholds_per_depth
        if per_depth is not None and len(per_depth) != num_layers:
            raise ValueError(
                f"thresholds_per_depth has {len(per_depth)} values; allowed: {num_layers}, one for each layer of "
                "this model"
            )
        return policy

    def _make_policy(self, num_layers: int) -> ExitPolicy:
        if isinstance(self.method, ExitPolicy):
            return self.method
        values = {**vars(self), "num_layers": num_layers}
        rule = self.prune_rule
        values["pruning"] = rule if isinstance(rule, PruningRule) else _fill_in(RULES[rule], values)
        if self.method == "lossless":
            values["final_vocab"] = "full"  # where drafts are verified
            values["draft"] = _fill_in(CALM if self.prune_size is None else DVP, values)
        return _fill_in(POLICIES[self.method], values)

    def candidates(self, num_layers: int) -> list[int]:
        """The depths before the last one at which a token may exit, on a decoder of `num_layers` layers."""
        return list(self._make_policy(num_layers).candidates)

    def settings(self, policy: ExitPolicy) -> dict[str, Any]:
        """The settings that matter to a policy of this config, by name, for tables and results."""
        settings = policy.settings()
        if self.samples:
            settings |= {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "seed")}
        if self.is_constrained:
            names = ("min_new_tokens", "no_repeat_ngram_size", "forced_bos_token_id")
            settings |= {name: getattr(self, name) for name in names}
        if not policy.uses_threshold:
            return settings
        name = "threshold" if self.thresholds_per_depth is None else "thresholds_per_depth"
        return {name: getattr(self, name), "decay_temperature": self.decay_temperature, **settings}

    def reads_int8(self, policy: ExitPolicy, config: T5Config, backend: str, batch: int) -> bool:
        """Whether the full vocabulary is read through an int8 copy of the unembedding.

        Args:
            policy: of this config.
            config: of the model.
            backend: of JAX, such as "cpu".
            batch: rows decoded together.
        """
        if self.unembedding != "auto":
            return self.unembedding == "int8"
        # A draw needs all logits, and a constraint those below the likeliest; the copy knows only these.
        needs_others = self.samples or self.is_constrained
        is_large = copy_pays(config.vocab_size, config.d_model, policy.num_exact)
        return policy.kept_rows > 0 and is_large and int8_pays(backend, batch) and not needs_others


def _fill_in(kind: type, values: Mapping[str, Any]) -> Any:
    """An instance of a dataclass, each field taken from `values` by its name."""
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})


def parse_exit_depths(text: str | None) -> int | tuple[int, ...] | None:
    """Reads the flag --exit_depths.

    Args:
        text: "4" for every fourth depth, "4,8,12" for these, "4," for this one alone; None for all depths.

    Returns:
        The value for `DecodeConfig.exit_depths`.

    Raises:
        ValueError: the text is anything else.
    """
    if text is None:
        return None
    parts = text.removesuffix(",").split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(
            f"exit_depths is {text!r}; allowed: n for every n-th depth, or depths, for example 4,8,12"
        )
    depths = tuple(map(int, parts))
    return depths if "," in text else depths[0]


def make_config(fields: Mapping[str, Any], where: str) -> DecodeConfig:
    """A `DecodeConfig` from its fields by name. Fields that are not given keep their defaults.

    Args:
        fields: values under the names of fields.
        where: what the fields belong to, for the error message.

    Raises:
        ValueError: an unknown field or an impossible value.
    """
    allowed = [field.name for field in dataclasses.fields(DecodeConfig)]
    if unknown := [name for name in fields if name not in allowed]:
        raise ValueError(f"{where} has no {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    return DecodeConfig(**fields)


_OF_A_REQUEST = (
    "threshold",
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "min_new_tokens",
    "forced_bos_token_id",
)
"""Fields that each request of an engine may have for itself."""


def request_config(cfg: DecodeConfig, changes: Mapping[str, Any]) -> DecodeConfig:
    """The config of a request that a program decodes which was compiled for another one.

    Args:
        cfg: what the program was compiled for.
        changes: fields that the request has for itself, of `_OF_A_REQUEST`.

    Raises:
        ValueError: another field, an impossible value, or one that needs another program.
    """
    if unknown := [name for name in changes if name not in _OF_A_REQUEST]:
        raise ValueError(f"a request has no {', '.join(unknown)}; allowed: {', '.join(_OF_A_REQUEST)}")
    per_depth = None if "threshold" in changes else cfg.thresholds_per_depth
    own = dataclasses.replace(cfg, **changes, thresholds_per_depth=per_depth)
    if own.max_new_tokens > cfg.max_new_tokens:
        raise ValueError(
            f"max_new_tokens is {own.max_new_tokens}; allowed: 1 to {cfg.max_new_tokens}, as the engine's"
        )
    for name, is_off in (
        ("temperature", not cfg.samples),
        ("top_k", cfg.top_k is None),
        ("top_p", cfg.top_p is None),
        ("min_new_tokens", not cfg.min_new_tokens),
        ("forced_bos_token_id", cfg.forced_bos_token_id is None),
    ):
        if is_off and getattr(own, name) != getattr(cfg, name):
            raise ValueError(
                f"{name} is {getattr(own, name)!r}; allowed: {getattr(cfg, name)!r}, as the engine's config"
            )
    # The program restricts its draws; so does a request that is free of it, by nothing.
    top_k = _ANY_RANK if own.top_k is None and cfg.top_k is not None else own.top_k
    top_p = 1.0 if own.top_p is None and cfg.top_p is not None else own.top_p
    return dataclasses.replace(own, top_k=top_k, top_p=top_p)


def load_decode_config(path: str | Path) -> DecodeConfig:
    """Reads the config under "config" in a JSON file, as `experiments.select` writes it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON or has no "config", an unknown field, or an impossible value.
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


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
