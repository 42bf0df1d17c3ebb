"""Runs the main function of a launcher: parses flags, joins other processes, prints bad input as one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from absl import app, flags, logging

from dvp_jax.runs import processes


def run(main: Callable[[], int | None], *, several: bool = False) -> None:
    """Parses the flags, calls `main`, and exits with the status that it returns.

    With --verbosity=1, bad input is shown as a traceback.

    Args:
        main: may raise ValueError, OSError or ImportError for bad input.
        several: whether the launcher can run as one of several processes. It then takes the flags --coordinator,
            --num_processes and --process_id, and only process 0 prints to stdout.
    """
    if several:
        flags.DEFINE_string("coordinator", None, 'host:port of process 0, or "auto" on a cluster that JAX knows.')
        flags.DEFINE_integer("num_processes", None, "The number of processes.")
        flags.DEFINE_integer("process_id", None, "The index of this process, from 0.")

    def call_main(argv: list[str]) -> int | None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        debugging = logging.get_verbosity() >= logging.DEBUG
        if not debugging:
            logging.set_verbosity(logging.WARNING)  # JAX logs every backend that it does not find
        try:
            if several:
                _join()
            status = main()
            processes.leave()
            return status
        except (ValueError, OSError, ImportError) as error:
            if debugging:
                raise
            print(f"error: {error}", file=sys.stderr)
            return 1

    app.run(call_main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(argv)
    except AttributeError as error:  # the config has no such field
        print(f"error: --config has no field {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def _join() -> None:
    """Joins the processes that the flags name, if they name any."""
    values = flags.FLAGS
    if values.coordinator is None:
        for name in ("num_processes", "process_id"):
            if values[name].value is not None:
                raise ValueError(f"{name} is {values[name].value}, but --coordinator is not set")
        return
    # C++ libraries print to file descriptor 1, for example Gloo when it connects. Python keeps stdout for results.
    stdout = os.dup(1)
    os.dup2(2, 1)
    processes.join(values.coordinator, values.num_processes, values.process_id)
    sys.stdout = open(stdout if processes.current().first else os.devnull, "w", encoding="utf-8")  # noqa: SIM115
