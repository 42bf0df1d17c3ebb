"""Early-exit T5 decoding with dynamic vocabulary pruning (arXiv 2410.18952), in JAX and Flax."""

from dvp_jax.decode.api import generate, teacher_forced_logits
from dvp_jax.decode.config import DecodeConfig, load_decode_config
from dvp_jax.decode.engine import Engine, Result, generate_text
from dvp_jax.decode.text import GeneratedText
from dvp_jax.decode.token_loop import Decoded
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.load import Model, load_model, save_model

__all__ = [
    "DecodeConfig",
    "Decoded",
    "Engine",
    "GeneratedText",
    "Model",
    "Result",
    "T5Config",
    "generate",
    "generate_text",
    "load_decode_config",
    "load_model",
    "save_model",
    "teacher_forced_logits",
]
