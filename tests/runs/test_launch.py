"""How a launcher starts and ends: its flags, its exit status, and what it says of bad input."""

from dvp_jax.runs import launch
from tests.launching import call, start

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
