"""The notebooks run from top to bottom on small configurations, show their pictures, and are stored clean."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest
from nbclient import NotebookClient

import expert_router
from training_home import make_training_home, training_environment, write_training_data

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = ("data_exploration", "inference_tests", "model_training", "router_training")
NEEDS_TORCH = "model_training"
"""It also takes the steps of a training run one by one, for which the package has no public names."""
ALLOWED = {"expert_router", "matplotlib", "numpy", *sys.stdlib_module_names}
LONGEST_FUNCTION = 6
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def test_no_notebook_is_left_out() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.train if name == NEEDS_TORCH else ()) for name in NAMES]
)
async def test_it_runs_and_shows_the_pictures_it_promises(name: str, tmp_path: Path) -> None:
    notebook = load(name)
    client = NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(FOLDER)}})
    # Encryption is what the kernel asks for when it is reached over TCP; without it, it warns.
    await client.async_execute(env=environment(name, tmp_path), transport_encryption="required")
    promising = [cell for cell in code_cells(notebook) if "plt.show()" in cell.source]
    assert promising
    for cell in promising:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
    for cell in code_cells(notebook):
        assert "Warning" not in stderr(cell), stderr(cell)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stored_without_outputs_and_with_minimal_metadata(name: str) -> None:
    notebook = load(name)
    nbformat.validate(notebook)
    assert notebook.metadata == METADATA
    assert not any(cell.metadata for cell in notebook.cells)
    for cell in code_cells(notebook):
        assert cell.outputs == [], "clear all outputs before saving"
        assert cell.execution_count is None, "clear all outputs before saving"


@pytest.mark.parametrize("name", NAMES)
def test_it_uses_public_names_only_and_defines_next_to_nothing(name: str) -> None:
    for node in nodes(load(name)):
        match node:
            case ast.Import(names):
                modules = {alias.name for alias in names}
            case ast.ImportFrom(module=str(module), names=names, level=0):
                modules = {module}
                assert module != "expert_router" or {alias.name for alias in names} <= set(expert_router.__all__)
            case ast.Attribute(ast.Name("expert_router"), attribute):
                assert attribute in expert_router.__all__
                continue
            case ast.FunctionDef(lineno=first, end_lineno=last) | ast.AsyncFunctionDef(lineno=first, end_lineno=last):
                assert last is not None
                assert last - first < LONGEST_FUNCTION, ast.unparse(node)
                continue
            case ast.ClassDef():
                pytest.fail(f"{name} defines the class {node.name}; it belongs in the package")
            case _:
                continue
        assert {module.partition(".")[0] for module in modules} <= ALLOWED
        assert name == NEEDS_TORCH or not any(module.startswith("expert_router.") for module in modules)


def load(name: str) -> NotebookNode:
    notebook: NotebookNode = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    return notebook


def environment(name: str, folder: Path) -> dict[str, str]:
    """A kernel's environment: the echo configuration and nothing of the user's own settings and start-up files."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EXPERT_ROUTER_")}
    small = {**kept, "EXPERT_ROUTER_CONFIG": "echo", "IPYTHONDIR": str(folder)}
    if name != NEEDS_TORCH:
        return small
    home = make_training_home(folder / "home")
    write_training_data(home)
    return {**small, **training_environment(home), "EXPERT_ROUTER_HOME": str(home), "TMPDIR": str(folder)}


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def stderr(cell: NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stderr")


def nodes(notebook: NotebookNode) -> Iterator[ast.AST]:
    for cell in code_cells(notebook):
        yield from ast.walk(ast.parse(cell.source))
