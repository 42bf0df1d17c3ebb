"""How many tokens a second? An engine that refills its slots against fixed batches, on a task's own sources.

    python -m experiments.throughput --workdir=runs/throughput \
        --config=experiments/configs/multi30k_throughput.py \
        --config.model=CHECKPOINT --config.tasks.translation.source_path=test_2016_flickr.en \
        --config.tasks.translation.target_path=test_2016_flickr.de --slots=4,16

For every method of the config and every number of rows, times batches sorted by source length, and the engine
with the sources in each of --orders. They run in turn; medians of --rounds are reported. Shows tokens a second,
the encoder's time included; how many texts are the same; and how many layers a step runs, which its deepest row
decides, beside the mean exit. Writes throughput.json; prints a table.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from dvp_jax.bench.throughput import ORDERS, run_throughput
from dvp_jax.runs import launch

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where throughput.json goes.", required=True)
_SLOTS = flags.DEFINE_list("slots", "16", "Numbers of rows decoded together, to compare.")
_ORDERS = flags.DEFINE_multi_enum(
    "orders",
    ["given"],
    list(ORDERS),
    "Orders in which the engine gets the sources. The last two need the texts beforehand: they are bounds.",
)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed rounds.", lower_bound=1)


def main() -> None:
    """Compares the schedules for each task, method and number of rows."""
    slots = launch.integers(_SLOTS, least=1)
    config = _CONFIG.value.to_dict()
    print(run_throughput(config, _WORKDIR.value, slots=slots, orders=_ORDERS.value, rounds=_ROUNDS.value))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
