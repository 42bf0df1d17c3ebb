"""Checks of a model, on a decoder that is made up: it gives the same every time, until a test changes a call."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

import dvp_jax
import dvp_jax.evaluate.check
from dvp_jax.decode.token_loop import Decoded
from tests.launching import VOCAB_SIZE

CONFIG_OF_2_LAYERS = dvp_jax.T5Config(vocab_size=VOCAB_SIZE, num_decoder_layers=2, decoder_start_token_id=0)
CHECKED = dvp_jax.DecodeConfig(threshold=0.5, min_exit_layer=1, prune_layer=1, prune_size=64, max_new_tokens=5)
SOURCES = np.array([[30, 31, 32, 1], [40, 1, 0, 0]], np.int32)
MASK = SOURCES != 0
TOKENS = {30: [21, 22, 23, 24, 25], 40: [26, 27, 1, 0, 0]}  # by the first token of the source
EXITS = {30: [2, 1, 2, 2, 1], 40: [1, 2, 2, 0, 0]}


class MadeUp:
    """Stands in for `generate` and `teacher_forced_logits`.

    Args:
        when: function of source ids and config: whether a call gives something else.
        changes: what it gives then: field, row of the batch, position, value.
    """

    def __init__(self, when, changes):
        self.when, self.changes, self.calls, self.prefixes, self.changed = when, changes, [], [], 0

    def generate(self, model, ids, mask, cfg):
        np.testing.assert_array_equal(mask.astype(bool), ids != 0)
        self.calls.append((len(ids), cfg))
        arrays = {
            name: np.array([values[first] for first in ids[:, 0]], np.int32)
            for name, values in (("tokens", TOKENS), ("exit_layers", EXITS))
        }
        lengths = (arrays["exit_layers"] > 0).sum(axis=1)
        if self.when(ids, cfg):
            self.changed += 1
            for name, row, position, value in self.changes:
                assert arrays[name][row, position] != value
                arrays[name][row, position] = value
        return Decoded(lengths=lengths, confidences=np.full(arrays["tokens"].shape, 0.25, np.float32), **arrays)

    def teacher_forced_logits(self, model, ids, mask, prefix):
        self.prefixes.append(np.asarray(prefix).tolist())
        likeliest = np.array([TOKENS[first] for first in ids[:, 0]])
        likeliest[likeliest == 0] = 99  # what a model says after the end of a text means nothing
        return np.eye(VOCAB_SIZE, dtype=np.float32)[likeliest]


@pytest.fixture
def check_with(monkeypatch):
    """A function that checks the made-up decoder with changes.

    It returns the differences under the name of each check that has any, and the decoder.
    """

    def check(when, changes):
        made_up = MadeUp(when, changes)
        monkeypatch.setattr(dvp_jax.evaluate.check, "generate", made_up.generate)
        monkeypatch.setattr(dvp_jax.evaluate.check, "teacher_forced_logits", made_up.teacher_forced_logits)
        checks = dvp_jax.evaluate.check.check_model(dvp_jax.Model(CONFIG_OF_2_LAYERS, {}), SOURCES, MASK, CHECKED)
        assert len({check.name for check in checks}) == len(checks)
        assert made_up.changed or not changes
        return {check.name: check.differences for check in checks if check.differences}, made_up

    return check


def test_check_model_runs_every_method_in_every_way(check_with):
    differing, made_up = check_with(lambda ids, cfg: False, [])
    assert differing == {}
    # The batch is right and the likeliest tokens come after the tokens before them.
    assert made_up.prefixes == [[[0, 21, 22, 23, 24], [0, 26, 27, 1, 0]]]
    batches = [cfg for rows, cfg in made_up.calls if rows == 2]
    alone = Counter(cfg for rows, cfg in made_up.calls if rows == 1)
    for method in ("full", "calm", "dvp"):
        changed = dataclasses.replace(CHECKED, method=method)
        assert changed in batches and alone[changed] == 2
        for every in (3, 1):
            assert dataclasses.replace(changed, branch_every=every) in batches
    for method in ("calm", "dvp"):
        assert dataclasses.replace(CHECKED, method=method, threshold=1.0) in batches
    assert dataclasses.replace(CHECKED, method="dvp", prune_size=VOCAB_SIZE) in batches
    assert dataclasses.replace(CHECKED, method="static", static_exit_layer=2) in batches


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("static", {"method": "static"}),
        ("calm, threshold 1", {"method": "calm", "threshold": 1.0}),
        ("dvp, threshold 1", {"method": "dvp", "threshold": 1.0}),
        ("prune_size V", {"method": "dvp", "prune_size": VOCAB_SIZE}),
        ("full, branch_every", {"method": "full", "branch_every": 3}),
        ("calm, branch_every", {"method": "calm", "branch_every": 1}),
        ("dvp, branch_every", {"method": "dvp", "branch_every": 3}),
    ],
)
def test_check_model_names_row_and_position_of_another_token(check_with, part, fields):
    def one(ids, cfg):
        return all(getattr(cfg, name) == value for name, value in fields.items())

    # What follows a difference in the same row differs in consequence, and is not reported.
    differing, _ = check_with(one, [("tokens", 0, 3, 599), ("tokens", 0, 4, 598)])
    ((name, (difference,)),) = differing.items()
    assert part in name
    assert "row 0, position 3" in difference
    assert "token 599 " in difference and "token 24 " in difference and "598" not in difference
    assert "exit 2" in difference and "0.25" in difference


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"method": "calm", "threshold": 0.5}, ["prune_size V", "calm, each row"]),
        ({"method": "dvp", "threshold": 0.5, "prune_size": 64}, ["dvp, each row"]),
        ({"method": "lossless"}, ["lossless, tokens", "lossless, each row"]),
        (
            {"method": "full"},
            [
                "teacher-forced",
                "static",
                "calm, threshold 1",
                "dvp, threshold 1",
                "lossless, tokens",
                "full, each row",
            ],
        ),
    ],
)
def test_check_model_compares_with_the_right_decode(check_with, fields, parts):
    def batch(ids, cfg):
        fits = all(getattr(cfg, name) == value for name, value in fields.items())
        return fits and len(ids) == 2 and cfg.branch_every is None

    differing, _ = check_with(batch, [("tokens", 1, 1, 599)])
    assert [part for part in parts if any(part in name for name in differing)] == parts
    assert len(differing) == len(parts)
    assert all("row 1, position 1" in difference for (difference,) in differing.values())


def test_check_model_names_every_row_that_differs(check_with):
    changes = [("tokens", 0, 2, 599), ("tokens", 1, 0, 599)]
    differing, _ = check_with(lambda ids, cfg: cfg.method == "static", changes)
    ((_, differences),) = differing.items()
    assert len(differences) == 2
    assert "row 0, position 2" in differences[0] and "row 1, position 0" in differences[1]


def test_check_model_finds_another_exit_of_the_same_token(check_with):
    differing, _ = check_with(lambda ids, cfg: cfg.method == "static", [("exit_layers", 1, 1, 1)])
    ((name, (difference,)),) = differing.items()
    assert "static" in name
    assert "row 1, position 1" in difference and "exit 1" in difference and "exit 2" in difference


@pytest.mark.parametrize("method", ["full", "calm", "dvp"])
def test_check_model_names_the_row_of_the_batch_that_differs_alone(check_with, method):
    def second_alone(ids, cfg):
        return ids.tolist() == [[40, 1]] and cfg.method == method

    differing, _ = check_with(second_alone, [("tokens", 0, 1, 599)])
    ((name, (difference,)),) = differing.items()
    assert method in name and "alone" in name
    assert "row 1, position 1" in difference and "token 599 " in difference and "token 27 " in difference


def test_check_model_finds_a_full_decode_that_is_not_greedy(check_with):
    differing, _ = check_with(lambda ids, cfg: True, [("tokens", 0, 2, 599)])  # all alike, but wrong
    ((name, (difference,)),) = [item for item in differing.items() if "alone" not in item[0]]
    assert "teacher-forced" in name
    assert "row 0, position 2" in difference and "token 599 against 23" in difference


def test_a_decoder_of_one_layer_is_checked_as_far_as_it_goes(monkeypatch):
    model = dataclasses.replace(CONFIG_OF_2_LAYERS, num_decoder_layers=1)
    monkeypatch.setitem(EXITS, 30, [1] * 5)
    made_up = MadeUp(lambda *_: False, [])
    monkeypatch.setattr(dvp_jax.evaluate.check, "generate", made_up.generate)
    monkeypatch.setattr(dvp_jax.evaluate.check, "teacher_forced_logits", made_up.teacher_forced_logits)
    checks = dvp_jax.evaluate.check.check_model(dvp_jax.Model(model, {}), SOURCES, MASK, CHECKED)
    assert {cfg.method for _, cfg in made_up.calls} == {"full", "static"}
    assert len(checks) == 4 and not any(check.differences for check in checks)
