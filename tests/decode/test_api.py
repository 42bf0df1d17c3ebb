"""Arguments that cannot be."""

import numpy as np
import pytest

import dvp_jax
from tests.decode.helpers import CALM, MODEL, run
from tests.models import both


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prune_size": 212}, "prune_size is 212; allowed: an integer from 1 to 211 for this model"),
        ({"prune_layer": 4, "min_exit_layer": 4}, "prune_layer is 4; allowed: an integer from 1 to 3"),
        ({"min_exit_layer": 5}, "min_exit_layer is 5; allowed: an integer from 1 to 4 for this model"),
        ({"method": "calm", "exit_depths": (2, 5)}, "exit_depths is 5; allowed: an integer from 1 to 4 for this"),
        ({"method": "dvp", "exit_depths": (2, 5)}, "exit_depths is 5; allowed: an integer from 1 to 4 for this"),
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
        ([[3, 4], [5]], [[1, 1]], r"input_ids has rows of different lengths; allowed: one length"),
        ([[3, 4]], [[1], [1, 1]], r"attention_mask has rows of different lengths; allowed: one length"),
        ([[3, 4]], [[1]], r"attention_mask has shape \(1, 1\); allowed: that of input_ids, \(1, 2\)"),
        ([3, 4], [1, 1], r"input_ids has shape \(2,\) and dtype int64; allowed: \(B, S\) integers"),
        ([[3.0]], [[1]], r"input_ids has shape \(1, 1\) and dtype float64"),
        (np.zeros((0, 4), int), np.zeros((0, 4)), r"input_ids has shape \(0, 4\)"),
        ([[3, 211]], [[1, 1]], "input_ids spans 3 to 211; allowed: ids from 0 to 210"),
        ([[3, -1]], [[1, 1]], "input_ids spans -1 to 3"),
        ([[3, 4], [5, 6]], [[1, 1], [0, 0]], r"attention_mask is 0 throughout rows \[1\]"),
        ([[3, 4]], [[1, np.nan]], r"attention_mask\[0, 1\] is nan; allowed: 1, or 0 at padding"),
        ([[3, 4], [5, 6]], [[1, 0], [-1, 1]], r"attention_mask\[1, 0\] is -1; allowed: 1, or 0 at padding"),
        ([[3, 4]], [[1, 0.5]], r"attention_mask\[0, 1\] is 0\.5; allowed"),
        ([[3, 4]], [["1", "0"]], r"attention_mask\[0, 0\] is 1; allowed"),
    ],
)
def test_sources_that_are_none_are_refused(ids, mask, message):
    with pytest.raises(ValueError, match=message):
        dvp_jax.generate(both(*MODEL)[1], ids, mask, CALM)
