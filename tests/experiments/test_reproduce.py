"""The paper's table beside ours."""

import json

import pytest

from tests.experiments.test_launchers import SENTENCES, check_error, launch, make_checkpoint


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


def test_what_was_run_stands_beside_what_was_published_and_the_rest_is_marked(reproduced):
    run, workdir = reproduced
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.stdout.splitlines() if "|" in line]
    table = {(line[0], line[1], line[2]): line[3:] for line in lines[2:]}
    ways = [("full", ""), ("calm", ""), ("dvp", "64"), ("dvp", "512")]
    configs = ["squad", "squad_finetuned", "samsum", "samsum_finetuned"]
    assert list(table) == [(config, *way) for config in configs for way in ways]
    published = {key: cells[0] for key, cells in table.items() if cells[0] != "not known"}
    assert published == {
        **{(config, "dvp", "64"): "90.6" for config in ("squad", "squad_finetuned")},
        **{(config, "dvp", "512"): "43.1" for config in ("samsum", "samsum_finetuned")},
    }
    rows = json.loads((workdir / "samsum_finetuned" / "results.json").read_text())["rows"]
    for row, way in zip(rows, ways, strict=True):
        cells = table["samsum_finetuned", *way]
        assert cells[1:3] == [f"{row['metric']['rougeL']:.2f}", f"{row['speed_up']:.2f}x"]
    fewer = rows[1]["confidence_flops_per_token"] / rows[3]["confidence_flops_per_token"]
    assert table["samsum_finetuned", "dvp", "512"][3] == f"{fewer:.1f}x"
    for key, cells in table.items():
        assert (cells[1:] == ["not run"] * 3) == (key[0] != "samsum_finetuned")


def test_the_reason_is_given_for_what_was_not_run(reproduced):
    run, workdir = reproduced
    assert "squad_finetuned was not run: left out by --only" in run.stdout
    results = json.loads((workdir / "reproduce.json").read_text())
    assert set(results["squad"]) == {"not_run"} and "t5-large" in results["squad"]["not_run"]  # no hub here
    assert f"squad was not run: {results['squad']['not_run']}" in run.stdout
    assert len(results["samsum_finetuned"]["rows"]) == 4


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("--only=squad,cnn", ["only has cnn", "squad, squad_finetuned, samsum"]),
        ("--models=cnn=folder", ["models has 'cnn'", "NAME=PATH"]),
    ],
)
def test_a_config_that_there_is_not_is_refused(flag, parts, tmp_path):
    check_error(launch("reproduce", f"--workdir={tmp_path}", flag), *parts)
