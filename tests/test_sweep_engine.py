import math

from jaxcomp.sweep.engine import _ratio


def test_a_network_of_which_nothing_is_left_has_an_infinite_ratio():
    # Pruned weights that were 0 already cost no bits, and without biases nothing else does.
    assert _ratio(1536.0, 0.0) == math.inf
    assert _ratio(1536.0, 64.0) == 24
