"""What the settings of the study stand for."""

import numpy as np
import pytest

from jaxcomp.experiments.linear_regression.config import StudyConfig, preset
from jaxcomp.experiments.linear_regression.grid import compressors_of, problem_of, rates_nats_of

CONFIG = StudyConfig(dim=4, num_examples=(14,), correlation=0.6, num_rates=3, max_bits=2.0)


def test_the_problem_has_the_signal_and_the_correlation_that_were_asked_for():
    problem = problem_of(CONFIG)
    assert float(problem.covariance[0, 2]) == pytest.approx(0.36)
    assert float(problem.setting(14).signal) == pytest.approx(CONFIG.signal)


def test_rates_are_those_of_all_weights_in_nats():
    np.testing.assert_allclose(rates_nats_of(CONFIG), 4 * np.log(2) * np.array([0.0, 1.0, 2.0]))


def test_adaptive_codebooks_may_be_left_out():
    own = preset(adaptive=False)
    assert compressors_of(own) == compressors_of(CONFIG)[: len(compressors_of(own))]
    assert len(compressors_of(own)) < len(compressors_of(CONFIG))


@pytest.mark.parametrize(("datasets", "expected"), [(10_000, 4000), (1000, 1000), (60, 100)])
def test_few_data_sets_are_few_for_the_information_too(datasets, expected):
    assert preset(num_datasets=datasets).information_datasets == expected
    assert preset(num_datasets=datasets, information_datasets=500).information_datasets == 500
