"""How far a training is, and what must not get lost."""

import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from jaxcomp.experiments.networks.training_data import Sample

ProgressFn: TypeAlias = Callable[[int, int, str], None]
"""`(steps done, steps in all, message) -> None`."""


class Report(NamedTuple):
    """Says how far a group is, in steps of all groups."""

    progress: ProgressFn | None
    group: Sample
    done_before: int
    total: int

    @property
    def models(self) -> str:
        """The models of the group, in words."""
        ids = list(dict.fromkeys(self.group.model_ids))
        return f"model{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids))}"

    def __call__(self, done: int, message: str) -> None:
        """Say how many steps of the group are done."""
        if self.progress is not None:
            self.progress(self.done_before + done, self.total, message)

    def warn(self, message: str) -> None:
        """Say something that must not get lost when nobody follows the progress."""
        if self.progress is None:
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        else:
            self(0, message)
