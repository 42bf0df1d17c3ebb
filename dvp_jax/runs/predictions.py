"""Decoded texts, kept in files so that an interrupted run continues where it stopped."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dvp_jax.runs.files import checksum, read_sealed, seal, unseal, write_json_lines, write_whole, written
from dvp_jax.runs.processes import ALONE, Process

Line = dict[str, Any]
"""A line of predictions.jsonl: "task", "name", "batch", "rows", "id", the text with its tokens, and seconds."""
Batches = dict[tuple[str, str, int], list[Line]]
"""The lines of each batch, under its task, name and index."""


class Predictions:
    """The finished batches of a run, in memory and in a workdir.

    Each process appends the batches that it decodes to a partial file of its own, predictions.partial.jsonl or
    predictions.partial-INDEX.jsonl, each line with the key and a checksum. If the run is interrupted, the next run
    reads the partial files of all processes, so that the number of processes may change. A batch with a line that
    is torn or edited is decoded again. `finish` writes predictions.jsonl and results.json and removes the partial
    files.

    Args:
        workdir: an existing folder that this run has locked. None keeps the batches in memory only.
        key: a hash of all that the texts depend on. Batches under another key are not used.
        process: this process of the run.
    """

    def __init__(self, workdir: Path | None = None, key: str = "", process: Process = ALONE) -> None:
        self._workdir, self._key, self.process = workdir, key, process
        self._batches: Batches = {}
        if workdir is not None:
            self._partial = workdir / f"predictions.partial{f'-{process.index}' if process.index else ''}.jsonl"
            self._read()
            self._start_partial_files()

    def _start_partial_files(self) -> None:
        """Replaces the partial files of the earlier run by one for each process of this run.

        Process 0 writes all that the earlier run has left, without torn batches or batches under another key.
        """
        process = self.process
        process.wait()  # until all have read the earlier files
        other_paths = self._other_partial_files()
        if process.first:
            self._write_partial(line for lines in self._batches.values() for line in lines)
            for path in other_paths:
                path.unlink()
        process.wait()  # before a process writes a file that process 0 would remove
        if process.writes and not process.first:
            self._write_partial(())

    def _write_partial(self, lines: Iterable[Line]) -> None:
        write_whole(self._partial, (seal(line, self._key) for line in lines))

    def _other_partial_files(self) -> list[Path]:
        """Returns the partial files of other processes, of this run or an earlier one."""
        assert self._workdir is not None
        return [path for path in self._workdir.glob("predictions.partial*.jsonl") if path != self._partial]

    def _read(self) -> None:
        """Adds the batches under this key that are in the workdir, of a finished run or an unfinished one."""
        assert self._workdir is not None
        sealed = read_sealed(self._workdir / "results.json", self._key)
        if sealed is not None:
            path = self._workdir / "predictions.jsonl"
            data = path.read_bytes() if path.is_file() else b""
            if checksum(data) == json.loads(sealed)["predictions_checksum"]:
                self._batches |= _whole_batches(map(json.loads, data.splitlines()))
                return
            warnings.warn(f"{path} is not the one of results.json; its texts are decoded again", stacklevel=2)
        for path in (self._partial, *self._other_partial_files()):
            if path.is_file():
                self._batches |= _whole_batches(self._read_partial(path))

    def _read_partial(self, path: Path) -> Iterator[Line]:
        """Yields the lines of a partial file that are whole and of this key."""
        lines = path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                sealed = unseal(line, self._key)
            except ValueError as error:
                if number < len(lines):  # a run that is killed tears its last line
                    warnings.warn(f"{path}, line {number}: damaged ({error}); decoded again", stacklevel=2)
            else:
                if sealed is not None:
                    yield json.loads(sealed)

    def gather(self) -> None:
        """Waits until all processes have called this, and reads the batches that they have decoded."""
        if self.process.count > 1:
            self.process.wait()
            self._read()
            self.process.wait()  # process 0 may remove the files only when all have read them

    def all(self, task: str, name: str, batches: int) -> list[Line]:
        """Returns the lines of the first `batches` batches.

        Raises:
            OSError: a batch is missing because another process wrote it to another folder.
        """
        lines: list[Line] = []
        for index in range(batches):
            batch = self.get(task, name, index)
            if batch is None:
                raise OSError(
                    f"workdir {self._workdir} lacks batch {index} of {task} by {name}; allowed: a folder that all "
                    "processes share"
                )
            lines += batch
        return lines

    def get(self, task: str, name: str, batch: int) -> list[Line] | None:
        """Returns the lines of a finished batch, or None."""
        return self._batches.get((task, name, batch))

    def add(self, task: str, name: str, batch: int, lines: Sequence[Line]) -> list[Line]:
        """Adds a finished batch.

        Returns:
            Its lines as they are in the file.
        """
        labelled = [{"task": task, "name": name, "batch": batch, "rows": len(lines), **line} for line in lines]
        if self._workdir is not None and self.process.writes:
            with (
                written(self._partial),
                open(self._partial, "a", encoding="utf-8", errors="backslashreplace") as file,
            ):
                file.write("".join(seal(line, self._key) for line in labelled))
        self._batches[task, name, batch] = labelled
        return labelled

    def finish(self, lines: Iterable[Line], results: dict[str, Any]) -> None:
        """Writes predictions.jsonl, then results.json with the key, and removes the partial files.

        An older results.json is removed first, so that none stands beside texts of another run.
        """
        assert self._workdir is not None
        path, results_path = self._workdir / "predictions.jsonl", self._workdir / "results.json"
        results_path.unlink(missing_ok=True)
        write_json_lines(path, lines)
        results = {**results, "predictions_checksum": checksum(path.read_bytes())}
        write_whole(results_path, [seal(results, self._key, indent=2)])
        for path in (self._partial, *self._other_partial_files()):
            path.unlink()


def _whole_batches(lines: Iterable[Line]) -> Batches:
    """Returns the batches that have all their lines."""
    batches: Batches = {}
    for line in lines:
        batches.setdefault((line["task"], line["name"], line["batch"]), []).append(line)
    return {place: lines for place, lines in batches.items() if lines[0]["rows"] == len(lines)}
