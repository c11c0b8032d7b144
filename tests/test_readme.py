"""The README's example runs as it stands, and its picture exists."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from jaxcomp import data

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


class Classifier(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 16, rngs=rngs)
        self.output = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, inputs):
        return self.output(jax.nn.relu(self.hidden(inputs)))


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_example_runs(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    digits = data.load("digits")
    inputs = data.to_inputs(digits.pool_images, digits.max_value).reshape(-1, 64)
    parts = {
        name: (inputs[rows], digits.pool_labels[rows])
        for name, rows in zip(
            ("train", "selection", "test"), np.split(np.arange(300), 3), strict=True
        )
    }
    names = {"model": Classifier(nnx.Rngs(0)), **parts}
    exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "sweep.png").exists()
    assert "hidden/kernel" in capsys.readouterr().out
    assert "winner" in names


def test_example_is_short():
    for code in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        assert sum(bool(line.strip()) for line in code.splitlines()) <= 15


def test_local_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
