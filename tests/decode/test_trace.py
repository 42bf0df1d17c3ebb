"""What every depth reads, against PyTorch layer by layer, and against what decoding itself read."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

import dvp_jax
from dvp_jax.decode.api import encode
from dvp_jax.decode.trace import trace
from tests.models import both
from tests.reference import best_of, confidence_of, cosine, decayed_size, likeliest, reaching, run_layer, scales

MODEL = ("t5", 0, 4.0, 4.0)  # exits at all depths: see test_reference
ROWS = [[3, 4, 5, 17, 90], [9, 8], [100, 20, 30]]
CALM = dvp_jax.DecodeConfig(method="calm", max_new_tokens=8, threshold=0.4, min_exit_layer=1)
DVP = dataclasses.replace(CALM, method="dvp", prune_layer=2, min_exit_layer=3, prune_size=10)
EARLY = dataclasses.replace(DVP, prune_layer=1, min_exit_layer=1, final_vocab="pruned")
MASS = dataclasses.replace(EARLY, confidence="entropy", prune_rule="mass", prune_mass=0.7, threshold=0.85)
DECAY = dataclasses.replace(DVP, prune_layer=1, prune_rule="decay", prune_size=40, prune_size_min=3)
PRUNED_DECAY = dataclasses.replace(DECAY, confidence="softmax_max", min_exit_layer=2, final_vocab="pruned")
STATE = dataclasses.replace(CALM, confidence="state", threshold=0.8)
ORACLE = dataclasses.replace(CALM, method="oracle")
TEACHER = dataclasses.replace(ORACLE, confidence="state", oracle_states="full")
FULL = dataclasses.replace(CALM, method="full")


def sources(rows):
    ids, mask = np.zeros((len(rows), 5), np.int32), np.zeros((len(rows), 5), np.int32)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return ids, mask


@torch.no_grad()
def slow_trace(model, input_ids, tokens, exit_layers, cfg):
    """Each depth's token, confidence and rank of the token given, as (token, depth, 3)."""
    pruned = cfg.method == "dvp"
    config, decoder = model.config, model.decoder
    source = torch.tensor([input_ids])
    encoded = model.encoder(input_ids=source).last_hidden_state
    scale = config.d_model**-0.5 if scales(model) else 1.0
    entered = [[] for _ in range(config.num_decoder_layers)]
    previous, out = config.decoder_start_token_id, []
    for token, exit_layer in zip(tokens, exit_layers, strict=True):
        hidden = frozen = model.shared(torch.tensor([[previous]]))
        kept, depths = None, []
        for depth in range(1, config.num_decoder_layers + 1):
            entering = hidden
            hidden = run_layer(decoder, depth - 1, [*entered[depth - 1], hidden], encoded)
            entered[depth - 1].append(entering if depth <= exit_layer else frozen)
            if depth <= exit_layer:
                frozen = hidden
            logits = model.lm_head.weight @ (scale * decoder.final_layer_norm(hidden)[0, 0])
            order = sorted(range(len(logits)), key=lambda i: (-float(logits[i]), i))
            size = cfg.prune_size
            if pruned and cfg.prune_rule == "decay":
                size = decayed_size(cfg.prune_size, cfg.prune_size_min, depth, config.num_decoder_layers)
            read = kept
            if cfg.prune_rule == "decay" and kept is not None:
                read, _ = likeliest(logits, kept, size)
                kept = read if depth >= cfg.min_exit_layer else kept  # before, decoding would not have asked
            seen = None if depth == config.num_decoder_layers and cfg.final_vocab == "full" else read
            candidate, _ = best_of(logits, seen)
            if cfg.confidence == "state":
                confidence = cosine(hidden[0, 0], entering[0, 0])
            else:
                confidence = confidence_of(logits, seen, cfg.confidence)
            depths.append((candidate, confidence, order.index(token)))
            if pruned and depth == cfg.prune_layer:
                kept = order[:size]
                if cfg.prune_rule == "mass":
                    kept, _ = reaching(logits, kept, cfg.prune_mass, 0.0)
        out.append(depths)
        previous = token
    return np.array(out)


@pytest.mark.parametrize(
    ("decoded_by", "read_by"),
    [
        (FULL, CALM), (FULL, DVP), (CALM, CALM), (DVP, DVP), (DVP, CALM), (EARLY, EARLY), (MASS, MASS),
        (DECAY, DECAY), (PRUNED_DECAY, PRUNED_DECAY), (STATE, STATE), (ORACLE, ORACLE),
    ],
)  # fmt: skip
def test_every_depth_reads_what_pytorch_reads(decoded_by, read_by):
    peer, model = both(*MODEL)
    ids, mask = sources(ROWS)
    out = dvp_jax.generate(model, ids, mask, decoded_by)
    assert decoded_by is FULL or len(set(out.exit_layers[out.exit_layers > 0].tolist())) > 1
    read = trace(model, encode(model, ids, mask), out.tokens, out.exit_layers, read_by)
    for row, length in enumerate(out.lengths):
        text = out.tokens[row, :length].tolist(), out.exit_layers[row, :length].tolist()
        expected = slow_trace(peer, ROWS[row], *text, read_by)
        np.testing.assert_array_equal(read.candidates[row, :length], expected[..., 0])
        # These models amplify float32 rounding: see TIE in test_reference.
        np.testing.assert_allclose(read.confidences[row, :length], expected[..., 1], atol=1e-3)
        np.testing.assert_array_equal(read.ranks[row, :length], expected[..., 2])


@pytest.mark.parametrize(
    "cfg",
    [
        FULL, CALM, DVP, EARLY, MASS, DECAY, PRUNED_DECAY, STATE, ORACLE, TEACHER,
        dataclasses.replace(FULL, method="static", static_exit_layer=2),
    ],
)  # fmt: skip
def test_at_its_exit_each_token_is_read_as_decoding_read_it(cfg):
    model = both(*MODEL)[1]
    ids, mask = sources(ROWS)
    out = dvp_jax.generate(model, ids, mask, cfg)
    read = trace(model, encode(model, ids, mask), out.tokens, out.exit_layers, cfg)
    assert {values.shape for values in jax.tree.leaves(read)} == {(*out.tokens.shape, 4)}
    for row, length in enumerate(out.lengths):
        exits = np.arange(length), out.exit_layers[row, :length] - 1
        np.testing.assert_array_equal(read.candidates[row][exits], out.tokens[row, :length])
        # As wide as between two batch shapes: sums of whole texts fall in another order.
        np.testing.assert_allclose(read.confidences[row][exits], out.confidences[row, :length], atol=1e-4)


def test_shapes_that_do_not_fit_are_refused():
    model = both(*MODEL)[1]
    encoded = encode(model, *sources(ROWS))
    with pytest.raises(ValueError, match=r"tokens has shape \(9, 2\); allowed: \(B, T\), B at most the 4 sources"):
        trace(model, encoded, np.zeros((9, 2), int), np.zeros((9, 2), int), CALM)
    with pytest.raises(ValueError, match=r"exit_layers has shape \(3, 1\); allowed: that of tokens, \(3, 2\)"):
        trace(model, encoded, np.zeros((3, 2), int), np.zeros((3, 1), int), CALM)
    with pytest.raises(ValueError, match="prune_layer is 9"):
        too_deep = dataclasses.replace(DVP, prune_layer=9, min_exit_layer=9)
        trace(model, encoded, np.zeros((3, 2), int), np.zeros((3, 2), int), too_deep)
