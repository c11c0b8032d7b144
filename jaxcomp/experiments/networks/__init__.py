"""The published networks and their training.

`build` describes a `Network`, `train` trains many of them at once.
"""

from jaxcomp.experiments.networks.config import TrainingConfig
from jaxcomp.experiments.networks.network import Network, build
from jaxcomp.experiments.networks.training import TrainedModels, train
from jaxcomp.experiments.networks.training_data import TrainingData

__all__ = ["Network", "TrainedModels", "TrainingConfig", "TrainingData", "build", "train"]
