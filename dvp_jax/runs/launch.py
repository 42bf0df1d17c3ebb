"""Starts a launcher: refuses stray arguments, and shows bad input as one line.

With --verbosity=1, as a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from absl import app, flags, logging

from dvp_jax.runs import processes


def run(main: Callable[[], int | None], *, several: bool = False) -> None:
    """Parses the flags and calls `main`; its return value is the exit status.

    Args:
        main: may raise ValueError or OSError for bad input.
        several: whether it can run as one of several processes; only process 0 prints then.
    """
    if several:
        flags.DEFINE_string(
            "coordinator", None, 'host:port of process 0 of several; "auto" on a cluster that JAX knows.'
        )
        flags.DEFINE_integer("num_processes", None, "How many processes take part.")
        flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")

    def call(argv: list[str]) -> int | None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        debugging = logging.get_verbosity() >= logging.DEBUG
        if not debugging:
            logging.set_verbosity(logging.WARNING)  # JAX tells of every backend that it did not find
        try:
            if several:
                _join()
            status = main()
            processes.leave()
            return status
        except Exception as error:
            processes.tell(error)
            if debugging or not isinstance(error, (ValueError, OSError, ImportError)):
                raise
            print(f"error: {error}", file=sys.stderr)
            return 1

    def parse(argv: list[str]) -> list[str]:
        try:
            return app.parse_flags_with_usage(argv)
        except AttributeError as error:  # a field that the config does not have
            print(f"error: --config has no field {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(1)

    app.run(call, flags_parser=parse)


def _join() -> None:
    asked = flags.FLAGS
    if asked.coordinator is None:
        for name in ("num_processes", "process_id"):
            if asked[name].value is not None:
                raise ValueError(f"{name} is {asked[name].value}, but --coordinator is not set")
        return
    # What libraries in C print, such as that devices of several processes are connected, is no result of ours.
    ours = os.dup(1)
    os.dup2(2, 1)
    processes.join(asked.coordinator, asked.num_processes, asked.process_id)
    sys.stdout = open(ours if processes.current().first else os.devnull, "w", encoding="utf-8")  # noqa: SIM115
