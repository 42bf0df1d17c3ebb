"""How early does the decoder know its choice? The evidence for pruning the vocabulary at a shallow depth.

    python -m experiments.ranks --config=experiments/configs/demo.py --workdir=runs/ranks \
        --config.batch_size=16

For every depth: the rank of the token that the full model chooses in the end, the share of tokens whose choice is
among the K likeliest, the mean confidence over the whole vocabulary, and how often the depth's own choice is the
final one. Writes ranks.json, plots of ranks, coverage and agreement for each task, and report.html under
--workdir; prints a table. Takes any config of experiments.evaluate. Seen: 27 seconds on two busy
CPU cores.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from dvp_jax import launch
from dvp_jax.analysis.ranks import prune_sizes, rank_report, rank_table
from dvp_jax.analysis.tokens import WHOLE, full_model_texts, load_sources, trace_texts
from dvp_jax.experiment import set_up
from dvp_jax.files import write_json
from dvp_jax.report.html import Section, tables_of, write_report
from dvp_jax.report.plots import agreement_per_depth, coverage_per_size, rank_boxes

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where ranks.json and the plots go.", required=True)


def main() -> None:
    """Traces the full model's own texts and reports what each depth knew."""
    config = _CONFIG.value
    with set_up(config.to_dict(), _WORKDIR.value) as setup:
        reports, sections = {}, []
        for task, methods in setup.tasks:
            sources = load_sources(setup.model, task, batch_size=config.batch_size, limit=config.limit)
            texts = full_model_texts(setup.model, sources, task.max_new_tokens)
            table = trace_texts(setup.model, sources, texts, WHOLE)
            sizes = prune_sizes(methods.values(), setup.model.config.vocab_size)
            report = reports[task.name] = rank_report(table, "whole", sizes)
            plots = {
                "rank of the token that the full model chooses": ("ranks", rank_boxes),
                "share of choices among the K likeliest": ("coverage", coverage_per_size),
                "confidence, and agreement with the full model": ("agreement", agreement_per_depth),
            }
            paths = {what: setup.workdir / f"{name}_{task.name}.svg" for what, (name, _) in plots.items()}
            for what, (_, draw) in plots.items():
                draw(report, paths[what])
            title, found = f"{task.name}, {report['tokens']} tokens of {report['texts']} texts", rank_table(report)
            sections.append(Section(title, "", tables_of(found), tuple(paths.items())))
            print(f"{title}:\n\n{found}\n")
        write_json(setup.workdir / "ranks.json", {"tasks": reports, **setup.made_by})
        write_report(setup.workdir / "report.html", "Ranks", sections, setup.made_by)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
