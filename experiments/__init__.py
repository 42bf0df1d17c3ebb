"""absl launchers, one per question. Run from the root of the repository: `python -m experiments.NAME`."""

import os

# XLA reads this when JAX is imported. Without it, XLA on a CPU prints a page of warnings for each program from the
# compile cache, since programs ask for "prefer-no-gather", which is a choice of the compiler and no CPU's feature.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
