"""The study of linear regression: settings, table, claims and pictures on the simulator.

`run` draws data sets by the thousand and compresses their solutions; it returns a `StudyResult`.
`preset` and `StudyConfig` hold the settings.
"""

from typing import TYPE_CHECKING

from jaxcomp.experiments import lazily

if TYPE_CHECKING:
    from jaxcomp.experiments.linear_regression.claims import Claim
    from jaxcomp.experiments.linear_regression.config import StudyConfig, preset
    from jaxcomp.experiments.linear_regression.experiment import run
    from jaxcomp.experiments.linear_regression.results import StudyResult

__all__ = ["Claim", "StudyConfig", "StudyResult", "preset", "run"]

__getattr__ = lazily.members(
    __name__,
    {
        "Claim": "claims",
        "StudyConfig": "config",
        "StudyResult": "results",
        "preset": "config",
        "run": "experiment",
    },
)
