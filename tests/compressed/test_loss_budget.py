"""What is said of functions of the user that do not fit the weights or the batches."""

import jax
import numpy as np
import pytest

from jaxcomp.compressed import CalibrationData

PARAMS = {"w": np.ones((3, 2), np.float32)}
BATCHES = [(np.ones((4, 3), np.float32), np.zeros(4, np.int32))]


def predict(params, inputs):
    return inputs @ params["w"]


def of_one(outputs, target):
    return -jax.nn.log_softmax(outputs)[target]


def of_many(outputs, target):
    return -jax.nn.log_softmax(outputs)[:, target]


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", of_one])
def test_functions_that_fit(loss):
    CalibrationData(predict, loss, BATCHES).check(PARAMS)


@pytest.mark.parametrize(
    ("predict_fn", "loss", "message"),
    [
        (lambda p, x: x @ p["v"], of_one, r"predict_fn.* fails on the first batch: KeyError: 'v'"),
        (predict, of_many, r"loss.* fails on the first batch: IndexError.*of one example"),
        (predict, lambda outputs, _: outputs, r"one number for .* not an array of shape \(2,\)"),
    ],
)
def test_functions_that_do_not_fit(predict_fn, loss, message):
    with pytest.raises(ValueError, match=message):
        CalibrationData(predict_fn, loss, BATCHES).check(PARAMS)
