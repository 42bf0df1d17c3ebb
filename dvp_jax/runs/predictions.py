"""Decoded texts, kept in files so that an interrupted run continues where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dvp_jax.runs.files import write_json, write_json_lines
from dvp_jax.runs.processes import ALONE, Process

Line = dict[str, Any]
"""A line of predictions.jsonl: "task", "name", "batch", "rows", "id", the text with its tokens, and seconds."""
Batches = dict[tuple[str, str, int], list[Line]]
"""The lines of each batch, under its task, name and index."""


class Predictions:
    """The finished batches of a run, in memory and in a workdir.

    Each process appends the batches that it decodes to a partial file of its own, predictions.partial.jsonl or
    predictions.partial-INDEX.jsonl, whose first line holds the key. If the run is interrupted, the next run reads
    the partial files of all processes, so that the number of processes may change. A batch whose last line is
    torn is decoded again. `finish` writes predictions.jsonl and results.json and removes the partial files.

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
        write_json_lines(self._partial, [{"key": self._key}, *lines])

    def _other_partial_files(self) -> list[Path]:
        """Returns the partial files of other processes, of this run or an earlier one."""
        assert self._workdir is not None
        return [path for path in self._workdir.glob("predictions.partial*.jsonl") if path != self._partial]

    def _read(self) -> None:
        """Adds the batches under this key that are in the workdir, of a finished run or an unfinished one."""
        assert self._workdir is not None
        results = read_json(self._workdir / "results.json")
        if results is not None and results.get("key") == self._key:
            self._batches |= _whole_batches(_whole_lines(self._workdir / "predictions.jsonl"))
            return
        for path in (self._partial, *self._other_partial_files()):
            key, *lines = _whole_lines(path) or [{}]
            if key == {"key": self._key}:
                self._batches |= _whole_batches(lines)

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
            with open(self._partial, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in labelled))
        self._batches[task, name, batch] = labelled
        return labelled

    def finish(self, lines: Iterable[Line], results: dict[str, Any]) -> None:
        """Writes predictions.jsonl, then results.json with the key, and removes the partial files."""
        assert self._workdir is not None
        write_json_lines(self._workdir / "predictions.jsonl", lines)
        write_json(self._workdir / "results.json", {**results, "key": self._key})
        for path in (self._partial, *self._other_partial_files()):
            path.unlink()


def _whole_batches(lines: Iterable[Line]) -> Batches:
    """Returns the batches that have all their lines."""
    batches: Batches = {}
    for line in lines:
        batches.setdefault((line["task"], line["name"], line["batch"]), []).append(line)
    return {place: lines for place, lines in batches.items() if lines[0]["rows"] == len(lines)}


def read_json(path: Path) -> Any:
    """Returns the value in a JSON file, or None if the file does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _whole_lines(path: Path) -> list[Line]:
    """Returns the lines of a file that end with a newline. Empty if the file does not exist."""
    if not path.is_file():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines]
