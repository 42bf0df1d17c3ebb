"""Runs docs/tour.ipynb in a fresh kernel and stores its outputs.

    python scripts/run_tour.py

The notebook may read nothing but the installed package, so it runs in an empty folder. It took 85 seconds on two
CPU cores.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from dvp_jax.runs.files import write_whole

TOUR = Path(__file__).resolve().parents[1] / "docs" / "tour.ipynb"


def executed(path: Path) -> nbformat.NotebookNode:
    """Runs a notebook.

    Returns:
        The notebook with the outputs of this run, without times and without the kernel's version.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    language = dict(notebook.metadata.language_info)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, resources=resources, record_timing=False, coalesce_streams=True).execute()
    notebook.metadata.language_info = language
    return notebook


if __name__ == "__main__":
    write_whole(TOUR, [nbformat.writes(executed(TOUR)) + "\n"])
