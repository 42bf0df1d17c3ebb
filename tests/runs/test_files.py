"""A workdir belongs to one process."""

import os
import signal
import subprocess
import sys

import pytest

from dvp_jax.runs.files import lock_workdir

OWN = """
import sys, time
from dvp_jax.runs.files import lock_workdir
with lock_workdir(sys.argv[1]):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_went(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", OWN, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "mine\n"
        message = f"workdir {tmp_path} is in use by process {first.pid}; allowed: one"
        with pytest.raises(OSError, match=message), lock_workdir(tmp_path):
            pass
        second = subprocess.run(
            [sys.executable, "-c", OWN, str(tmp_path)], capture_output=True, text=True, timeout=30
        )
        assert second.returncode == 1 and second.stdout == "" and "is in use" in second.stderr
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    with lock_workdir(tmp_path) as folder:
        assert folder == tmp_path


def test_a_workdir_is_free_again_after_an_error_in_it(tmp_path):
    with pytest.raises(ZeroDivisionError), lock_workdir(tmp_path):
        raise ZeroDivisionError
    with lock_workdir(tmp_path):
        pass
