"""Selection on a tiny random model; its figures, worked out again with the slow decoder."""

from __future__ import annotations

import dataclasses
import json
import runpy
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import dvp_jax
from dvp_jax.evaluate import experiment
from dvp_jax.evaluate.experiment import run_sweep
from dvp_jax.evaluate.selection import Promise, select, selection_table
from tests.launching import SENTENCES, Checkpoint, check_error, files_of, launch, make_checkpoint

pytestmark = pytest.mark.usefixtures("quick_compiler")

CONFIG = """
from experiments.configs.common import evaluation, sweep

def get_config():
    tasks = {{"samsum": {{"path": {data!r}, "max_new_tokens": 3}}}}
    config = evaluation(model={model!r}, tasks=tasks, threshold=0.5, prune_sizes=(16,))
    config.batch_size = 8
    config = sweep(config, {grid})
    config.explore = 0
    return config
"""
GRID = {"dvp": {"prune_layer": (1, 2), "prune_size": (8,), "threshold": (0.3, 0.99, 0.5)}}
PROMISE = Promise("textual", delta=0.7, epsilon=0.4, measure="exact_match", p_value="exact_binomial")
FLAGS = ("--delta=0.7", "--epsilon=0.4", "--measure=exact_match", "--p_value=exact_binomial")


def dialogues(first: int, count: int) -> list[str]:
    return [f"{SENTENCES[i % 6]} {SENTENCES[i % 5]}" for i in range(first, first + count)]


DIALOGUES = {"calibration": dialogues(0, 24), "check": dialogues(24, 6)}


@dataclasses.dataclass(eq=False)
class Selection:
    """A selection, where it was made and of what."""

    folder: Path
    workdir: Path
    checkpoint: Checkpoint
    result: dict

    def config(self, name: str = "calibration", **changes: object) -> dict:
        return {**runpy.run_path(str(self.folder / f"{name}.py"))["get_config"]().to_dict(), **changes}

    def cells(self) -> dict[str, int]:
        """When each cell was written."""
        return {str(path): path.stat().st_mtime_ns for path in self.workdir.glob("**/cells/*.json")}

    def words(self, name: str) -> list[list[str]]:
        """What the slow decoder writes of the examples to check on, with the fields in a setting's name."""
        fields = dict(part.split("=") for part in name.split(",")[1:])
        settings: dict = {"method": name.split(",")[0], "max_new_tokens": 3}
        if fields:
            p = int(fields["prune_layer"])
            settings |= {"min_exit_layer": p, "prune_layer": p, "prune_size": int(fields["prune_size"])}
            settings["threshold"] = float(fields["threshold"])
        texts = [self.checkpoint.decode(f"summarize: {text}", **settings).tokens for text in DIALOGUES["check"]]
        return [words(self.checkpoint.text(text)) for text in texts]


def words(text: str) -> list[str]:
    """What an exact match looks at."""
    return [word for word in text.split() if word not in (".", ":")]


def share_that_differs(texts: list[list[str]], others: list[list[str]]) -> float:
    return float(np.mean([text != other for text, other in zip(texts, others, strict=True)]))


@pytest.fixture(scope="module")
def selection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("select")
    checkpoint = make_checkpoint(folder / "model", seed=4, num_layers=1, num_decoder_layers=3, d_ff=256)
    # Found by trying a few: some settings are certified, and one of them takes fewer FLOPs than the full model.
    for name, texts in DIALOGUES.items():
        rows = [f"{i},{text},dada dade" for i, text in enumerate(texts)]
        (folder / f"{name}.csv").write_text("\n".join(["id,dialogue,summary", *rows]) + "\n")
        fields = {"data": str(folder / f"{name}.csv"), "model": str(folder / "model"), "grid": GRID}
        (folder / f"{name}.py").write_text(CONFIG.format(**fields))
    selection = Selection(folder, folder / "run", checkpoint, {})
    config, check = selection.config(), selection.config("check")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # enough examples for this delta
        selection.result = select(config, selection.workdir, PROMISE, check=check)
    return selection


def test_risks_are_shares_of_texts_that_differ_from_the_full_models(selection):
    settings = {setting["name"]: setting["risk"] for setting in selection.result["settings"]}
    assert len(settings) == 2 * 3
    texts = {}
    for path in (selection.workdir / "cells").iterdir():
        lines = json.loads(path.read_text())["predictions"]
        texts[path.name.removesuffix(".json")] = [words(line["text"]) for line in lines]
    full = texts.pop("full")
    assert settings == pytest.approx({name: share_that_differs(texts[name], full) for name in texts})
    assert 0 < min(settings.values()) < max(settings.values()) < 1  # else the test says little


