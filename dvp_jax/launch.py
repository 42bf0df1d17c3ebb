"""Starts a launcher: refuses stray arguments, and shows bad input as one line.

With --verbosity=1, as a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from absl import app, logging


def run(main: Callable[[], int | None]) -> None:
    """Parses the flags and calls `main`; its return value is the exit status.

    Args:
        main: may raise ValueError or OSError for bad input.
    """

    def call(argv: list[str]) -> int | None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        debugging = logging.get_verbosity() >= logging.DEBUG
        if not debugging:
            logging.set_verbosity(logging.WARNING)  # JAX tells of every backend that it did not find
        try:
            return main()
        except (ValueError, OSError, ImportError) as error:
            if debugging:
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
