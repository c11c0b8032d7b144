"""The picture of the bound, against pandas."""

import numpy as np
import pandas as pd
import pytest
from pictures import all_texts, assert_nothing_is_cut, is_drawn, levels_of
from synthetic_sweep import METHODS, SMALL, synthetic_table

from jaxcomp.experiments.sweep.pictures import plot_bound


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return synthetic_table(SMALL, num_models=4)


def test_bound_is_marked_vacuous_above_one(table):
    drawn = plot_bound(table)
    (axis,) = drawn.axes
    assert axis.get_yscale() == "log"
    assert any(text.startswith("vacuous") for text in all_texts(axis))
    assert np.isclose(levels_of(axis), 1.0).any()
    variants = table[table["variant"].str.startswith("kmeans/none/K")]
    means = variants.groupby("variant").mean(numeric_only=True).sort_values("ratio_estimated")
    ratio = means["ratio_estimated"].to_numpy()
    assert is_drawn(axis, ratio, means["zero_one_bound"].to_numpy())
    gap = (means["train_accuracy"] - means["accuracy"]).to_numpy()
    assert is_drawn(axis, ratio, gap)


def test_bound_counts_gaps_that_a_logarithmic_axis_cannot_show(table):
    better = table.copy()
    better.loc[better["variant"] == "kmeans/none/K2", "train_accuracy"] = 0.0
    texts = all_texts(plot_bound(better).axes[0])
    assert any(text.startswith("1 variant with a measured gap below") for text in texts)


def test_no_legend_is_cut():
    for grid in (
        METHODS | {"num_clusters": (4,)},
        SMALL | {"importance": ("none", "gauss_newton", "fisher")},
    ):
        assert_nothing_is_cut(plot_bound(synthetic_table(grid, num_models=2)))


def test_tables_without_a_bound_are_refused(table):
    with pytest.raises(ValueError, match=r"lacks the columns \['zero_one_bound'\] that this"):
        plot_bound(table.drop(columns="zero_one_bound"))
    with pytest.raises(ValueError, match="no variant of the table has a finite zero_one_bound"):
        plot_bound(table.assign(zero_one_bound=np.nan))
