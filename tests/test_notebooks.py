"""Every notebook runs from top to bottom, with no names but its own.

One process runs them all: its start and its imports take as long as some of them.
"""

import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from encoder_problem import write_small_encoder
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
# Half a minute each: `make notebooks` runs them. What the quick start does, the README does.
RUNS = [pytest.param(path, id=path.stem, marks=pytest.mark.slow) for path in NOTEBOOKS]


def test_there_are_notebooks():
    assert {"quickstart", "theory"} < {path.stem for path in NOTEBOOKS}


# Fine limits of sweeps, which no notebook shows, take a second for each network.
COARSE = """
from jaxcomp.experiments.sweep import limits
limits._NUM_SLOPES, limits._GAP_BITS = 5, 0.2
"""


@pytest.fixture(scope="module")
def client(programs_of_processes):
    empty = nbformat.v4.new_notebook()
    start = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(COARSE)])
    client = NotebookClient(start, timeout=300, kernel_name="python3")
    client.execute(cleanup_kc=False, env=os.environ | programs_of_processes)
    yield client
    client.nb = empty
    client.execute()  # and ends the kernel


def fresh_start(folder):
    """What a kernel runs before a notebook: no names, no figures, a folder of its own."""
    return nbformat.v4.new_code_cell(
        "%reset -f\n"
        "import os\n"
        "import matplotlib.pyplot as plt\n"
        "plt.close('all')\n"
        "plt.rcdefaults()\n"
        "%matplotlib inline\n"
        f"os.chdir({str(folder)!r})\n"
        f"os.environ['JAXCOMP_CACHE_DIR'] = {str(folder / 'cache')!r}\n"
        f"os.environ['JAXCOMP_MINILM'] = {str(folder)!r}\n"
        "del os, plt\n"
    )


@pytest.mark.parametrize("path", RUNS)
def test_notebook_runs(path, tmp_path, client):
    # Time is spent on the curve of each matrix, whatever its size: one is enough.
    write_small_encoder(tmp_path, num_layers=0)
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), (
        "commit notebooks without outputs"
    )
    notebook.cells.insert(0, fresh_start(tmp_path))
    client.nb = notebook
    client.execute(cleanup_kc=False)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_uses_public_names_only(path):
    source = "\n".join(
        c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"
    )
    assert "._" not in source
    assert "def quantize" not in source
    for node in ast.walk(ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxcomp"):
            exec(compile(ast.Module([node], []), str(path), "exec"), {})
