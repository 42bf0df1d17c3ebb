"""Losses, paths of settings and what is promised; whole selections are in tests/experiments/test_select.py."""

import math

import pytest

from dvp_jax.data import Example
from dvp_jax.evaluate.experiment import sweep_methods
from dvp_jax.evaluate.selection import Promise, ordered_paths, promises_table, select
from tests.launching import files_of


def test_a_path_has_one_p_and_k_and_goes_from_the_highest_threshold_to_the_lowest():
    grid = {
        "full": {},
        "calm": {"threshold": (0.3, 0.9, 0.5)},
        "dvp": {"threshold": (0.5, 0.9), "prune_layer": (1, 2), "prune_size": (8,)},
        "static": {"static_exit_layer": (2, 4, 3)},
    }
    paths = ordered_paths(sweep_methods(grid))
    assert paths == {
        "calm": ["calm,threshold=0.9", "calm,threshold=0.5", "calm,threshold=0.3"],
        "dvp,min_exit_layer=1,prune_layer=1,prune_size=8": [
            "dvp,threshold=0.9,prune_layer=1,prune_size=8",
            "dvp,threshold=0.5,prune_layer=1,prune_size=8",
        ],
        "dvp,min_exit_layer=2,prune_layer=2,prune_size=8": [
            "dvp,threshold=0.9,prune_layer=2,prune_size=8",
            "dvp,threshold=0.5,prune_layer=2,prune_size=8",
        ],
        "static": [f"static,static_exit_layer={depth}" for depth in (4, 3, 2)],
    }


EXAMPLES = [
    Example(str(i), "?", references) for i, references in enumerate([("red green",), ("blue", "red green")])
]


def test_textual_loss_is_the_distance_from_the_full_models_text():
    losses = Promise("textual", measure="f1").losses(["red", "red green"], ["red green", "red green"], EXAMPLES)
    assert losses == pytest.approx([1 - 2 / 3, 0.0])  # F1 of one word of two


def test_risk_loss_is_what_the_best_reference_lost_and_never_a_gain():
    promise = Promise("risk", measure="f1")
    assert promise.losses(["red", "red"], ["red green", "blue"], EXAMPLES) == pytest.approx([1 / 3, 1 / 3])
    assert promise.losses(["red green", "blue"], ["red", "red"], EXAMPLES).tolist() == [0.0, 0.0]
    assert promise.losses(["pink", "x y"], ["black", "x z"], EXAMPLES).tolist() == [0.0, 0.0]  # both worthless


@pytest.mark.parametrize("kind", ["textual", "risk"])
@pytest.mark.parametrize("measure", ["rougeL", "f1", "exact_match", "chrf", "bleu"])
def test_the_full_models_own_text_loses_nothing(kind, measure):
    texts = ["?", "red gree"]
    assert Promise(kind, measure=measure).losses(texts, texts, EXAMPLES).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "exact"}, "promise is 'exact'; allowed: textual, risk"),
        ({"delta": 0.0}, "delta is 0.0; allowed: between 0 and 1"),
        ({"delta": 1.5}, "delta is 1.5"),
        ({"epsilon": math.nan}, "epsilon is nan"),
        ({"epsilon": 1.0}, "epsilon is 1.0"),
        ({"measure": "bleurt"}, "measure is 'bleurt'; allowed: rougeL"),
        ({"p_value": "t"}, "p_value is 't'; allowed: hoeffding_bentkus"),
    ],
)
def test_what_cannot_be_promised_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Promise(**fields)


def test_a_table_of_promises_costs_them_on_the_examples_to_check_on():
    seen = {"risk": 0.01234, "mean_exit_layer": 4.0, "num_layers": 8, "flops": 0.75, "speed_up": 1.5}
    other = {"risk": 0.02, "mean_exit_layer": 4.25, "num_layers": 8, "flops": 0.8, "speed_up": 1.25}
    results = [
        {"promise": {"kind": "textual", "delta": 0.05}, "seen": {"calibration": seen}, "returned": "dvp"},
        {
            "promise": {"kind": "risk", "delta": 0.02},
            "seen": {"calibration": seen, "check": other},
            "returned": "a",
        },
    ]
    assert promises_table(results).markdown().splitlines()[2:] == [
        "| textual | 0.05 | 0.0123 |  | 4.00 of 8 | 75 % | 1.50x | `dvp` |",
        "| risk | 0.02 | 0.0123 | 0.0200 | 4.25 of 8 | 80 % | 1.25x | `a` |",
    ]


def test_an_output_in_a_missing_folder_is_refused_before_anything_is_written(tmp_path):
    output = tmp_path / "missing" / "selected.json"
    with pytest.raises(
        ValueError, match=f"^output is {output}; allowed: the path of a file in a folder that exists"
    ):
        select({}, tmp_path / "run", Promise(), output=output)
    assert files_of(tmp_path) == []
