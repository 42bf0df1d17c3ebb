"""The rows of data files and of hub data sets: text exactly as written, or an error that names the place.

A data file is read by Python's own csv and json modules, each time anew. Nothing is converted, cached or guessed.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import reprlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dvp_jax.decode.text import check_text

ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
_QUOTED = re.compile(r'"(?:[^"]|"")*+"(?=[,\r\n])')  # a whole field of CSV


class Row(NamedTuple):
    """A row of a data set.

    Attributes:
        where: its place, for errors: "test.csv, line 3".
        cells: what each column holds.
    """

    where: str
    cells: Mapping[str, Any]

    def cell(self, column: str) -> Any:
        """Returns a cell. Raises ValueError if there is no such column."""
        if column not in self.cells:
            raise ValueError(f"{self.where} has no column {column!r}; it is {reprlib.repr(self.cells)}")
        return self.cells[column]

    def text(self, column: str, *, optional: bool = False) -> str:
        """Returns a cell that holds text.

        Args:
            column: name of the column.
            optional: whether the cell may be empty; None becomes "".

        Raises:
            ValueError: there is no such column, or its cell is not text that can be tokenized.
        """
        cell = self.cell(column)
        return (
            ""
            if optional and cell in (None, "")
            else check_text(f"{self.where}: {column}", cell, may_be_blank=optional)
        )

    def id(self) -> str:
        """Returns the text or the integer of the column "id". Raises as `text`."""
        cell = self.cell("id")
        return check_text(f"{self.where}: id", str(cell) if isinstance(cell, int) else cell, may_be_blank=True)


def read_text(path: str | Path, *, may_be_pipe: bool = False) -> str:
    """Reads a UTF-8 text file; a byte order mark is skipped. If no line ends in a newline, "\\r" ends them.

    Args:
        path: of the file.
        may_be_pipe: whether it may be one that can be read once only, such as /dev/stdin.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty or not UTF-8 text.
    """
    path = Path(path)
    if not path.is_file() and not (may_be_pipe and path.exists() and not path.is_dir()):
        raise FileNotFoundError(f"no data file {path}")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8: {error.reason}") from None
    if not text.strip():
        raise ValueError(f"{path} is empty")
    if (start := data.find(b"\0")) >= 0:  # UTF-16, or no text at all
        line = data.count(b"\n", 0, start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text: a byte is 0")
    return text if "\n" in text else text.replace("\r", "\n")


def read_lines(path: str | Path, *, may_be_pipe: bool = False) -> list[str]:
    """Reads the lines of a UTF-8 text file, without their line ends. Arguments and errors are `read_text`'s."""
    text = read_text(path, may_be_pipe=may_be_pipe).removesuffix("\n")
    # str.splitlines would also split at characters that occur inside sentences, such as U+2028.
    return [line.removesuffix("\r") for line in text.split("\n")]


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8 or not JSON, or an object has a key twice.
    """
    return _parse_json(read_text(path), str(path))


def read_rows(
    columns: Sequence[str], *, path: str | None, dataset: str | None, split: str, subset: str | None = None
) -> list[Row]:
    """Reads the rows of a file or of a hub data set.

    Args:
        columns: names of the columns to read.
        path: a file that ends in one of `ENDINGS`. CSV and TSV have their columns' names in the first line. CSV
            is quoted by ", TSV has no quotes. JSON is a list of objects, or an object a line as in JSONL. None to
            read the data set.
        dataset: hub id, or a folder. The split of a folder is the file SPLIT.csv, SPLIT.tsv and so on, or else the
            files that `datasets` takes for it. It also reads them, unless they are CSV, TSV or JSON.
        split: name of the split.
        subset: name of the configuration, for a data set that has several.

    Returns:
        At least one row. Its cells are not checked yet.

    Raises:
        FileNotFoundError: the file or the data set does not exist or cannot be reached.
        ValueError: the file is malformed, or there are no rows.
    """
    files = [path] if path is not None else _text_files(str(dataset), split, subset)
    if files:
        rows = [row for file in files for row in _file_rows(file, columns)]
    else:
        rows = _hub_rows(str(dataset), split, subset)
    if not rows:
        raise ValueError(f"{path or dataset} holds no rows")
    return rows


def _file_rows(name: str, columns: Sequence[str]) -> Iterator[Row]:
    path = Path(name)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"path is {name!r}; allowed endings: {', '.join(ENDINGS)}")
    if ending == ".csv":
        return _table_rows(path, _csv_fields(path), columns)
    if ending == ".tsv":
        return _table_rows(path, enumerate((line.split("\t") for line in read_lines(path)), start=1), columns)
    return _json_rows(path, may_be_list=ending == ".json")


def _table_rows(path: Path, lines: Iterator[tuple[int, list[str]]], columns: Sequence[str]) -> Iterator[Row]:
    """The rows below a header. Blank lines are no rows."""
    _, header = next(lines)
    for column in columns:
        if header.count(column) > 1:
            raise ValueError(f"{path}, line 1: column {column!r} is there twice; allowed: once")
    if missing := [column for column in columns if column not in header]:
        raise ValueError(f"{path}, line 1: no column {', '.join(missing)}; it has {reprlib.repr(header)}")
    for line, fields in lines:
        if fields in ([], [""]):
            continue
        if len(fields) != len(header):
            raise ValueError(f"{path}, line {line} has {len(fields)} fields; allowed: {len(header)}, as in line 1")
        yield Row(f"{path}, line {line}", dict(zip(header, fields, strict=True)))


def _csv_fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The fields of each row of CSV, with the line that the row begins on."""
    csv.field_size_limit(2**31 - 1)  # a dialogue may be longer than the default of 131,072 characters
    lines = [f"{line}\n" for line in read_text(path).removesuffix("\n").split("\n")]
    reader = csv.reader(lines, strict=True)
    line = 1
    try:
        for fields in reader:
            yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        # In the row that cannot be read, the first quote that belongs to no whole field is the open one.
        rest = _QUOTED.sub(lambda field: "\n" * field[0].count("\n"), "".join(lines[line - 1 :]))
        line += rest.count("\n", 0, max(rest.find('"'), 0))
        raise ValueError(f"{path}, line {line}: not CSV: {str(error).partition(' - ')[0]}") from None


