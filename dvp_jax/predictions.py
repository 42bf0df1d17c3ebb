"""Texts decoded so far, in a file that an interrupted run goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dvp_jax.files import write_json, write_json_lines

Line = dict[str, Any]
"""A row of predictions.jsonl: "task", "name", "id", "batch", the text with its tokens, and seconds."""


class Predictions:
    """Finished batches, in memory, and in `workdir` where there is one.

    While a run goes on, each batch is appended to predictions.partial.jsonl, behind a first line that holds the
    key; a line that a kill tore is dropped with its batch. `finish` writes predictions.jsonl and
    results.json and removes it.

    Args:
        workdir: exists and is owned by this process; None keeps nothing.
        key: of all that decides the texts. Batches found under another key are not used.
    """

    def __init__(self, workdir: Path | None = None, key: str = "") -> None:
        self._workdir, self._key = workdir, key
        self._batches: dict[tuple[str, str, int], list[Line]] = {}
        if workdir is None:
            return
        self._partial = workdir / "predictions.partial.jsonl"
        for line in self._found():
            self._batches.setdefault((line["task"], line["name"], line["batch"]), []).append(line)
        self._batches = {place: lines for place, lines in self._batches.items() if lines[0]["rows"] == len(lines)}
        # As it stands in memory: nothing torn, and nothing of another key.
        write_json_lines(self._partial, [{"key": key}, *(x for lines in self._batches.values() for x in lines)])

    def _found(self) -> list[Line]:
        """All that was decoded under the same key, by a run that ended or by one that was interrupted."""
        assert self._workdir is not None
        results = read_json(self._workdir / "results.json")
        if results is not None and results.get("key") == self._key:
            return _whole_lines(self._workdir / "predictions.jsonl")
        lines = _whole_lines(self._partial)
        return lines[1:] if lines[:1] == [{"key": self._key}] else []

    def get(self, task: str, name: str, batch: int) -> list[Line] | None:
        """The lines of a finished batch, or None."""
        return self._batches.get((task, name, batch))

    def add(self, task: str, name: str, batch: int, lines: Sequence[Line]) -> list[Line]:
        """Notes a finished batch; returns its lines as they stand in the file."""
        whole = [{"task": task, "name": name, "batch": batch, "rows": len(lines), **line} for line in lines]
        if self._workdir is not None:
            with open(self._partial, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in whole))
        self._batches[task, name, batch] = whole
        return whole

    def finish(self, lines: Iterable[Line], results: dict[str, Any]) -> None:
        """Writes predictions.jsonl, and then results.json with the key, each whole or not at all."""
        assert self._workdir is not None
        write_json_lines(self._workdir / "predictions.jsonl", lines)
        write_json(self._workdir / "results.json", {**results, "key": self._key})
        self._partial.unlink()


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _whole_lines(path: Path) -> list[Line]:
    """The lines of a file up to one that was torn; none where there is no file."""
    if not path.is_file():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines]
