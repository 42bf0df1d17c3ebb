"""The HTML report: one file that needs no network, with an explorer of the generated texts."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from dvp_jax.report.table import Section, visible
from dvp_jax.runs.files import write_whole

_FOLDER = Path(__file__).parent
_RUN_FIELDS = ("name", "method", "threshold", "settings", "num_layers", "prune_layer", "prune_size")
_TOKEN_FIELDS = ("pieces", "exit_layers", "candidates", "confidences", "ranks")


def write_report(
    path: Path,
    title: str,
    sections: Sequence[Section],
    provenance: Mapping[str, Any],
    traces: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes the report. The file appears only when it is complete. Its texts are shown as `visible` writes them.

    Args:
        path: path of the HTML file.
        title: title of the page.
        sections: the sections, in order.
        provenance: where the figures come from: JSON values by name. They are folded at the end of the page.
        traces: JSON objects, one for each task, example and run, with N tokens and L layers. Without traces the
            page has no explorer. The fields of a trace:

            - task, id, prompt, text: strings; references: a list of strings.
            - name, method, settings: strings that describe the run; threshold: a number or None.
            - num_layers: L; prune_layer, prune_size: p and K, or None without pruning.
            - pieces (N,): the tokens as text; exit_layers (N,): integers from 1 to L.
            - candidates (N, L): the token that each depth would produce, as text.
            - confidences (N, L): numbers, None at depths that are no candidates for an exit.
            - ranks (N,): the token's rank at depth p, 0 for the likeliest; None without pruning.

    Raises:
        ValueError: the lists of a trace differ in length, or a number is not finite.
        OSError: a plot cannot be read, or the report cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: visible(value, lines=True) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The filter `tojson` escapes <, >, & and everything outside ASCII, so that no text can end the script element.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"image": _image, "pretty": _pretty, "visible": visible}
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
    """The data that explorer.js reads. Pieces and runs are listed once and referred to by index."""
    pieces: dict[str, int] = {}
    runs: dict[tuple[Any, ...], int] = {}
    examples: dict[tuple[str, ...], dict[str, Any]] = {}

    def indices(texts: Sequence[str]) -> list[int]:
        return [pieces.setdefault(text, len(pieces)) for text in texts]

    for trace in traces:
        _check(trace)
        example = examples.setdefault(
            (trace["task"], trace["id"], trace["prompt"]),  # two examples of a file may have the same id
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
        "pieces": list(map(visible, pieces)),
        "runs": [dict(zip(_RUN_FIELDS, run, strict=True)) for run in runs],
        "examples": list(examples.values()),
        "colours": {num_layers: _colours(num_layers) for num_layers in {run["num_layers"] for run in traces}},
    }


def _check(trace: Mapping[str, Any]) -> None:
    """Raises ValueError if the lists of a trace differ in length: the explorer would fail far from the cause."""
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
    """For each layer a background colour, darker with depth, and a text colour that is legible on it."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    rgb = colormaps["cividis_r"](np.linspace(0, 1, num_layers))[:, :3]  # made for colour-blind readers
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    # At a relative luminance of 0.179 the WCAG contrasts with black and with white are equal, 4.58.
    return [
        (to_hex(colour), "#000000" if brightness > 0.179 else "#ffffff")
        for colour, brightness in zip(rgb, luminance, strict=True)
    ]


def _image(plot: Path) -> str:
    """The SVG as a data URI. The ids in one image cannot collide with the ids in another."""
    return "data:image/svg+xml;base64," + base64.b64encode(plot.read_bytes()).decode()


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def _source(text: str) -> str:
    """The source expression that allows this inline script or style in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
