"""Data that do not fit are refused before anything is compiled."""

import numpy as np
import pytest
from small_training import train

from jaxcomp.experiments import networks


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train_indices": [[0.5]]}, TypeError, "train_indices must be integers, got float64"),
        ({"train_labels": [[0, 1]]}, ValueError, r"both be \(models, examples\).*\(1, 2\)"),
        ({"model_ids": [0]}, ValueError, "one row for each of the model_ids.* and 1 ids"),
        ({"model_ids": [3, 3]}, ValueError, r"model_ids must be different.*\[3, 3\]"),
        ({"weight_decay": [0.1]}, ValueError, "weight_decay must be one number .* of the 2 models"),
        ({"l1_penalty": [0.1, -1.0]}, ValueError, r"l1_penalty must be one .* \[0.1, -1.0\]"),
        ({"seed": -1}, ValueError, r"the seed integers in \[0, 2\^32\), got .* and -1"),
        ({"inputs": np.zeros((60, 8, 8))}, ValueError, r"inputs must be .* \(8, 8, 1\)"),
        (
            {"validation_inputs": np.zeros((10, 1))},
            ValueError,
            "validation_inputs must be at least",
        ),
        ({"validation_labels": [0, 1]}, ValueError, "one validation label for each validation in"),
        ({"config": networks.TrainingConfig(batch_size=19)}, ValueError, "batch of 19 examples is"),
        ({"inputs": np.zeros((40, 8, 8, 1))}, ValueError, "rows of the pool of 40 examples"),
        ({"train_labels": np.full((2, 18), 3)}, ValueError, "train_labels must be in 0 to 2"),
        ({"validation_labels": np.full(10, -1)}, ValueError, "validation_labels must be in 0 to 2"),
    ],
)
def test_bad_data_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        train(**changes)
