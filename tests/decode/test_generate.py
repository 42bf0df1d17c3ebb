"""Invariants of the decoder, what compiles when, and bad input."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dvp_jax
from dvp_jax.decode import api, token_loop
from dvp_jax.decode.api import decode, encode, lower_decode
from dvp_jax.decode.program import full_heads
from dvp_jax.decode.text import batch_bucket, source_bucket
from dvp_jax.exits.policy import LayerOutput
from dvp_jax.t5.exit_classifier import ExitClassifier
from tests.models import both

MODEL = ("t5", 0, 4.0, 4.0)  # exits at all depths: see test_reference
# 3 or 4, which are decoded in one shape, with and without a row that is not active: draws share programs.
prompts = st.lists(st.lists(st.integers(2, 210), min_size=1, max_size=30), min_size=3, max_size=4)


def padded(rows, width=None, left=False):
    width = max(map(len, rows)) if width is None else width
    ids, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.int32)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    return ids, mask


def run(rows, cfg, **kwargs):
    return dvp_jax.generate(both(*MODEL)[1], *padded(rows, **kwargs), cfg)


def assert_same(one, other, rows=slice(None)):
    np.testing.assert_array_equal(one.tokens[rows], other.tokens)
    np.testing.assert_array_equal(one.exit_layers[rows], other.exit_layers)
    np.testing.assert_array_equal(one.lengths[rows], other.lengths)
    np.testing.assert_allclose(one.confidences[rows], other.confidences, atol=1e-4)


CALM = dvp_jax.DecodeConfig(method="calm", max_new_tokens=8, threshold=0.4, min_exit_layer=1)
DVP = dataclasses.replace(CALM, method="dvp", prune_layer=1, prune_size=10)
FULL = dataclasses.replace(CALM, method="full")
STATE = dataclasses.replace(CALM, confidence="state", threshold=0.8)
MASS = dataclasses.replace(DVP, prune_rule="mass", prune_mass=0.8, confidence="softmax_max", threshold=0.7)
DECAY = dataclasses.replace(
    DVP, prune_rule="decay", prune_size_min=2, confidence="entropy", threshold=0.85, final_vocab="pruned"
)
ORACLE = dataclasses.replace(CALM, method="oracle")
SHALLOW = dataclasses.replace(CALM, method="shallow_deep", min_exit_layer=2, max_waiting=3)


@settings(max_examples=9)
@given(
    rows=prompts,
    cfg=st.sampled_from([CALM, STATE, DVP, MASS, dataclasses.replace(DECAY, final_vocab="full"), SHALLOW]),
    every=st.sampled_from([1, 3]),
)
def test_threshold_one_never_exits(rows, cfg, every):
    never = dataclasses.replace(cfg, threshold=1.0, branch_every=every)
    assert_same(run(rows, never), run(rows, dataclasses.replace(cfg, method="full")))


@settings(max_examples=15)
@given(rows=prompts, threshold=st.sampled_from([0.1, 0.4, 0.8]), final_vocab=st.sampled_from(["full", "pruned"]))
def test_keeping_the_whole_vocabulary_equals_calm(rows, threshold, final_vocab):
    whole = dataclasses.replace(DVP, prune_size=211, threshold=threshold, final_vocab=final_vocab)
    calm = run(rows, dataclasses.replace(CALM, threshold=threshold))
    assert_same(run(rows, whole), calm)
    assert_same(run(rows, dataclasses.replace(whole, prune_rule="decay", prune_size_min=211)), calm)


@settings(max_examples=15)
@given(
    rows=prompts,
    cfg=st.sampled_from([FULL, CALM, DVP, STATE, MASS, DECAY, ORACLE, SHALLOW]),
    left=st.booleans(),
    extra=st.sampled_from([0, 40]),
)
def test_each_row_of_a_batch_equals_the_row_alone(rows, cfg, left, extra):
    batch = run(rows, cfg, width=max(map(len, rows)) + extra, left=left)
    for index, row in enumerate(rows):
        assert_same(batch, run([row], cfg), rows=[index])


@settings(max_examples=15)
@given(
    rows=prompts,
    cfg=st.sampled_from([FULL, CALM, DVP, dataclasses.replace(DVP, min_exit_layer=3), STATE, MASS, DECAY]),
)
def test_branching_more_seldom_gives_the_same(rows, cfg):
    once, seldom = (run(rows, dataclasses.replace(cfg, branch_every=every)) for every in (1, 3))
    assert_same(once, seldom)


@settings(max_examples=6)
@given(rows=prompts, max_waiting=st.sampled_from([1, 2, 5]))
def test_shallow_deep_is_the_same_however_many_tokens_wait(rows, max_waiting):
    cfg = dataclasses.replace(SHALLOW, max_new_tokens=12, max_waiting=8)
    assert_same(run(rows, dataclasses.replace(cfg, max_waiting=max_waiting)), run(rows, cfg))


def test_shallow_deep_leaves_at_one_depth_or_the_last():
    out = run([[first, 5] for first in range(2, 10)], SHALLOW)
    assert set(np.unique(out.exit_layers)) <= {0, 2, 4} and {2, 4} <= set(np.unique(out.exit_layers))


def test_rows_of_one_batch_exit_at_different_depths():
    out = run([[first, 5] for first in range(2, 10)], CALM)
    assert any(len(set(column)) > 1 for column in out.exit_layers.T), "else batching was not tested above"


def test_static_at_the_last_depth_equals_full():
    rows = [[3, 4, 5], [9]]
    static = dataclasses.replace(CALM, method="static", static_exit_layer=4)
    assert_same(run(rows, static), run(rows, FULL))


def test_one_kept_token_always_exits_after_pruning_unless_the_threshold_is_one():
    rows = [[3, 4, 5], [9, 8]]
    one = dataclasses.replace(DVP, prune_size=1, min_exit_layer=2, threshold=0.99)
    out = run(rows, one)
    assert (out.exit_layers == np.where(out.exit_layers > 0, 2, 0)).all()
    assert (out.confidences[out.exit_layers > 0] == 1.0).all()
    assert_same(run(rows, dataclasses.replace(one, threshold=1.0)), run(rows, FULL))


def test_a_changed_threshold_does_not_recompile():
    compiled = token_loop.decode_tokens._cache_size()
    for threshold in (0.11, 0.5, 0.93):
        for decay in (None, 3.0):
            for per_depth in (None, (threshold, 0.2, 0.3, 1.0)):
                thresholds = {
                    "threshold": threshold,
                    "thresholds_per_depth": per_depth,
                    "decay_temperature": decay,
                }
                run([[3, 4, 5]], dataclasses.replace(DVP, prune_size=17, **thresholds))
    assert token_loop.decode_tokens._cache_size() == compiled + 1


def test_lengths_within_a_bucket_share_one_program():
    compiled = api._encode._cache_size(), token_loop.decode_tokens._cache_size()
    cfg = dataclasses.replace(DVP, prune_size=19)
    for length in (33, 40, 50, 64):
        run([[7] * length], cfg)
    sizes = api._encode._cache_size(), token_loop.decode_tokens._cache_size()
    assert sizes[1] == compiled[1] + 1 and sizes[0] <= compiled[0] + 1


@pytest.mark.parametrize(("length", "bucket"), [(32, 32), (33, 64), (512, 512), (513, 1024), (1500, 1536)])
def test_source_buckets(length, bucket):
    assert source_bucket(length) == bucket


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (16, 16), (17, 32)])
def test_batch_buckets(rows, bucket):
    assert batch_bucket(rows) == bucket


@pytest.mark.parametrize(("every", "rows"), [(1, 1), (3, 1), (1, 4)])
@pytest.mark.parametrize("method", ["full", "calm", "dvp"])
def test_no_weight_is_copied_or_transposed_in_the_compiled_program(method, every, rows):
    # Dimensions that nothing but weights has.
    _, model = both("t5", vocab_size=1009, d_model=96, d_kv=20, d_ff=264, num_heads=5)
    ids = np.full((rows, 20), 3)
    cfg = dvp_jax.DecodeConfig(method=method, max_new_tokens=16, branch_every=every, unembedding="float")
    lowered, _ = lower_decode(model, encode(model, ids, np.ones_like(ids)), cfg)
    hlo = lowered.compile().as_text()
    matrices = [leaf for leaf in jax.tree.leaves(model.params) if leaf.ndim == 2 and leaf.size > 1000]
    weights = {tuple(sorted(leaf.shape)) for leaf in matrices}
    assert (96, 264) in weights and (96, 1009) in weights
    moved = re.findall(r"= \w+\[([\d,]*)\]\S* (?:copy|transpose|copy-start|concatenate)\(", hlo)
    shapes = {tuple(sorted(map(int, dims.split(",")))) for dims in moved if dims}
    assert shapes, "the pattern found no copies at all: has the text format changed?"
    assert not shapes & weights
    if rows > 1:  # of few rows the weight is the left operand: the product has its rows first
        products = set(re.findall(r"= f32\[(\d+,\d+)\]\S* dot\(", hlo))
        assert {f"{size},{rows}" for size in (96, 100, 264, 1009)} <= products
        assert not any(product.startswith(f"{rows},") for product in products - {f"{rows},64", f"{rows},5"})
    assert not re.search(r"= .*(?:infeed|outfeed|send|recv|callback)", hlo), "the loop must not visit the host"


def test_the_int8_copy_is_never_widened_as_a_whole():
    _, model = both("t5", vocab_size=2500, d_model=96)
    ids = np.full((1, 20), 3)
    encoded = encode(model, ids, np.ones_like(ids))
    assert model.int8_unembedding.rows.shape == (3, 2, 512, 96)
    lowered, _ = lower_decode(model, encoded, dvp_jax.DecodeConfig(max_new_tokens=16, unembedding="int8"))
    computations = re.split(r"\n\n", lowered.compile().as_text())
    copies = [text for text in computations if "s8[3,2,512,96]" in text]
    assert copies, "else the copy is not there at all"
    # Within a fusion nothing is stored.
    assert not any("f32[3,2,512,96]" in text for text in copies if "fused_computation" not in text.split("{")[0])


def nested(jaxpr):
    """The jaxprs inside one's equations."""
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield equation, inner


