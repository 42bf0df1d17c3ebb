"""Which tokens does pruning lose? Those whose full-model choice is not among the K kept at depth p.

    python -m experiments.failures --config=experiments/configs/demo.py --workdir=runs/failures \
        --config.batch_size=16

For every dvp method of the config: how often it happens by kind of token, letter case, frequency and place, with
95 % intervals from resampling texts; what the pruned decoder produced instead, and whether its text went another
way from there; worked examples. Writes failures.json, a plot of the rates for each task and method, and
report.html under --workdir; prints tables. Takes any config of experiments.evaluate. Seen: 38 seconds on two
busy CPU cores.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from dvp_jax import launch
from dvp_jax.analysis.failures import failure_report, failure_table
from dvp_jax.analysis.tokens import WHOLE, decode_texts, full_model_texts, load_sources, trace_texts
from dvp_jax.experiment import set_up
from dvp_jax.files import write_json
from dvp_jax.report.html import Section, tables_of, write_report
from dvp_jax.report.plots import failure_rates

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where failures.json and the plots go.", required=True)
_EXAMPLES = flags.DEFINE_integer("examples", 10, "Worked examples to print for each method.", lower_bound=0)


def main() -> None:
    """Traces the full model's own texts and compares each pruned decoder's with them."""
    config = _CONFIG.value
    with set_up(config.to_dict(), _WORKDIR.value, only="dvp") as setup:
        reports: dict[str, dict[str, object]] = {}
        sections = []
        for task, methods in setup.tasks:
            sources = load_sources(setup.model, task, batch_size=config.batch_size, limit=config.limit)
            full = full_model_texts(setup.model, sources, task.max_new_tokens)
            table = trace_texts(setup.model, sources, full, WHOLE)
            reports[task.name] = {}
            for name, cfg in methods.items():
                texts = decode_texts(setup.model, sources, cfg)
                report = failure_report(table, cfg, texts, sources)
                reports[task.name][name] = report
                plot = setup.workdir / f"failures_{task.name}_{name}.svg"
                failure_rates(report, plot)
                found = failure_table(report, _EXAMPLES.value)
                plots = (("share of tokens that pruning lost, with 95 % intervals", plot),)
                sections.append(Section(f"{task.name}, {name}", "", tables_of(found), plots))
                print(f"{task.name}, {name}:\n\n{found}\n")
        write_json(setup.workdir / "failures.json", {"tasks": reports, **setup.made_by})
        write_report(setup.workdir / "report.html", "Failures of pruning", sections, setup.made_by)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
