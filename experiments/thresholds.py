"""Which threshold at which depth? The smallest whose exits agree with the full model often enough.

    python -m experiments.thresholds --config=experiments/configs/demo.py --workdir=runs/thresholds \
        --config.batch_size=16 --share=0.98

For every calm and dvp method of the config (whole vocabulary, pruned vocabulary) and every measure that it takes:
at each depth the smallest threshold for which at least --share of the tokens that leave there are the full
model's, as in FlexEE. Writes thresholds.json and report.html under --workdir; prints tables. To evaluate what was
found for a task, beside the full model, and on another set where its path is changed:

    python -m experiments.evaluate --config=experiments/configs/found.py:runs/thresholds/thresholds.json,squad \
        --workdir=runs/found

Takes any config of experiments.evaluate. Seen: TIME.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from dvp_jax import launch
from dvp_jax.analysis.thresholds import threshold_report, threshold_table, variants
from dvp_jax.analysis.tokens import full_model_texts, load_sources, trace_texts
from dvp_jax.experiment import set_up
from dvp_jax.files import write_json
from dvp_jax.report.html import Section, tables_of, write_report

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where thresholds.json and report.html go.", required=True)
_SHARE = flags.DEFINE_float("share", 0.98, "Of the exits of each depth, that must agree with the full model.")


def main() -> None:
    """Traces the full model's own texts under every measure."""
    config = _CONFIG.value
    if not 0.0 < _SHARE.value <= 1.0:
        raise ValueError(f"share is {_SHARE.value}; allowed: above 0, to 1")
    with set_up(config.to_dict(), _WORKDIR.value) as setup:
        reports, sections = {}, []
        for task, methods in setup.tasks:
            ways = variants(methods, "meta" in setup.model.params)
            sources = load_sources(setup.model, task, batch_size=config.batch_size, limit=config.limit)
            texts = full_model_texts(setup.model, sources, task.max_new_tokens)
            table = trace_texts(setup.model, sources, texts, ways)
            report = reports[task.name] = threshold_report(table, ways, _SHARE.value)
            found = threshold_table(report)
            sections.append(Section(task.name, "", tables_of(found)))
            print(f"{task.name}:\n\n{found}\n")
        found_here = {"share": _SHARE.value, "tasks": reports}
        write_json(setup.workdir / "thresholds.json", {**found_here, **setup.made_by})
        write_report(setup.workdir / "report.html", "Thresholds", sections, setup.made_by)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
