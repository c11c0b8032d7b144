"""Every notebook runs from top to bottom, in a process of its own."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from safetensors.numpy import save_file

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def write_small_transformer(path):
    """A stand-in for the 91 MB of MiniLM: the same names, one small layer of a BERT."""
    rng = np.random.default_rng(0)
    width = 32
    shapes = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (4 * width, width),
        "output.dense": (width, 4 * width),
    }
    weights: dict[str, np.ndarray] = {
        "embeddings.word_embeddings.weight": np.zeros((8, width), np.float32)
    }
    for place, (name, shape) in enumerate(shapes.items()):
        values = 0.04 * (1 + place % 2) * rng.standard_t(5, shape)
        weights[f"encoder.layer.0.{name}.weight"] = values.astype(np.float32)
        weights[f"encoder.layer.0.{name}.bias"] = np.zeros(shape[0], np.float32)
    save_file(weights, path)


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch, programs_of_processes):
    monkeypatch.setenv("JAXCOMP_CACHE_DIR", str(tmp_path / "cache"))
    write_small_transformer(tmp_path / "small.safetensors")
    monkeypatch.setenv("JAXCOMP_MINILM", str(tmp_path / "small.safetensors"))
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), (
        "commit notebooks without outputs"
    )
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_uses_public_names_only(path):
    source = "\n".join(
        c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"
    )
    assert "._" not in source
    assert "def quantize" not in source
