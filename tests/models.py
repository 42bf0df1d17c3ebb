"""Random models in PyTorch, and the same ones loaded from a folder."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

import dvp_jax

SHAPE = {"vocab_size": 211, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2}
SHAPE["num_decoder_layers"] = 4

VARIANTS = {
    # name: (config class, model class, fields, own unembedding)
    "t5": ("T5", {}, False),
    "t5 deep encoder": ("T5", {"num_layers": 5, "num_decoder_layers": 2}, False),
    "t5 wide heads": ("T5", {"d_kv": 16, "num_heads": 3}, False),
    "t5.1.1": ("T5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, True),
    "flan silu": ("T5", {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False}, True),
    "mt5": ("MT5", {}, True),
    "mt5 tied": ("MT5", {}, False),
    "umt5": ("UMT5", {"num_heads": 2, "d_kv": 24}, False),
}


def random_model(
    variant: str, seed: int = 0, spread: float = 1.0, depth: float = 1.0, **fields: object
) -> transformers.PreTrainedModel:
    """A random Hugging Face model.

    Args:
        variant: key of VARIANTS.
        seed: of the weights.
        spread: factor on the unembedding: the larger, the more confidences vary.
        depth: factor on the layers' weights: the larger, the more each layer changes the token.
        fields: changes of the shape.
    """
    name, own, untied = VARIANTS[variant]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **own, **fields}, decoder_start_token_id=0)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "layer_norm" in parameter_name:  # else all ones, which hides a missing scale
                parameter.uniform_(0.5, 1.5)
            elif "relative_attention_bias" in parameter_name:
                parameter.normal_(0.0, 1.0)
            elif ".block." in parameter_name:
                parameter.mul_(depth)
        if untied:
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
        model.lm_head.weight.mul_(spread)
    return model


def save(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """Writes a Hugging Face folder by hand, so that an untied unembedding is surely in it."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = model.config.to_dict()
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(state_dict(model), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def state_dict(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint: without the copies that PyTorch keeps of tied ones."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items() if "embed_tokens" not in name}
    if torch.equal(tensors["lm_head.weight"], tensors["shared.weight"]):
        del tensors["lm_head.weight"]
    return tensors


@functools.cache
def both(variant: str, seed: int = 0, spread: float = 1.0, depth: float = 1.0, **fields: object):
    """A random Hugging Face model, and the same loaded by `dvp_jax.load_model`."""
    peer = random_model(variant, seed, spread, depth, **fields)
    with tempfile.TemporaryDirectory() as folder:
        return peer, dvp_jax.load_model(save(peer, Path(folder)))
