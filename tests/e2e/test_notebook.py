"""examples/quick_tour.ipynb runs from top to bottom with nothing but models/mini."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny import ROOT, mini_folder


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder with the notebook and a model, but no data."""
    shutil.copytree(mini_folder(tmp_path / "made"), tmp_path / "models/mini")
    (tmp_path / "examples").mkdir()
    shutil.copyfile(ROOT / "examples/quick_tour.ipynb", tmp_path / "examples/quick_tour.ipynb")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    # kernels and their settings of this environment, and not of the user's home
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path


def test_the_quick_tour_runs_from_top_to_bottom(checkout):
    notebook = nbformat.read(checkout / "examples/quick_tour.ipynb", as_version=4)
    folder = {"metadata": {"path": str(checkout / "examples")}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=folder).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3  # the scene, the steps, the samples
    printed = "".join(output.get("text", "") for output in outputs)
    assert "after step 4: 0 of 16 cells" in printed and "greedy" in printed
    assert [path.name for path in (checkout / "examples").iterdir()] == ["quick_tour.ipynb"]
