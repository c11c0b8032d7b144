"""Examples told apart, and classes of outputs."""

import jax
import numpy as np

from jaxcomp.certificates.sample import Classifier, labelled_sample


def test_same_input_with_another_label_is_another_example():
    inputs = np.array([[0.0, 1], [0, 1], [0, 1], [1, 0]])
    sample = labelled_sample((inputs, np.array([0, 1, 0, 0])), "train").distinct()
    assert sample.labels is not None
    assert sample.labels.tolist() == [0, 1, 0]
    assert len(sample.unlabelled().distinct()) == 2


def test_examples_are_told_apart_as_the_network_sees_them():
    inputs, labels = np.linspace(0, 1, 5)[:, None], np.zeros(5, int)
    one = labelled_sample((inputs, labels), "train")
    other = labelled_sample((inputs.astype(np.float32), labels), "held_out")
    assert one.names == other.names


def test_what_is_no_number_is_no_class():
    outputs = np.float32(
        [[0, 2.0, 1], [np.nan, 1, 0], [-np.inf, 0, 0], [np.inf, 0, 0], [-np.inf] * 3]
    )
    found = jax.jit(Classifier(lambda params, inputs: outputs).classes_of)({}, 0)
    assert found.tolist() == [1, -1, 1, -1, -1]


def test_more_than_one_batch():
    inputs = np.arange(2_345)
    sample = labelled_sample((inputs, inputs % 7), "train")
    found = Classifier(lambda params, inputs: inputs % params).predictions(7, sample)
    assert np.array_equal(found, inputs % 7)
