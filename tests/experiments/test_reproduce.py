"""Published figures beside ours."""

import json

import pytest

from dvp_jax.evaluate.published import (
    PRETRAINED,
    PUBLISHED,
    SOURCES,
)
from tests.launching import SENTENCES, check_error, launch, make_checkpoint

ROWS_AT_2 = [("full", "", ""), ("calm", "2", ""), ("dvp", "2", "64"), ("dvp", "2", "512")]  # method, p, K
ROWS_AT_2_AND_7 = [
    ("full", "", ""),
    ("calm", "2", ""),
    ("calm", "7", ""),
    ("dvp", "2", "64"),
    ("dvp", "7", "64"),
    ("dvp", "2", "512"),
    ("dvp", "7", "512"),
]
ROWS = {
    "squad": ROWS_AT_2_AND_7,
    "squad_finetuned": ROWS_AT_2,
    "samsum": ROWS_AT_2_AND_7,
    "samsum_finetuned": ROWS_AT_2,
}
INFERRED = "(paper; inferred: checkpoint, p)"
# Every row with a published figure at the same checkpoint, exits and K. Pre-trained with exits from 2 collapses.
BESIDE = {
    ("squad", "full", "", ""): "96.07 (notebook; 100 examples)",
    ("squad", "calm", "2", ""): "38.78 (notebook; 100 examples; inferred: threshold)",
    ("squad", "calm", "7", ""): "90.43 (blog post)",
    ("squad", "dvp", "7", "64"): f"90.6 {INFERRED}",
    ("squad_finetuned", "calm", "2", ""): "89.71 (blog post)",
    ("squad_finetuned", "dvp", "2", "64"): f"90.6 {INFERRED}",
    ("samsum", "full", "", ""): "21.28 (notebook; 3 examples)",
    ("samsum", "calm", "2", ""): "2.67 (notebook; 3 examples; inferred: threshold)",
    ("samsum", "calm", "7", ""): "23.16 (blog post)",
    ("samsum_finetuned", "calm", "2", ""): "42.76 (blog post)",
    ("samsum_finetuned", "dvp", "2", "512"): f"43.1 {INFERRED}",
}


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    checkpoint = make_checkpoint(folder / "model", seed=1)
    rows = "".join(f"{index},{sentence},dada dade\n" for index, sentence in enumerate(SENTENCES))
    (folder / "validation.csv").write_text("id,dialogue,summary\n" + rows)
    run = launch(
        "reproduce",
        f"--workdir={folder / 'run'}",
        "--only=squad,samsum_finetuned",
        f"--models=samsum_finetuned={checkpoint.folder}",
        f"--data=samsum_finetuned={folder / 'validation.csv'}",
        "--limit=2",
    )
    assert run.returncode == 0, run.stderr
    return run, folder / "run"


def cells_of(markdown):
    return [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line.startswith("|")
    ]


def test_what_was_run_stands_beside_what_was_published_and_the_rest_is_marked(reproduced):
    run, workdir = reproduced
    lines = cells_of(run.stdout.split("All published figures")[0])
    table = {tuple(line[:4]): line[4:] for line in lines[2:]}
    assert list(table) == [(config, *row) for config, rows in ROWS.items() for row in rows]
    published = {key: cells[0] for key, cells in table.items() if cells[0] != "not known"}
    assert published == BESIDE
    rows = json.loads((workdir / "samsum_finetuned" / "results.json").read_text())["rows"]
    for row, key in zip(rows, ROWS_AT_2, strict=True):
        cells = table["samsum_finetuned", *key]
        assert cells[1:3] == [f"{row['metric']['rougeL']:.2f}", f"{row['speed_up']:.2f}x"]
    fewer = rows[1]["confidence_flops_per_token"] / rows[3]["confidence_flops_per_token"]
    assert table["samsum_finetuned", "dvp", "2", "512"][3] == f"{fewer:.1f}x"
    for key, cells in table.items():
        assert (cells[1:] == ["not run"] * 3) == (key[0] != "samsum_finetuned")


def test_each_published_figure_is_shown_with_where_it_can_be_found(reproduced):
    run, _ = reproduced
    lines = cells_of(run.stdout.split("All published figures")[1])[2:]
    assert len(lines) == len(PUBLISHED) == 3 + 12 + 12 + 12
    decaying = [line for line in lines if line[0] == PRETRAINED and line[5] == "decaying"]
    assert [line[6] for line in decaying] == ["87.14 (blog post)", "22.66 (blog post)"]
    assert [line[8] for line in decaying] == ["2.17e+10", "2.76e+11"]
    for name, where in SOURCES.items():
        assert f"- {name}: {where}" in run.stdout
    for where in (
        "2410.18952",
        "MatteoNulli/Vocabulary_pruning",
        "joanvelja/Confidently_Exiting",
        "plots_mn.ipynb",
    ):
        assert any(where in source for source in SOURCES.values())


def test_the_reason_is_given_for_what_was_not_run(reproduced):
    run, workdir = reproduced
    assert "squad_finetuned was not run: left out by --only" in run.stdout
    results = json.loads((workdir / "reproduce.json").read_text())
    assert set(results["squad"]) == {"not_run"} and "rajpurkar/squad" in results["squad"]["not_run"]  # no hub here
    assert f"squad was not run: {results['squad']['not_run']}" in run.stdout
    assert len(results["samsum_finetuned"]["rows"]) == 4


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("--only=squad,cnn", ["only has cnn", "squad, squad_finetuned, samsum"]),
        ("--models=cnn=folder", ["models has 'cnn'", "NAME=PATH"]),
        ("--models=squad", ["models has 'squad'", "NAME=PATH"]),
    ],
)
def test_a_config_that_there_is_not_is_refused(flag, parts, tmp_path):
    check_error(launch("reproduce", f"--workdir={tmp_path}", flag), *parts)


def test_earlier_results_that_were_edited_are_named(tmp_path):
    (tmp_path / "squad").mkdir()
    (tmp_path / "squad" / "results.json").write_text('{"rows": []}')
    run = launch("reproduce", f"--workdir={tmp_path}", "--only=")
    check_error(run, tmp_path / "squad" / "results.json", "allowed: a file as experiments.evaluate has written it")
