"""Runs the main function of a launcher.

It parses the flags, joins other processes, keeps compiled programs for the next start, and prints bad input as one
line.
"""

from __future__ import annotations

import logging as std_logging
import os
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from dvp_jax.runs import processes

_COMPILE_CACHE = flags.DEFINE_bool(
    "compile_cache",
    True,
    "Keep compiled programs for the next start, in JAX_COMPILATION_CACHE_DIR or the user's cache folder.",
)


DECODED = "what was decoded is kept in {workdir}; the same command goes on from there"
TRAINED = "checkpoints are kept in {workdir}; the same command with --resume goes on from the latest"


def run(
    main: Callable[[], int | None],
    *,
    several: bool = False,
    compile_cache: bool = True,
    interrupted: str = "nothing is written; the same command starts again",
) -> None:
    """Parses the flags, calls `main`, and exits with the status that it returns.

    Bad input, a warning, and an interruption by Ctrl-C (status 130) or SIGTERM (143) are shown as one line each.
    With --verbosity=1, bad input is shown as a traceback. In values of flags, "~/" at the start stands for the
    user's home, as in a shell.

    Args:
        main: may raise ValueError, OSError or ImportError for bad input.
        several: whether the launcher can run as one of several processes. It then takes the flags --coordinator,
            --num_processes and --process_id, and only process 0 prints to stdout.
        compile_cache: whether compiled programs are kept for the next start, unless --nocompile_cache is given.
        interrupted: what Ctrl-C leaves behind and how to go on. A flag's name in braces stands for its value.
    """
    if several:
        flags.DEFINE_string("coordinator", None, 'host:port of process 0, or "auto" on a cluster that JAX knows.')
        flags.DEFINE_integer("num_processes", None, "The number of processes.")
        flags.DEFINE_integer("process_id", None, "The index of this process, from 0.")

    def call_main(argv: list[str]) -> int | None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        debugging = logging.get_verbosity() >= logging.DEBUG
        # JAX's own log has dozens of lines for each program, in which a launcher's lines would be lost.
        std_logging.getLogger("jax").setLevel(std_logging.WARNING)
        if not debugging:
            logging.set_verbosity(logging.WARNING)  # JAX logs every backend that it does not find
        warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {message}\n"
        _set_compile_cache(compile_cache)
        try:
            if several:
                _join()
            # Also that of JAX, with which a process of several would ignore it.
            signal.signal(signal.SIGTERM, _terminate)
            sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 # None: it was closed
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # a path may be no UTF-8
            status = main()
            sys.stdout.flush()  # while a full disk, or a reader that is gone, can be told
            processes.leave()
            return status
        except BrokenPipeError:  # such as of `| head`, which has read what it wanted
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest when it ends
            return 128 + signal.SIGPIPE
        except (ValueError, OSError, ImportError) as error:
            if debugging:
                raise
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt as error:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # a second one would interrupt this line
            print(f"interrupted: {interrupted.format_map(flags.FLAGS.flag_values_dict())}", file=sys.stderr)
            return 128 + (error.args[0] if error.args else signal.SIGINT)

    app.run(call_main, flags_parser=_parse)


def named_folders(flag: str, values: Iterable[str]) -> dict[str, Path]:
    """Reads a flag that gives a name to each of several files or folders.

    Args:
        flag: its name, for the error.
        values: NAME=PATH.

    Raises:
        ValueError: a value is anything else, or a name comes twice.
    """
    folders: dict[str, Path] = {}
    for value in values:
        name, _, folder = value.partition("=")
        if not name or not folder or name in folders:
            raise ValueError(f"{flag} has {value!r}; allowed: NAME=PATH, each name once")
        folders[name] = Path(folder)
    return folders


def integers(flag: flags.FlagHolder[Any], least: int = 0) -> list[int]:
    """Returns the values of a list flag as integers.

    Raises:
        ValueError: there is no value, or one is no integer or below `least`.
    """
    if not flag.value or not all(text.strip().isdecimal() and int(text) >= least for text in flag.value):
        given = ",".join(flag.value)
        raise ValueError(f"{flag.name} is {given}; allowed: integers of at least {least}, with commas between")
    return [int(text) for text in flag.value]


def _terminate(number: int, _frame: object) -> None:
    """Handles SIGTERM as Ctrl-C: a checkpoint that is being written is finished."""
    raise KeyboardInterrupt(number)


def _parse(argv: list[str]) -> list[str]:
    def in_home(word: str) -> str:  # a shell writes the home for "~/" at the start of a word only
        return re.sub("^(--?[^=]+=)(~/.*)", lambda parts: parts[1] + os.path.expanduser(parts[2]), word)

    try:
        return app.parse_flags_with_usage(list(map(in_home, argv)))
    except AttributeError as error:
        (reason,) = error.args
        if isinstance(reason, KeyError):
            reason = f"has no field {' '.join(reason.args[0].split())}"
        print(f"error: --config {reason}", file=sys.stderr)
        sys.exit(1)


def _set_compile_cache(by_default: bool) -> None:
    """Tells JAX where to keep compiled programs: in this package's folder, unless the user has named another."""
    if not _COMPILE_CACHE.value:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or not by_default:
        return
    try:
        user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = user_cache / "dvp_jax" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass  # it can be written
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        print(f"warning: compiled programs are not kept for the next start: {error}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # a decoder has many small programs


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
