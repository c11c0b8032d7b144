"""Layouts of weights, and of stacks of which a product sees a row."""

import jax
import numpy as np

from jaxcomp.curvature.layouts import Step, Take, stack_layout

W = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)


def test_rows_come_first_and_there_is_a_way_back():
    # Row j of axis 1, then row i of what was axis 0; the rest transposed.
    steps = (
        Take(1, np.asarray([0, 2])),
        Step("reshape", (2, 1, 20)),
        Take(0, np.asarray([[1, 0, 1], [0, 0, 1]])),
        Step("reshape", (4, 5)),
        Step("transpose", (1, 0)),
        Step("reshape", (1, 5, 4)),
    )
    layout = stack_layout(W.shape, steps)
    matrices = np.asarray(jax.jit(layout.matrices.to_matrices)(W))
    assert matrices.shape == (6, 5, 4)
    assert (layout.num_rows, layout.sizes) == (6, (3, 2))
    rows = layout.rows((2, 3)).reshape(2, 3)
    for outer, j in enumerate([0, 2]):
        for inner, i in enumerate([[1, 0, 1], [0, 0, 1]][outer]):
            np.testing.assert_array_equal(matrices[rows[outer, inner]], W[i, j].T)
    np.testing.assert_array_equal(jax.jit(layout.matrices.from_matrices)(matrices), W)


def test_a_whole_array_has_one_row():
    layout = stack_layout((4, 5), (Step("reshape", (1, 4, 5)),))
    assert (layout.num_rows, layout.takes) == (1, ())
    np.testing.assert_array_equal(layout.rows((2, 3)), np.zeros(6))


def test_equal_ways_look_equal():
    direct = (Step("transpose", (1, 0)), Step("reshape", (1, 5, 4)))
    detour = (
        Step("reshape", (20,)),
        Step("reshape", (4, 5)),
        Step("transpose", (1, 0)),
        Step("reshape", (5, 1, 4)),
        Step("transpose", (2, 1, 0)),
        Step("transpose", (1, 2, 0)),
        Step("transpose", (0, 1, 2)),
    )
    first, second = (stack_layout((4, 5), steps).matrices for steps in (direct, detour))
    assert first == second
    assert first != stack_layout((4, 5), (Step("reshape", (1, 5, 4)),)).matrices
    assert (
        stack_layout((3, 4, 5), (Take(0, np.arange(3)), Step("reshape", (1, 4, 5)))).matrices.steps
        == ()
    )
