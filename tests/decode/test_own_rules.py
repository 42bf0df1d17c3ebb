"""A policy and a pruning rule that a user writes: one class each, and nothing in the package knows them."""

import dataclasses

import numpy as np
import pytest

import dvp_jax
from dvp_jax.exits.policy import CALM, DVP
from dvp_jax.exits.pruning import PruningRule
from tests.models import both
from tests.reference import reference_decode

pytestmark = pytest.mark.usefixtures("quick_compiler")

MODEL = ("t5", 0, 4.0, 4.0)  # exits at all depths: see test_reference
PROMPTS = [[3, 4, 5, 17, 90], [9, 8], [100, 20, 30, 41]]


@dataclasses.dataclass(frozen=True)
class EvenDepths(CALM):
    """CALM that may exit after an even number of layers only."""

    def decide(self, output, threshold, heads):
        decision = super().decide(output, threshold, heads)
        return decision._replace(exits=decision.exits & (output.depth % 2 == 0))


@dataclasses.dataclass(frozen=True)
class Half(PruningRule):
    """Keeps half of `prune_size` tokens."""

    def rows(self, prune_layer):
        return self.prune_size // 2


def generate(cfg):
    model = both(*MODEL)[1]
    width = max(map(len, PROMPTS))
    ids = np.array([row + [0] * (width - len(row)) for row in PROMPTS])
    return dvp_jax.generate(model, ids, ids > 0, cfg)


def assert_equals_reference(out, **fields):
    for row, prompt in enumerate(PROMPTS):
        expected = reference_decode(both(*MODEL)[0], prompt, max_new_tokens=8, **fields)
        length = len(expected.tokens)
        assert out.tokens[row, :length].tolist() == expected.tokens
        assert out.exit_layers[row, :length].tolist() == expected.exit_layers


@pytest.mark.parametrize("every", [1, 3])
def test_a_policy_of_ones_own_decodes(every):
    policy = EvenDepths(num_layers=4, min_exit_layer=1)
    cfg = dvp_jax.DecodeConfig(method=policy, max_new_tokens=8, threshold=0.3, branch_every=every)
    out = generate(cfg)
    # A threshold of 1 never exits.
    assert_equals_reference(
        out, method="calm", min_exit_layer=1, threshold=0.3, thresholds_per_depth=(1.0, 0.3, 1.0, 1.0)
    )
    assert 2 in out.exit_layers and 1 not in out.exit_layers and 3 not in out.exit_layers


def test_a_pruning_rule_of_ones_own_decodes():
    fields = {"max_new_tokens": 8, "threshold": 0.5, "prune_layer": 1, "min_exit_layer": 2}
    out = generate(dvp_jax.DecodeConfig(method="dvp", prune_rule=Half(10), **fields))
    del fields["max_new_tokens"]
    assert_equals_reference(out, method="dvp", prune_size=5, **fields)
    assert 0 < (out.exit_layers[out.exit_layers > 0] < 4).mean() < 1


def test_a_policy_may_hold_a_rule_and_both_decode_through_the_engine():
    policy = DVP(num_layers=4, min_exit_layer=2, prune_layer=1, pruning=Half(10))
    cfg = dvp_jax.DecodeConfig(method=policy, max_new_tokens=8, threshold=0.5)
    alone = generate(cfg)
    results = list(dvp_jax.Engine(both(*MODEL)[1], cfg, slots=2).run(PROMPTS, in_order=True))
    for row, result in enumerate(results):
        length = alone.lengths[row]
        assert result.output.tokens == alone.tokens[row, :length].tolist()
        assert result.output.exit_layers == alone.exit_layers[row, :length].tolist()


def test_settings_of_own_rules_are_named_by_their_classes():
    cfg = dvp_jax.DecodeConfig(method="dvp", prune_rule=Half(10), prune_layer=1)
    settings = cfg.settings(cfg.policy(4, 211))
    assert settings["prune_rule"] == "Half" and settings["prune_size"] == 10 and settings["prune_layer"] == 1
    assert dvp_jax.DecodeConfig(method=EvenDepths(4)).name == "EvenDepths"


def test_a_policy_for_another_model_is_refused():
    cfg = dvp_jax.DecodeConfig(method=EvenDepths(num_layers=6, min_exit_layer=1))
    with pytest.raises(ValueError, match="num_layers of EvenDepths is 6; allowed: 4 for this model"):
        generate(cfg)
    with pytest.raises(ValueError, match="prune_size is 300; allowed: an integer from 1 to 211 for this model"):
        generate(dvp_jax.DecodeConfig(method="dvp", prune_rule=Half(300)))


def test_a_set_that_shrinks_from_before_the_first_exit_keeps_shrinking():
    fields = {"prune_layer": 1, "min_exit_layer": 2, "prune_rule": "decay", "prune_size": 40, "prune_size_min": 2}
    fields |= {"final_vocab": "pruned", "threshold": 1.0}
    peer, model = both(*MODEL)
    compared = 0
    for prompt in [[first, 5] for first in range(2, 14)]:
        ids = np.array([prompt])
        out = dvp_jax.generate(model, ids, ids > 0, dvp_jax.DecodeConfig(max_new_tokens=4, **fields))
        expected = reference_decode(peer, prompt, method="dvp", max_new_tokens=4, **fields)
        if expected.margin > 1e-3:
            length = len(expected.tokens)
            assert out.tokens[0, :length].tolist() == expected.tokens
            np.testing.assert_allclose(out.confidences[0, :length], expected.confidences, atol=1e-3)
            compared += 1
    assert compared > 3