def test_the_cheapest_setting_before_each_paths_first_failure_is_returned(selection):
    result, certified = selection.result, []
    for p in (1, 2):
        path = [setting for setting in result["settings"] if f"prune_layer={p}," in setting["name"]]
        assert [setting["name"].split("=")[-1] for setting in path] == ["0.99", "0.5", "0.3"]
        passing = True
        for setting in path:
            p_value = stats.binomtest(round(24 * setting["risk"]), 24, 0.7, alternative="less").pvalue
            assert setting["p_value"] == pytest.approx(p_value)
            assert (setting["tested"], setting["level"]) == (passing, 0.4 / 2)
            passing = passing and p_value <= 0.2
            assert setting["rejected"] == passing
            certified += [setting] if passing else []
    assert 1 < len(certified) < 6  # else the test says little
    best = min(certified, key=lambda setting: setting["flops_per_token"])
    assert (result["returned"], result["guaranteed"]) == (best["name"], True)
    row = json.loads((selection.workdir / "cells" / f"{best['name']}.json").read_text())["rows"][0]
    assert best["flops_per_token"] == row["layer_flops_per_token"] + row["unembedding_flops_per_token"]
    assert "probability at least 0.6 over the draw of the 24 calibration examples" in result["statement"]
    assert result["certificate"] == {
        "n": 24,
        "paths": [f"dvp,min_exit_layer={p},prune_layer={p},prune_size=8" for p in (1, 2)],
        "level": 0.2,
        "smallest_delta": pytest.approx(1 - 0.2 ** (1 / 24)),
    }
    assert result["promise"] == {
        "kind": "textual",
        "delta": 0.7,
        "epsilon": 0.4,
        "measure": "exact_match",
        "p_value": "exact_binomial",
    }


def test_selected_json_loads_and_decodes_as_was_certified(selection):
    path = selection.workdir / "selected.json"
    cfg = dvp_jax.load_decode_config(path)
    assert cfg == dvp_jax.DecodeConfig(**json.loads(path.read_text())["config"])
    model = dvp_jax.load_model(selection.folder / "model")
    assert selection.result["made_by"]["model_fingerprint"] == model.fingerprint
    assert len(selection.result["made_by"]["data_fingerprint"]) == 64
    outs = dvp_jax.generate_text(model, [f"summarize: {text}" for text in DIALOGUES["check"]], cfg)
    assert [words(out.text) for out in outs] == selection.words(selection.result["returned"])


def test_the_promise_is_looked_at_once_more_on_other_examples(selection):
    seen, returned = selection.result["seen"], selection.result["returned"]
    assert (seen["calibration"]["num_examples"], seen["check"]["num_examples"]) == (24, 6)
    expected = share_that_differs(selection.words(returned), selection.words("full"))
    assert seen["check"]["risk"] == pytest.approx(expected) and 0 < expected < 1
    (setting,) = [setting for setting in selection.result["settings"] if setting["name"] == returned]
    assert seen["calibration"]["risk"] == setting["risk"]
    table = selection_table(selection.result).markdown().splitlines()
    assert [line.split(" | ")[:3] for line in table[2:]] == [
        ["| calibration, 24", "0.7", f"{setting['risk']:.4f}"],
        ["| check, 6", "0.7", f"{seen['check']['risk']:.4f}"],
    ]


def test_the_launcher_selects_the_same_and_decodes_nothing_again(selection, tmp_path):
    before = selection.cells()
    assert len(before) == 7 + 2
    run = launch(
        "select",
        f"--config={selection.folder / 'calibration.py'}",
        f"--check_config={selection.folder / 'check.py'}",
        f"--workdir={selection.workdir}",
        f"--output={tmp_path / 'again.json'}",
        *FLAGS,
    )
    assert run.returncode == 0, run.stderr
    again = json.loads((tmp_path / "again.json").read_text())
    assert again | {"made_by": None} == selection.result | {"made_by": None}
    assert run.stdout.startswith(f"{again['returned']}\n\n{again['statement']}\n\n| examples |")
    assert selection.cells() == before


