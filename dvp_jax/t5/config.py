"""The shape of a T5: the fields of Hugging Face's config.json as one frozen dataclass."""

from __future__ import annotations

import dataclasses
import functools
import numbers
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Array, Bool, Int

from dvp_jax.t5.files import read_json

MODEL_TYPES = ("t5", "mt5", "umt5")
ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu")
_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads")
_LARGEST = 2**31 - 1  # of JAX's indices
_TOKEN_IDS = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
GENERATION_FILE = "generation_config.json"
"""Of a Hugging Face folder: what `generate` of transformers takes instead of config.json's fields."""
_GENERATION_FIELDS = (
    "max_length", "min_length", "max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p",
    "typical_p", "num_beams", "num_beam_groups", "early_stopping", "length_penalty", "diversity_penalty",
    "num_return_sequences", "repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
    "exponential_decay_length_penalty", "remove_invalid_values",
)  # fmt: skip
"""What config.json says of generation in a folder that has no generation_config.json, as before 2023."""


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Shape of a T5 1.0, T5 1.1 / Flan-T5, mT5 or UMT5. Hashable, so that it can be a static argument of `jit`.

    Fields are named as in Hugging Face's config.json. Encoder and decoder depth may differ, and `num_heads * d_kv`
    need not equal `d_model`. A text ends with `eos_token_id`, or with any of them where it is a tuple.
    `vocab_padding` is the only field that is in no file: the number of zero rows at the end of embedding and
    unembedding that let all devices of a mesh hold equally many rows.

    Raises:
        ValueError: a field has an impossible value.
    """

    model_type: str = "t5"
    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = 6
    num_heads: int = 8
    feed_forward_proj: str = "relu"
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    dropout_rate: float = 0.1
    initializer_factor: float = 1.0
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True
    pad_token_id: int = 0
    eos_token_id: int | tuple[int, ...] = 1
    decoder_start_token_id: int = 0
    vocab_padding: int = 0

    def __post_init__(self) -> None:
        if self.model_type not in MODEL_TYPES:
            raise ValueError(f"model_type is {self.model_type!r}; allowed: {', '.join(MODEL_TYPES)}")
        self._check_integers(1, *_SIZES)
        self._check_integers(0, "vocab_padding")
        self._check_integers(4, "relative_attention_num_buckets")  # two of each direction
        self._check_integers(self.relative_attention_num_buckets // 2 + 1, "relative_attention_max_distance")
        for name, most in (("layer_norm_epsilon", 1), ("dropout_rate", 1), ("initializer_factor", 1000)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
                raise ValueError(f"{name} is {value!r}; allowed: a number from 0 to {most}")
        for name in ("tie_word_embeddings", "scale_decoder_outputs"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: true, false")
        if self.model_type == "mt5" and self.scale_decoder_outputs:  # transformers never does
            raise ValueError("scale_decoder_outputs is True; allowed with model_type 'mt5': False")
        for name in _TOKEN_IDS:
            value = getattr(self, name)
            ids = value if isinstance(value, tuple) and name == "eos_token_id" else (value,)
            if not all(_is_integer(token) and 0 <= token < self.vocab_size for token in ids):
                raise ValueError(f"{name} is {value!r}; allowed: ids from 0 to {self.vocab_size - 1}")
        if not isinstance(self.feed_forward_proj, str) or self.activation not in ACTIVATIONS:
            raise ValueError(
                f"feed_forward_proj is {self.feed_forward_proj!r}; allowed: one of {', '.join(ACTIVATIONS)}, "
                "or 'gated-' and one of them"
            )

    def _check_integers(self, least: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not _is_integer(value) or not least <= value <= _LARGEST:
                raise ValueError(f"{name} is {value!r}; allowed: an integer from {least} to {_LARGEST}")

    @property
    def gated(self) -> bool:
        """Whether the feed-forward block multiplies its activation by a second projection (T5 1.1)."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        """Name of the feed-forward activation."""
        if self.feed_forward_proj == "gated-gelu":  # T5 1.1's name for the tanh approximation
            return "gelu_new"
        return self.feed_forward_proj.removeprefix("gated-")

    @property
    def relative_bias_per_layer(self) -> bool:
        """Whether every layer has its own relative position bias (UMT5), instead of the first layer only."""
        return self.model_type == "umt5"

    @property
    def logit_scale(self) -> float:
        """The factor s that multiplies the normed hidden state before the unembedding."""
        return self.d_model**-0.5 if self.scale_decoder_outputs else 1.0

    def ends(self, token: Int[Array, "*shape"]) -> Bool[Array, "*shape"]:
        """Whether a text ends with each token."""
        ids = self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)
        return functools.reduce(operator.or_, [token == end for end in ids] or [token < 0])

    @classmethod
    def from_hugging_face(cls, fields: Mapping[str, Any]) -> T5Config:
        """Makes a config from the fields of a Hugging Face config.json.

        Args:
            fields: the parsed file. Unknown fields are ignored.

        Raises:
            ValueError: another model type, quantized weights, a missing field, or an impossible value.
        """
        model_type = fields.get("model_type")
        if model_type not in MODEL_TYPES:
            raise ValueError(f"model_type is {model_type!r}; allowed: {', '.join(MODEL_TYPES)}")
        if quantization := fields.get("quantization_config"):
            raise ValueError(f"quantization_config is {quantization!r}; allowed: a model that is not quantized")
        needed = [name for name in _SIZES if name != "num_decoder_layers"]
        if missing := [name for name in needed if fields.get(name) is None]:
            raise ValueError(f"missing {', '.join(missing)}")

        known = {field.name for field in dataclasses.fields(cls)} - {"vocab_padding", *_TOKEN_IDS}
        values = {name: value for name, value in fields.items() if name in known and value is not None}
        values.setdefault("num_decoder_layers", values["num_layers"])
        values.setdefault("feed_forward_proj", "relu" if model_type == "t5" else "gated-gelu")
        if model_type == "mt5" or "scale_decoder_outputs" not in values:
            values["scale_decoder_outputs"] = _scales_outputs(model_type, fields)
        values["tie_word_embeddings"] = True  # `read_checkpoint` decides by the tensors
        config = cls(**values)
        # Transformers writes these two beside feed_forward_proj, and reads them instead of it.
        for name, value in (("dense_act_fn", config.activation), ("is_gated_act", config.gated)):
            if fields.get(name, value) != value:
                allowed = f"allowed with feed_forward_proj {config.feed_forward_proj!r}: {value!r}"
                raise ValueError(f"{name} is {fields[name]!r}; {allowed}")
        return dataclasses.replace(config, **_token_ids(fields, fields["vocab_size"], eos=1))

    @classmethod
    def from_folder(cls, folder: Path) -> T5Config:
        """Reads config.json of a checkpoint folder, and the token ids of generation_config.json if there is one.

        Raises:
            FileNotFoundError: there is no config.json.
            ValueError: a file is not JSON, has an impossible value or is not of a T5; or the folder is an adapter.
        """
        if (adapter := folder / "adapter_config.json").is_file():
            base = read_json(adapter).get("base_model_name_or_path")
            raise ValueError(f"{folder} holds an adapter (LoRA) of {base}; allowed: a whole model, merged by peft")
        path, generation = folder / "config.json", folder / GENERATION_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no config.json: not a Hugging Face checkpoint")
        fields, ids = read_json(path), read_json(generation) if generation.is_file() else None
        try:
            config = cls.from_hugging_face(fields)
            if ids is None:
                return config
            path = generation
            return dataclasses.replace(config, **_token_ids(ids, config.vocab_size, eos=None))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_hugging_face(self) -> dict[str, Any]:
        """The fields of a config.json that `transformers` reads back as this model."""
        name = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}[self.model_type]
        fields = {
            "architectures": [f"{name}ForConditionalGeneration"],
            "is_encoder_decoder": True,
            **dataclasses.asdict(self),
        }
        del fields["vocab_padding"]
        return fields | self.token_ids()

    def token_ids(self) -> dict[str, Any]:
        """The fields that config.json and generation_config.json have in common."""
        eos = self.eos_token_id
        return {
            "decoder_start_token_id": self.decoder_start_token_id,
            "eos_token_id": (list(eos) or None) if isinstance(eos, tuple) else eos,
            "pad_token_id": self.pad_token_id,
        }


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The fields of generation_config.json, or what config.json has of them where there is no such file.

    `_from_model_config` says whether they are config.json's, as it does in transformers.

    Raises:
        ValueError: the file is not JSON.
    """
    path = folder / GENERATION_FILE
    if path.is_file():
        return {**read_json(path), "_from_model_config": False}
    fields = read_json(folder / "config.json")
    found = {name: fields[name] for name in _GENERATION_FIELDS if fields.get(name) is not None}
    return {**found, "_from_model_config": True} if found else {}


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _token_ids(fields: Mapping[str, Any], vocab_size: int, eos: Any) -> dict[str, Any]:
    """The token ids that `generate` of transformers takes from config.json or generation_config.json.

    Args:
        fields: of the file.
        vocab_size: V.
        eos: the end token where the file names none; None for texts that end at `max_new_tokens` only.
    """
    eos, start = fields.get("eos_token_id", eos), fields.get("decoder_start_token_id")
    pad: Any = fields.get("pad_token_id")
    if _is_integer(pad) and not 0 <= pad < vocab_size:
        pad = 0  # padding is masked, so that the row that embeds it does not matter, but there must be one
    ids = {
        "decoder_start_token_id": fields.get("bos_token_id") if start is None else start,
        "pad_token_id": pad,
    }
    eos = () if eos is None else tuple(eos) if isinstance(eos, list) else eos
    return {name: value for name, value in ids.items() if value is not None} | {"eos_token_id": eos}


