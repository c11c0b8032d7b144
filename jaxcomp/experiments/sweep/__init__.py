"""Sweeps over compression rates: train or bring a network, compress it, say what is real.

`run` trains the project's own networks and sweeps them, `evaluate` takes a network trained
elsewhere; both return a `SweepResult`. `preset` and `SweepConfig` hold the settings.
"""

from typing import TYPE_CHECKING

from jaxcomp.experiments import lazily

if TYPE_CHECKING:
    from jaxcomp.experiments.sweep.claims import Claim
    from jaxcomp.experiments.sweep.config import SweepConfig, preset
    from jaxcomp.experiments.sweep.experiment import evaluate, run, run_in_team
    from jaxcomp.experiments.sweep.results import SweepResult

__all__ = ["Claim", "SweepConfig", "SweepResult", "evaluate", "preset", "run", "run_in_team"]

__getattr__ = lazily.members(
    __name__,
    {
        "Claim": "claims",
        "SweepConfig": "config",
        "SweepResult": "results",
        "evaluate": "experiment",
        "preset": "config",
        "run": "experiment",
        "run_in_team": "experiment",
    },
)
