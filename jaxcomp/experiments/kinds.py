"""What kinds of runs there are: the command of each, its settings, and how its results are read.

Nothing heavy is imported before a run is read: a list of runs needs the defaults of settings alone.
"""

import importlib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """One kind of run.

    Attributes:
        command: that makes such runs.
        settings: the class of its settings, as `module:name` below this package.
        result: likewise the class of its results, which has `load`, `save` and `print_report`.
    """

    command: str
    settings: str
    result: str

    def defaults(self) -> dict[str, Any]:
        """Settings that have a default, as a manifest tells them."""
        return {
            field.name: list(field.default) if isinstance(field.default, tuple) else field.default
            for field in fields(_named(self.settings))
            if field.default is not MISSING
        }


KINDS = {
    "sweep": Kind("sweep", "sweep.config:SweepConfig", "sweep.results:SweepResult"),
    "regularization run": Kind(
        "regularization",
        "regularization.config:RegularizationConfig",
        "regularization.results:RegularizationResult",
    ),
    "study": Kind(
        "linear-regression",
        "linear_regression.config:StudyConfig",
        "linear_regression.results:StudyResult",
    ),
    "small descriptions": Kind(
        "small-descriptions",
        "small_descriptions.config:DescriptionConfig",
        "small_descriptions.results:DescriptionResult",
    ),
    "training for the file": Kind(
        "train-small",
        "train_small.config:TrainSmallConfig",
        "train_small.results:TrainSmallResult",
    ),
}
"""By what a manifest calls them, the `NOUN` of their results."""


def load(directory: Path) -> Any:
    """Return the result of a finished run, of whatever kind it is.

    Raises:
        ValueError: one sentence, if the directory holds no finished run, one of an unknown kind, or
            a file is damaged.
    """
    from jaxcomp.experiments.manifest import read_manifest  # with NumPy, which --help does without

    name = read_manifest(directory, "run").get("kind")
    if name not in KINDS:
        raise ValueError(
            f"{directory} holds a {name}, which this version cannot draw; name the directory of "
            f"one of these: {', '.join(KINDS)}."
        )
    return _named(KINDS[name].result).load(directory)


def _named(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(f"jaxcomp.experiments.{module}"), name)
