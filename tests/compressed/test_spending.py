"""Budgets are kept whichever codes they are counted by."""

import numpy as np
import pytest

import jaxcomp
from jaxcomp.compressed import spending
from jaxcomp.quantizers import Uniform

WEIGHTS = {"w": np.random.default_rng(0).standard_t(4, (40, 50)).astype(np.float32)}


@pytest.mark.parametrize(("most", "effort"), [(1000, "fast"), (10_000, None)])
def test_large_models_are_counted_by_quick_codes(monkeypatch, tmp_path, most, effort):
    monkeypatch.setattr(spending, "MOST_WEIGHTS_OF_BEST", most)
    seen = []

    class Recorded(spending.FileSizes):
        def __init__(self, effort, sections):
            seen.append(effort)
            super().__init__(effort, sections)

    monkeypatch.setattr(spending, "FileSizes", Recorded)
    tree = jaxcomp.compress(WEIGHTS, Uniform(), size_bytes=900)
    assert seen == [effort]
    assert 700 < tree.save(tmp_path / "small.jxc") <= 900
    jaxcomp.compress(WEIGHTS, Uniform(), size_bytes=900, effort="best")
    assert seen == [effort, "best"]
