"""Texts decoded so far, in a file that an interrupted run goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dvp_jax.runs.files import write_json, write_json_lines
from dvp_jax.runs.processes import ALONE, Process

Line = dict[str, Any]
"""A row of predictions.jsonl: "task", "name", "id", "batch", the text with its tokens, and seconds."""


class Predictions:
    """Finished batches, in memory, and in `workdir` where there is one.

    While a run goes on, each batch is appended to predictions.partial.jsonl, behind a first line that holds the
    key; a line that a kill tore is dropped with its batch. Each process of a run that does a part has such a file
    of its own, and a run goes on from those of any number of processes. `finish` writes predictions.jsonl and
    results.json and removes them.

    Args:
        workdir: exists and is owned by this process, or by the processes of this run; None keeps nothing.
        key: of all that decides the texts. Batches found under another key are not used.
        process: this process among those of the run.
    """

    def __init__(self, workdir: Path | None = None, key: str = "", process: Process = ALONE) -> None:
        self._workdir, self._key, self.process = workdir, key, process
        self._batches: dict[tuple[str, str, int], list[Line]] = {}
        if workdir is None:
            return
        self._partial = workdir / f"predictions.partial{f'-{process.index}' if process.index else ''}.jsonl"
        self._read()
        process.wait()
        others = self._others()
        if process.first:
            # As it stands in memory: nothing torn, and nothing of another key.
            self._begin(x for lines in self._batches.values() for x in lines)
            for path in others:
                path.unlink()
        process.wait()
        if process.writes and not process.first:
            self._begin(())

    def _begin(self, lines: Iterable[Line]) -> None:
        write_json_lines(self._partial, [{"key": self._key}, *lines])

    def _others(self) -> list[Path]:
        assert self._workdir is not None
        return [path for path in self._workdir.glob("predictions.partial*.jsonl") if path != self._partial]

    def _read(self) -> None:
        """Takes up all that was decoded under the same key, by a run that ended or is not at its end."""
        assert self._workdir is not None
        results = read_json(self._workdir / "results.json")
        if results is not None and results.get("key") == self._key:
            self._batches |= _whole_batches(_whole_lines(self._workdir / "predictions.jsonl"))
            return
        for path in (self._partial, *self._others()):
            key, *lines = _whole_lines(path) or [{}]
            if key == {"key": self._key}:
                self._batches |= _whole_batches(lines)

    def gather(self) -> None:
        """Waits until all processes have come so far, and takes up what they decoded."""
        if self.process.count > 1:
            self.process.wait()
            self._read()
            self.process.wait()  # before process 0 removes what the others still read

    def all(self, task: str, name: str, batches: int) -> list[Line]:
        """The lines of the batches from 0 on.

        Raises:
            OSError: one is missing: another process wrote it elsewhere.
        """
        found = [self.get(task, name, index) for index in range(batches)]
        if None in found:
            raise OSError(
                f"workdir {self._workdir} lacks batch {found.index(None)} of {task} by {name}; allowed: a folder "
                "that all processes share"
            )
        return [line for lines in found for line in lines or ()]

    def get(self, task: str, name: str, batch: int) -> list[Line] | None:
        """The lines of a finished batch, or None."""
        return self._batches.get((task, name, batch))

    def add(self, task: str, name: str, batch: int, lines: Sequence[Line]) -> list[Line]:
        """Notes a finished batch; returns its lines as they stand in the file."""
        whole = [{"task": task, "name": name, "batch": batch, "rows": len(lines), **line} for line in lines]
        if self._workdir is not None and self.process.writes:
            with open(self._partial, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in whole))
        self._batches[task, name, batch] = whole
        return whole

    def finish(self, lines: Iterable[Line], results: dict[str, Any]) -> None:
        """Writes predictions.jsonl, and then results.json with the key, each whole or not at all."""
        assert self._workdir is not None
        write_json_lines(self._workdir / "predictions.jsonl", lines)
        write_json(self._workdir / "results.json", {**results, "key": self._key})
        for path in (self._partial, *self._others()):
            path.unlink()


def _whole_batches(lines: Iterable[Line]) -> dict[tuple[str, str, int], list[Line]]:
    """The lines by batch, without batches that lack some."""
    batches: dict[tuple[str, str, int], list[Line]] = {}
    for line in lines:
        batches.setdefault((line["task"], line["name"], line["batch"]), []).append(line)
    return {place: lines for place, lines in batches.items() if lines[0]["rows"] == len(lines)}


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _whole_lines(path: Path) -> list[Line]:
    """The lines of a file up to one that was torn; none where there is no file."""
    if not path.is_file():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines]
