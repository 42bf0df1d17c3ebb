"""Evaluation of several methods over a task of a tiny random model."""

import dataclasses
import itertools
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

import dvp_jax
from dvp_jax.decode.api import encode, lower_decode
from dvp_jax.evaluate import evaluation
from dvp_jax.evaluate.confidence_time import Replay, replay_config
from dvp_jax.evaluate.evaluation import evaluate, make_methods
from dvp_jax.evaluate.reports import report_evaluation
from dvp_jax.evaluate.results import describe, results_table
from dvp_jax.evaluate.traces import trace_texts
from tests.analysis.helpers import depth_logits, ranks
from tests.launching import SENTENCES, Sentences

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def model(checkpoint):
    return dvp_jax.load_model(checkpoint.folder)


class NeverLoaded(Sentences):
    def load(self):
        raise AssertionError("the data were read before the arguments were checked")


FULL = dvp_jax.DecodeConfig(method="full", max_new_tokens=5)
EARLY = dvp_jax.DecodeConfig(method="static", static_exit_layer=2, max_new_tokens=5)


def test_evaluate_keeps_the_order_of_methods_and_of_examples(model, checkpoint):
    task = Sentences(SENTENCES[:4])
    rows, predictions = evaluate(model, task, {"zz": EARLY, "aa": FULL}, batch_size=3)  # 3 of 4 rows, then 1
    assert [(row["name"], row["method"], row["static_exit_layer"]) for row in rows] == [
        ("zz", "static", 2),
        ("aa", "full", None),
    ]
    assert [(p["name"], p["id"]) for p in predictions] == [
        (name, key) for name in ("zz", "aa") for key in ("id 0", "id 1", "id 2", "id 3")
    ]
    early = [
        checkpoint.decode(s, method="static", static_exit_layer=2, max_new_tokens=5).tokens for s in SENTENCES[:4]
    ]
    full = [checkpoint.decode(s, method="full", max_new_tokens=5).tokens for s in SENTENCES[:4]]
    assert [p["tokens"] for p in predictions] == early + full
    texts = [[checkpoint.text(tokens) for tokens in of_method] for of_method in (early, full)]
    assert task.scored == [(texts[0], task.examples), (texts[1], task.examples)]
    assert [row["metric"] for row in rows] == [{"asked": 1.0}, {"asked": 2.0}]
    assert rows[0]["speed_up"] == pytest.approx(rows[1]["ms_per_token"] / rows[0]["ms_per_token"])
    assert rows[1]["speed_up"] == 1.0


def test_each_example_draws_with_a_seed_of_its_own_whatever_the_batch_size(model):
    task, drawn = Sentences(SENTENCES[:1] * 9), dataclasses.replace(FULL, temperature=2.0)
    alone, together = (
        [line["tokens"] for line in evaluate(model, task, {"drawn": drawn}, batch_size=size)[1]] for size in (1, 2)
    )
    assert alone == together
    assert len(set(map(tuple, alone))) > 1


def test_there_is_no_speed_up_without_the_full_model(model):
    rows, _ = evaluate(model, Sentences(SENTENCES[:2]), {"one": EARLY}, batch_size=2)
    assert [row["speed_up"] for row in rows] == [None]
    assert "None" not in results_table(rows).markdown()


@pytest.mark.parametrize(("limit", "left"), [(1, 1), (2, 2), (9, 3), (None, 3)])
def test_limit_is_the_number_of_examples_at_most(model, limit, left):
    task = Sentences(SENTENCES[:3])
    rows, predictions = evaluate(model, task, {"one": EARLY}, limit=limit)
    assert rows[0]["num_examples"] == left
    assert [p["id"] for p in predictions] == ["id 0", "id 1", "id 2"][:left]
    assert task.scored[0][1] == task.examples[:left]


