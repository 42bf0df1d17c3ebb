"""Thresholds of each depth against trying them all, token by token."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import dvp_jax
from dvp_jax.analysis.thresholds import depth_thresholds, threshold_report, threshold_table, variants
from dvp_jax.analysis.tokens import DepthReadings, TokenTable

VALUES = [0.0, 0.1, 0.2, 0.5, 0.9, 1.0]
few = st.sampled_from(VALUES)  # few values, so that there are ties
SHAPE = st.tuples(st.integers(1, 8), st.integers(1, 3))


@given(st.data(), SHAPE, st.sampled_from([0.25, 0.5, 2 / 3, 1.0]))
def test_each_threshold_is_the_smallest_whose_exits_agree_often_enough(data, shape, share):
    confidences, agrees = data.draw(arrays(float, shape, elements=few)), data.draw(arrays(bool, shape))
    thresholds = depth_thresholds(confidences, agrees, share)
    remaining = list(range(shape[0]))
    for depth in range(shape[1]):

        def exits(threshold, depth=depth, remaining=remaining):
            return [token for token in remaining if confidences[token, depth] > threshold]

        def enough(threshold, depth=depth, exits=exits):
            tokens = exits(threshold)
            return bool(tokens) and sum(agrees[token, depth] for token in tokens) >= share * len(tokens)

        allowed = [threshold for threshold in VALUES if enough(threshold)]
        assert exits(thresholds[depth]) == (exits(min(allowed)) if allowed else [])
        assert 0.0 <= thresholds[depth] <= min(allowed, default=1.0)
        remaining = [token for token in remaining if token not in exits(thresholds[depth])]


def test_a_token_that_exited_does_not_count_at_deeper_depths():
    confidences = np.array([[0.9, 0.9], [0.1, 0.8], [0.1, 0.3]])
    agrees = np.array([[True, False], [False, True], [False, False]])
    # The most confident of all tokens at the second depth is wrong there, so that no threshold is good enough.
    assert depth_thresholds(confidences, agrees, 1.0) == [0.1, 0.3]
    assert depth_thresholds(confidences[:, 1:], agrees[:, 1:], 1.0) == [1.0]


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_that_cannot_be_is_refused(share):
    with pytest.raises(ValueError, match=rf"share is {share}; allowed: above 0, to 1"):
        depth_thresholds(np.ones((1, 1)), np.ones((1, 1), bool), share)


METHODS = {
    "full": dvp_jax.DecodeConfig(method="full"),
    "calm": dvp_jax.DecodeConfig(method="calm", min_exit_layer=2),
    "dvp_8": dvp_jax.DecodeConfig(method="dvp", prune_size=8),
}


def test_every_method_is_tried_with_every_measure_that_it_takes():
    logits, hidden = ["softmax_diff", "softmax_max", "entropy"], ["state", "meta"]
    names = [f"calm_{name}" for name in (*logits, *hidden)] + [f"dvp_8_{name}" for name in logits]
    methods = variants(METHODS, has_classifier=True)
    assert list(methods) == names
    assert methods["dvp_8_entropy"] == dataclasses.replace(METHODS["dvp_8"], confidence="entropy")
    assert list(variants(METHODS, has_classifier=False)) == [name for name in names if not name.endswith("meta")]
    with pytest.raises(ValueError, match=r"config\.methods has full, none of method 'calm' or 'dvp'"):
        variants({"full": METHODS["full"]}, has_classifier=True)


def test_the_report_counts_exits_from_the_first_candidate_depth_to_the_last():
    token = np.array([5, 6, 7, 8])
    candidates = np.array([[5, 5, 5, 5], [1, 1, 6, 6], [1, 1, 1, 7], [8, 1, 8, 8]])
    confidences = np.array(
        [[0.9, 0.9, 0.9, 0.9], [0.9, 0.2, 0.8, 0.9], [0.9, 0.1, 0.1, 0.1], [0.9, 0.3, 0.7, 0.9]]
    )
    table = TokenTable(
        text=np.zeros(4, int),
        position=np.arange(4),
        token=token,
        ranks=np.zeros((4, 4), int),
        readings={"calm": DepthReadings(candidates, confidences)},
    )
    (row,) = report = threshold_report(table, {"calm": METHODS["calm"]}, 1.0)
    assert row["settings"]["thresholds_per_depth"] == (1.0, 0.3, 0.1, 1.0)
    assert (row["exits"], row["agreeing"]) == ([0, 1, 2, 1], [0, 1, 2, 1])
    assert row["mean_exit_layer"] == (2 + 3 + 3 + 4) / 4
    assert dvp_jax.DecodeConfig(**row["settings"]).thresholds_per_depth == (1.0, 0.3, 0.1, 1.0)
    assert "| calm |  | 0.300 (1) | 0.100 (2) | 3.00 | 100.00 |" in threshold_table(report).markdown()
