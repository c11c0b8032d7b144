"""Sweeps over compression rates: train or bring a network, compress it, say what is real.

`run` trains the project's own networks and sweeps them, `evaluate` takes a network trained
elsewhere; both return a `SweepResult`. `preset` and `SweepConfig` hold the settings.
"""

from jaxcomp.experiments.sweep.claims import Claim
from jaxcomp.experiments.sweep.config import SweepConfig, preset
from jaxcomp.experiments.sweep.results import SweepResult
from jaxcomp.experiments.sweep.run import evaluate, run

__all__ = ["Claim", "SweepConfig", "SweepResult", "evaluate", "preset", "run"]
