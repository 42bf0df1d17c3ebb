"""Tables and descriptions of results, the advice of a sweep, and its plots."""

import dataclasses

import pytest

import dvp_jax
from dvp_jax.evaluate import reports
from dvp_jax.evaluate.reports import advice, report_sweep
from dvp_jax.evaluate.results import describe, results_sections, results_table
from tests.report.helpers import texts_of


def test_results_table_is_markdown_of_the_rows():
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(dvp_jax.DecodeConfig))
    row = {
        **nothing,
        "task": "squad",
        "static_exit_layer": 3,
        "method": "static",
        "metric": {"f1": 90.625, "exact_match": 7.0},
        "mean_exit_layer": 3.0,
        "num_layers": 24,
        "drafts_accepted": None,
        "confidence_flops_per_token": 0.0,
        "ms_per_token": 12.3456,
        "speed_up": None,
    }
    calm = {
        **row,
        "method": "calm",
        "threshold": 0.9,
        "min_exit_layer": 2,
        "static_exit_layer": None,
        "mean_exit_layer": 7.126,
        "confidence_flops_per_token": 123456789.0,
        "speed_up": 1.2345,
    }
    assert results_table([row, calm]).markdown().splitlines() == [
        "| method | settings | f1 | exact_match | mean exit | confidence FLOPs/token | ms/token | speed-up |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| static | exit 3 | 90.62 | 7.00 | 3.00 of 24 | 0 | 12.35 |  |",
        "| calm | threshold 0.9, min exit 2 | 90.62 | 7.00 | 7.13 of 24 | 1.23e+08 | 12.35 | 1.23x |",
    ]


def test_where_drafts_are_verified_the_table_shows_how_many_were_accepted_and_the_layers_in_turn():
    full, lossless = cell("full", 90.0, 8.0), cell("lossless", 90.0, 8.0, threshold=0.5, max_waiting=4)
    rows = [
        {**full, "layers_run_per_token": 8.0},
        {**lossless, "layers_run_per_token": 5.276, "drafts_accepted": 0.9483},
    ]
    assert [line.split("|")[5:7] for line in results_table(rows).markdown().splitlines()[2:]] == [
        [" 8.00 ", "  "],
        [" 5.28 ", " 94.8 % "],
    ]


def cell(method, metric, flops, **settings):
    fields = [field.name for field in dataclasses.fields(dvp_jax.DecodeConfig)]
    row = {**dict.fromkeys(fields), **settings, "method": method, "metric": {"f1": metric}, "num_layers": 8}
    costs = {"layer_flops_per_token": flops, "unembedding_flops_per_token": 0.0, "ms_per_token": 1.0}
    return {
        **row,
        **costs,
        "mean_exit_layer": 2.0,
        "drafts_accepted": None,
        "task": "squad",
        "confidence_flops_per_token": 0.0,
        "speed_up": None,
    }


def test_each_task_has_a_table_under_its_name_and_one_task_needs_no_name():
    squad = cell("full", 90.0, 8.0)
    samsum = {**squad, "task": "samsum", "metric": {"rougeL": 40.0}}
    titles = [section.title for section in results_sections([squad, samsum, squad])]
    tables = [section.content for section in results_sections([squad, samsum, squad])]
    assert titles == ["squad", "samsum"]
    assert tables == [(results_table([squad, squad]),), (results_table([samsum]),)]
    assert [section.title for section in results_sections([squad])] == [""]


def test_a_setting_that_only_a_users_own_policy_has_is_described_by_its_name():
    row = cell("Patient", 90.0, 8.0, threshold=0.9, min_exit_layer=2)
    assert describe({**row, "patience": 3}) == "threshold 0.9, min exit 2, patience 3"


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [
        ((0.9995, 0.8, 0.8, 0.8), "thresholds 0.9995 then 0.8"),
        ((0.5, 0.5), "thresholds then 0.5"),
        ((0.9, 0.8, 0.7), "thresholds 0.9 0.8 0.7"),
    ],
)
def test_thresholds_of_each_depth_are_described_up_to_where_they_stay(thresholds, words):
    assert describe(cell("calm", 90.0, 2.0, thresholds_per_depth=thresholds)) == words


def test_the_advice_is_the_least_work_within_a_point_of_the_full_model():
    cells = [cell("full", 90.0, 8.0), cell("dvp", 89.2, 3.0, prune_size=64), cell("dvp", 88.9, 2.0, prune_size=32)]
    assert "2 of 3 cells are within 1 of the full model's f1, 90.00" in advice(cells)
    assert "dvp, K 64: f1 89.20" in advice(cells)
    assert "1 of 2 cells are within 1 of the best cell's f1, 90.50" in advice(
        [cell("calm", 90.5, 9.0), cell("dvp", 88.0, 1.0, prune_size=32)]
    )


def test_the_advice_names_the_fastest_lossless_cell_whatever_its_flops(tmp_path):
    settings = {"prune_rule": "recent", "prune_size": 512}
    lossless = [
        {**cell("lossless", 90.0, 12.0, max_waiting=waiting, **settings), "ms_per_token": ms, "speed_up": 1 / ms}
        | {"layers_run_per_token": 5.25, "drafts_accepted": 0.9}
        for waiting, ms in ((4, 0.9), (8, 0.8))
    ]
    cells = [{**cell("full", 90.0, 8.0), "layers_run_per_token": 8.0}, *lossless]
    assert advice(cells).endswith(
        "the fastest is lossless, recent, K 512, waiting 8: 5.25 of 8 layers in turn, 0.80 ms a token, "
        "1.25 times as fast as full."
    )
    report_sweep(tmp_path, cells, {}, [])
    to_use = (tmp_path / "report.html").read_text().split("all cells")[0]
    assert "waiting 8</td>" in to_use and "waiting 4</td>" not in to_use


def test_a_sweep_of_several_measures_compares_them_over_their_thresholds(tmp_path):
    calm = {"min_exit_layer": 2}
    cells = [cell("full", 90.0, 8.0)] + [
        cell("calm", 80.0, 5.0, confidence=measure, threshold=threshold, **calm)
        for measure in ("softmax_diff", "state")
        for threshold in (0.3, 0.6)
    ]
    report_sweep(tmp_path, cells, {}, [])
    shown = texts_of(tmp_path / "squad_f1_per_measure.svg")
    assert {"full", "calm, softmax_diff, min exit 2", "calm, state, min exit 2"} <= shown
    assert not any("threshold" in text for text in shown)
    assert "f1 of each measure" in (tmp_path / "report.html").read_text()


def test_a_sweep_of_one_measure_has_nothing_to_compare(tmp_path):
    report_sweep(tmp_path, [cell("full", 90.0, 8.0), cell("calm", 80.0, 5.0, confidence="state")], {}, [])
    assert not (tmp_path / "squad_f1_per_measure.svg").exists()


def test_a_sweep_of_many_settings_has_a_few_heat_maps(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(reports, "heat_map", lambda values, path, label: (drawn.append(label), path.touch()))
    cells = [
        cell("dvp", 80.0, 5.0, prune_layer=2, prune_size=size, threshold=threshold / 100)
        for size in (8, 16)
        for threshold in range(0, 100, 9)
    ]
    report_sweep(tmp_path, cells, {}, [])
    page = (tmp_path / "report.html").read_text()
    assert len(drawn) == 12, "quality and mean exit, each over p and K, of six thresholds"
    assert "f1 over p and K, threshold 0.0<" in page and "f1 over p and K, threshold 0.99<" in page
