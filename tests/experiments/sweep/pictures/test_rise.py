"""The picture of the prediction, against pandas."""

import numpy as np
import pandas as pd
import pytest
from pictures import all_texts, assert_nothing_is_cut, drawn_lines, legend_texts
from synthetic_sweep import SMALL, synthetic_table

from jaxcomp.experiments.sweep.pictures import plot_predicted_rise


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return synthetic_table(SMALL, num_models=4)


def test_predicted_rise_is_compared_with_the_measured_one(table):
    drawn = plot_predicted_rise(table)
    (axis,) = drawn.axes
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    variants = table[table["method"] == "uniform"].groupby("variant").mean(numeric_only=True)
    points = np.concatenate(drawn_lines(axis))
    for _, variant in variants.iterrows():
        wanted = [variant["predicted_rise_nats"], variant["measured_rise_nats"]]
        assert np.isclose(points, wanted).all(axis=1).any()
    diagonal = [xy for xy in drawn_lines(axis) if len(xy) == 2 and np.allclose(xy[:, 0], xy[:, 1])]
    assert len(diagonal) == 1
    assert {"as predicted", "10x"} <= set(all_texts(axis))


def test_the_picture_says_how_far_off_the_prediction_is_and_why(table):
    told = "\n".join(text.get_text() for text in plot_predicted_rise(table).texts)
    twice = table.assign(measured_rise_nats=2.5 * table["predicted_rise_nats"])
    told_twice = "\n".join(text.get_text() for text in plot_predicted_rise(twice).texts)
    assert "The loss rises 2.5 to 2.5 times as much." in told_twice
    assert "errors of weights add up" in told_twice
    assert told != told_twice
    right = table.assign(measured_rise_nats=table["predicted_rise_nats"])
    assert not any("add up" in text.get_text() for text in plot_predicted_rise(right).texts)


def test_predicted_rise_says_what_it_leaves_out(table):
    fallen = table.copy()
    fallen.loc[fallen["variant"] == "kmeans/none/K16", "measured_rise_nats"] = -0.1
    assert "1 variant without a rise left out" in legend_texts(plot_predicted_rise(fallen))


def test_a_long_name_fits():
    named = synthetic_table(SMALL, num_models=1).assign(dataset="given", model="network" * 20)
    assert_nothing_is_cut(plot_predicted_rise(named))


def test_tables_without_a_rise_are_refused(table):
    with pytest.raises(ValueError, match=r"lacks the columns \['predicted_rise_nats'\] that this"):
        plot_predicted_rise(table.drop(columns="predicted_rise_nats"))
    with pytest.raises(ValueError, match="both a positive predicted and a positive measured rise"):
        plot_predicted_rise(table.assign(measured_rise_nats=-1.0))
