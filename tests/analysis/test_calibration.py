"""Reports of reliability for a table made at random."""

import numpy as np
import pytest

import dvp_jax
from dvp_jax.analysis.calibration import reliability_report, reliability_table, threshold_table
from dvp_jax.analysis.tokens import DepthReadings, TokenTable
from dvp_jax.metrics.reliability import reliability
from tests.analysis.helpers import count_early_exits

TOKENS, LAYERS = 300, 5
CFG = dvp_jax.DecodeConfig(prune_layer=2, min_exit_layer=3, prune_size=4)


def random_table(seed):
    """Confidences that mean less when pruned."""
    rng = np.random.default_rng(seed)
    token = rng.integers(2, 9, TOKENS)
    readings = {}
    for name, shift in (("whole", 0.0), ("pruned", 0.1)):
        confidences = rng.uniform(size=(TOKENS, LAYERS)).astype(np.float32)
        right = rng.uniform(size=(TOKENS, LAYERS)) < np.clip(confidences - shift, 0, 1) ** 0.3
        readings[name] = DepthReadings(np.where(right, token[:, None], 1), confidences)
    return TokenTable(
        text=np.arange(TOKENS) // 10,
        position=np.arange(TOKENS) % 10,
        token=token,
        ranks=np.zeros((TOKENS, LAYERS), int),
        readings=readings,
    )


@pytest.fixture(scope="module")
def tables():
    return random_table(0), random_table(1)


@pytest.fixture(scope="module")
def report(tables):
    return reliability_report(*tables, CFG, threshold=0.8, bins=7)


def test_reliability_is_reported_from_the_pruning_depth_on(report, tables):
    rows = report["reliability"]
    assert [(row["target"], row["vocabulary"], row["depth"]) for row in rows] == [
        (target, vocabulary, depth)
        for target in ("full model", "reference")
        for vocabulary in ("whole", "pruned")
        for depth in (2, 3, 4, 5)
    ]
    for row in rows:
        table = tables[row["target"] == "reference"]
        reading = table.readings[row["vocabulary"]]
        confidences, right = reading.confidences[:, row["depth"] - 1], reading.candidates[:, row["depth"] - 1] > 1
        diagram = reliability(confidences, right, 7)
        assert (row["ece"], row["mce"]) == (diagram.expected_error, diagram.maximum_error)
        assert row["accuracy"] == pytest.approx(right.mean())
        assert row["confidence"] == pytest.approx(confidences.mean(), rel=1e-6)
        assert [each["tokens"] for each in row["bins"]] == diagram.count.tolist()
        assert row["tokens"] == TOKENS == sum(each["tokens"] for each in row["bins"])


def test_matched_thresholds_agree_as_often_as_the_one_on_the_whole_scale(report, tables):
    rows = report["thresholds"]
    # The candidates are the depths from min_exit_layer to the one before the last.
    assert [row["depth"] for row in rows] == [None, 3, 4]
    table = tables[0]
    for row in rows:
        columns = [2, 3] if row["depth"] is None else [row["depth"] - 1]
        whole, pruned = (
            (table.readings[name].confidences[:, columns], (table.readings[name].candidates > 1)[:, columns])
            for name in ("whole", "pruned")
        )
        for name, reading, threshold in (
            ("whole", whole, 0.8),
            ("pruned", pruned, 0.8),
            ("matched", pruned, row["matching_threshold"]),
        ):
            exits, right = count_early_exits(*reading, threshold)
            assert row[name] == {"share": pytest.approx(exits / TOKENS), "agreement": pytest.approx(right / exits)}
        assert row["matched"]["agreement"] >= row["whole"]["agreement"]


def test_nothing_is_matched_where_no_token_exits(tables):
    for row in reliability_report(*tables, CFG, threshold=1.0, bins=7)["thresholds"]:
        assert row["whole"] == {"share": 0.0, "agreement": None}
        assert row["matching_threshold"] is None and row["matched"] is None


def test_nothing_is_matched_where_pruned_tokens_never_agree_as_often():
    table = random_table(0)
    table.readings["pruned"].candidates[:] = 1
    rows = reliability_report(table, table, CFG, threshold=0.5, bins=7)["thresholds"]
    assert [row["matching_threshold"] for row in rows] == [None] * 3
    assert all(row["whole"]["agreement"] > 0 for row in rows)
    report = reliability_report(table, table, CFG, threshold=0.5, bins=7)
    assert "| 3 | 0.5 |" in threshold_table(report).markdown()


def test_tables_have_a_line_for_each_depth(report):
    assert len(reliability_table(report).markdown().splitlines()) == 2 + 2 * 4
    lines = threshold_table(report).markdown().splitlines()
    assert len(lines) == 2 + 3
    row = report["thresholds"][1]
    assert lines[-2].startswith("| 3 | 0.8 | ")
    assert f"{100 * row['whole']['agreement']:.2f} ({100 * row['whole']['share']:.1f})" in lines[-2]
    assert f"{row['matching_threshold']:.4f}" in lines[-2]
