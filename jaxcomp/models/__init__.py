"""Networks to compress: the published ones, trained here, or a user's own as a pure function.

`build` describes a `Network`, `train` trains many of them at once. `nnx_predict_fn` and
`linen_predict_fn` turn a Flax model trained elsewhere into a pure function and its variables;
`freeze` keeps all but the weights that are compressed constant.
"""

from jaxcomp.models.adapter import (
    CrossEntropyLoss,
    Network,
    build,
    freeze,
    linen_predict_fn,
    nnx_predict_fn,
    predict_fn_of,
    reestimate_batch_statistics,
)
from jaxcomp.models.training import TrainedModels, TrainingConfig, train

__all__ = [
    "CrossEntropyLoss",
    "Network",
    "TrainedModels",
    "TrainingConfig",
    "build",
    "freeze",
    "linen_predict_fn",
    "nnx_predict_fn",
    "predict_fn_of",
    "reestimate_batch_statistics",
    "train",
]
