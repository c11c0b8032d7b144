"""What the tensors of a tree need of a limit in bytes: the real bytes of the file, or of them."""

from collections.abc import Iterable, Mapping

from jaxcomp.coding.streams import Effort
from jaxcomp.compressed.budgets import Budget, budget_of
from jaxcomp.compressed.files import FileSizes
from jaxcomp.compressed.sections import Sections
from jaxcomp.compressed.selected import Selected, Stored

Given = Mapping[str, float | None]
"""The budgets by name, None for those that were not given."""


MOST_WEIGHTS_OF_BEST = 1_000_000
"""Above, budgets count by quick codes: a choice tries several files, the best codes take long."""


class Spending:
    """Bits that compressed tensors take from a budget, as the file has them.

    Args:
        selected: the tree taken apart.
        given: the budgets by name; at most one.
        effort: with which the file will be written; None for that of `save`, where there are few
            weights, and else for quick codes, which the best are never longer than.
        sections: where the codes of tensors lie; None to forget them.

    Attributes:
        budget: in bits of the tensors alone, or in distortion; None if none was given.
        sizes: of files.
    """

    def __init__(
        self,
        selected: Selected,
        given: Given,
        effort: Effort | None = None,
        sections: Sections | None = None,
    ) -> None:
        self._selected = selected
        self._is_of_file = any(given.get(name) is not None for name in ("size_bytes", "ratio"))
        if effort is None and selected.num_weights > MOST_WEIGHTS_OF_BEST:
            effort = "fast"
        self.sizes = FileSizes(effort, sections)
        self._rest = self._rest_of({}) if self._is_of_file else 0
        self.budget: Budget | None = budget_of(
            dict(given),
            num_weights=selected.num_weights,
            original_bits=selected.original_bits,
            kept_bits=8 * self._rest,
        )

    def of_leaf(self, stored: Stored) -> float:
        """Return the bits of one tensor."""
        return 8.0 * self.sizes.of_leaf(*stored)

    def of_all(self, stored: Mapping[int, Stored]) -> float:
        """Return the bits of all tensors, and what the rest of the file has grown by.

        Args:
            stored: every tensor, by number of the leaf; and what was kept before, if it has become
                another one.
        """
        own = [stored[number] for number in self._selected.tensors]
        total = sum(self.of_leaf(one) for one in own)
        return total + (8.0 * (self._rest_of(stored) - self._rest) if self._is_of_file else 0.0)

    def _rest_of(self, stored: Mapping[int, Stored]) -> int:
        """Return the bytes of a file that are in no section of a selected tensor."""
        own: Iterable[Stored] = (
            stored[number] for number in self._selected.tensors if number in stored
        )
        whole = self.sizes.of_tree(self._selected.tree(stored))
        return whole - sum(self.sizes.of_leaf(*one) for one in own)
