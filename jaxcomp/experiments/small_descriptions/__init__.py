"""Networks of a few hundred bytes, and the certificates that these bytes give.

Features written down by hand, and one linear layer of few levels, trained under a price for its
bits and refined by its own certificate. `run` trains, `Network` is the `predict_fn` that certifies
the files, `preset` and `DescriptionConfig` hold the settings.
"""

from typing import TYPE_CHECKING

from jaxcomp.experiments import lazily

if TYPE_CHECKING:
    from jaxcomp.experiments.small_descriptions.architectures import Network, network
    from jaxcomp.experiments.small_descriptions.config import DescriptionConfig, preset
    from jaxcomp.experiments.small_descriptions.experiment import run
    from jaxcomp.experiments.small_descriptions.features import Features, features_of
    from jaxcomp.experiments.small_descriptions.results import DescriptionResult

__all__ = [
    "DescriptionConfig",
    "DescriptionResult",
    "Features",
    "Network",
    "features_of",
    "network",
    "preset",
    "run",
]

__getattr__ = lazily.members(
    __name__,
    {
        "DescriptionConfig": "config",
        "DescriptionResult": "results",
        "Features": "features",
        "Network": "architectures",
        "features_of": "features",
        "network": "architectures",
        "preset": "config",
        "run": "experiment",
    },
)
