"""The published networks and their training.

`build` describes a `Network`, `train` trains many of them at once.
"""

from jaxcomp.experiments.networks.network import Network, build
from jaxcomp.experiments.networks.training import TrainedModels, TrainingConfig, train

__all__ = ["Network", "TrainedModels", "TrainingConfig", "build", "train"]