def test_a_sweep_of_the_same_grid_finds_its_cells_there(selection):
    before = selection.cells()
    rows = run_sweep(selection.config(), selection.workdir)
    assert {row["name"] for row in rows} == {setting["name"] for setting in selection.result["settings"]}
    assert selection.cells() == before


def test_where_nothing_is_certified_the_full_model_is_returned_and_it_says_so(selection, tmp_path):
    promise = dataclasses.replace(PROMISE, delta=0.01)
    with pytest.warns(
        UserWarning, match=r"24 calibration examples certify a delta of 0\.0649 at best.*asked is 0\.01"
    ):
        result = select(selection.config(), selection.workdir, promise, output=tmp_path / "full.json")
    assert dvp_jax.load_decode_config(tmp_path / "full.json").method == "full"
    assert result["returned"] == "full"
    assert result["statement"] == "Returned is the full model: no setting is certified."
    assert not any(setting["rejected"] for setting in result["settings"])
    assert result["seen"]["calibration"]["risk"] == 0.0


def test_without_a_guarantee_the_cheapest_within_delta_is_returned_and_it_says_so(selection, tmp_path):
    settings = selection.result["settings"]
    delta = 0.8
    cheapest = min((s for s in settings if s["risk"] <= delta), key=lambda s: s["flops_per_token"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = select(
            selection.config(),
            selection.workdir,
            dataclasses.replace(PROMISE, delta=delta),
            guarantee=False,
            output=tmp_path / "quick.json",
        )
    assert (result["returned"], result["guaranteed"], result["certificate"]) == (cheapest["name"], False, None)
    assert result["returned"] != selection.result["returned"]
    assert result["statement"].startswith("No guarantee: of these 24 examples alone, ")
    assert not {"p_value", "rejected"} & set(result["settings"][0])


def test_few_examples_work_and_the_warning_says_what_they_can_certify(selection, tmp_path):
    few = selection.config(limit=5)
    with pytest.warns(
        UserWarning, match=rf"^5 calibration examples certify a delta of {1 - 0.2**0.2:.3g} at best"
    ):
        result = select(few, tmp_path, dataclasses.replace(PROMISE, delta=0.9))
    assert result["certificate"]["n"] == 5


def test_references_are_what_risk_consistency_is_about(selection, tmp_path):
    with pytest.warns(UserWarning):
        result = select(
            selection.config(), selection.workdir, Promise("risk", 0.01), output=tmp_path / "risk.json"
        )
    assert result["promise"]["measure"] == "rougeL"  # the task's own
    assert all(setting["risk"] == 0.0 for setting in result["settings"])  # no text has a word of "dada dade"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prune_layer": (1, 9)}, r"prune_layer is 9; allowed: an integer from 1 to 2 for this model"),
        ({"prune_size": (601,)}, r"prune_size is 601; allowed: an integer from 1 to 600 for this model"),
        ({"prune_size": (0,)}, r"prune_size is 0; allowed: an integer of at least 1"),
        ({"threshold": (1.5,)}, r"threshold is 1.5; allowed: a number from 0 to 1"),
    ],
)
def test_an_impossible_setting_is_refused_before_anything_is_decoded(change, message, selection, tmp_path):
    config = selection.config(sweep={"dvp": {**GRID["dvp"], **change}})
    with pytest.raises(ValueError, match=message):
        select(config, tmp_path, PROMISE)
    assert not list(tmp_path.glob("cells/*"))


def test_examples_to_check_on_are_read_before_anything_is_decoded(selection, tmp_path):
    check = selection.config("check", tasks={"samsum": {"path": "nothing.csv"}})
    with pytest.raises(FileNotFoundError, match=r"^no data file nothing.csv$"):
        select(selection.config(), tmp_path, PROMISE, check=check)
    assert files_of(tmp_path) == []


def test_lossless_has_nothing_to_certify(selection, tmp_path):
    config = selection.config(sweep={"lossless": {"threshold": (0.5,)}})
    with pytest.raises(
        ValueError, match=r"^sweep has lossless,threshold=0.5; allowed: methods whose text may differ"
    ):
        select(config, tmp_path, PROMISE)


