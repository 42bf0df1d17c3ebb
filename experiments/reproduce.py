"""The paper's table beside ours: T5-large on SQuAD and SamSum, as pre-trained and fine-tuned.

    python -m experiments.reproduce --workdir=runs/reproduce

Runs each config of the paper's settings (`experiments/configs/{squad,samsum}*.py`) into a folder of its own under
--workdir, prints the table and writes reproduce.json. What cannot be run, for want of a checkpoint or of data, is
marked as not run, with the reason. Started again, it goes on where it was. Without the hub:

    python -m experiments.reproduce --workdir=runs/reproduce --models=squad=T5_LARGE --data=squad=dev-v1.1.json
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags

from dvp_jax.evaluate.evaluation import make_methods
from dvp_jax.evaluate.experiment import run_evaluation
from dvp_jax.runs import launch
from dvp_jax.runs.files import prepare_workdir, write_json
from dvp_jax.runs.predictions import read_json
from experiments.configs import samsum, samsum_finetuned, squad, squad_finetuned

CONFIGS = {
    "squad": squad,
    "squad_finetuned": squad_finetuned,
    "samsum": samsum,
    "samsum_finetuned": samsum_finetuned,
}
PUBLISHED: dict[tuple[str, str, int | None], float] = {("squad", "dvp", 64): 90.6, ("samsum", "dvp", 512): 43.1}
"""F1 and ROUGE-L of T5-large by task, method and K (DVP, results): all that we know for certain."""

_WORKDIR = flags.DEFINE_string("workdir", None, "Where results go.", required=True)
_ONLY = flags.DEFINE_list(
    "only", list(CONFIGS), f"Configs to run, of {', '.join(CONFIGS)}; the others stay as they are."
)
_MODELS = flags.DEFINE_multi_string("models", [], "NAME=FOLDER: a checkpoint for the config NAME.")
_DATA = flags.DEFINE_multi_string("data", [], "NAME=FILE: a data file for the config NAME.")
_LIMIT = flags.DEFINE_integer("limit", None, "Examples of each task, from the first.", lower_bound=1)


def _named(flag: flags.FlagHolder) -> dict[str, str]:
    """The NAME=PATH values of a flag."""
    pairs = dict(value.partition("=")[::2] for value in flag.value)
    for name in pairs:
        if name not in CONFIGS:
            raise ValueError(f"{flag.name} has {name!r}; allowed: NAME=PATH with {', '.join(CONFIGS)}")
    return pairs


def published_beside_ours(
    name: str, config: Mapping[str, Any], found: list[dict[str, Any]] | str
) -> Iterator[str]:
    """Lines of the table for one config: what it found, or why it was not run."""
    ((task, _),) = config["tasks"].items()
    flops = {}
    methods = make_methods(config["methods"], max_new_tokens=1)  # for their order
    for key, method in methods.items():
        size = method.prune_size if method.method == "dvp" else None
        published = PUBLISHED.get((task, method.method, size))
        cells = [name, method.method, str(size or ""), "not known" if published is None else f"{published}"]
        if isinstance(found, str):
            cells += ["not run", "not run", "not run"]
        else:
            (row,) = [row for row in found if row["name"] == key]
            flops[method.method] = row["confidence_flops_per_token"]
            fewer = flops["calm"] / flops["dvp"] if method.method == "dvp" else None
            quality, speed_up = next(iter(row["metric"].values())), row["speed_up"]
            cells += [f"{quality:.2f}", f"{speed_up:.2f}x", f"{fewer:.1f}x" if fewer else ""]
        yield "| " + " | ".join(cells) + " |"


def main() -> None:
    """Runs what can be run and prints the table."""
    models, data = _named(_MODELS), _named(_DATA)
    if unknown := set(_ONLY.value) - set(CONFIGS):
        raise ValueError(f"only has {', '.join(sorted(unknown))}; allowed: {', '.join(CONFIGS)}")
    workdir = prepare_workdir(_WORKDIR.value)
    results: dict[str, Any] = {}
    lines = [
        "| config | method | K | published F1 or ROUGE-L | ours | speed-up | confidence FLOPs below calm |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, module in CONFIGS.items():
        config = module.get_config()
        config.model = models.get(name, config.model)
        config.limit = _LIMIT.value
        for task in config.tasks.values():
            task.path = data.get(name)
        found: list[dict[str, Any]] | str
        if name in _ONLY.value:
            try:
                found = run_evaluation(config.to_dict(), workdir / name)
            except (OSError, ValueError) as error:
                found = str(error)
        else:
            results_before = read_json(workdir / name / "results.json")
            found = results_before["rows"] if results_before else "left out by --only"
        results[name] = {"not_run": found} if isinstance(found, str) else {"rows": found}
        lines += published_beside_ours(name, config, found)
    write_json(workdir / "reproduce.json", results)
    print("\n".join(lines))
    print("\nPublished: T5-large, about 7x fewer confidence FLOPs than full-softmax early exit.")
    for name, result in results.items():
        if "not_run" in result:
            print(f"{name} was not run: {result['not_run']}")


if __name__ == "__main__":
    launch.run(main)
