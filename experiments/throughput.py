"""How many tokens a second? Slots that are refilled against fixed batches, on a task's own sources and exits.

    python -m experiments.throughput --workdir=runs/throughput \
        --config=experiments/configs/multi30k_throughput.py \
        --config.model=CHECKPOINT --config.tasks.translation.source_path=test_2016_flickr.en \
        --config.tasks.translation.target_path=test_2016_flickr.de --slots=4,16

For every method of the config and number of rows B: tokens a second, encoder included, of batches of B sorted by
source length and of the engine with B slots and the sources in each of --orders, in turn, medians of --rounds; how
many texts are the same; and how many layers a step runs, those of its deepest row, beside the mean exit. Writes
throughput.json; prints a table.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from dvp_jax.bench.throughput import ORDERS, compare, table
from dvp_jax.decode.text import tokenize
from dvp_jax.evaluate.experiment import open_experiment
from dvp_jax.runs import launch
from dvp_jax.runs.files import write_json

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where throughput.json goes.", required=True)
_SLOTS = flags.DEFINE_list("slots", "16", "Numbers of rows decoded together, to compare.")
_ORDERS = flags.DEFINE_multi_enum(
    "orders",
    ["given"],
    list(ORDERS),
    "Orders in which the engine gets the sources; the last two as who knew the texts beforehand would sort them.",
)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed rounds.", lower_bound=1)


def main() -> None:
    """Times all ways for each task, method and number of rows."""
    config = _CONFIG.value.to_dict()
    with open_experiment(config, _WORKDIR.value) as experiment:
        found = []
        for task, methods in experiment.tasks:
            prompts = [example.prompt for example in task.load()[: config["limit"]]]
            ids, mask = tokenize(experiment.model, prompts, task.max_source_length)
            for rows in map(int, _SLOTS.value):
                for name, cfg in methods.items():
                    ways = compare(experiment.model, cfg, ids, mask, rows, _ORDERS.value, _ROUNDS.value)
                    found += [{"task": task.name, "name": name, **way} for way in ways]
        write_json(experiment.workdir / "throughput.json", {"rows": found, **experiment.made_by})
        print(table(found))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