def asked_for(jaxpr, size):
    """Whether anything of this size is computed before a `cond` is entered."""
    shapes = [variable.aval.shape for equation in jaxpr.eqns for variable in equation.outvars]
    inside = (asked_for(inner, size) for equation, inner in nested(jaxpr) if equation.primitive.name != "cond")
    return any(size in shape for shape in shapes) or any(inside)


@pytest.mark.parametrize(
    ("confidence", "reads"),
    [("softmax_diff", True), ("softmax_max", True), ("entropy", True), ("state", False), ("meta", False)],
)
def test_a_measure_of_the_state_reads_no_logits_before_some_row_leaves(confidence, reads):
    config = both(*MODEL)[1].config
    policy = dataclasses.replace(CALM, confidence=confidence).policy(4, config.vocab_size)
    params = {**both(*MODEL)[1].params, "meta": ExitClassifier(np.ones(32, np.float32), np.float32(0.0))}

    def decide(hidden, previous):
        output = LayerOutput(2, hidden, previous, np.ones(3, bool))
        return policy.decide(output, np.float32(0.5), full_heads(config, params))

    jaxpr = jax.make_jaxpr(decide)(np.ones((3, 32), np.float32), np.ones((3, 32), np.float32)).jaxpr
    assert asked_for(jaxpr, config.vocab_size) == reads


