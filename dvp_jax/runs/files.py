"""Folders that one run locks, and files that appear only once they are complete."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO


def prepare_workdir(workdir: str | Path) -> Path:
    """Creates a folder if it does not exist, and checks that files can be written there.

    Raises:
        ValueError: the path is empty.
        OSError: the folder cannot be created or written.
    """
    if workdir == "":  # `Path` would make it the current folder
        raise ValueError(f"workdir is {workdir!r}; allowed: the path of a folder")
    folder = Path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"workdir {folder} cannot be written: {error.strerror}") from None
    return folder


def check_output(path: str | Path, name: str = "output") -> Path:
    """Checks that a file can be written, before hours of work on its content.

    Args:
        path: of the file.
        name: what the error calls it.

    Raises:
        ValueError: the path is that of a folder, or its folder does not exist.
        OSError: the folder cannot be written.
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{name} is {path}; allowed: the path of a file in a folder that exists")
    prepare_workdir(path.parent)
    return path


def file_name(name: str) -> str:
    """Returns a name for a file that every file system takes.

    A name that is long, or has characters beside letters, digits and a few others, is cut and gets a hash.
    """
    short = re.sub(r"[^\w,=.() -]", "_", name, flags=re.ASCII)[:100]
    return name if short == name else f"{short}-{checksum(name.encode('utf-8', 'surrogatepass'))[:16]}"


@contextlib.contextmanager
def lock(path: Path, what: str | Path) -> Iterator[TextIO]:
    """Creates a file and locks it, so that no other process can lock it at the same time.

    The kernel holds the lock and releases it when the process ends, also when it is killed. Within the block the
    file may be removed or renamed, after which others can lock a new one.

    Args:
        path: the file. One that a killed process has left is used again.
        what: what is written under the lock, for the error.

    Yields:
        The file, which holds the number of this process.

    Raises:
        OSError: another process has locked it, or it cannot be written.
    """
    while True:
        with open(path, "a+", encoding="utf-8", errors="backslashreplace") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read(20)
                owner = owner if owner.isdigit() else "?"
                raise OSError(f"{what} is in use by process {owner}; allowed: one") from None
            if not _is_at(file, path):
                continue  # its owner removed or renamed it between our two calls
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield file
            return


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def lock_workdir(workdir: str | Path, index: int = 0) -> Iterator[Path]:
    """Prepares a folder and locks it, so that no other run can lock it at the same time.

    Files that a killed run has left half written in it are removed.

    Args:
        workdir: created if it does not exist.
        index: the index of this process in its run. The processes of one run share the folder, and each has a lock
            of its own.

    Raises:
        ValueError: the path is empty.
        OSError: the folder cannot be created or written, or another run has locked it.
    """
    folder = prepare_workdir(workdir)
    with lock(folder / (f".lock-{index}" if index else ".lock"), f"workdir {folder}"):
        if index == 0:
            remove_partial_files(folder)
        yield folder


def remove_partial_files(folder: Path) -> None:
    """Removes the files that a killed `write_whole` has left. No other process may be writing there."""
    for path in folder.glob(".*.partial"):
        if path.is_file():
            path.unlink()


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """Names the file where the block fails to write it. On a full disk Python does not say which it was."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from None


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """Writes a text file under a temporary name and renames it once it is complete and on the disk.

    Half a surrogate pair, as in a file name that is not UTF-8, is written as its escape, which JSON reads back.

    Args:
        path: an existing file is replaced.
        parts: written one after the other, without separators.

    Raises:
        OSError: it cannot be written, or another process is writing it.
    """
    partial = path.with_name(f".{path.name}.partial")
    with lock(partial, path) as file:
        try:
            with written(path):
                file.truncate(0)
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    _sync(path.parent)


def check_free(folder: Path) -> None:
    """Raises FileExistsError unless a path names nothing, or a folder without files."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} holds a checkpoint already, or other files; allowed: a new or an empty folder"
        )


@contextlib.contextmanager
def write_folder(folder: str | Path) -> Iterator[Path]:
    """Yields a temporary folder that gets its name once the block has succeeded and all is on the disk.

    If the block fails, the temporary folder is removed. If the process is killed, the next one removes it.

    Args:
        folder: must not exist, or be empty.

    Raises:
        FileExistsError: the folder holds files.
        OSError: it cannot be written, or another process is writing it.
    """
    folder = Path(folder).resolve()
    if folder.is_mount():
        raise OSError(f"{folder} is a mount point; allowed: a folder in it")
    prepare_workdir(folder.parent)
    partial = folder.with_name(f".{folder.name}.partial")
    with lock(folder.with_name(f".{folder.name}.lock"), folder) as lock_file:
        try:
            check_free(folder)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
            for path in (partial, *partial.rglob("*")):
                _sync(path)
            partial.replace(folder)
            _sync(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            Path(lock_file.name).unlink()


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, with `write_whole`."""
    write_whole(path, [json.dumps(value, indent=2, ensure_ascii=False) + "\n"])


def read_json(path: Path) -> Any:
    """Returns the value in a JSON file, or None if the file does not exist.

    Raises:
        ValueError: the file is not JSON, because it was cut short or edited.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); allowed: the file as it was written, or none") from None


@contextlib.contextmanager
def as_written(path: Path, launcher: str) -> Iterator[None]:
    """Names a file of results where the block does not find in it what its launcher writes.

    Raises:
        ValueError: the file was edited, or is of another launcher.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} ({what}); allowed: a file as experiments.{launcher} has written it") from None


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Writes one JSON value a line, with `write_whole`."""
    write_whole(path, (json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def seal(value: Mapping[str, Any], key: str, indent: int | None = None) -> str:
    """Returns an object as JSON, with a key and a checksum as its last fields, and a newline.

    Args:
        value: without the fields "key" and "checksum".
        key: says what the object is valid for, in letters and digits.
        indent: as in `json.dumps`.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)[:-1].rstrip() + ("," if value else "")
    head = f'{text}{"" if indent is None else chr(10)} "key": "{key}"'.encode("utf-8", "backslashreplace")
    return f'{head.decode()}, "checksum": "{checksum(head)}"}}\n'


def unseal(data: bytes, key: str) -> bytes | None:
    """Returns the JSON of the object that `seal` made a text of, or None if it was made with another key.

    Raises:
        ValueError: the text was cut short or edited.
    """
    head, _, tail = data.rpartition(b', "checksum": "')
    if tail != f'{checksum(head)}"}}\n'.encode():
        raise ValueError("its checksum is another")
    field = f' "key": "{key}"'.encode()
    return head.removesuffix(field).rstrip(b",\n") + b"}" if head.endswith(field) else None


def checksum(data: bytes) -> str:
    """Returns a hash of a file's content."""
    return hashlib.sha256(data).hexdigest()


def read_sealed(path: Path, key: str) -> bytes | None:
    """Returns the JSON of the object in a file of `seal`.

    None if the file does not exist, is of another key, or is damaged, which a warning says.
    """
    try:
        return unseal(path.read_bytes(), key) if path.is_file() else None
    except ValueError as error:
        warnings.warn(f"{path} is damaged ({error}) and not used; what it held is made again", stacklevel=2)
        return None
