"""Files are written whole or not at all, and a workdir belongs to one process."""

import errno
import os
import re
import signal
import subprocess
import sys
import tempfile

import pytest

from dvp_jax.runs.files import lock_workdir, prepare_workdir, write_whole
from tests.launching import files_of

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


def test_write_whole_writes_utf8_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("a longer old text")
    write_whole(path, ["Bär\n", "zwei\n"])
    assert path.read_bytes() == b"B\xc3\xa4r\nzwei\n"
    assert files_of(tmp_path) == ["file"]


class Interruption(BaseException):
    pass


def broken():
    yield "begun\n" * 10_000
    raise Interruption


@pytest.mark.parametrize("old", [None, "old\n"], ids=["no old file", "old file"])
def test_an_interrupted_write_leaves_things_as_they_were(tmp_path, old):
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)
    with pytest.raises(Interruption):
        write_whole(path, broken())
    assert files_of(tmp_path) == ([] if old is None else ["file"])
    assert old is None or path.read_text() == old


def test_nobody_sees_a_file_that_is_half_written(tmp_path):
    def parts():
        yield "one\n" * 100_000  # more than any buffer holds
        assert not (tmp_path / "file").exists()
        yield "two\n"

    write_whole(tmp_path / "file", parts())
    assert (tmp_path / "file").read_text() == "one\n" * 100_000 + "two\n"


def test_prepare_workdir_makes_the_folder_and_leaves_it_empty(tmp_path):
    folder = tmp_path / "a" / "b"
    assert prepare_workdir(str(folder)) == folder
    assert files_of(folder) == []
    (folder / "results.json").write_text("{}")
    assert prepare_workdir(folder) == folder
    assert files_of(folder) == ["results.json"]


@pytest.mark.parametrize("below", ["", "run", "run/deeper"])
def test_prepare_workdir_names_a_folder_that_cannot_be_made(tmp_path, below):
    (tmp_path / "file").write_text("kept")
    workdir = tmp_path / "file" / below
    with pytest.raises(OSError, match=f"workdir {re.escape(str(workdir))} cannot be written: [A-Z]"):
        prepare_workdir(workdir)
    assert (tmp_path / "file").read_text() == "kept"


def test_prepare_workdir_names_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def full_disk(dir):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", full_disk)
    with pytest.raises(OSError, match=f"workdir {tmp_path} cannot be written: {os.strerror(errno.ENOSPC)}"):
        prepare_workdir(tmp_path)


@pytest.mark.parametrize("claim", [prepare_workdir, lambda workdir: lock_workdir(workdir).__enter__()])
def test_an_empty_workdir_is_refused_and_nothing_is_written_into_the_current_folder(tmp_path, monkeypatch, claim):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^workdir is ''; allowed: the path of a folder$"):
        claim("")
    assert files_of(tmp_path) == []
    assert prepare_workdir(".").resolve() == tmp_path, "the current folder by its name is no mistake"