def _scales_outputs(model_type: str, fields: Mapping[str, Any]) -> bool:
    """Whether a model scales its decoder's output, if its config.json has no `scale_decoder_outputs`.

    T5 1.0 and tied UMT5 do. T5 1.1 does not; its config.json says `"tie_word_embeddings": false`. mT5 never does,
    but `transformers` 5 writes `"tie_word_embeddings": true` into its config.json, so that field cannot decide.
    """
    return model_type != "mt5" and fields.get("tie_word_embeddings") is not False


_untied = functools.partial(
    T5Config, feed_forward_proj="gated-gelu", tie_word_embeddings=False, scale_decoder_outputs=False
)
_mt5 = functools.partial(_untied, model_type="mt5", vocab_size=250112)

SHAPES = {
    "t5-small": T5Config(d_model=512, d_ff=2048, num_heads=8, num_layers=6, num_decoder_layers=6),
    "t5-base": T5Config(d_model=768, d_ff=3072, num_heads=12, num_layers=12, num_decoder_layers=12),
    "t5-large": T5Config(d_model=1024, d_ff=4096, num_heads=16, num_layers=24, num_decoder_layers=24),
    "t5-3b": T5Config(d_model=1024, d_kv=128, d_ff=16384, num_heads=32, num_layers=24, num_decoder_layers=24),
    "t5-11b": T5Config(d_model=1024, d_kv=128, d_ff=65536, num_heads=128, num_layers=24, num_decoder_layers=24),
    "flan-t5-xxl": _untied(d_model=4096, d_ff=10240, num_heads=64, num_layers=24, num_decoder_layers=24),
    "mt5-small": _mt5(d_model=512, d_ff=1024, num_heads=6, num_layers=8, num_decoder_layers=8),
    "mt5-base": _mt5(d_model=768, d_ff=2048, num_heads=12, num_layers=12, num_decoder_layers=12),
}
"""Shapes of the published T5 1.0 checkpoints, of the largest Flan-T5, and of two mT5: 250,112 tokens."""
