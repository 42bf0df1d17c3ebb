"""The early-exit decode written plainly over Hugging Face's PyTorch modules, one row and layer at a time."""

from __future__ import annotations

import dataclasses
import math

import torch


@dataclasses.dataclass
class Reference:
    """What the slow decoder generated."""

    tokens: list[int]
    exit_layers: list[int]
    confidences: list[float]
    margin: float  # smallest distance of any decision from falling the other way


@torch.no_grad()
def reference_decode(
    model,
    input_ids: list[int],
    *,
    method: str,
    max_new_tokens: int,
    threshold: float = 0.9,
    min_exit_layer: int = 2,
    prune_layer: int = 2,
    prune_size: int = 64,
    static_exit_layer: int | None = None,
    final_vocab: str = "full",
    decay_temperature: float | None = None,
) -> Reference:
    """Decodes one row."""
    config, decoder = model.config, model.decoder
    num_layers = config.num_decoder_layers
    source = torch.tensor([input_ids])
    encoded = model.encoder(input_ids=source, attention_mask=torch.ones_like(source)).last_hidden_state
    scale = config.d_model**-0.5 if scales(model) else 1.0

    def logits_of(hidden):
        return (model.lm_head.weight @ (scale * decoder.final_layer_norm(hidden)[0, 0])).float()

    entered = [[] for _ in range(num_layers)]  # states that entered each layer, one a token so far
    out = Reference([], [], [], math.inf)
    token = config.decoder_start_token_id
    for t in range(1, max_new_tokens + 1):
        limit = threshold
        if decay_temperature is not None:
            limit = 0.9 * threshold + 0.1 * threshold * math.exp(-decay_temperature * t / max_new_tokens)
        hidden = model.shared(torch.tensor([[token]]))
        kept = None
        for depth in range(1, num_layers + 1):
            entered[depth - 1].append(hidden)
            hidden = run_layer(decoder, depth - 1, entered[depth - 1], encoded)
            if method == "static" and depth == static_exit_layer:
                token, confidence, gap = read(logits_of(hidden), None)
                out.margin = min(out.margin, gap)
                break
            if depth == num_layers:
                last_kept = kept if method == "dvp" and final_vocab == "pruned" else None
                token, confidence, gap = read(logits_of(hidden), last_kept)
                out.margin = min(out.margin, gap)
                break
            candidate = method in ("calm", "dvp") and depth >= min_exit_layer
            if candidate:
                token_here, confidence, gap = read(logits_of(hidden), kept)
                out.margin = min(out.margin, abs(confidence - limit) if prune_size > 1 else math.inf)
                if confidence > limit:
                    token = token_here
                    out.margin = min(out.margin, gap)
                    break
            if method == "dvp" and depth == prune_layer:
                logits = logits_of(hidden)
                order = sorted(range(len(logits)), key=lambda i: (-float(logits[i]), i))
                kept = order[:prune_size]
                if prune_size < len(order):
                    edge = float(logits[order[prune_size - 1]] - logits[order[prune_size]])
                    out.margin = min(out.margin, edge)
        for deeper in range(depth, num_layers):  # state propagation
            entered[deeper].append(hidden)
        out.tokens.append(token)
        out.exit_layers.append(depth)
        out.confidences.append(confidence)
        if token == config.eos_token_id:
            break
    return out


def read(logits: torch.Tensor, kept: list[int] | None) -> tuple[int, float, float]:
    """Token, confidence, and how far the best logit is ahead of the second."""
    ids = list(range(len(logits))) if kept is None else kept
    probabilities = torch.softmax(logits[ids].double(), dim=0)
    order = sorted(range(len(ids)), key=lambda i: (-float(probabilities[i]), ids[i]))
    best = order[0]
    if len(ids) == 1:
        return ids[best], 1.0, math.inf
    second = order[1]
    gap = float(logits[ids[best]] - logits[ids[second]])
    return ids[best], float(probabilities[best] - probabilities[second]), gap


def run_layer(decoder, index: int, entered: list[torch.Tensor], encoded: torch.Tensor) -> torch.Tensor:
    """Layer `index` on the last of the states that entered it, attending to all of them."""
    block = decoder.block[index]
    attention = block.layer[0].SelfAttention
    with_bias = attention if attention.has_relative_attention_bias else decoder.block[0].layer[0].SelfAttention
    length, heads = len(entered), attention.n_heads
    states = block.layer[0].layer_norm(torch.cat(entered, dim=1))[0]  # (length, d_model)
    query = attention.q(states[-1]).view(heads, -1)
    keys = attention.k(states).view(length, heads, -1)
    values = attention.v(states).view(length, heads, -1)
    bias = with_bias.compute_bias(length, length)[0, :, -1]  # (heads, length)
    context = []
    for head in range(heads):
        weights = torch.softmax(keys[:, head] @ query[head] + bias[head], dim=0)
        context.append(weights @ values[:, head])
    hidden = entered[-1] + attention.o(torch.cat(context))
    hidden = block.layer[1](hidden, encoded)[0]
    return block.layer[2](hidden)


def scales(model) -> bool:
    """Whether this model scales its decoder's output, as its Hugging Face class does."""
    if model.config.model_type == "mt5":
        return False
    return getattr(model.config, "scale_decoder_outputs", model.config.tie_word_embeddings)
