"""Every notebook runs from top to bottom, with no names but its own.

One process runs them all: its start and its imports take as long as some of them.
"""

import os
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from safetensors.numpy import save_file

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def write_small_encoder(folder):
    """A stand-in for the 91 MB of MiniLM: the same names, one layer, 24 wide, eight words."""
    rng = np.random.default_rng(0)
    width = 24

    def matrix(*shape):
        return (0.1 * rng.standard_t(5, shape)).astype(np.float32)

    weights = {f"embeddings.{name}_embeddings.weight": matrix(rows, width) for name, rows in ROWS}
    layer = "encoder.layer.0"
    dense = {f"{layer}.attention.self.{name}": (width, width) for name in ("query", "key", "value")}
    dense[f"{layer}.attention.output.dense"] = (width, width)
    dense[f"{layer}.intermediate.dense"] = (2 * width, width)
    dense[f"{layer}.output.dense"] = (width, 2 * width)
    for name, shape in dense.items():
        weights[f"{name}.weight"], weights[f"{name}.bias"] = matrix(*shape), matrix(shape[0])
    for name in ("embeddings", f"{layer}.attention.output", f"{layer}.output"):
        weights[f"{name}.LayerNorm.weight"] = np.ones(width, np.float32)
        weights[f"{name}.LayerNorm.bias"] = np.zeros(width, np.float32)
    save_file(weights, folder / "model.safetensors")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", "return", "of"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")


ROWS = (("word", 8), ("position", 32), ("token_type", 2))


def test_there_are_notebooks():
    assert NOTEBOOKS


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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, client):
    write_small_encoder(tmp_path)
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
