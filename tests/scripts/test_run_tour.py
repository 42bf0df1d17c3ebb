"""The tour as it is stored, and in a fresh kernel."""

import ast
import re
import sys

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from scripts.run_tour import TOUR, executed


def read_tour():
    return nbformat.read(TOUR, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook):
    """What each cell shows, beside what libraries write to stderr."""
    return [
        (cell.id, [out.output_type for out in cell.outputs if out.get("name") != "stderr"])
        for cell in code_cells(notebook)
    ]


def test_the_tour_is_stored_with_the_outputs_of_each_cell_that_prints_or_draws():
    nbformat.validate(read_tour())
    assert read_tour().metadata.kernelspec.name == "python3"
    seen = set()
    for cell in code_cells(read_tour()):
        calls = (node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call))
        called = {ast.unparse(call.func) for call in calls}
        shown = {out.output_type for out in cell.outputs}
        assert ("stream" in shown) == ("print" in called), cell.id
        assert ("display_data" in shown) == bool(called & {"plt.show", "show_exits"}), cell.id
        seen |= shown
    assert seen == {"stream", "display_data"}


def test_the_stored_tour_is_small_and_names_no_machine():
    assert TOUR.stat().st_size < 400_000
    for cell in code_cells(read_tour()):
        for out in cell.outputs:
            assert out.get("name") != "stderr" and not re.search(r"(^|[\s'\"])/\w+/", out.get("text", "")), cell.id


def test_the_tour_imports_only_what_is_installed_with_the_package():
    tree = ast.parse("\n".join(cell.source for cell in code_cells(read_tour())))
    names = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    roots = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    assert roots == {"dvp_jax", "jax", "matplotlib", "numpy"}


@pytest.mark.slow
def test_the_tour_runs_in_a_fresh_kernel_and_shows_what_is_stored():
    assert kinds(executed(TOUR)) == kinds(read_tour())


@pytest.mark.slow
def test_a_tour_with_a_cell_that_raises_is_refused(tmp_path):
    notebook = read_tour()
    notebook.cells = [nbformat.v4.new_code_cell("print(1)"), nbformat.v4.new_code_cell("assert 1 == 2")]
    nbformat.write(notebook, tmp_path / "tour.ipynb")
    with pytest.raises(CellExecutionError, match="AssertionError"):
        executed(tmp_path / "tour.ipynb")
