"""How a launcher starts and ends: its flags, its exit status, and what it says of bad input."""

import functools
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags

from dvp_jax.runs import launch
from tests.launching import ROOT, call, start
from tests.processes import process_flags

LAUNCHED = """
import sys
from dvp_jax.runs import launch

def bad(error):
    raise error

for main, arguments in [
    (lambda: None, []),
    (lambda: 3, []),
    (lambda: bad(ValueError("no good")), []),
    (lambda: bad(OSError("no disk")), []),
    (lambda: bad(ImportError("no torch")), []),
    (lambda: print("was called"), ["stray"]),
]:
    sys.argv[1:] = arguments
    try:
        launch.run(main)
    except SystemExit as exit:
        print("status", exit.code)
sys.argv[1:] = []
launch.run(lambda: bad(KeyError("a bug")))
"""


def test_a_flag_names_folders_and_each_name_stands_for_one():
    assert launch.named_folders("runs", ["a=x", "b=y=z"]) == {"a": Path("x"), "b": Path("y=z")}
    for values in (["x"], ["=x"], ["a="], ["a=x", "a=y"]):
        with pytest.raises(ValueError, match=re.escape(f"runs has '{values[-1]}'; allowed: NAME=PATH")):
            launch.named_folders("runs", values)


def test_launchers_show_bad_input_as_one_line_and_bugs_as_a_traceback():
    run = start("-c", LAUNCHED)
    # absl prints its usage to stdout too.
    assert [line for line in run.stdout.splitlines() if line.startswith("status")] == [
        f"status {code}" for code in (None, 3, 1, 1, 1, 1)
    ]
    assert "was called" not in run.stdout
    before, _, after = run.stderr.partition("Traceback")
    errors = [line for line in before.splitlines() if line.startswith("error: ")]
    assert errors == ["error: no good", "error: no disk", "error: no torch"]
    assert "stray" in run.stdout + run.stderr
    assert "a bug" in after and run.returncode == 1


def run_what_raises() -> None:
    launch.run(lambda: int("x"))


def test_launchers_show_bad_input_as_a_traceback_when_asked_to():
    run = call(run_what_raises, "--verbosity=1")
    assert run.returncode == 1 and "Traceback" in run.stderr


def run_until_interrupted(number: signal.Signals) -> None:
    def main() -> None:
        warnings.warn("few examples", stacklevel=1)
        print(os.fsdecode(b"/data/\xff"))
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)  # a job in the background ignores it
        signal.raise_signal(number)

    flags.DEFINE_string("workdir", None, "The folder.")
    launch.run(main, several=True, interrupted=launch.DECODED)


@pytest.mark.parametrize(
    ("number", "status", "others"),
    [(signal.SIGINT, 130, []), (signal.SIGTERM, 143, []), (signal.SIGTERM, 143, process_flags(1)[0])],
    ids=["Ctrl-C", "SIGTERM", "SIGTERM to a process that has joined others, as JAX handles it too"],
)
def test_an_interruption_and_warnings_are_one_line_and_paths_that_are_not_utf8_are_printed_escaped(
    number, status, others
):
    run = call(functools.partial(run_until_interrupted, number), "--workdir=~/a", *others)
    assert run.returncode == status
    assert run.stdout == "/data/\\udcff\n"
    assert run.stderr.splitlines() == [
        "warning: few examples",
        f"interrupted: what was decoded is kept in {Path.home()}/a; the same command goes on from there",
    ]


def print_to_nobody(is_closed: bool) -> None:
    if is_closed:
        sys.stdout = None  # as Python does where descriptor 1 is closed
    else:
        reads, writes = os.pipe()
        os.close(reads)
        os.dup2(writes, 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    launch.run(lambda: print("a line"))


@pytest.mark.parametrize(("is_closed", "status"), [(True, 0), (False, 128 + signal.SIGPIPE)])
def test_a_launcher_whose_output_nobody_reads_ends_without_a_word(is_closed, status):
    run = call(functools.partial(print_to_nobody, is_closed))
    assert (run.returncode, run.stderr) == (status, "")


def test_numbers_of_a_flag_are_integers_of_at_least_some_value():
    assert launch.integers(SimpleNamespace(name="slots", value=["1", " 16"]), least=1) == [1, 16]
    for value in (["4", "0"], ["1.5"], ["-1"], ["x"], [""]):
        given = re.escape(",".join(value))
        with pytest.raises(ValueError, match=f"^slots is {given}; allowed: integers of at least 1, with commas"):
            launch.integers(SimpleNamespace(name="slots", value=value), least=1)


COMPILE = """
import jax
from dvp_jax.runs import launch

def main():
    jax.block_until_ready(jax.jit(lambda x: x * 3)(2.0))
    print("kept in", jax.config.jax_compilation_cache_dir)

launch.run(main, compile_cache={by_default})
"""


def compile_one(*flags, by_default=True, **variables):
    """Compiles a program in a launcher that has these environment variables and no other ones for the cache."""
    environment = {name: value for name, value in os.environ.items() if "CACHE" not in name} | variables
    command = [sys.executable, "-c", COMPILE.format(by_default=by_default), *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)


def test_launchers_keep_their_programs_in_the_users_cache_folder(tmp_path):
    folder = tmp_path / "dvp_jax" / "compiled"
    assert compile_one(XDG_CACHE_HOME=str(tmp_path)).stdout == f"kept in {folder}\n"
    assert any(path.name.endswith("-cache") for path in folder.iterdir())


def test_the_users_cache_folder_is_in_the_home_by_default(tmp_path):
    folder = tmp_path / ".cache" / "dvp_jax" / "compiled"
    assert compile_one(HOME=str(tmp_path)).stdout == f"kept in {folder}\n"
    assert any(folder.iterdir())


def test_launchers_keep_their_programs_where_jax_is_told_to(tmp_path):
    variables = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "chosen"), "XDG_CACHE_HOME": str(tmp_path / "user")}
    assert compile_one(**variables).stdout == f"kept in {tmp_path / 'chosen'}\n"
    assert not (tmp_path / "user").exists()


@pytest.mark.parametrize("chosen", [False, True], ids=["the user's folder", "a chosen folder"])
def test_launchers_keep_no_programs_where_the_flag_says_so(tmp_path, chosen):
    variables = {"XDG_CACHE_HOME": str(tmp_path)}
    if chosen:
        variables |= {
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "chosen"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    compile_one("--nocompile_cache", **variables)
    assert not any(tmp_path.iterdir())


def test_a_cache_folder_that_cannot_be_written_is_one_warning(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    run = compile_one(XDG_CACHE_HOME=str(file))
    assert run.stdout == "kept in None\n"
    (line,) = run.stderr.splitlines()
    assert line.startswith("warning: compiled programs are not kept for the next start: ") and str(file) in line


def test_a_script_without_a_cache_keeps_programs_only_where_jax_is_told_to(tmp_path):
    user, chosen = tmp_path / "user", tmp_path / "chosen"
    compile_one(by_default=False, XDG_CACHE_HOME=str(user))
    assert not user.exists()
    run = compile_one(by_default=False, XDG_CACHE_HOME=str(user), JAX_COMPILATION_CACHE_DIR=str(chosen))
    assert run.stdout == f"kept in {chosen}\n"
