"""The comparison of weightings in `benchmarks/`, as small as it can be."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def weightings(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("JAXCOMP_CACHE_DIR", str(tmp_path))
    yield pytest.importorskip("weightings")
    for name in [name for name, module in sys.modules.items() if _is_benchmark(module)]:
        del sys.modules[name]


def _is_benchmark(module):
    return str(BENCHMARKS) in str(getattr(module, "__file__", None))


def run(weightings, rows, capsys):
    numbers = {"size": "1 8 2 4", "num-steps": "1", "counts": "2 4 6", "num-held-out": "2"}
    arguments = [part for name in numbers for part in (f"--{name}", *numbers[name].split())]
    arguments += ["--weightings", "nothing", "diagonal", "--methods", "sixteen_clusters"]
    weightings.main([*arguments, "--rows", str(rows)])
    return json.loads(rows.read_text())["rows"], capsys.readouterr()


@pytest.mark.slow
def test_a_run(weightings, tmp_path, capsys):
    """The whole matrix predicts the rise of a small error; a second run computes no row again."""
    rows, captured = run(weightings, tmp_path / "rows.json", capsys)
    assert [row["weighting"] for row in rows] == ["nothing", "diagonal"]
    for row in rows:
        assert row["bits"] == pytest.approx(rows[0]["bits"], rel=0.1)
        assert row["quadratic"] == pytest.approx(np.mean(row["scores"]["rise"]), rel=0.3)
    assert "| diagonal |" in captured.out
    assert "diagonal, sixteen_clusters" in captured.err
    again, captured = run(weightings, tmp_path / "rows.json", capsys)
    assert again == rows
    assert "sixteen_clusters," not in captured.err


def test_slope_is_shared_between_leaves_of_different_units(weightings):
    """A leaf's spread is that of its weights about their mean; relative errors have no units."""
    weights = {
        "a": np.asarray([[1.0, 2.0], [3.0, 6.0]]),
        "b": np.asarray([[-4.0, 4.0], [4.0, 4.0]]),
    }
    h = {"a": np.asarray([[1.0, 0.0], [0.0, 3.0]]), "b": np.ones((2, 2))}
    problem = SimpleNamespace(params={f"{name}/kernel": leaf for name, leaf in weights.items()})
    importance = {f"{name}/kernel": leaf for name, leaf in h.items()}
    found = weightings.shared_spreads(problem, weightings.Weighting(None, importance))
    # The mean of a is (1 + 3 * 6) / 4.
    assert found == pytest.approx({"a/kernel": 3.75**2 + 3 * 1.25**2, "b/kernel": 48.0})
    relative = weightings.shared_spreads(problem, weightings.Weighting(None, None))
    assert relative == pytest.approx({"a/kernel": 14 / 50, "b/kernel": 48 / 64})


def test_interval_of_a_difference(weightings):
    """That of the normal approximation, for many examples; none if all differ alike."""
    values = np.random.default_rng(0).normal(size=400)
    found = weightings.difference(values + 1, np.ones(400))
    mean, half = values.mean(), 1.96 * values.std() / 20
    np.testing.assert_allclose(found, [mean, mean - half, mean + half], atol=0.01)
    np.testing.assert_allclose(weightings.difference(values, values - 2), [2, 2, 2])
