"""Samples: which of their examples are the same."""

import numpy as np

from jaxcomp.experiments.samples import distinct


def test_distinct_examples_come_in_their_order_and_give_all_back():
    examples = np.asarray([[3, 1], [0, 2], [3, 1], [5, 5], [0, 2]], np.float32)[..., None]
    first, places = distinct(examples)
    np.testing.assert_array_equal(first, examples[[0, 1, 3]])
    np.testing.assert_array_equal(places, [0, 1, 0, 2, 1])
    np.testing.assert_array_equal(distinct(examples[:2])[0], examples[:2])
