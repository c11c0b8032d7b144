"""Networks trained for their files: bytes against errors at prices of a bit, or of given sizes.

`run` trains, `preset` and `TrainSmallConfig` hold the settings, `predict_fn` is the network that
the files hold.
"""

from typing import TYPE_CHECKING

from jaxcomp.experiments import lazily

if TYPE_CHECKING:
    from jaxcomp.experiments.train_small.config import TrainSmallConfig, preset
    from jaxcomp.experiments.train_small.experiment import run
    from jaxcomp.experiments.train_small.networks import predict_fn
    from jaxcomp.experiments.train_small.results import TrainSmallResult

__all__ = ["TrainSmallConfig", "TrainSmallResult", "predict_fn", "preset", "run"]

__getattr__ = lazily.members(
    __name__,
    {
        "TrainSmallConfig": "config",
        "TrainSmallResult": "results",
        "predict_fn": "networks",
        "preset": "config",
        "run": "experiment",
    },
)
