"""The picture of the limit, against pandas."""

import numpy as np
import pytest
from pictures import drawn_lines, legend_texts
from synthetic_sweep import SMALL, synthetic_table

from jaxcomp.experiments.sweep.pictures import plot_limit


def test_quantizers_are_drawn_above_the_limit():
    table = synthetic_table(SMALL, num_models=4)
    limits = 0.3 * table["entropy_bits_per_weight"]
    told = table.assign(
        limit_bits_per_weight=limits,
        shannon_bits_per_weight=0.5 * limits,
        excess_bits_per_weight=table["entropy_bits_per_weight"] - limits,
    )
    figure = plot_limit(told)
    plane, above = figure.axes
    assert plane.get_yscale() == "log"
    variants = told[told["method"] == "uniform"].groupby("variant").mean(numeric_only=True)
    places = np.concatenate(drawn_lines(plane))
    heights = np.concatenate(drawn_lines(above))
    for _, variant in variants.iterrows():
        bits, distortion = variant["entropy_bits_per_weight"], 2 * variant["predicted_rise_nats"]
        assert np.isclose(places, [bits, distortion]).all(axis=1).any()
        assert np.isclose(places, [variant["limit_bits_per_weight"], distortion]).all(axis=1).any()
        assert np.isclose(heights, [bits, 0.7 * bits]).all(axis=1).any()
    assert "3 variants not shown" in legend_texts(figure)
    with pytest.raises(ValueError, match=r"lacks the columns \['limit_bits_per_weight'"):
        plot_limit(table)
    with pytest.raises(ValueError, match="no compressed variant of the table has a limit"):
        plot_limit(told.assign(excess_bits_per_weight=np.nan))
