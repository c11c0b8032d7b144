"""How the task of a network is spoken of: its quantities, and its words in reports and pictures.

Plain values, which the manifest of a run holds: a report is written, and a picture drawn, of a task
whose code is not at hand.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Quantity(NamedTuple):
    """What a claim is about, and how its numbers are written."""

    name: str
    """Of claims, and after `validation_` of columns: `loss`, `loss_tempered`, `accuracy`."""
    label: str
    """In sentences, behind "the test"."""
    is_higher_better: bool = False
    """Such a quantity lies between 0 and 1."""
    deficit: str = ""
    """What is left to gain, if more is better: the error rate. Else the quantity itself."""
    factor: float = 1.0
    """From the table's unit to the one shown."""
    decimals: int | None = 4
    """Of numbers shown; None for four significant digits."""
    unit: str = ""
    """Behind a value."""
    difference_unit: str = ""
    """Behind a difference."""

    @property
    def claimed_sign(self) -> int:
        """Of an improvement."""
        return 1 if self.is_higher_better else -1

    def shown(self, value: float) -> str:
        """Write a value, without its unit."""
        number = self.factor * value
        return f"{number:.4g}" if self.decimals is None else f"{number:.{self.decimals}f}"


LOSS = Quantity("loss", "loss", difference_unit=" nats")
TEMPERED = Quantity("loss_tempered", "loss", difference_unit=" nats")
ACCURACY = Quantity(
    "accuracy",
    "accuracy",
    is_higher_better=True,
    deficit="error rate",
    factor=100.0,
    decimals=2,
    unit=" %",
    difference_unit=" points",
)


class TaskWords(NamedTuple):
    """How a task is spoken of; the defaults are those of a classifier."""

    name: str = "classification"
    score: Quantity = ACCURACY
    """Beside the loss: how good a network is, whatever it says of its own certainty."""
    per: str = "example"
    """What a loss is a mean over."""
    calibration: str = "temperature"
    """The number fitted on the validation sample; a column of the table."""
    fitted: str = "a temperature"
    """The same in "with ... for both networks"."""
    tempered: str = "tempered"
    """A loss with that number."""
    control: str = "temperature"
    """The control that changes nothing but outputs."""
    control_words: str = "one temperature"
    """The same in a sentence."""
    control_is_calibration: bool = True
    """Whether the control is the fitted number alone."""
    loss_scale: float | None = None
    """Nats that a change of the loss is compared with; None for the original's loss."""
    relative_to: str = ""
    """What a share of `loss_scale` means, behind a percentage."""
    explanation: str = (
        "Compressing an over-confident network often lowers its raw test loss, because it shrinks "
        "the logits. That is calibration: one softmax temperature gives it without compressing "
        "anything. Tempered: with the best temperature for each network. A lower tempered loss or "
        "a higher accuracy is a better network; a lower raw loss alone is not."
    )
    """What the report says of raw and tempered losses."""
    short_explanation: str = (
        "Tempered: after one softmax temperature for each network,\nwhich repairs over-confidence "
        "and compresses nothing."
    )
    """What the picture says of them, in two lines."""

    @property
    def quantities(self) -> tuple[Quantity, Quantity, Quantity]:
        """All that claims are about."""
        return LOSS, TEMPERED, self.score

    def quantity(self, name: str) -> Quantity:
        """Return the quantity of a name.

        Raises:
            ValueError: if the task has none of that name.
        """
        for quantity in self.quantities:
            if quantity.name == name:
                return quantity
        known = ", ".join(quantity.name for quantity in self.quantities)
        raise ValueError(f"{self.name} has no quantity {name!r}: choose one of {known}.")

    def scale(self, quantity: Quantity, original: float) -> float:
        """Return what a change is compared with: 3 % of it is a change that matters.

        Args:
            quantity: which.
            original: its mean over the original networks.
        """
        if quantity is not self.score and quantity.name != self.score.name:
            return original if self.loss_scale is None else self.loss_scale
        return 1 - original if quantity.is_higher_better else original


CLASSIFICATION = TaskWords()


def words_from_dict(plain: Mapping[str, Any] | None) -> TaskWords:
    """Return words from what a manifest holds; those of a classifier if it holds none.

    Raises:
        ValueError: if they are not those of this version.
    """
    if plain is None:
        return CLASSIFICATION
    try:
        return TaskWords(**{**plain, "score": Quantity(**plain["score"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"the words of a stored task lack {error}.") from error


def words_to_dict(words: TaskWords) -> dict[str, Any]:
    """Return words as plain values; `words_from_dict` reads them back."""
    return {**words._asdict(), "score": words.score._asdict()}