@pytest.mark.parametrize(
    ("methods", "fields", "parts"),
    [
        ({}, {}, "methods is empty"),
        ({"a": FULL}, {"batch_size": 0}, "batch_size is 0"),
        ({"a": FULL}, {"batch_size": -2}, "batch_size is -2"),
        ({"a": FULL}, {"limit": 0}, "limit is 0"),
        ({"a": FULL}, {"batch_size": 2, "confidence_time": True}, "batch_size is 2; allowed with .*_time: 1"),
        ({"a": dataclasses.replace(EARLY, static_exit_layer=5)}, {}, "static_exit_layer is 5"),
        ({"a": FULL, "b": dvp_jax.DecodeConfig(prune_size=601)}, {}, "prune_size is 601"),
    ],
)
def test_evaluate_refuses_what_cannot_be_before_it_reads_data(model, methods, fields, parts):
    with pytest.raises(ValueError, match=parts):
        evaluate(model, NeverLoaded([]), methods, **fields)


def test_evaluate_refuses_a_model_without_a_tokenizer(model):
    with pytest.raises(ValueError, match="tokenizer"):
        evaluate(dataclasses.replace(model, tokenizer=None), Sentences(["baba"]), {"a": FULL})


RULES = {
    "oracle": {"method": "oracle", "oracle_states": "full", "min_exit_layer": 1},
    "state": {"method": "calm", "confidence": "state", "threshold": 0.8},
    "each": {"method": "calm", "thresholds_per_depth": (1.0, 0.4, 0.2, 1.0), "confidence": "softmax_max"},
    "mass": {"method": "dvp", "threshold": 0.5, "prune_rule": "mass", "prune_mass": 0.8, "min_exit_layer": 3},
    "decay": {"method": "dvp", "threshold": 0.5, "prune_rule": "decay", "prune_size_min": 4},
}


def test_every_rule_is_evaluated_traced_and_described(model, checkpoint):
    task, methods = Sentences(SENTENCES[:2]), make_methods(RULES, 5)
    rows, predictions = evaluate(model, task, methods)
    for prediction, sentence in zip(predictions, len(RULES) * SENTENCES[:2], strict=True):
        expected = checkpoint.decode(sentence, max_new_tokens=5, **RULES[prediction["name"]])
        assert (prediction["tokens"], prediction["exit_layers"]) == (expected.tokens, expected.exit_layers)
    assert all(p["decode_s"] > 0.0 and p["encode_s"] > 0.0 for p in predictions)
    assert {row["name"]: describe(row) for row in rows} == {
        "oracle": "min exit 1, states full",
        "state": "state, threshold 0.8, min exit 2",
        "each": "softmax_max, thresholds 1 0.4 0.2 1, min exit 2",
        "mass": "mass, threshold 0.5, min exit 3, p 2, K 64, mass 0.8",
        "decay": "decay, threshold 0.5, p 2, K 64, K min 4",
    }
    for trace in trace_texts(model, task, methods, rows, predictions, 2):
        exits = range(len(trace["pieces"])), np.array(trace["exit_layers"]) - 1
        assert np.array(trace["candidates"])[exits].tolist() == trace["pieces"]


def test_the_explorer_has_the_rank_of_each_token_at_the_depth_that_pruned(model, checkpoint):
    task, methods = Sentences(SENTENCES[:2]), {"dvp": dvp_jax.DecodeConfig(threshold=1.0, max_new_tokens=5)}
    rows, predictions = evaluate(model, task, methods)
    traces = trace_texts(model, task, methods, rows, predictions, 2)
    for trace, sentence, line in zip(traces, SENTENCES[:2], predictions, strict=True):
        logits = depth_logits(checkpoint.peer, checkpoint.ids(sentence), line["tokens"])
        expected = ranks(logits, line["tokens"])
        assert trace["ranks"] == expected[:, 1].tolist() != expected[:, 0].tolist()


ASKING = {
    "calm": {"method": "calm", "threshold": 0.15},
    "dvp": {"method": "dvp", "threshold": 0.3, "prune_size": 16},
}