def test_forced_exits_follow_thresholds_by_token_and_depth():
    _, model = both(*MODEL)
    thresholds = np.full((8, 4), np.inf, np.float32)
    wanted = [1, 4, 2, 3, 3, 1, 4, 2]
    for t, depth in enumerate(wanted):
        if depth < 4:
            thresholds[t, depth - 1] = -np.inf
    unending = dataclasses.replace(model, config=dataclasses.replace(model.config, eos_token_id=-1))
    out = decode(unending, encode(unending, [[3, 4]], [[1, 1]]), CALM, thresholds)
    assert out.exit_layers.tolist() == [wanted]
    with pytest.raises(ValueError, match=r"thresholds has shape \(8, 3\); allowed: \(8, 4\)"):
        decode(unending, encode(unending, [[3, 4]], [[1, 1]]), CALM, thresholds[:, :3])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "free"}, "method is 'free'; allowed: full, static, calm, dvp, shallow_deep, oracle"),
        (
            {"confidence": "softmax"},
            "confidence is 'softmax'; allowed: softmax_diff, softmax_max, entropy, state, meta",
        ),
        (
            {"confidence": "state"},
            "confidence is 'state'; allowed with method 'dvp', which prunes what a measure of logits reads: "
            "softmax_diff, softmax_max, entropy",
        ),
        ({"prune_rule": "half"}, "prune_rule is 'half'; allowed: fixed, mass, decay"),
        ({"prune_rule": "mass"}, "prune_mass is None; prune_rule 'mass' needs a number above 0, to 1"),
        ({"prune_mass": 0.0}, "prune_mass is 0.0; allowed: a number above 0, to 1"),
        ({"prune_mass": 1.01}, "prune_mass is 1.01; allowed: a number above 0, to 1"),
        ({"prune_mass": math.nan}, "prune_mass is nan; allowed: a number above 0, to 1"),
        (
            {"prune_rule": "decay"},
            "prune_size_min is None; prune_rule 'decay' needs an integer from 1 to prune_size",
        ),
        ({"prune_size_min": 0}, "prune_size_min is 0; allowed: an integer of at least 1"),
        ({"prune_size": 8, "prune_size_min": 9}, "prune_size_min is 9; allowed: at most prune_size, 8"),
        ({"oracle_states": "mine"}, "oracle_states is 'mine'; allowed: own, full"),
        (
            {"thresholds_per_depth": (0.5, 1.5)},
            "thresholds_per_depth is (0.5, 1.5); allowed: None or numbers from 0",
        ),
        ({"thresholds_per_depth": 0.5}, "thresholds_per_depth is 0.5; allowed: None or numbers from 0 to 1"),
        ({"final_vocab": "half"}, "final_vocab is 'half'; allowed: full, pruned"),
        ({"unembedding": "int4"}, "unembedding is 'int4'; allowed: auto, float, int8"),
        ({"branch_every": 0}, "branch_every is 0; allowed: an integer of at least 1"),
        ({"method": "calm", "exit_depths": ()}, "exit_depths is (); allowed: at least one depth, each once"),
        (
            {"method": "calm", "exit_depths": (2, 2)},
            "exit_depths is (2, 2); allowed: at least one depth, each once",
        ),
        ({"method": "calm", "exit_depths": (0, 2)}, "exit_depths is 0; allowed: an integer from 1"),
        ({"method": "calm", "exit_depths": 0}, "exit_depths is 0; allowed: an integer of at least 1"),
        ({"exit_depths": (1, 3)}, "prune_layer is 2; allowed: at most the first of exit_depths, 1"),
        ({"threshold": 1.5}, "threshold is 1.5; allowed: a number from 0 to 1"),
        ({"threshold": -0.1}, "threshold is -0.1; allowed: a number from 0 to 1"),
        ({"threshold": math.nan}, "threshold is nan; allowed: a number from 0 to 1"),
        ({"threshold": None}, "threshold is None; allowed: a number from 0 to 1"),
        ({"decay_temperature": -1.0}, "decay_temperature is -1.0; allowed: None or a number of at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; allowed: an integer of at least 1"),
        ({"prune_size": 0}, "prune_size is 0; allowed: an integer of at least 1"),
        ({"prune_size": 2.0}, "prune_size is 2.0; allowed: an integer of at least 1"),
        ({"max_waiting": 0}, "max_waiting is 0; allowed: an integer of at least 1"),
        ({"prune_layer": 0}, "prune_layer is 0; allowed: an integer of at least 1"),
        ({"prune_layer": 3}, "prune_layer is 3; allowed: at most min_exit_layer, 2"),
        ({"method": "static"}, "static_exit_layer is None; allowed with method 'static'"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dvp_jax.DecodeConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prune_size": 212}, "prune_size is 212; allowed: an integer from 1 to 211 for this model"),
        ({"prune_layer": 4, "min_exit_layer": 4}, "prune_layer is 4; allowed: an integer from 1 to 3"),
        ({"min_exit_layer": 5}, "min_exit_layer is 5; allowed: an integer from 1 to 4 for this model"),
        ({"method": "calm", "exit_depths": (2, 5)}, "exit_depths is 5; allowed: an integer from 1 to 4 for this"),
        ({"method": "oracle", "min_exit_layer": 5}, "min_exit_layer is 5; allowed: an integer from 1 to 4"),
        (
            {"thresholds_per_depth": (0.5,) * 3},
            "thresholds_per_depth has 3 values; allowed: 4, one for each layer",
        ),
        ({"method": "calm", "min_exit_layer": 5}, "min_exit_layer is 5; allowed: an integer from 1 to 4"),
        ({"method": "static", "static_exit_layer": 5}, "static_exit_layer is 5; allowed: an integer from 1 to 4"),
    ],
)
def test_settings_beyond_the_model_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        run([[3]], dvp_jax.DecodeConfig(**{"prune_size": 8, **fields}))


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[3, 4]], [[1]], r"attention_mask has shape \(1, 1\); allowed: that of input_ids, \(1, 2\)"),
        ([3, 4], [1, 1], r"input_ids has shape \(2,\) and dtype int64; allowed: \(B, S\) integers"),
        ([[3.0]], [[1]], r"input_ids has shape \(1, 1\) and dtype float64"),
        (np.zeros((0, 4), int), np.zeros((0, 4)), r"input_ids has shape \(0, 4\)"),
        ([[3, 211]], [[1, 1]], "input_ids spans 3 to 211; allowed: ids from 0 to 210"),
        ([[3, -1]], [[1, 1]], "input_ids spans -1 to 3"),
        ([[3, 4], [5, 6]], [[1, 1], [0, 0]], r"attention_mask is 0 throughout rows \[1\]"),
    ],
)
def test_sources_that_are_none_are_refused(ids, mask, message):
    with pytest.raises(ValueError, match=message):
        dvp_jax.generate(both(*MODEL)[1], np.array(ids), np.array(mask), CALM)


