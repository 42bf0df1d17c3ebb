"""Files are written whole or not at all, and a workdir belongs to one process."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile

import pytest

from dvp_jax.runs.files import (
    check_output,
    file_name,
    lock_workdir,
    prepare_workdir,
    read_json,
    seal,
    unseal,
    write_folder,
    write_json,
    write_whole,
)
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


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full_disk(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=f"^{tmp_path}/file cannot be written: {os.strerror(errno.ENOSPC)}$"):
        write_whole(tmp_path / "file", ["text"])
    assert files_of(tmp_path) == []


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


KILLED = """
import os, signal, sys
from pathlib import Path
from dvp_jax.runs.files import lock_workdir, write_folder, write_whole
folder = Path(sys.argv[1])

def parts():
    yield "begun" * 10_000
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "file":
    with lock_workdir(folder):
        write_whole(folder / "file", parts())
with write_folder(folder / "new") as partial:
    (partial / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(folder, kind):
    run = subprocess.run([sys.executable, "-c", KILLED, str(folder), kind], check=False)
    assert run.returncode == -signal.SIGKILL


def test_what_a_killed_run_has_half_written_is_removed_by_the_next(tmp_path):
    killed(tmp_path, "file")
    assert ".file.partial" in files_of(tmp_path) and not (tmp_path / "file").exists()
    with lock_workdir(tmp_path):
        assert files_of(tmp_path) == [".lock"]


def test_a_folder_appears_whole_also_after_a_run_that_was_killed(tmp_path):
    killed(tmp_path, "folder")
    assert not (tmp_path / "new").exists()
    with write_folder(tmp_path / "new") as partial:
        assert files_of(partial) == []
        (partial / "config.json").write_text("{}")
        assert not (tmp_path / "new").exists()
    assert files_of(tmp_path) == ["new"] and files_of(tmp_path / "new") == ["config.json"]


def test_a_folder_may_be_made_with_the_folders_above_it(tmp_path):
    with write_folder(tmp_path / "far" / "below" / "new") as partial:
        (partial / "file").touch()
    assert files_of(tmp_path / "far" / "below" / "new") == ["file"]


def test_a_second_writer_of_a_folder_is_refused_and_one_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "new").mkdir()
    with write_folder(tmp_path / "new") as partial:
        message = f"{tmp_path / 'new'} is in use by process {os.getpid()}; allowed: one"
        with pytest.raises(OSError, match=f"^{re.escape(message)}$"), write_folder(tmp_path / "new"):
            pass
        (partial / "whole").touch()
    with pytest.raises(FileExistsError, match="new holds a checkpoint already, or other files"):
        write_folder(tmp_path / "new").__enter__()
    with pytest.raises(ZeroDivisionError), write_folder(tmp_path / "other") as partial:
        (partial / "half").touch()
        raise ZeroDivisionError
    assert files_of(tmp_path) == ["new"] and files_of(tmp_path / "new") == ["whole"]


def test_paths_and_texts_that_are_not_utf8_are_written_as_json_reads_them(tmp_path):
    value = {"model": os.fsdecode(b"/data/\xff"), "text": "\ud83d half"}
    write_json(tmp_path / "file.json", value)
    assert json.loads((tmp_path / "file.json").read_text(encoding="utf-8")) == value
    assert json.loads(unseal(seal(value, "k").encode(), "k")) == value


@pytest.mark.parametrize("indent", [None, 2])
def test_a_sealed_object_is_read_under_its_key_and_no_other_byte_can_change(indent):
    value = {"rows": [{"text": '", "checksum": "', "n": 1.5}], "empty": {}}
    text = seal(value, "key1", indent).encode()
    assert json.loads(text) == value | {"key": "key1", "checksum": json.loads(text)["checksum"]}
    assert json.loads(unseal(text, "key1")) == value
    assert unseal(text, "key2") is None
    for place in range(len(text)):
        for damaged in (text[:place], text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]):
            with pytest.raises(ValueError):
                unseal(damaged, "key1")


def test_a_damaged_json_file_is_named(tmp_path):
    (tmp_path / "results.json").write_text('{"rows": [')
    with pytest.raises(ValueError, match=rf"^{tmp_path}/results.json is damaged \(.*\); allowed: the file as it"):
        read_json(tmp_path / "results.json")
    assert read_json(tmp_path / "none.json") is None


def test_names_of_files_are_short_and_differ(tmp_path):
    long = "calm,thresholds_per_depth=" + repr(tuple(0.1 + i / 100 for i in range(24)))
    names = [long, long + " ", "a/b", "a_b", "\udcff", "ä" * 200, "dvp,prune_layer=2,threshold=0.3"]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names) and files[-1] == names[-1]
    for name in files:
        write_whole(tmp_path / f"{name}.json", ["{}"])
    assert sorted(f"{name}.json" for name in files) == files_of(tmp_path)


@pytest.mark.parametrize("name", ["missing/file.json", "."])
def test_an_output_that_cannot_be_a_file_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"^output is .*; allowed: the path of a file in a folder that exists$"):
        check_output(tmp_path / name)
    assert check_output(tmp_path / "file.json") == tmp_path / "file.json"
    assert files_of(tmp_path) == []