def _json_rows(path: Path, *, may_be_list: bool) -> Iterator[Row]:
    text = read_text(path)
    if may_be_list and text.lstrip().startswith("["):
        values = ((f"row {index}", value) for index, value in enumerate(_parse_json(text, str(path)), start=1))
    else:
        lines = ((n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip(" \t\r"))
        values = ((f"line {n}", _parse_json(line, str(path), n)) for n, line in lines)
    for where, value in values:
        if not isinstance(value, dict):
            raise ValueError(f"{path}, {where} is {reprlib.repr(value)}; allowed: a JSON object")
        yield Row(f"{path}, {where}", value)


def _parse_json(text: str, path: str, line: int | None = None) -> Any:
    """Parses a file, or one line of it."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        what, place = (error.msg, error.lineno) if isinstance(error, json.JSONDecodeError) else (error, None)
        where = f"{path}, line {line or place}" if line or place else path
        raise ValueError(f"{where}: not JSON: {what}{'; allowed: an object a line' if line else ''}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is in one object twice")
    return cells


def _text_files(dataset: str, split: str, subset: str | None) -> list[str]:
    """The files of a split of a folder; none if they are not text, or `dataset` is no folder."""
    if not Path(dataset).is_dir():
        return []
    in_folder = [Path(dataset, split + ending) for ending in ENDINGS]
    if subset is None and (file := next(filter(Path.is_file, in_folder), None)):
        return [str(file)]
    import datasets

    with _reading(dataset) as options:
        builder = datasets.load_dataset_builder(dataset, subset, **options)
    if builder.name not in ("csv", "json"):  # these would guess what a cell is
        return []
    files = builder.config.data_files
    if split not in files:
        raise ValueError(f"split is {split!r}; allowed in the folder {dataset}: {', '.join(map(str, files))}")
    return list(files[split])


def _hub_rows(dataset: str, split: str, subset: str | None) -> list[Row]:
    import datasets

    with _reading(dataset) as options:
        rows = list(datasets.load_dataset(dataset, subset, split=split, **options))
    return [Row(f"data set {dataset}, row {index}", row) for index, row in enumerate(rows, start=1)]


@contextlib.contextmanager
def _reading(dataset: str) -> Iterator[dict[str, Any]]:
    """Yields options for `datasets`, whose errors become one line."""
    # A folder's files are read anew: the cache would not notice a new file with the time of the old one.
    with tempfile.TemporaryDirectory() as empty_cache:
        try:
            yield {"cache_dir": empty_cache} if Path(dataset).is_dir() else {}
        except OSError as error:
            raise FileNotFoundError(f"data set {dataset} cannot be loaded: {_one_line(error)}") from None
        except Exception as error:  # of many classes: its own, pyarrow's, those of whatever a file holds
            raise ValueError(f"data set {dataset} cannot be read: {_one_line(error.__cause__ or error)}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
