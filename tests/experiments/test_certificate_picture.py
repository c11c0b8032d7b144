"""The picture of a table of certificates."""

import numpy as np
import pytest
from pictures import assert_nothing_is_cut

from jaxcomp import bounds
from jaxcomp.certificates import Report, Row
from jaxcomp.experiments.certificate_picture import Series, bounds_of_sizes, plot_certificates


def test_lines_go_through_points():
    bits, error = 1_100.0, 0.02
    bound = float(bounds.occam(error, bits, num_examples=5_000, delta=0.05))
    held_out = float(bounds.occam(0.03, 0.0, num_examples=500, delta=0.05))
    rows = (
        Row("a: data-free", "the file", "", 5_000, bits, 130, error, bound, bound, {"all": 1.0}),
        Row("d: held out", "the file", "", 500, 0.0, 0, 0.03, held_out, held_out, {"all": 1.0}),
    )
    assert bounds_of_sizes(error, 5_000, np.array([bits]), 0.05) == pytest.approx([bound])
    series = Series("trained", np.array([400, 900]), np.array([0.3, 0.4]))
    figure = plot_certificates(Report(rows, 0.05, test_error=0.025, num_test=500), [series])
    lines = [axis_line.get_data() for axis_line in figure.axes[0].get_lines()]
    point, line, level, trained, test = lines
    np.testing.assert_array_equal(trained, series[1:])
    assert figure.axes[0].get_xlim()[1] > 900
    assert figure.axes[0].get_ylim()[1] > 0.4
    assert (point[0][0], point[1][0]) == pytest.approx((bits / 8, bound))
    # The line is drawn through 120 sizes.
    assert np.interp(bits / 8, *line) == pytest.approx(bound, rel=2e-3)
    assert np.ptp(level[1]) == 0
    assert (level[1][0], test[1][0]) == pytest.approx((held_out, 0.025))
    assert_nothing_is_cut(figure)
