"""How early does the decoder know its choice? The evidence for pruning the vocabulary at a shallow depth.

    python -m experiments.ranks --config=experiments/configs/demo.py --workdir=runs/ranks \
        --config.batch_size=16

For every depth: the rank of the token that the full model chooses in the end, the share of tokens whose choice is
among the K likeliest, the mean confidence over the whole vocabulary, and how often the depth's own choice is the
final one. Writes ranks.json and, for each task, plots of ranks, coverage and agreement under --workdir; prints a
table. Takes any config of experiments.evaluate. Seen: TIME.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from dvp_jax import launch
from dvp_jax.analysis.ranks import prune_sizes, rank_report, rank_table
from dvp_jax.analysis.tokens import full_model_texts, load_sources, trace_texts
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.evaluation import set_up
from dvp_jax.files import write_json
from dvp_jax.report.plots import agreement_per_depth, coverage_per_size, rank_boxes

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where ranks.json and the plots go.", required=True)


def main() -> None:
    """Traces the full model's own texts and reports what each depth knew."""
    config = _CONFIG.value
    setup = set_up(config, _WORKDIR.value)
    reports = {}
    for task, methods in setup.tasks:
        sources = load_sources(setup.model, task, batch_size=config.batch_size, limit=config.limit)
        texts = full_model_texts(setup.model, sources, task.max_new_tokens)
        table = trace_texts(setup.model, sources, texts, {"whole": DecodeConfig(method="calm", min_exit_layer=1)})
        sizes = prune_sizes(methods.values(), setup.model.config.vocab_size)
        report = reports[task.name] = rank_report(table, "whole", sizes)
        rank_boxes(report, setup.workdir / f"ranks_{task.name}.svg")
        coverage_per_size(report, setup.workdir / f"coverage_{task.name}.svg")
        agreement_per_depth(report, setup.workdir / f"agreement_{task.name}.svg")
        print(f"{task.name}, {report['tokens']} tokens of {report['texts']} texts:\n\n{rank_table(report)}\n")
    write_json(setup.workdir / "ranks.json", {"tasks": reports}, model=config.model, config=config.to_dict())


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
