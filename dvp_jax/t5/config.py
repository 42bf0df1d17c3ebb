"""The shape of a T5: the fields of Hugging Face's config.json as one frozen dataclass."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

MODEL_TYPES = ("t5", "mt5", "umt5")
ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Shape of a T5 1.0, T5 1.1 / Flan-T5, mT5 or UMT5. Hashable, so that it can be a static argument of `jit`.

    Fields are named as in Hugging Face's config.json. Encoder and decoder depth may differ, and `num_heads * d_kv`
    need not equal `d_model`. `vocab_padding` is the only field that is in no file: the number of zero rows at the
    end of embedding and unembedding that let all devices of a mesh hold equally many rows.

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
    eos_token_id: int = 1
    decoder_start_token_id: int = 0
    vocab_padding: int = 0

    def __post_init__(self) -> None:
        if self.model_type not in MODEL_TYPES:
            raise ValueError(f"model_type is {self.model_type!r}; allowed: {', '.join(MODEL_TYPES)}")
        for name in (
            "vocab_size",
            "d_model",
            "d_kv",
            "d_ff",
            "num_layers",
            "num_decoder_layers",
            "num_heads",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; allowed: an integer of at least 1")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"feed_forward_proj is {self.feed_forward_proj!r}; allowed: one of {', '.join(ACTIVATIONS)}, "
                "or 'gated-' and one of them"
            )

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

    @classmethod
    def from_hugging_face(cls, fields: dict[str, Any]) -> T5Config:
        """Makes a config from the fields of a Hugging Face config.json.

        Args:
            fields: the parsed file. Unknown fields are ignored.

        Raises:
            ValueError: another model type, a missing field, or an impossible value.
        """
        model_type = fields.get("model_type")
        if model_type not in MODEL_TYPES:
            raise ValueError(f"config.json: model_type is {model_type!r}; allowed: {', '.join(MODEL_TYPES)}")
        needed = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
        if missing := [name for name in needed if name not in fields]:
            raise ValueError(f"config.json: missing {', '.join(missing)}")

        known = {field.name for field in dataclasses.fields(cls)} - {"vocab_padding"}
        values = {name: value for name, value in fields.items() if name in known and value is not None}
        values.setdefault("num_decoder_layers", values["num_layers"])
        values.setdefault("feed_forward_proj", "relu" if model_type == "t5" else "gated-gelu")
        values.setdefault("scale_decoder_outputs", _scales_outputs(model_type, fields))
        values["tie_word_embeddings"] = True  # `read_checkpoint` decides by the tensors
        eos = values.get("eos_token_id")
        if isinstance(eos, list):
            if len(eos) != 1:
                raise ValueError(f"config.json: eos_token_id is {eos}; allowed: one id")
            values["eos_token_id"] = eos[0]
        return cls(**values)

    @classmethod
    def from_file(cls, path: Path) -> T5Config:
        """Reads a Hugging Face config.json.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not JSON, or not the config of a T5.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"{path.parent} has no {path.name}: not a Hugging Face checkpoint") from None
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{path} holds a {type(fields).__name__}; allowed: a JSON object")
        return cls.from_hugging_face(fields)

    def to_hugging_face(self) -> dict[str, Any]:
        """The fields of a config.json that `transformers` reads back as this model."""
        name = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}[self.model_type]
        fields = {
            "architectures": [f"{name}ForConditionalGeneration"],
            "is_encoder_decoder": True,
            **dataclasses.asdict(self),
        }
        del fields["vocab_padding"]
        return fields


def _scales_outputs(model_type: str, fields: dict[str, Any]) -> bool:
    """Whether a model scales its decoder's output, if its config.json has no `scale_decoder_outputs`.

    T5 1.0 and tied UMT5 do. T5 1.1 does not; its config.json says `"tie_word_embeddings": false`. mT5 never does,
    but `transformers` 5 writes `"tie_word_embeddings": true` into its config.json, so that field cannot decide.
    """
    return model_type != "mt5" and fields.get("tie_word_embeddings") is not False


SHAPES = {
    "t5-small": T5Config(d_model=512, d_ff=2048, num_heads=8, num_layers=6, num_decoder_layers=6),
    "t5-base": T5Config(d_model=768, d_ff=3072, num_heads=12, num_layers=12, num_decoder_layers=12),
    "t5-large": T5Config(d_model=1024, d_ff=4096, num_heads=16, num_layers=24, num_decoder_layers=24),
    "t5-3b": T5Config(d_model=1024, d_kv=128, d_ff=16384, num_heads=32, num_layers=24, num_decoder_layers=24),
    "t5-11b": T5Config(d_model=1024, d_kv=128, d_ff=65536, num_heads=128, num_layers=24, num_decoder_layers=24),
    "flan-t5-xxl": T5Config(
        d_model=4096,
        d_ff=10240,
        num_heads=64,
        num_layers=24,
        num_decoder_layers=24,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        scale_decoder_outputs=False,
    ),
}
"""Shapes of the published T5 1.0 checkpoints, and of the largest Flan-T5."""
