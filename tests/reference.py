"""Early-exit decoding of one row, layer by layer, with the modules of Hugging Face's PyTorch model."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import torch
import transformers


@dataclasses.dataclass
class Reference:
    """What the slow decoder generated."""

    tokens: list[int]
    exit_layers: list[int]
    confidences: list[float]
    margin: float  # the least by which any decision was made: less than float32's rounding means a tie
    corrected: list[bool] = dataclasses.field(default_factory=list)  # lossless: drafts that were replaced
    layers_run: int = 0  # lossless and shallow_deep: one after the other


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
    prune_size: int | None = 64,
    prune_rule: str = "fixed",
    prune_mass: float | None = None,
    prune_size_min: int | None = None,
    confidence: str = "softmax_diff",
    static_exit_layer: int | None = None,
    final_vocab: str = "full",
    decay_temperature: float | None = None,
    oracle_states: str = "own",
    max_waiting: int | None = None,
    min_new_tokens: int = 0,
    no_repeat_ngram_size: int = 0,
    forced_bos_token_id: int | None = None,
    classifier: tuple[torch.Tensor, float] | None = None,
    common: list[int] | None = None,
) -> Reference:
    """Decodes one row with the settings of `DecodeConfig`.

    Args:
        model: PyTorch's.
        input_ids: of the source.
        max_waiting: for "lossless" and "shallow_deep".
        classifier: weight (d_model,) and bias of the measure "meta".
        common: the commonest ids, for the rule "recent".
    """
    lossless = method == "lossless"
    if lossless:  # drafts are made as by these
        method = "calm" if prune_size is None else "dvp"
    config, decoder = model.config, model.decoder
    num_layers = config.num_decoder_layers
    source = torch.tensor([input_ids])
    encoded = model.encoder(input_ids=source, attention_mask=torch.ones_like(source)).last_hidden_state
    scale = config.d_model**-0.5 if scales(model) else 1.0

    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    processors = transformers.LogitsProcessorList()
    if no_repeat_ngram_size:
        processors.append(transformers.NoRepeatNGramLogitsProcessor(no_repeat_ngram_size))
    if min_new_tokens:
        processors.append(transformers.MinNewTokensLengthLogitsProcessor(1, min_new_tokens, ends, "cpu"))
    if forced_bos_token_id is not None:
        processors.append(transformers.ForcedBOSTokenLogitsProcessor(forced_bos_token_id))

    def logits_of(hidden):
        logits = (model.lm_head.weight @ (scale * decoder.final_layer_norm(hidden)[0, 0])).float()
        return processors(text, logits[None])[0]

    def read(hidden, previous, kept):
        logits = logits_of(hidden)
        token, gap = best_of(logits, kept)
        if confidence == "state":
            value = cosine(hidden[0, 0], previous[0, 0])
        elif confidence == "meta":
            weight, bias = classifier
            value = 1.0 / (1.0 + math.exp(-float(decoder.final_layer_norm(hidden)[0, 0] @ weight) - bias))
        else:
            value = confidence_of(logits, kept, confidence)
        return token, value, gap

    entered = [[] for _ in range(num_layers)]  # for each layer, the state with which each token entered it
    recent = [0]  # the likeliest ids where the full vocabulary was read last
    waiting = []  # lossless: of each token that is not verified yet, its place, and the logits of the last depth
    out = Reference([], [], [], math.inf)
    token = config.decoder_start_token_id
    while len(out.tokens) < max_new_tokens:
        text = torch.tensor([[config.decoder_start_token_id, *out.tokens]])
        t = len(out.tokens) + 1
        hidden = model.shared(torch.tensor([[token]]))
        full = None
        if method == "oracle":
            states = [hidden]
            for index in range(num_layers):
                states.append(run_layer(decoder, index, [*entered[index], states[-1]], encoded))
            full, gap = best_of(logits_of(states[-1]), None)
            out.margin = min(out.margin, gap)
        kept = None
        if prune_rule == "recent" and method == "dvp":
            padding = [config.pad_token_id] * (32 - len(input_ids))  # sources are padded to 32 tokens at least
            source = (input_ids + padding)[: prune_size // 4]
            kept = sorted({*source, *recent, *common[: prune_size - len(source) - max(1, prune_size // 4)]})
        for depth in range(1, num_layers + 1):
            limit = threshold if thresholds_per_depth is None else thresholds_per_depth[depth - 1]
            if decay_temperature is not None:
                limit = 0.9 * limit + 0.1 * limit * math.exp(-decay_temperature * t / max_new_tokens)
            if isinstance(exit_depths, tuple):
                may_exit = depth in exit_depths
            else:
                may_exit = depth >= min_exit_layer and (depth - min_exit_layer) % (exit_depths or 1) == 0
            previous = hidden
            entered[depth - 1].append(previous)
            hidden = run_layer(decoder, depth - 1, entered[depth - 1], encoded)
            if method == "static" and depth == static_exit_layer:
                token, value, gap = read(hidden, previous, None)
                out.margin = min(out.margin, gap)
                break
            if kept is not None and prune_rule == "decay" and (depth == num_layers or may_exit):
                size = decayed_size(prune_size, prune_size_min, depth, num_layers)
                kept, edge = likeliest(logits_of(hidden), kept, size)
                if depth < num_layers or final_vocab == "pruned":
                    out.margin = min(out.margin, edge)
            if depth == num_layers:
                last_kept = kept if method == "dvp" and final_vocab == "pruned" else None
                token, value, gap = read(hidden, previous, last_kept)
                out.margin = min(out.margin, gap)
                if prune_rule == "recent" and last_kept is None:
                    recent, edge = likeliest(logits_of(hidden), range(config.vocab_size), max(1, prune_size // 4))
                    out.margin = min(out.margin, edge)
                break
            if method == "oracle" and may_exit:
                token, value, gap = read(hidden, previous, None)
                out.margin = min(out.margin, gap)
                if token == full:
                    break
            only_here = method == "shallow_deep" and depth == min_exit_layer
            if only_here or (method in ("calm", "dvp") and may_exit):
                token_here, value, gap = read(hidden, previous, kept)
                alone = kept is not None and len(kept) == 1  # certain by definition, not by rounding
                out.margin = min(out.margin, math.inf if alone else abs(value - limit))
                if value > limit:
                    token = token_here
                    out.margin = min(out.margin, gap)
                    break
            if method == "dvp" and depth == prune_layer and prune_rule != "recent":
                logits, everyone = logits_of(hidden), list(range(config.vocab_size))
                size = prune_size
                if prune_rule == "decay":
                    size = decayed_size(prune_size, prune_size_min, depth, num_layers)
                kept, edge = likeliest(logits, everyone, size)
                if prune_rule == "mass":
                    kept, edge = reaching(logits, kept, prune_mass, edge)
                out.margin = min(out.margin, edge)
        if lossless or method == "shallow_deep":  # later tokens attend to what the skipped layers compute
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
        out.confidences.append(value)
        out.corrected.append(False)
        if lossless or method == "shallow_deep":
            logits = logits_of(hidden)
            full, gap = best_of(logits, None)
            if lossless:
                out.margin = min(out.margin, gap)
            waiting.append((len(out.tokens) - 1, full, logits))
            is_last = token in ends or len(out.tokens) == max_new_tokens
            if depth < num_layers and len(waiting) < max_waiting and not (lossless and is_last):
                out.layers_run += depth
                if is_last:
                    break
                continue
            out.layers_run += num_layers
            wrong = [item for item in waiting if lossless and out.tokens[item[0]] != item[1]]
            place, full, logits = (wrong or waiting[-1:])[0]
            waiting = []
            if prune_rule == "recent":
                recent, edge = likeliest(logits, range(config.vocab_size), max(1, prune_size // 4))
                out.margin = min(out.margin, edge)
            if wrong:
                token = full
                out.tokens[place], out.corrected[place] = token, True
                for values in (out.tokens, out.exit_layers, out.confidences, out.corrected, *entered):
                    del values[place + 1 :]
        if token in ends:
            break
    return out


def likeliest(logits: torch.Tensor, ids: list[int], size: int) -> tuple[list[int], float]:
    """The `size` likeliest ids, smaller ids first among equals; and by how much logit the last one is kept."""
    values = logits.tolist()
    order = sorted(ids, key=lambda i: (-values[i], i))
    edge = values[order[size - 1]] - values[order[size]] if size < len(order) else math.inf
    return order[:size], edge


def reaching(logits: torch.Tensor, ids: list[int], mass: float, edge: float) -> tuple[list[int], float]:
    """The shortest prefix of the ids that reaches a probability mass, and by how much it was decided.

    Args:
        logits: (vocab,).
        ids: the likeliest first.
        mass: of probability over the full vocabulary.
        edge: by how much logit the last of the ids was kept. It counts only if all ids are needed.
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
    """K_l = K_max / (1 + (K_max - K_min) / K_min * l / L), rounded down, in exact fractions."""
    return max(least, math.floor(most / (1 + Fraction(most - least, least) * Fraction(depth, num_layers))))


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    """The cosine of two states, at least 0."""
    return max(0.0, float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0)))


def best_of(logits: torch.Tensor, kept: list[int] | None) -> tuple[int, float]:
    """The likeliest token, the smallest id among equals; and by how much its logit exceeds the second."""
    values = logits.tolist()
    order = sorted(range(len(values)) if kept is None else kept, key=lambda i: (-values[i], i))
    return order[0], values[order[0]] - values[order[1]] if len(order) > 1 else math.inf


def confidence_of(logits: torch.Tensor, kept: list[int] | None, measure: str = "softmax_diff") -> float:
    """A measure of confidence that reads logits, over the kept ids or the full vocabulary."""
    chosen = logits if kept is None else logits[kept]
    chosen = chosen[chosen > -math.inf]
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
    """Runs layer `index` on the last state that entered it; it attends to all that entered."""
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