def test_the_time_of_confidence_is_beyond_that_of_the_same_exits_with_nothing_asked(model, monkeypatch):
    decode_once, decoded = evaluation._decode, []
    knows_nothing = dataclasses.replace(
        model, params=model.params | {"lm_head": jnp.zeros_like(model.params["lm_head"])}
    )

    def timed(model, cfg, *arguments):
        """A method takes 5 s a text, and what decodes its texts again 3 s, without an unembedding to read."""
        is_replay = isinstance(cfg.method, Replay)
        texts, _ = decode_once(knows_nothing if is_replay else model, cfg, *arguments)
        decoded.append((is_replay, [(text.tokens, text.exit_layers) for text in texts]))
        return texts, {"decode_s": 3.0 if is_replay else 5.0, "encode_s": 0.0}

    monkeypatch.setattr(evaluation, "_decode", timed)
    methods = make_methods({"full": {"method": "full"}} | ASKING, 5)
    rows, lines = evaluate(model, Sentences(SENTENCES[:3]), methods, confidence_time=True)
    replayed = [(before[1], again) for before, (is_replay, again) in itertools.pairwise(decoded) if is_replay][-6:]
    assert all(before == again for before, again in replayed)
    assert {depth for texts, _ in replayed for _, exits in texts for depth in exits} == {2, 3, 4}
    per_token = {row["name"]: row["confidence_ms_per_token"] for row in rows}
    num_tokens = {name: sum(len(line["tokens"]) for line in lines if line["name"] == name) for name in methods}
    asked = {name: pytest.approx(3 * 2000 / num_tokens[name]) for name in ("calm", "dvp")}
    assert per_token == {"full": None, **asked}
    columns = [[cell.strip() for cell in line.split("|")] for line in results_table(rows).markdown().splitlines()]
    place = columns[0].index("confidence ms/token")
    shown = {line[1]: line[place] for line in columns[2:4]}
    assert shown == {"full": "", "calm": f"{per_token['calm']:.2f}"}


@pytest.mark.parametrize("name", ASKING)
def test_what_decodes_a_text_again_reads_the_vocabulary_at_the_last_depth_only(model, name):
    (cfg,) = make_methods({name: {"unembedding": "float", **ASKING[name]}}, 5).values()
    encoded = encode(model, np.array([[3, 4]]), np.ones((1, 2)))

    def num_products(cfg):  # with all 600 rows, before XLA computes once what `decide` and `prune` both ask for
        text = lower_decode(model, encoded, cfg)[0].as_text()
        return len(re.findall(r"dot_general.*-> tensor<(1x600|600x1)xf32>", text))

    assert num_products(cfg) == 3
    assert num_products(replay_config(model, cfg)) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "full"},
        {"method": "lossless"},
        {"method": "shallow_deep"},
        {"method": "calm", "confidence": "state"},
        {"method": "calm", "temperature": 0.5},
        {"method": "dvp", "final_vocab": "pruned"},
    ],
)
def test_where_the_time_of_confidence_cannot_be_told_apart_nothing_is_decoded_again(model, fields):
    assert replay_config(model, dvp_jax.DecodeConfig(prune_size=16, **fields)) is None


def test_settings_are_ordered_full_first_and_unknown_fields_are_named():
    methods = make_methods({"a": {"method": "dvp", "prune_size": 9}, "b": {"method": "full"}}, 7)
    assert list(methods) == ["b", "a"]
    assert [cfg.max_new_tokens for cfg in methods.values()] == [7, 7]
    with pytest.raises(
        ValueError, match=r"methods\.a has no treshold; allowed: method, max_new_tokens, threshold"
    ):
        make_methods({"a": {"treshold": 0.5}}, 7)


@pytest.mark.parametrize("name", ["a/b", "a\nb", "\udcff"])
def test_names_of_methods_that_are_no_file_names_are_refused(name):
    with pytest.raises(ValueError, match=r"methods has '.*'; allowed: names that can be printed, without /"):
        make_methods({name: {"method": "full"}}, max_new_tokens=3)


def test_texts_whose_logits_overflow_are_written_and_their_row_says_so(model, tmp_path):
    params = model.params | {"lm_head": model.params["lm_head"].at[7].set(jnp.inf)}
    overflowing = dataclasses.replace(model, params=params)
    task = Sentences(SENTENCES[:2])
    rows, lines = evaluate(overflowing, task, {"full": FULL}, batch_size=1)
    assert [set(line["confidences"]) for line in lines] == [{None}, {None}]
    assert "(NOT FINITE in 2 of 2 texts)" in results_table(rows).markdown()
    traces = list(trace_texts(overflowing, task, {"full": FULL}, rows, lines, 2))
    report_evaluation(tmp_path, rows, {}, traces)
    for name, value in {"rows": rows, "lines": lines, "traces": traces}.items():
        assert json.dumps(value, allow_nan=False), name
    assert (tmp_path / "report.html").is_file()