class Letters:
    """A tokenizer of letters: a is 2, b is 3, and so on; 1 ends a text."""

    def __call__(self, texts):
        return {"input_ids": [[*(ord(letter) - ord("a") + 2 for letter in text), 1] for text in texts]}

    def decode(self, tokens, skip_special_tokens):
        assert skip_special_tokens
        return " ".join(str(token) for token in tokens if token > 1)


def lettered():
    return dataclasses.replace(both(*MODEL)[1], tokenizer=Letters())


def test_generate_text_equals_generate_on_the_tokenized_prompts():
    texts = dvp_jax.generate_text(lettered(), ["abc", "zebra"], DVP)
    out = run([[2, 3, 4, 1], [27, 6, 3, 19, 2, 1]], DVP)
    for index, text in enumerate(texts):
        length = out.lengths[index]
        assert text.tokens == out.tokens[index, :length].tolist()
        assert text.exit_layers == out.exit_layers[index, :length].tolist()
        assert text.text == " ".join(str(token) for token in text.tokens if token > 1)


def test_long_prompts_are_truncated_with_a_warning_that_counts_them():
    with pytest.warns(UserWarning, match="2 of 3 prompts are longer than 5 tokens and were truncated"):
        texts = dvp_jax.generate_text(lettered(), ["abcdefgh", "ab", "hgfedcba"], DVP, max_source_length=5)
    assert texts[0].tokens == dvp_jax.generate_text(lettered(), ["abcd"], DVP)[0].tokens


def test_prompts_that_are_none_are_refused():
    for prompts, message in (
        ([], r"prompts is \[\]; allowed: a list of at least one text"),
        ("abc", "prompts is 'abc'; allowed: a list"),
        (["abc", " "], r"prompts\[1\] is ' '; allowed: a text that is not empty"),
        ([None], r"prompts\[0\] is None"),
    ):
        with pytest.raises(ValueError, match=message):
            dvp_jax.generate_text(lettered(), prompts, DVP)
    with pytest.raises(ValueError, match=r"model\.tokenizer is None"):
        dvp_jax.generate_text(both(*MODEL)[1], ["abc"], DVP)
