"""The report: one HTML file, opened from disk without a network, with an explorer of the generated texts."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from dvp_jax.runs.files import write_whole

_FOLDER = Path(__file__).parent
_RUN_FIELDS = ("name", "method", "threshold", "settings", "num_layers", "prune_layer", "prune_size")
_TOKEN_FIELDS = ("pieces", "exit_layers", "candidates", "confidences", "ranks")
# 1, -0.5, 5.56e+06, 12,000, 3.12 of 8, 25.06 to 25.61, 88 %, 1.13x
_NUMBER = re.compile(r"[-+]?[\d.,]*\d(e[-+]?\d+)?( (of|to) [\d.]+| ?[%x])?")

_BAR = re.compile(r"(?<!\\)\|")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of formatted cells; columns of numbers are aligned to the right.

    Attributes:
        head: the columns' names.
        rows: the cells' texts, as many in each row as there are columns.

    Raises:
        ValueError: a row with more or fewer cells.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.head):
                raise ValueError(f"rows[{index}] has {len(row)} cells; allowed: {len(self.head)}, as in head")

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers, and otherwise nothing."""
        columns = [[row[index] for row in self.rows if row[index]] for index in range(len(self.head))]
        return [bool(cells) and all(map(_NUMBER.fullmatch, cells)) for cells in columns]


def tables_of(markdown: str) -> tuple[Table, ...]:
    """The tables of a Markdown text as it is printed; other lines are left out."""
    tables = []
    for block in re.split(r"\n(?!\|)", markdown):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        if rows:
            head, _, *cells = [
                [cell.strip().replace("\\|", "|") for cell in _BAR.split(row)[1:-1]] for row in rows
            ]
            tables.append(Table(head, cells))
    return tuple(tables)


@dataclasses.dataclass(frozen=True)
class Section:
    """One part of the report, under a heading.

    Attributes:
        title: the heading.
        text: plain; its line breaks are kept.
        tables: below the text.
        plots: below the tables: captions and SVG files.
    """

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    plots: tuple[tuple[str, Path], ...] = ()


def write_report(
    path: Path,
    title: str,
    sections: Sequence[Section],
    provenance: Mapping[str, Any],
    traces: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes the report, whole or not at all.

    Args:
        path: of the HTML file.
        title: of the page.
        sections: in order.
        provenance: where the figures come from, as JSON values under names; folded at the end.
        traces: JSON objects, one for each task, example and run, with N tokens and L layers; none, no explorer.
            task, id, prompt, text: strings; references: strings. name, method, settings: of the run, strings;
            threshold: number or None; num_layers: L; prune_layer, prune_size: p and K, or None without pruning.
            pieces (N,): the tokens; exit_layers (N,): from 1 to L; candidates (N, L): what each depth would
            have said; confidences (N, L): None where a depth was not asked; ranks (N,): the token's rank at
            depth p, 0 for the likeliest, or None without pruning.

    Raises:
        ValueError: a trace whose lists differ in length, or a number that is not finite.
        OSError: a plot cannot be read, or the report cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The filter `tojson` escapes <, >, & and all that is not ASCII, so that no text can end the script element.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"image": _image, "pretty": _pretty}
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("report.css", "explorer.js"))
    page = environment.get_template("template.html").generate(
        title=title,
        sections=sections,
        provenance=provenance,
        explorer=_explorer(traces),
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src {_source(style)}; script-src {_source(script)}",
    )
    write_whole(path, page)


def _explorer(traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What explorer.js reads: each text, run and piece once, and indices of them."""
    pieces: dict[str, int] = {}
    runs: dict[tuple[Any, ...], int] = {}
    examples: dict[tuple[str, ...], dict[str, Any]] = {}

    def indices(texts: Sequence[str]) -> list[int]:
        return [pieces.setdefault(text, len(pieces)) for text in texts]

    for trace in traces:
        _check(trace)
        example = examples.setdefault(
            (trace["task"], trace["id"], trace["prompt"]),  # an id may come twice in a file
            {field: trace[field] for field in ("task", "id", "prompt", "references")} | {"outputs": []},
        )
        output = {
            "run": runs.setdefault(tuple(trace[field] for field in _RUN_FIELDS), len(runs)),
            "text": trace["text"],
            "pieces": indices(trace["pieces"]),
            "exit_layers": trace["exit_layers"],
            "candidates": [indices(depths) for depths in trace["candidates"]],
            "confidences": [[_round(value) for value in depths] for depths in trace["confidences"]],
            "ranks": trace["ranks"],
        }
        example["outputs"].append(output)
    return {
        "pieces": list(pieces),
        "runs": [dict(zip(_RUN_FIELDS, run, strict=True)) for run in runs],
        "examples": list(examples.values()),
        "colours": {num_layers: _colours(num_layers) for num_layers in {run["num_layers"] for run in traces}},
    }


def _check(trace: Mapping[str, Any]) -> None:
    """Refuses lists that do not fit together, on which the explorer would stumble far from the cause."""
    lengths = {field: len(trace[field]) for field in _TOKEN_FIELDS}
    depths = {len(row) for field in ("candidates", "confidences") for row in trace[field]}
    where = f"the trace of {trace['name']} on {trace['task']} {trace['id']}"
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{where} has {lengths}; allowed: as many of each as there are tokens")
    if depths - {trace["num_layers"]}:
        raise ValueError(f"{where} has {sorted(depths)} depths; allowed: num_layers, {trace['num_layers']}")


def _round(confidence: float | None) -> float | None:
    return None if confidence is None else round(confidence, 3)


def _colours(num_layers: int) -> list[tuple[str, str]]:
    """The background of each layer, paler for earlier ones, and the colour of text on it."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    rgb = colormaps["cividis_r"](np.linspace(0, 1, num_layers))[:, :3]  # colour-blind readers see the same scale
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    # WCAG's contrast with black equals that with white at 0.179, where both are 4.58.
    return [(to_hex(row), "#000000" if y > 0.179 else "#ffffff") for row, y in zip(rgb, luminance, strict=True)]


def _image(plot: Path) -> str:
    """An SVG as a data URI; as an image of its own, its ids cannot collide with those of other plots."""
    return "data:image/svg+xml;base64," + base64.b64encode(plot.read_bytes()).decode()


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def _source(text: str) -> str:
    """The content security policy's name for an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
