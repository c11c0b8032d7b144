"""Sweeps over compression rates: train or bring networks, compress them, say what is real.

`run` trains the project's own networks and sweeps them, `evaluate` takes `Networks` trained
elsewhere with their `Data`, for `Classification`, `Regression`, `Tokens` or a `Task` of your own,
in the ways of a `Grid`; both return a `SweepResult`. `preset` and `SweepConfig` hold the settings
of `run`.
"""

from typing import TYPE_CHECKING

from jaxcomp.experiments import lazily

if TYPE_CHECKING:
    from jaxcomp.experiments.sweep.claims import Claim
    from jaxcomp.experiments.sweep.config import SweepConfig, preset
    from jaxcomp.experiments.sweep.experiment import evaluate, run, run_in_team
    from jaxcomp.experiments.sweep.handed_in import Data, FittedControl, Grid, Networks
    from jaxcomp.experiments.sweep.results import SweepResult
    from jaxcomp.experiments.sweep.task_words import Quantity, TaskWords
    from jaxcomp.experiments.sweep.tasks import Classification, Regression, Task, Tokens

__all__ = [
    "Claim",
    "Classification",
    "Data",
    "FittedControl",
    "Grid",
    "Networks",
    "Quantity",
    "Regression",
    "SweepConfig",
    "SweepResult",
    "Task",
    "TaskWords",
    "Tokens",
    "evaluate",
    "preset",
    "run",
    "run_in_team",
]

__getattr__ = lazily.members(
    __name__,
    {
        "Claim": "claims",
        "Classification": "tasks",
        "Data": "handed_in",
        "FittedControl": "handed_in",
        "Grid": "handed_in",
        "Networks": "handed_in",
        "Quantity": "task_words",
        "Regression": "tasks",
        "SweepConfig": "config",
        "SweepResult": "results",
        "Task": "tasks",
        "TaskWords": "task_words",
        "Tokens": "tasks",
        "evaluate": "experiment",
        "preset": "config",
        "run": "experiment",
        "run_in_team": "experiment",
    },
)
