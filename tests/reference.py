"""The early-exit decode written plainly over Hugging Face's PyTorch modules, one row and layer at a time."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

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
    thresholds_per_depth: tuple[float, ...] | None = None,
    min_exit_layer: int = 2,
    exit_depths: int | tuple[int, ...] | None = None,
    prune_layer: int = 2,
    prune_size: int = 64,
    prune_rule: str = "fixed",
    prune_mass: float | None = None,
    prune_size_min: int | None = None,
    confidence: str = "softmax_diff",
    static_exit_layer: int | None = None,
    final_vocab: str = "full",
    decay_temperature: float | None = None,
    oracle_states: str = "own",
    max_waiting: int | None = None,
    classifier: tuple[torch.Tensor, float] | None = None,
) -> Reference:
    """Decodes a row, whatever `max_waiting` at once; `classifier` is the weight and bias of the measure "meta"."""
    config, decoder = model.config, model.decoder
    num_layers = config.num_decoder_layers
    source = torch.tensor([input_ids])
    encoded = model.encoder(input_ids=source, attention_mask=torch.ones_like(source)).last_hidden_state
    scale = config.d_model**-0.5 if scales(model) else 1.0

    def logits_of(hidden):
        return (model.lm_head.weight @ (scale * decoder.final_layer_norm(hidden)[0, 0])).float()

    def read(hidden, before, kept):
        logits = logits_of(hidden)
        token, gap = best_of(logits, kept)
        if confidence == "state":
            sure = cosine(hidden[0, 0], before[0, 0])
        elif confidence == "meta":
            weight, bias = classifier
            sure = 1.0 / (1.0 + math.exp(-float(decoder.final_layer_norm(hidden)[0, 0] @ weight) - bias))
        else:
            sure = confidence_of(logits, kept, confidence)
        return token, sure, gap

    entered = [[] for _ in range(num_layers)]  # states that entered each layer, one a token so far
    out = Reference([], [], [], math.inf)
    token = config.decoder_start_token_id
    for t in range(1, max_new_tokens + 1):
        hidden = model.shared(torch.tensor([[token]]))
        full = None
        if method == "oracle":
            states = [hidden]
            for index in range(num_layers):
                states.append(run_layer(decoder, index, [*entered[index], states[-1]], encoded))
            full, gap = best_of(logits_of(states[-1]), None)
            out.margin = min(out.margin, gap)
        kept = None
        for depth in range(1, num_layers + 1):
            limit = threshold if thresholds_per_depth is None else thresholds_per_depth[depth - 1]
            if decay_temperature is not None:
                limit = 0.9 * limit + 0.1 * limit * math.exp(-decay_temperature * t / max_new_tokens)
            if isinstance(exit_depths, tuple):
                may_exit = depth in exit_depths
            else:
                may_exit = depth >= min_exit_layer and (depth - min_exit_layer) % (exit_depths or 1) == 0
            before = hidden
            entered[depth - 1].append(before)
            hidden = run_layer(decoder, depth - 1, entered[depth - 1], encoded)
            if method == "static" and depth == static_exit_layer:
                token, sure, gap = read(hidden, before, None)
                out.margin = min(out.margin, gap)
                break
            if kept is not None and prune_rule == "decay" and (depth == num_layers or may_exit):
                size = decayed_size(prune_size, prune_size_min, depth, num_layers)
                kept, edge = likeliest(logits_of(hidden), kept, size)
                if depth < num_layers or final_vocab == "pruned":
                    out.margin = min(out.margin, edge)
            if depth == num_layers:
                last_kept = kept if method == "dvp" and final_vocab == "pruned" else None
                token, sure, gap = read(hidden, before, last_kept)
                out.margin = min(out.margin, gap)
                break
            if method == "oracle" and may_exit:
                token, sure, gap = read(hidden, before, None)
                out.margin = min(out.margin, gap)
                if token == full:
                    break
            only_here = method == "shallow_deep" and depth == min_exit_layer
            if only_here or (method in ("calm", "dvp") and may_exit):
                token_here, sure, gap = read(hidden, before, kept)
                alone = kept is not None and len(kept) == 1  # certain by definition, not by rounding
                out.margin = min(out.margin, math.inf if alone else abs(sure - limit))
                if sure > limit:
                    token = token_here
                    out.margin = min(out.margin, gap)
                    break
            if method == "dvp" and depth == prune_layer:
                logits, everyone = logits_of(hidden), list(range(config.vocab_size))
                size = prune_size
                if prune_rule == "decay":
                    size = decayed_size(prune_size, prune_size_min, depth, num_layers)
                kept, edge = likeliest(logits, everyone, size)
                if prune_rule == "mass":
                    kept, edge = reaching(logits, kept, prune_mass, edge)
                out.margin = min(out.margin, edge)
        if method == "shallow_deep":  # the layers run all the same, for what later tokens attend to
            for deeper in range(depth, num_layers):
                entered[deeper].append(hidden)
                hidden = run_layer(decoder, deeper, entered[deeper], encoded)
        elif method == "oracle" and oracle_states == "full":
            for deeper in range(depth, num_layers):
                entered[deeper].append(states[deeper])
        else:
            for deeper in range(depth, num_layers):  # state propagation
                entered[deeper].append(hidden)
        out.tokens.append(token)
        out.exit_layers.append(depth)
        out.confidences.append(sure)
        if token == config.eos_token_id:
            break
    return out


def likeliest(logits: torch.Tensor, ids: list[int], size: int) -> tuple[list[int], float]:
    """The `size` likeliest of the ids, of equal ones the smaller, and how near the last is to being left out."""
    order = sorted(ids, key=lambda i: (-float(logits[i]), i))
    edge = float(logits[order[size - 1]] - logits[order[size]]) if size < len(order) else math.inf
    return order[:size], edge


def reaching(logits: torch.Tensor, ids: list[int], mass: float, edge: float) -> tuple[list[int], float]:
    """As many of the ids, likeliest first, as it takes to reach the mass, and how far that is from another number.

    `edge` is how far the last of all the ids is from being left out, which matters only where it is needed.
    """
    probabilities = torch.softmax(logits.double(), dim=0)
    held, margin, kept = 0.0, math.inf, []
    for token in ids:
        kept.append(token)
        held += float(probabilities[token])
        margin = min(margin, abs(held - mass) if len(kept) < len(ids) else math.inf)
        if held >= mass:
            break
    else:
        return kept, min(margin, edge)
    if len(kept) < len(ids):
        return kept, min(margin, float(logits[kept[-1]] - logits[ids[len(kept)]]))
    return kept, min(margin, edge)


def decayed_size(most: int, least: int, depth: int, num_layers: int) -> int:
    """K_l by the inverse law, in exact fractions."""
    return max(least, math.floor(most / (1 + Fraction(most - least, least) * Fraction(depth, num_layers))))


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    """Between two states; 0 where they point apart."""
    return max(0.0, float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0)))


def best_of(logits: torch.Tensor, kept: list[int] | None) -> tuple[int, float]:
    """The likeliest token, and how far its logit is ahead of the second."""
    order = sorted(range(len(logits)) if kept is None else kept, key=lambda i: (-float(logits[i]), i))
    return order[0], float(logits[order[0]] - logits[order[1]]) if len(order) > 1 else math.inf


def confidence_of(logits: torch.Tensor, kept: list[int] | None, measure: str = "softmax_diff") -> float:
    """A measure of logits, over the kept ids or all."""
    chosen = logits if kept is None else logits[kept]
    probabilities = sorted(torch.softmax(chosen.double(), dim=0).tolist(), reverse=True)
    if len(probabilities) == 1:
        return 1.0
    if measure == "softmax_max":
        return probabilities[0]
    if measure == "entropy":
        return 1.0 + sum(p * math.log(p) for p in probabilities if p > 0.0) / math.log(len(probabilities))
    assert measure == "softmax_diff"
    return probabilities[0] - probabilities[1]


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
