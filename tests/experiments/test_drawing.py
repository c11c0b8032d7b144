"""The look of all pictures, whatever settings of matplotlib a user has."""

import matplotlib
import numpy as np
import pytest
from pictures import assert_nothing_is_cut, legend_texts

from jaxcomp.experiments.drawing import (
    COLOURS,
    encoded,
    legend_of_labels,
    new_figure,
    own_look,
    plain_log_ticks,
    thinned,
)


@own_look()
def picture():
    figure = new_figure(3, 2, "100 % of a_b", "and $5")
    figure.subplots().plot([1, 2], [3, 4])
    return figure


@pytest.mark.parametrize("form", ["png", "svg"])
def test_settings_of_the_user_change_nothing(form):
    expected = encoded(picture(), form)
    # Without LaTeX, the first of them is an error; with it, the text above is.
    settings = {"text.usetex": True, "axes.grid": True, "font.size": 30, "svg.hashsalt": "own"}
    with matplotlib.rc_context(settings):
        drawn = picture()
        assert encoded(drawn, form) == expected
        drawn.savefig(matplotlib.cbook.os.devnull, format=form)
        assert {name: matplotlib.rcParams[name] for name in settings} == settings


@own_look()
def test_panels_take_turns_with_the_colours_and_share_a_legend_of_their_labels():
    figure = new_figure(6, 3, "title", "what to see")
    for axis in figure.subplots(1, 2):
        for name in ("first", "second"):
            axis.plot([1, 2], [3, 4], label=name)
    assert [line.get_color() for line in figure.axes[1].get_lines()] == list(COLOURS[:2])
    figure.axes[1].errorbar([1], [3], [0.1], label="third")
    legend_of_labels(figure, columns=2)
    assert [text for text in legend_texts(figure) if text] == ["first", "second", "third"]
    assert_nothing_is_cut(figure)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((0.0005, 2), ["0.001", "0.01", "0.1", "1"]),
        ((40, 1500), ["50", "100", "200", "500", "1,000"]),
        ((1380, 2940), ["1,400", "1,600", "1,800", "2,000", "2,500"]),
        ((1e-9, 1e9), ["1e-09", "1e-06", "0.001", "1", "1,000", "1,000,000", "1,000,000,000"]),
    ],
)
def test_logarithmic_axes_have_round_numbers_whatever_they_span(limits, expected):
    axis = new_figure(4, 3, "a", "b").subplots()
    axis.set(yscale="log", ylim=limits)
    plain_log_ticks(axis.yaxis)
    axis.figure.draw_without_rendering()
    assert [tick.get_text() for tick in axis.get_yticklabels()] == expected


def test_marks_that_would_cover_each_other_are_one():
    assert thinned([], 0.1) == []
    places = np.random.default_rng(0).uniform(size=50).tolist()
    kept = [places[index] for index in thinned(places, 0.1)]
    assert kept[0] == min(places)
    assert np.diff(kept).min() >= 0.1
    assert all(any(0 <= place - one < 0.1 for one in kept) for place in places)
