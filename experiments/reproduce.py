"""Published figures beside ours: T5-large on SQuAD and SamSum, pre-trained and fine-tuned by the paper's authors.

    python -m experiments.reproduce --workdir=runs/reproduce

Runs each config of the paper's settings (`experiments/configs/{squad,samsum}*.py`) into a folder of its own under
--workdir, prints the tables and writes reproduce.json. A published figure stands beside a row of ours only where
checkpoint, exits and K agree. A config that cannot be run, because its checkpoint or its data is missing, is
marked as not run, with the reason. A second start continues an interrupted run. Without the hub:

    python -m experiments.reproduce --workdir=runs/reproduce --models=squad=T5_LARGE --data=squad=dev-v1.1.json
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from dvp_jax.evaluate.experiment import run_evaluation
from dvp_jax.evaluate.published import SOURCES, comparison_table, published_table
from dvp_jax.runs import launch
from dvp_jax.runs.files import as_written, lock_workdir, read_json, write_json
from experiments.configs import samsum, samsum_finetuned, squad, squad_finetuned

CONFIGS = {
    "squad": squad,
    "squad_finetuned": squad_finetuned,
    "samsum": samsum,
    "samsum_finetuned": samsum_finetuned,
}

_WORKDIR = flags.DEFINE_string("workdir", None, "Where results go.", required=True)
_ONLY = flags.DEFINE_list("only", list(CONFIGS), f"Configs to run, of {', '.join(CONFIGS)}; others are skipped.")
_MODELS = flags.DEFINE_multi_string("models", [], "NAME=FOLDER: a local copy of the checkpoint of config NAME.")
_DATA = flags.DEFINE_multi_string("data", [], "NAME=FILE: a data file for the config NAME.")
_LIMIT = flags.DEFINE_integer("limit", None, "Examples of each task, from the first.", lower_bound=1)


def _named(flag: flags.FlagHolder) -> dict[str, str]:
    """The NAME=PATH values of a flag."""
    paths = launch.named_folders(flag.name, flag.value)
    for name in paths:
        if name not in CONFIGS:
            raise ValueError(f"{flag.name} has {name!r}; allowed: NAME=PATH with {', '.join(CONFIGS)}")
    return {name: str(path) for name, path in paths.items()}


def _earlier(name: str, workdir: Path) -> list[dict[str, Any]] | str:
    """The rows that a config's results have already, or why there are none."""
    path = workdir / "results.json"
    earlier = read_json(path)
    if earlier is None:
        return "left out by --only"
    with as_written(path, "evaluate"):
        comparison_table({name: (CONFIGS[name].get_config(), earlier["rows"])})
        return earlier["rows"]


def _run(config: ConfigDict, workdir: Path) -> list[dict[str, Any]] | str:
    """The rows of the config's results, or why it could not be run."""
    try:
        return run_evaluation(config.to_dict(), workdir)
    except (OSError, ValueError) as error:
        return str(error)


def _run_all(models: Mapping[str, str], data: Mapping[str, str], workdir: Path) -> dict[str, Any]:
    """The rows of each config's results, or why there are none. Writes them into reproduce.json too."""
    results = {name: _earlier(name, workdir / name) for name in CONFIGS if name not in _ONLY.value}
    for name, module in CONFIGS.items():
        if name in results:
            continue
        config = module.get_config()
        config.model = models.get(name, config.model)
        config.limit = _LIMIT.value
        for task in config.tasks.values():
            task.path = data.get(name)
        results[name] = _run(config, workdir / name)
    results = {name: results[name] for name in CONFIGS}
    write_json(
        workdir / "reproduce.json",
        {name: {"not_run" if isinstance(rows, str) else "rows": rows} for name, rows in results.items()},
    )
    return results


def main() -> None:
    """Runs the configs that can be run and prints the tables."""
    models, data = _named(_MODELS), _named(_DATA)
    if unknown := set(_ONLY.value) - set(CONFIGS):
        raise ValueError(f"only has {', '.join(sorted(unknown))}; allowed: {', '.join(CONFIGS)}")
    with lock_workdir(_WORKDIR.value) as workdir:
        results = _run_all(models, data, workdir)
    not_run = {name: reason for name, reason in results.items() if isinstance(reason, str)}
    beside_config = {name: (CONFIGS[name].get_config(), rows) for name, rows in results.items()}
    print(comparison_table(beside_config).markdown())
    print(
        "\nPublished (paper): about 7x fewer confidence FLOPs than calm. Inferred: p = 2, K = 64, exits near 20."
    )
    print(*(f"{name} was not run: {reason}" for name, reason in not_run.items()), sep="\n")
    print(f"\nAll published figures, threshold 0.9 where the source says so:\n\n{published_table().markdown()}")
    print("\nSources:", *(f"- {name}: {where}" for name, where in SOURCES.items()), sep="\n")


if __name__ == "__main__":
    launch.run(main, interrupted=launch.DECODED)
