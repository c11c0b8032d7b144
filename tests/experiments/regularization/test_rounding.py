"""Models that rounding leaves: counts by hand, entropies against the exact density."""

import math

import jax
import numpy as np
import pandas as pd
import pytest

from jaxcomp.experiments.regularization import count_rounded_models
from jaxcomp.experiments.regularization.report import rounding_lines
from jaxcomp.experiments.regularization.rounding import PENALTIES, entropy_of_counts


@pytest.fixture(scope="module")
def rows():
    return count_rounded_models(jax.random.key(0), decimals=(0, 1, 3), num_problems=4000)


def test_entropy_of_counts():
    # Four equally likely models, 100 draws: ln 4 and Miller's (K - 1) / (2 N).
    assert entropy_of_counts(np.full(4, 25)) == pytest.approx(math.log(4) + 3 / 200)
    assert entropy_of_counts(np.array([7])) == 0.0


def test_a_stronger_penalty_leaves_fewer_models(rows):
    assert len(rows) == 3 * len(PENALTIES)
    for decimals in (0, 1, 3):
        counts = [row["distinct_models"] for row in rows if row["decimals"] == decimals]
        # What the penalty shrinks is rounded alike, up to where cells happen to end.
        assert counts[-1] < counts[0]
        assert all(count <= 4000 for count in counts)
    coarse, fine = ([r for r in rows if r["decimals"] == number] for number in (0, 3))
    assert all(
        a["distinct_models"] <= b["distinct_models"] for a, b in zip(coarse, fine, strict=True)
    )


def test_counts_have_the_entropy_of_the_density_where_both_are_right(rows):
    """Fine enough for the density, coarse enough for the counts: one decimal, few penalties."""
    compared = 0
    for row in rows:
        is_counted = row["distinct_models"] < 0.25 * row["num_problems"]
        if is_counted and row["decimals"] == 1 and row["entropy_bits_exact"] > 4:
            # Counts miss part of the tail, density is a lower bound: a tenth of a bit each way.
            assert row["entropy_bits"] == pytest.approx(row["entropy_bits_exact"], abs=0.15)
            compared += 1
    assert compared >= 2


def test_counts_saturate_and_the_density_does_not(rows):
    fine = next(row for row in rows if row["decimals"] == 3 and row["penalty"] == 0)
    assert fine["distinct_models"] > 3990
    assert fine["entropy_bits"] < math.log2(4000) + 1
    assert fine["entropy_bits_exact"] > 25


def test_the_report_claims_no_more_than_counts_can_show(rows):
    *lines, note = rounding_lines(pd.DataFrame(rows))
    assert "density" in note
    assert "Miller" in note
    fine = next(line for line in lines if "rounded to 3 decimals" in line)
    density = rows[2]["entropy_bits_exact"]
    # 4,000 data sets show at most 12 bits, whatever their estimate with a correction is.
    assert (
        f"(entropy: {density:.2f} bits by the density, the counts show 11.97 bits at most)" in fine
    )
    assert rows[2]["entropy_bits"] > math.log2(4000)
    assert "exactly" not in " ".join(lines)
    coarse = next(line for line in lines if "rounded to 0 decimals" in line)
    assert f"{rows[0]['entropy_bits']:.2f} bits by the counts" in coarse