def test_bleu_is_refused_where_it_would_not_find_the_words(selection, tmp_path):
    (tmp_path / "chinese.csv").write_text("id,dialogue,summary\n1,dada,今天天气很好\n", encoding="utf-8")
    tasks = {"samsum": {"path": str(tmp_path / "chinese.csv"), "max_new_tokens": 3}}
    with pytest.raises(ValueError, match=r"measure is 'bleu', which does not find the words .*; allowed: chrf"):
        select(selection.config(tasks=tasks), tmp_path / "run", Promise(measure="bleu"))


def test_one_task_is_selected_for(selection, tmp_path):
    config = selection.config()
    with pytest.raises(ValueError, match="task is 'squad'; allowed: one of samsum"):
        select(config, tmp_path, PROMISE, task="squad")
    config["tasks"]["translation"] = {}
    with pytest.raises(ValueError, match="task is None; allowed: one of samsum, translation"):
        select(config, tmp_path, PROMISE)
    del config["tasks"]["samsum"]
    with pytest.raises(ValueError, match="task is 'samsum'; allowed: one of translation"):
        select(selection.config(), selection.workdir, PROMISE, check=config)


def test_the_launcher_refuses_what_cannot_be_promised(selection, tmp_path):
    config = f"--config={selection.folder / 'calibration.py'}"
    run = launch("select", config, f"--workdir={tmp_path / 'new'}", "--delta=1")
    check_error(run, "delta is 1.0", "between 0 and 1")
    assert not (tmp_path / "new").exists()


def test_what_a_grids_config_leaves_open_is_set_on_the_command_line(tmp_path):
    run = launch(
        "select",
        "--config=experiments/configs/multi30k_select.py",
        f"--workdir={tmp_path / 'new'}",
        "--config.model=model",
        "--config.tasks.translation.source_path=val.en",
    )
    check_error(run, "source_path is 'val.en' and target_path None")


def test_cells_that_were_cut_short_or_edited_are_named_and_decoded_again(selection, tmp_path):
    shutil.copytree(selection.workdir, tmp_path / "run")
    paths = sorted((tmp_path / "run" / "cells").glob("dvp*.json"))
    before = [json.loads(path.read_text())["predictions"] for path in paths]
    paths[0].write_bytes(paths[0].read_bytes()[:-100])
    paths[1].write_text(paths[1].read_text().replace('"text": "', '"text": "edited ', 1))
    with pytest.warns(UserWarning, match="damaged") as warned:
        rows = run_sweep(selection.config(sweep={"full": {}, **GRID}), tmp_path / "run")
    named = {str(path) for path in paths[:2]}
    assert {
        str(each.message).split(" is damaged")[0] for each in warned if "damaged" in str(each.message)
    } == named
    found = [json.loads(path.read_text())["predictions"] for path in paths]
    assert [[line["text"] for line in lines] for lines in found] == [
        [x["text"] for x in lines] for lines in before
    ]
    assert len(rows) == 7 and rows[0]["speed_up"] == 1.0


def test_cells_with_long_names_are_written_and_found_again(selection, tmp_path, monkeypatch):
    def decode(model, tasks, name, config):  # as the cell of another name
        return json.loads(full.replace('"name": "full"', f'"name": "{name}"'))

    full = (selection.workdir / "cells" / "full.json").read_text()
    monkeypatch.setattr(experiment, "_decode_cell", decode)
    thresholds = [(0.1234567890123456789,) * 3, (0.12345678901234567,) * 2 + (0.5,)]
    grid = {"calm": {"thresholds_per_depth": thresholds, "min_exit_layer": [1], "max_new_tokens": [3]}}
    grid["calm"] |= {"branch_every": [None], "unembedding": ["float"], "exit_depths": [None]}
    rows = run_sweep(selection.config(sweep=grid), tmp_path)
    assert len({row["name"] for row in rows}) == 2 and all(len(row["name"]) > 150 for row in rows)
    names = [path.name for path in (tmp_path / "cells").iterdir()]
    assert len(names) == 2 and all(len(name) < 140 for name in names)
    monkeypatch.setattr(experiment, "_decode_cell", None)
    assert run_sweep(selection.config(sweep=grid), tmp_path) == rows


def test_a_result_that_was_edited_is_named_by_the_plot_of_promises(tmp_path):
    path = tmp_path / "selected.json"
    path.write_text('{"promise": {}, "seen": {"calibration": {}}}')
    run = launch("plot_promises", f"--results={path}", f"--output={tmp_path}/promises.svg")
    check_error(run, path, "allowed: a file as experiments.select has written it")
    assert files_of(tmp_path) == ["selected.json"]
