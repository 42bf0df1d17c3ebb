"""Settings that cannot be, and settings from a file."""

import json
import math
import re

import pytest

import dvp_jax
from dvp_jax.decode.config import parse_exit_depths


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "free"}, "method is 'free'; allowed: full, static, calm, dvp, lossless, shallow_deep, oracle"),
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
        ({"method": "calm", "exit_depths": "all"}, "exit_depths is 'all'; allowed: an integer of at least 1"),
        (
            {"method": "dvp", "exit_depths": (3, 3)},
            "exit_depths is (3, 3); allowed: at least one depth, each once",
        ),
        ({"method": "dvp", "exit_depths": ()}, "exit_depths is (); allowed: at least one depth, each once"),
        ({"method": "dvp", "exit_depths": 0}, "exit_depths is 0; allowed: an integer of at least 1"),
        ({"exit_depths": (1, 3)}, "prune_layer is 2; allowed: at most the first of exit_depths, 1"),
        ({"threshold": 1.5}, "threshold is 1.5; allowed: a number from 0 to 1"),
        ({"threshold": -0.1}, "threshold is -0.1; allowed: a number from 0 to 1"),
        ({"threshold": math.nan}, "threshold is nan; allowed: a number from 0 to 1"),
        ({"threshold": None}, "threshold is None; allowed: a number from 0 to 1"),
        ({"decay_temperature": -1.0}, "decay_temperature is -1.0; allowed: None or a number of at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; allowed: an integer of at least 1"),
        ({"prune_size": 0}, "prune_size is 0; allowed: an integer of at least 1"),
        ({"prune_size": 2.0}, "prune_size is 2.0; allowed: an integer of at least 1"),
        ({"prune_size": None}, "prune_size is None; allowed: an integer of at least 1"),
        ({"method": "lossless", "confidence": "state"}, "confidence is 'state'; allowed with method 'dvp'"),
        ({"max_waiting": 0}, "max_waiting is 0; allowed: an integer of at least 1"),
        ({"prune_layer": 0}, "prune_layer is 0; allowed: an integer of at least 1"),
        ({"prune_layer": 3}, "prune_layer is 3; allowed: at most min_exit_layer, 2"),
        ({"method": "static"}, "static_exit_layer is None; allowed with method 'static'"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dvp_jax.DecodeConfig(**fields)


def written(folder, content):
    path = folder / "selected.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_config_is_loaded_from_a_file(tmp_path):
    fields = {"method": "dvp", "prune_size": 7, "threshold": 0.25}
    loaded = dvp_jax.load_decode_config(written(tmp_path, {"config": fields, "returned": "dvp"}))
    assert loaded == dvp_jax.DecodeConfig(**fields)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"config": {"K": 64, "p": 2}}, r"selected.json: config has no K, p; allowed: method, max_new_tokens, "),
        ({"config": {"prune_size": 0}}, "prune_size is 0; allowed: an integer of at least 1"),
        ({"configs": {}}, 'has no "config"; allowed: an object with the fields of DecodeConfig'),
        ([1], 'has no "config"'),
        ("{", "selected.json is not JSON"),
    ],
)
def test_a_file_without_a_proper_config_is_refused(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        dvp_jax.load_decode_config(written(tmp_path, content))


def test_a_config_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config file .*none.json"):
        dvp_jax.load_decode_config(tmp_path / "none.json")


@pytest.mark.parametrize(("text", "depths"), [(None, None), ("4", 4), ("4,8,12", (4, 8, 12)), ("4,", (4,))])
def test_exit_depths_are_read_from_text(text, depths):
    assert parse_exit_depths(text) == depths


@pytest.mark.parametrize("text", ["", ",", "all", "4,,8", "4;8", "-4", "4.5", "4,8,,"])
def test_text_that_names_no_depths_is_refused(text):
    with pytest.raises(ValueError, match=f"^exit_depths is {re.escape(repr(text))}; allowed: n for every n-th"):
        parse_exit_depths(text)


def test_a_threshold_need_not_decay():
    assert dvp_jax.DecodeConfig(decay_temperature=0.0).decay_temperature == 0.0


@pytest.mark.parametrize("method", ["calm", "dvp", "lossless", "shallow_deep", "oracle"])
def test_a_method_that_exits_early_needs_two_layers(method):
    cfg = dvp_jax.DecodeConfig(method=method, min_exit_layer=1, prune_layer=1)
    with pytest.raises(
        ValueError, match="num_decoder_layers is 1; allowed with a method that exits early: at least 2"
    ):
        cfg.policy(1, 211)
    assert dvp_jax.DecodeConfig(method="full").policy(1, 211).last_depth == 1


@pytest.mark.parametrize("prune_size", [64, 512])
@pytest.mark.parametrize(
    ("vocab_size", "d_model", "ms"),  # with W and with its copy: the table of docs/performance.md
    [
        (16_384, 128, {64: (0.69, 0.68), 512: (0.80, 1.17)}),
        (32_128, 128, {64: (0.90, 0.94), 512: (1.07, 1.56)}),
        (32_128, 256, {64: (1.53, 1.40), 512: (1.66, 1.98)}),
        (64_256, 256, {64: (2.50, 2.08), 512: (2.60, 2.80)}),
        (32_128, 512, {64: (2.92, 2.34), 512: (3.41, 3.24)}),
    ],
)
def test_the_int8_copy_is_read_where_it_was_measured_to_pay(vocab_size, d_model, ms, prune_size):
    cfg = dvp_jax.DecodeConfig(method="dvp", prune_size=prune_size)
    policy, config = cfg.policy(4, vocab_size), dvp_jax.T5Config(vocab_size=vocab_size, d_model=d_model)
    chosen = cfg.reads_int8(policy, config, "cpu", 1)
    assert ms[prune_size][chosen] <= 1.05 * min(ms[prune_size])
    assert not cfg.reads_int8(policy, config, "cpu", 2) and not cfg.reads_int8(policy, config, "gpu", 1)
