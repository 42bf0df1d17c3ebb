"""Does pruning make confidence lie? Calibration of the whole-vocabulary and of the pruned softmax, depth by depth.

    python -m experiments.calibration --config=experiments/configs/demo.py --workdir=runs/calibration \
        --config.batch_size=16

For every dvp method of the config: ECE, MCE and reliability diagrams of each depth, against the full model's
choices (on its own texts) and against the reference (fed to the decoder token by token); and the lowest threshold
on the pruned scale at which the tokens that leave agree with the full model as often as those that leave at
--exit_threshold on the whole one. The diagrams are of the confidence that exits are decided by: of a difference of
probabilities ECE says how far it is from the chance of being right. Writes calibration.json, the diagrams and
report.html under --workdir; prints tables. Takes any config of experiments.evaluate. Seen: 49 seconds on two
busy CPU cores.
"""

from __future__ import annotations

import dataclasses

from absl import flags
from ml_collections import config_flags

from dvp_jax import launch
from dvp_jax.analysis.calibration import calibration_report, calibration_table
from dvp_jax.analysis.tokens import full_model_texts, load_sources, reference_texts, trace_texts
from dvp_jax.experiment import set_up
from dvp_jax.files import write_json
from dvp_jax.report.html import Section, tables_of, write_report
from dvp_jax.report.plots import reliability_diagrams

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where calibration.json and the plots go.", required=True)
_THRESHOLD = flags.DEFINE_float(
    "exit_threshold", 0.9, "On the whole vocabulary's scale.", lower_bound=0.0, upper_bound=1.0
)
_BINS = flags.DEFINE_integer("bins", 10, "Bins of the reliability diagrams.", lower_bound=1)


def main() -> None:
    """Traces the full model's texts and the references with and without pruning."""
    config = _CONFIG.value
    with set_up(config.to_dict(), _WORKDIR.value, only="dvp") as setup:
        reports: dict[str, dict[str, object]] = {}
        sections = []
        for task, methods in setup.tasks:
            sources = load_sources(setup.model, task, batch_size=config.batch_size, limit=config.limit)
            texts = (
                full_model_texts(setup.model, sources, task.max_new_tokens),
                reference_texts(sources, task.max_new_tokens),
            )
            reports[task.name] = {}
            for name, cfg in methods.items():
                readings = {"whole": dataclasses.replace(cfg, method="calm"), "pruned": cfg}
                own, reference = (trace_texts(setup.model, sources, each, readings) for each in texts)
                report = calibration_report(own, reference, cfg, threshold=_THRESHOLD.value, bins=_BINS.value)
                reports[task.name][name] = report
                plots = {}
                for target in ("full model", "reference"):
                    path = setup.workdir / f"reliability_{task.name}_{name}_{target.split()[0]}.svg"
                    reliability_diagrams(report, target, path)
                    plots[f"reliability against the {target}"] = path
                found = calibration_table(report)
                sections.append(Section(f"{task.name}, {name}", "", tables_of(found), tuple(plots.items())))
                print(f"{task.name}, {name}:\n\n{found}\n")
        write_json(setup.workdir / "calibration.json", {"tasks": reports, **setup.made_by})
        write_report(setup.workdir / "report.html", "Calibration", sections, setup.made_by)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
