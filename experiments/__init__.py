"""absl launchers, one per question. Run from the root of the repository: `python -m experiments.NAME`."""

import os
import sys
from types import TracebackType

# XLA reads this when JAX is imported. Without it, XLA on a CPU prints a page of warnings for each program from the
# compile cache, since programs ask for "prefer-no-gather", which is a choice of the compiler and no CPU's feature.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


_show = sys.excepthook


def _show_interruption(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Shows Ctrl-C as one line while the libraries are imported, before `launch.run` does."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted: nothing is written", file=sys.stderr)
    else:
        _show(kind, error, trace)


sys.excepthook = _show_interruption
