"""Every example and every notebook runs to its end, where it asserts what it claims."""

import ast
from pathlib import Path

import nbformat
import pytest
from fresh_process import python
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from sampling import sampled

ROOT = Path(__file__).parent.parent
EXAMPLES = sampled(sorted((ROOT / "examples").glob("*.py")), 5)
FEWER_STEPS = {"small_gpt": ["300"]}  # half of them are enough for what it claims
OF_LIBRARIES = [
    pytest.param(file, marks=pytest.mark.libraries)
    for file in sorted((ROOT / "examples" / "libraries").glob("*.py"))
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def name(file: Path) -> str:
    return file.stem


@pytest.mark.parametrize("file", [*EXAMPLES, *OF_LIBRARIES], ids=name)
def test_example(file: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    is_long = request.node.get_closest_marker("long") is not None  # the others mostly compile
    steps = FEWER_STEPS.get(file.stem, [])
    done = python(file, *steps, cwd=tmp_path, optimised=is_long)  # in another folder
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", sorted((ROOT / "examples").rglob("*.py")), ids=name)
def test_example_is_short_and_ends_in_an_assertion(file: Path) -> None:
    source = file.read_text()
    assert len(source.splitlines()) <= 80
    assert isinstance(ast.parse(source).body[-1], ast.Assert)


def run(notebook: nbformat.NotebookNode) -> None:
    """Execute all cells in a fresh kernel."""
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()


@pytest.mark.parametrize("file", sampled(NOTEBOOKS, 6), ids=name)
def test_notebook(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs"
    assert any("assert" in cell.source for cell in notebook.cells if cell.cell_type == "code")
    run(notebook)


def test_a_failing_notebook_fails() -> None:
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    with pytest.raises(CellExecutionError):
        run(broken)
