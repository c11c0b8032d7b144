"""The pages on other libraries: code runs as printed, and curvature is the closed form."""

import importlib
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from slow_cases import some_slow

from jaxcomp import curvature
from jaxcomp.trees.description import describe_tree, rebuild_tree
from jaxcomp.trees.leaves import is_array
from jaxcomp.trees.paths import leaves_by_path

PAGES = Path(__file__).parent.parent / "docs" / "libraries"
# Page -> what it imports.
LIBRARIES = {
    "nnx": "flax.nnx",
    "linen": "flax.linen",
    "equinox": "equinox",
    "haiku": "haiku",
    "penzai": "penzai.pz",
}


def run_page(name: str) -> dict:
    """Return the names after all Python blocks of a page; skip what is not installed or broken."""
    try:
        importlib.import_module(LIBRARIES[name])
    except Exception as error:  # a library may break on the newest JAX in any way
        pytest.skip(f"{LIBRARIES[name]} does not import: {type(error).__name__}: {error}")
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    names = {"__name__": "__main__"}
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)):
        exec(compile(code, f"{name}.md, block {number}", "exec"), names)
    return names


def of_shape(leaves: dict, *shape: int) -> np.ndarray:
    """Return the leaf of this shape, or the transposed one."""
    (found,) = (x for x in leaves.values() if np.shape(x) in (shape, shape[::-1]))
    array = np.asarray(found, np.float64)
    return array if array.shape == shape else array.T


def closed_form(leaves: dict, images: np.ndarray) -> dict[tuple[int, ...], np.ndarray]:
    """Return the Gauss-Newton diagonal of a ReLU network with one hidden layer, by shape."""
    first, second = of_shape(leaves, 64, 16), of_shape(leaves, 16, 10)
    hidden = np.maximum(images @ first + of_shape(leaves, 16), 0)
    logits = hidden @ second + of_shape(leaves, 10)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    of_logits = p * (1 - p)
    # Variances under p of the rows of the second layer, where a hidden unit is active.
    of_hidden = (hidden > 0) * (p @ second.T**2 - (p @ second.T) ** 2)
    return {
        (64, 16): (images**2).T @ of_hidden / len(images),
        (16,): of_hidden.mean(0),
        (16, 10): (hidden**2).T @ of_logits / len(images),
        (10,): of_logits.mean(0),
    }


# Parameters of Haiku are those of Linen: dictionaries of arrays.
@pytest.mark.parametrize("name", some_slow(LIBRARIES, "haiku"))
def test_page_runs_and_its_curvature_is_the_closed_form(name):
    names = run_page(name)
    params, smaller, images = names["params"], names["smaller"], names["images"]
    leaves = {path: x for path, x in leaves_by_path(params).items() if is_array(x)}
    found = leaves_by_path(names["diagonal"].mean)
    expected = closed_form(leaves, images.astype(np.float64))
    for shape, diagonal in expected.items():
        np.testing.assert_allclose(of_shape(found, *shape), diagonal, rtol=2e-4, atol=1e-7)
    # Both matrices are found as layers, and both are compressed.
    layers = curvature.find_layers(names["predict_fn"], params, images)
    matrices = {path for path, layer in layers.items() if layer.kind == "matrix"}
    assert {np.shape(leaves[path]) for path in matrices} <= {(64, 16), (16, 64), (16, 10), (10, 16)}
    assert matrices == set(names["tree"].paths)
    assert len(matrices) == 2
    # What comes back is a model of the same structure, and the logits are its own.
    assert jax.tree.structure(smaller) == jax.tree.structure(params)
    np.testing.assert_allclose(names["logits"], names["predict_fn"](smaller, images), rtol=1e-5)
    assert 0 < np.max(np.abs(names["logits"] - names["predict_fn"](params, images))) < 1
    if name == "penzai":
        np.testing.assert_array_equal(
            names["predict_fn"](names["trainable"], images), names["logits"]
        )
    if name == "nnx":
        np.testing.assert_allclose(names["model"](images), names["logits"], rtol=1e-5)
    _survives_a_file(smaller, is_plain=name in ("linen", "haiku"))


def _survives_a_file(params, *, is_plain: bool) -> None:
    """Paths, arrays and structure come back from text and arrays; a module beside one like it."""
    text = json.dumps(describe_tree(params))
    leaves = {path: x for path, x in leaves_by_path(params).items() if is_array(x)}
    again = rebuild_tree(json.loads(text), leaves, like=None if is_plain else params)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert list(leaves_by_path(again)) == list(leaves_by_path(params))


def test_every_page_is_tested():
    assert {page.stem for page in PAGES.glob("*.md")} == set(LIBRARIES)


def test_parameters_that_are_no_arrays_are_refused():
    """As the variables of a Penzai model that is not frozen."""

    class Variable:
        value = np.ones(3, np.float32)

    with pytest.raises(ValueError, match="params has no floating array"):
        curvature.gauss_newton_diagonal(
            lambda params, x: x * params["w"].value,
            {"w": Variable()},
            (np.ones((2, 3), np.float32), np.zeros(2, np.int32)),
        )
