"""Networks to compress: the published ones, trained here, or a user's own as a pure function.

`build` describes a `Network`, `train` trains many of them at once. `nnx_predict_fn` and
`linen_predict_fn` turn a Flax model trained elsewhere into a pure function and its variables.
"""

from jaxcomp.models.adapter import (
    Network,
    build,
    linen_predict_fn,
    nnx_predict_fn,
    reestimate_batch_statistics,
)
from jaxcomp.models.training import TrainedModels, TrainingConfig, train

__all__ = [
    "Network",
    "TrainedModels",
    "TrainingConfig",
    "build",
    "linen_predict_fn",
    "nnx_predict_fn",
    "reestimate_batch_statistics",
    "train",
]
