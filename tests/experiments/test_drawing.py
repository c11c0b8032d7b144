"""The look of all pictures, whatever settings of matplotlib a user has."""

import matplotlib
import pytest

from jaxcomp.experiments.drawing import encoded, new_figure, own_look


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
