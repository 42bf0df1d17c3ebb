"""Published figures against the list that was read in the authors' repositories."""

import pytest

from dvp_jax.decode.config import DecodeConfig
from dvp_jax.evaluate.published import FINETUNED, PRETRAINED, PUBLISHED, comparison_table, published_beside
from experiments.configs import squad


def figures(source, **fields):
    return [
        figure
        for figure in PUBLISHED
        if figure.source == source and all(getattr(figure, name) == value for name, value in fields.items())
    ]


@pytest.mark.parametrize(
    ("checkpoint", "task", "first_exit", "prune_size", "values"),
    [
        (PRETRAINED, "squad", 7, 842, [90.43, 90.29, 87.14]),
        (FINETUNED["squad"], "squad", 2, 2781, [89.71, 89.71, 86.60]),
        (PRETRAINED, "samsum", 7, 842, [23.16, 22.95, 22.66]),
        (FINETUNED["samsum"], "samsum", 2, 2781, [42.76, 42.79, 41.64]),
    ],
)
def test_the_predecessors_final_bars_have_their_depth_and_k(checkpoint, task, first_exit, prune_size, values):
    bars = figures("blog post", checkpoint=checkpoint, task=task)
    assert [bar.value for bar in bars] == values
    assert [bar.prune_size for bar in bars] == [None, prune_size, "decaying"]
    assert {bar.min_exit_layer for bar in bars} == {first_exit} and {bar.threshold for bar in bars} == {0.9}
    assert not any(bar.inferred for bar in bars)


@pytest.mark.parametrize(
    ("checkpoint", "task", "values", "blocks", "flops"),
    [
        (PRETRAINED, "squad", [92.446, 91.47, 91.34], [20.56, 19.71, 19.71], [3.02e11, 2.15e11, 5.98e10]),
        (FINETUNED["squad"], "squad", [90.63, 90.59, 90.59], [19.16, 19.06, 19.06], [1.52e11, 1.43e11, 2.81e9]),
        (PRETRAINED, "samsum", [23.767, 23.649, 23.213], [21.34, 20.35, 20.38], [4.26e12, 2.70e12, 1.04e12]),
        (
            FINETUNED["samsum"],
            "samsum",
            [43.505, 43.801, 43.787],
            [21.57, 20.47, 20.47],
            [2.59e12, 1.95e12, 6.35e11],
        ),
    ],
)
def test_the_predecessors_exits_from_19_have_their_measure_exits_and_flops(
    checkpoint, task, values, blocks, flops
):
    exits = figures("notebook", checkpoint=checkpoint, task=task, min_exit_layer=19)
    assert [figure.value for figure in exits] == values
    assert [figure.mean_exit_block for figure in exits] == blocks
    assert [figure.confidence_flops for figure in exits] == flops
    assert [figure.confidence for figure in exits] == ["softmax_diff", "jensen_shannon", "jensen_shannon"]


@pytest.mark.parametrize(
    ("task", "values"),
    [("squad", [96.07, 96.27, 96.27, 69.90, 38.78]), ("samsum", [16.63, 14.90, 20.02, 3.56, 2.67])],
)
def test_the_predecessors_first_exits_have_their_depths(task, values):
    exits = figures("notebook", checkpoint=PRETRAINED, task=task, method="calm", mean_exit_block=None)
    assert [(figure.min_exit_layer, figure.value) for figure in exits] == list(
        zip((20, 15, 6, 3, 2), values, strict=True)
    )


def test_no_figure_stands_beside_other_settings():
    dvp = DecodeConfig(method="dvp", prune_layer=7, min_exit_layer=7, prune_size=842, threshold=0.9)
    assert [figure.value for figure in published_beside(PRETRAINED, "squad", dvp)] == [90.29]
    for change in ({"prune_size": 841}, {"prune_layer": 6}, {"min_exit_layer": 8}, {"threshold": 0.8}):
        other = DecodeConfig(**{**vars(dvp), **change})
        assert published_beside(PRETRAINED, "squad", other) == []
    assert published_beside(FINETUNED["squad"], "squad", dvp) == []
    assert published_beside("t5-multi30k", "squad", DecodeConfig(method="full")) == []


def test_flops_are_compared_with_calm_from_the_same_depth():
    flops = {"full": 0.0, "calm": 21.0, "calm_p7": 16.0, "dvp_64": 3.0, "dvp_512": 4.0, "dvp_p7_64": 8.0}
    flops["dvp_p7_512"] = 10.0
    rows = [
        {"name": name, "metric": {"f1": 50.0}, "speed_up": 1.0, "confidence_flops_per_token": value}
        for name, value in flops.items()
    ]
    table = comparison_table({"squad": (squad.get_config(), rows)})
    fewer = {tuple(row[1:4]): row[-1] for row in table.rows}
    assert fewer == {
        ("full", "", ""): "",
        ("calm", "2", ""): "",
        ("calm", "7", ""): "",
        ("dvp", "2", "64"): "7.0x",
        ("dvp", "2", "512"): "5.2x",
        ("dvp", "7", "64"): "2.0x",
        ("dvp", "7", "512"): "1.6x",
    }
