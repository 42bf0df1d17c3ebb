"""What the plots show."""

import pytest

from dvp_jax.report import plots
from tests.report.helpers import texts_of

POINTS = [
    {"label": "full", "method": "full", "cost": 4.0, "quality": 90.0},
    {"label": "K 8", "method": "dvp", "cost": 1.0, "quality": 80.0},
    {"label": "K 64", "method": "dvp", "cost": 2.0, "quality": 89.0},
    {"label": "worse", "method": "calm", "cost": 3.0, "quality": 85.0},
]
RANKS = {
    "sizes": [1, 8, 100],
    "depths": [
        {
            "depth": depth,
            "rank_percentiles": {"5": 1, "25": 1, "50": 2, "75": 4, "95": 50},
            "coverage": [0.5, 0.9, 1.0],
            "confidence": 0.4,
            "agreement": 0.5,
        }
        for depth in (1, 2, 3)
    ],
}
FAILURES = {
    "rates": [
        {"by": "all", "group": "all", "rate": 0.1, "low": 0.05, "high": 0.2},
        {"by": "kind", "group": "number", "rate": 0.0, "low": 0.0, "high": 0.3},
    ]
}
RELIABILITY = {
    "reliability": [
        {
            "target": "full model",
            "vocabulary": vocabulary,
            "depth": depth,
            "ece": depth / 1000,
            "bins": [
                {"confidence": 0.25, "accuracy": 0.5, "tokens": 3},
                {"confidence": None, "accuracy": None, "tokens": 0},
            ],
        }
        for vocabulary in ("whole", "pruned")
        for depth in range(2, 25)
    ]
}
SCALING = [
    {
        "vocab_size": size,
        "method": method,
        "confidence_ms_per_token": size / 1000,
        "confidence_flops_per_token": 10.0 * size,
    }
    for size in (8000, 32000)
    for method in ("calm", "dvp")
]
MEASURES = [
    {
        "label": label,
        "method": method,
        "measure": measure,
        "points": [{"mean_exit": 3.5, "ms": 2.5, "quality": 90.0}],
    }
    for label, method, measure in (
        ("full", "full", None),
        ("oracle, states own", "oracle", None),
        ("calm, state", "calm", "state"),
        ("calm, entropy", "calm", "entropy"),
        ("dvp, entropy", "dvp", "entropy"),
    )
]
PROMISES = [
    {
        "promise": {"kind": "risk", "delta": delta},
        "seen": {name: {"risk": risk} for name in ("calibration", "check")},
    }
    for delta, risk in ((0.02, 0.015), (0.01, 0.0))
]
DRAWINGS = {
    "ranks": lambda path: plots.rank_boxes(RANKS, path),
    "coverage": lambda path: plots.coverage_per_size(RANKS, path),
    "agreement": lambda path: plots.agreement_per_depth(RANKS, path),
    "failures": lambda path: plots.failure_rates(FAILURES, path),
    "reliability": lambda path: plots.reliability_diagrams(RELIABILITY, "full model", path),
    "scaling": lambda path: plots.vocabulary_scaling(SCALING, path),
    "quality": lambda path: plots.quality_against_cost(POINTS, path, cost="ms", quality="F1"),
    "measures": lambda path: plots.measures_compared(MEASURES, path, quality="BLEU"),
    "promises": lambda path: plots.promised_against_seen(PROMISES, path),
    "heat map": lambda path: plots.heat_map({(2, 8): 80.5, (2, 64): 89.0, (3, 64): 90.25}, path, label="F1"),
}
SHOWN = {
    "ranks": {"1", "2", "3"},
    "coverage": {"depth 1", "depth 2", "depth 3"},
    "agreement": {"mean confidence", "agrees with the full model"},
    "failures": {"all", "kind: number"},
    "reliability": {"depth 2, whole", "depth 24, pruned", "ECE 0.024", "agreement with the full model"},
    "scaling": {"calm", "dvp", "vocabulary size"},
    "quality": {"full", "K 8", "K 64", "Pareto frontier", "ms", "F1"},
    "measures": {"mean exit depth (decoder layers run)", "ms per token", "BLEU", *(x["label"] for x in MEASURES)},
    "promises": {"risk, calibration", "risk, check", "kept below", "promised: delta", "seen: mean loss"},
    "heat map": {"80.5", "89", "90.25", "F1", "2", "3", "8", "64"},
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_plot_names_what_it_shows(name, tmp_path):
    DRAWINGS[name](tmp_path / "plot.svg")
    assert SHOWN[name] <= texts_of(tmp_path / "plot.svg")


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_same_values_give_the_same_file(name, tmp_path):
    for file in ("one.svg", "two.svg"):
        DRAWINGS[name](tmp_path / file)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_only_the_frontier_is_labelled(tmp_path):
    DRAWINGS["quality"](tmp_path / "plot.svg")
    assert "worse" not in texts_of(tmp_path / "plot.svg")


def test_diagrams_of_many_depths_show_eight_of_them_from_first_to_last(tmp_path):
    DRAWINGS["reliability"](tmp_path / "plot.svg")
    shown = {int(text.split()[1][:-1]) for text in texts_of(tmp_path / "plot.svg") if text.startswith("depth ")}
    assert len(shown) == 8 and min(shown) == 2 and max(shown) == 24


def test_a_measure_keeps_its_colour_and_a_method_its_line_style(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    DRAWINGS["measures"](tmp_path / "plot.svg")
    exits, times = ({line.get_label(): line for line in axes.lines} for axes in drawn[0].axes)
    assert [*exits["full"].get_xdata(), *times["full"].get_xdata()] == [3.5, 2.5]
    assert list(exits["full"].get_ydata()) == list(times["full"].get_ydata()) == [90.0]
    for lines in (exits, times):
        colours = {label: line.get_color() for label, line in lines.items()}
        styles = {label: line.get_linestyle() for label, line in lines.items()}
        assert colours["calm, entropy"] == colours["dvp, entropy"] != colours["calm, state"]
        assert styles["calm, entropy"] == styles["calm, state"] != styles["dvp, entropy"]
        assert styles["full"] == "None"
    assert exits["oracle, states own"].get_marker() == "*"
    assert set(exits) - set(times) == {"oracle, states own"}, "it runs every layer: its time is no bound"
    assert 90.0 in {line.get_ydata()[0] for label, line in times.items() if label.startswith("_")}


def test_what_was_seen_stands_over_what_was_promised(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    DRAWINGS["promises"](tmp_path / "plot.svg")
    lines = {line.get_label(): line.get_xydata().tolist() for line in drawn[0].axes[0].lines}
    assert lines["risk, check"] == [[0.01, 0.0], [0.02, 0.015]]
    assert lines["kept below"] == [[0.0, 0.0], [0.02, 0.02]]


def test_values_that_are_nearly_one_are_written_out(tmp_path):
    points = [{**POINTS[0], "quality": 1234.5}, {**POINTS[1], "quality": 1234.5001}]
    plots.quality_against_cost(points, tmp_path / "plot.svg")
    assert not [text for text in texts_of(tmp_path / "plot.svg") if text.startswith("+")]
