"""Integers that training found, as files."""

import jax
import numpy as np
import pytest

import jaxcomp
from jaxcomp.compressed import from_integers, to_bytes

PARAMS = {
    "bias": np.zeros(3, np.float32),
    "kernel": np.ones((4, 3), np.float32),
    "other": np.float32([1.5, 2.5]),
}
KERNEL = np.asarray([[0, 1, -2], [127, 0, 0], [0, -127, 0], [0, 0, 3]], np.int32)
INTEGERS = {"kernel": KERNEL, "bias": np.zeros(3, np.int32)}
STEPS = {"kernel": 0.3, "bias": jax.device_put(np.float32(0.1))}


def test_files_hold_integers_times_steps():
    tree = from_integers(PARAMS, INTEGERS, STEPS)
    for params in (tree.params(), jaxcomp.load(to_bytes(tree, effort="best")).params()):
        np.testing.assert_array_equal(params["kernel"], np.float32(0.3) * KERNEL.astype(np.float32))
        np.testing.assert_array_equal(params["bias"], np.zeros(3))
        np.testing.assert_array_equal(params["other"], PARAMS["other"])
    np.testing.assert_array_equal(tree.codes("kernel"), KERNEL)
    layers = tree.report().layers
    assert [own.distortion for own in layers] == [0, 0]


@pytest.mark.parametrize(
    ("integers", "steps", "told"),
    [
        ({"kernel": KERNEL[:2]}, STEPS, "must have its shape"),
        ({"kernel": KERNEL * 1.0}, STEPS, "of a dtype of such"),
        ({"kernel": KERNEL * 2}, STEPS, "between -127 and 127"),
        ({"kernel": KERNEL}, {}, "need a leaf and a step"),
        ({"kernel": KERNEL}, {"kernel": -1.0}, "positive and finite"),
        ({"kernels": KERNEL}, STEPS, "need a leaf and a step"),
    ],
)
def test_what_is_no_integers_times_a_step_is_refused(integers, steps, told):
    with pytest.raises(ValueError, match=told):
        from_integers(PARAMS, integers, steps)
