"""What a network is for: its loss, its calibration, its score, and the words for them.

A *task* says how outputs and targets become the numbers of a sweep. Its loss is that of one
example, in nats, and takes a *calibration*: one number for each network, fitted on the validation
sample, that changes what the network says of its own certainty (the softmax temperature of a
classifier, the variance of a regression). Raw is the loss with the calibration that a network
brings, tempered that with the one fitted to it after compression.

`Classification`, `Regression` and `Tokens` are tasks; another is a frozen dataclass that inherits
from `Task`. Axes: `n` examples, `c` classes or outputs, `l` tokens of a sequence, any number of
leading axes (networks, variants), each with a calibration of its own.

Sources: Guo, Pleiss, Sun and Weinberger, arXiv:1706.04599, for temperatures; Cochran, "Sampling
techniques" (1977), section 6.4, for the linearised ratio of sums.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcomp.adapters import CrossEntropyLoss
from jaxcomp.curvature.output_losses import Loss
from jaxcomp.evaluation import metrics
from jaxcomp.evaluation.calibration import fit_temperature
from jaxcomp.experiments.sweep.task_words import CLASSIFICATION, Quantity, TaskWords
from jaxcomp.types import LossFn, Params, PredictFn

_PARTS = ("train", "validation", "test")
PADDING = -1
"""The target of a token that does not count."""


@dataclass(frozen=True)
class Task(ABC):
    """What a network is for; a subclass is a frozen dataclass, hashable and without arrays.

    A task needs `words`, `loss` and `score`; `calibrate` if it has a calibration.

    Attributes:
        words: how it is spoken of.
        brings_calibration: whether the raw loss has a calibration of the original's own.
    """

    words: ClassVar[TaskWords]
    brings_calibration: ClassVar[bool] = False

    @abstractmethod
    def loss(
        self, outputs: Float[Array, "*shape"], targets: Array, calibration: Array
    ) -> Float[Array, "*leading n"]:
        """Return the loss of every example in nats.

        Args:
            outputs: of the network, with examples behind the leading axes.
            targets: `(n, ...)`.
            calibration: `(*leading)`.
        """

    @abstractmethod
    def score(self, outputs: Float[Array, "*shape"], targets: Array) -> Float[Array, "*leading n"]:
        """Return of every example the quantity `words.score`."""

    def calibrate(
        self, outputs: Float[Array, "*shape"], targets: Array
    ) -> Float[Array, "*leading"]:
        """Return the calibration with the least mean loss; 1 if the task has none."""
        del targets
        return jnp.ones(outputs.shape[: outputs.ndim - self.num_axes])

    def own_calibration(
        self, outputs: Float[Array, "n ..."], targets: Array
    ) -> Float[Array, ""] | float:
        """Return the calibration that an original network brings: its raw loss has it.

        Called where `brings_calibration` says so; it is 1 elsewhere.

        Args:
            outputs: of the original, on the validation sample.
            targets: of that.
        """
        del outputs, targets
        return 1.0

    def controlled(
        self,
        outputs: Float[np.ndarray, "N ..."],
        validation: Float[np.ndarray, "n ..."],
        targets: np.ndarray,
    ) -> Float[np.ndarray, "N ..."]:
        """Return outputs after the control that changes nothing else.

        Args:
            outputs: of the original, on all parts.
            validation: those on the validation sample, which the control is fitted on.
            targets: of that.
        """
        del validation, targets
        return outputs

    def weights(self, targets: Array) -> Float[Array, " n"] | None:
        """Return what examples count in a mean, 1 on average; None for all alike."""
        del targets
        return None

    @property
    def num_axes(self) -> int:
        """Axes of outputs, that of the examples among them."""
        return 2

    # --- What is handed in -----------------------------------------------------------------------

    def targets_of(self, part: Sequence[Any], name: str) -> np.ndarray:
        """Return the targets of a part as one array of examples.

        Args:
            part: what follows the inputs: targets, and whatever else the task takes.
            name: of the part.

        Raises:
            TypeError: if their dtype is not that of the task.
            ValueError: if there is too much, or shapes do not fit.
        """
        if len(part) != 1:
            raise ValueError(
                f"{name} must be (inputs, targets) for {self.words.name}, got {1 + len(part)} "
                "parts."
            )
        return np.asarray(part[0])

    def check(self, shape: tuple[int, ...], targets: Sequence[np.ndarray]) -> None:
        """Refuse outputs that are none of this task, or targets that they cannot have.

        Args:
            shape: of the outputs for one example, with the axis of examples.
            targets: of the three parts.

        Raises:
            ValueError: in one sentence.
        """
        del targets
        if len(shape) != self.num_axes or shape[0] != 1:
            raise ValueError(
                f"predict_fn must return outputs with {self.num_axes} axes, examples first, for "
                f"{self.words.name}, got {shape} for one example."
            )

    # --- Curvature -------------------------------------------------------------------------------

    @property
    def output_loss(self) -> Loss:
        """The loss that `jaxcomp.curvature.GaussNewton` takes, at the calibration 1."""
        return _LossOfExample(self)

    def curvature_factor(self, calibration: float, width: int) -> float:
        """Return what the curvature of `output_loss` is multiplied by for another calibration.

        Args:
            calibration: of the network.
            width: length of the last axis of outputs.
        """
        del calibration, width
        return 1.0

    def curvature_targets(self, targets: np.ndarray) -> Any:
        """Return targets as `output_loss` takes them."""
        return targets

    def loss_fn(self, predict_fn: PredictFn) -> LossFn:
        """Return the mean loss of a batch, at the calibration 1, as a function of weights."""
        return _MeanLoss(self, predict_fn)

    # --- Numbers ---------------------------------------------------------------------------------

    def mean(self, values: Float[Array, "*leading n"], targets: Array) -> Float[Array, "*leading"]:
        """Return the mean over examples, by what they count."""
        weights = self.weights(targets)
        return jnp.mean(values if weights is None else values * weights, axis=-1)

    def scores(
        self, raw: Float[Array, ""], outputs: Sequence[Array], targets: Sequence[Array]
    ) -> dict[str, Float[Array, " C"]]:
        """Return the numbers of a stack of networks, by column of the table.

        Args:
            raw: the calibration that the networks bring.
            outputs: of training, validation and test sample, `(C, n, ...)` each.
            targets: of the three.
        """
        calibration = self.calibrate(outputs[1], targets[1])
        own = jnp.broadcast_to(raw, calibration.shape).astype(calibration.dtype)
        score = self.words.score.name
        found = {}
        for part, out, wanted in zip(_PARTS, outputs, targets, strict=True):
            found[f"{part}_loss"] = self.mean(self.loss(out, wanted, own), wanted)
            tempered = self.mean(self.loss(out, wanted, calibration), wanted)
            found[f"{part}_loss_tempered"] = tempered
            name = score if part == "test" else f"{part}_{score}"
            found[name] = self.mean(self.score(out, wanted), wanted)
        return {**found, self.words.calibration: calibration}

    def example_values(
        self, outputs: Float[Array, "n ..."], targets: Array, raw: Array, calibration: Array
    ) -> tuple[Array, Array, Array]:
        """Return raw loss, tempered loss and score of every example of one network.

        Where examples count differently, the mean is a ratio of two sums, and these are its
        linearised values: their mean is the weighted one, and their spread gives its interval.
        """
        weights = self.weights(targets)

        def linearised(values: Array) -> Array:
            if weights is None:
                return values
            ratio = jnp.mean(weights * values)
            return ratio + weights * (values - ratio)

        return (
            linearised(self.loss(outputs, targets, raw)),
            linearised(self.loss(outputs, targets, calibration)),
            linearised(self.score(outputs, targets)),
        )


@dataclass(frozen=True)
class _LossOfExample:
    """A task's loss of the outputs and the target of one example."""

    task: Task

    def __call__(self, outputs: Array, target: Any) -> Float[Array, ""]:
        return self.task.loss(outputs[None], jnp.asarray(target)[None], jnp.ones(()))[0]


@dataclass(frozen=True)
class _MeanLoss:
    """A task's mean loss as a function of weights and batch; examples count alike."""

    task: Task
    predict_fn: PredictFn

    def __call__(self, params: Params, batch: tuple[Any, Any]) -> Float[Array, ""]:
        inputs, targets = batch
        return jnp.mean(self.task.loss(self.predict_fn(params, inputs), targets, jnp.ones(())))


@dataclass(frozen=True)
class Classification(Task):
    """Logits `(batch, classes)`, integer labels `(batch,)`: cross-entropy and accuracy."""

    words: ClassVar[TaskWords] = CLASSIFICATION

    def loss(self, outputs: Array, targets: Array, calibration: Array) -> Array:
        return metrics.cross_entropy(outputs / jnp.asarray(calibration)[..., None, None], targets)

    def score(self, outputs: Array, targets: Array) -> Array:
        return metrics.correct(outputs, targets)

    def calibrate(self, outputs: Array, targets: Array) -> Array:
        return fit_temperature(outputs, targets)

    def targets_of(self, part: Sequence[Any], name: str) -> Int[np.ndarray, " n"]:
        labels = super().targets_of(part, name)
        if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
            raise TypeError(
                f"{name} labels must be a vector of integers, got {labels.dtype} {labels.shape}."
            )
        return labels.astype(np.int32)

    def check(self, shape: tuple[int, ...], targets: Sequence[np.ndarray]) -> None:
        if len(shape) != 2 or shape[0] != 1:
            raise ValueError(
                f"predict_fn must return logits (batch, classes), got {shape} for a batch of 1."
            )
        _check_labels(shape[-1], targets, "labels", "classes")

    @property
    def output_loss(self) -> Loss:
        return "softmax_cross_entropy"

    def loss_fn(self, predict_fn: PredictFn) -> LossFn:
        return CrossEntropyLoss(predict_fn)

    def scores(
        self, raw: Float[Array, ""], outputs: Sequence[Array], targets: Sequence[Array]
    ) -> dict[str, Float[Array, " C"]]:
        """The same, with Brier score and calibration error; raw logits are taken as they are."""
        del raw
        temperature = fit_temperature(outputs[1], targets[1])
        # All parts end to end, raw and tempered side by side: one program for what they share.
        logits, labels = jnp.concatenate(outputs, axis=1), jnp.concatenate(targets)
        both = jnp.stack([logits, logits / temperature[:, None, None]])
        losses, is_right = metrics.cross_entropy(both, labels), metrics.correct(logits, labels)
        scores = {self.words.calibration: temperature}
        ends = np.cumsum([len(own) for own in targets])
        for name, end, own in zip(_PARTS, ends, targets, strict=True):
            place = slice(end - len(own), end)
            raw_loss, tempered = jnp.mean(losses[..., place], axis=-1)
            scores |= {f"{name}_loss": raw_loss, f"{name}_loss_tempered": tempered}
            accuracy = "accuracy" if name == "test" else f"{name}_accuracy"
            scores[accuracy] = jnp.mean(is_right[:, place], axis=-1)
        on_test, test_labels = both[..., ends[1] :, :], targets[2]
        brier = jnp.mean(metrics.brier_score(on_test, test_labels), axis=-1)
        error = metrics.expected_calibration_error(on_test, test_labels)
        for name, (own, tempered) in {"brier_score": brier, "calibration_error": error}.items():
            scores |= {name: own, f"{name}_tempered": tempered}
        return scores


@dataclass(frozen=True)
class Regression(Task):
    """Outputs and targets `(batch, width)`: a Gaussian likelihood, its variance, squared error.

    One variance for all outputs, so that they should be in units that are alike. The loss is
    `log(2 pi v) / 2 + e / (2 v)` with the squared error e, a mean over outputs: in nats for each
    output. Raw: v as the original has it, its mean squared error on the validation sample.
    Tempered: v fitted to each network there. A change of 1 % of the squared error is one of 0.005
    nats, so losses are compared with half a nat. The control outside compression's frame shrinks
    the outputs towards the mean of the targets by one factor, fitted on the validation sample.
    """

    brings_calibration: ClassVar[bool] = True
    words: ClassVar[TaskWords] = TaskWords(
        name="regression",
        score=Quantity("squared_error", "mean squared error", decimals=None),
        per="output",
        calibration="variance",
        fitted="the best variance",
        tempered="calibrated",
        control="shrinkage",
        control_words="one factor on the outputs",
        control_is_calibration=False,
        loss_scale=0.5,
        relative_to=" in squared error",
        explanation=(
            "The loss is that of a Gaussian around the outputs. Raw: with the variance of the "
            "original network. Calibrated: with the best variance for each network, so that its "
            "loss says no more than its squared error. A raw loss that is higher than the "
            "calibrated one is that of a network which is surer of its outputs than it should be. "
            "Both variances are fitted on the validation sample."
        ),
        short_explanation=(
            "Calibrated: with the best variance of a Gaussian\naround the outputs for each "
            "network, in place of the original's."
        ),
    )

    def loss(self, outputs: Array, targets: Array, calibration: Array) -> Array:
        variance = jnp.asarray(calibration)[..., None]
        error = self.score(outputs, targets)
        return 0.5 * (jnp.log(2 * jnp.pi * variance) + error / variance)

    def score(self, outputs: Array, targets: Array) -> Array:
        return jnp.mean(jnp.square(outputs - targets), axis=-1)

    def calibrate(self, outputs: Array, targets: Array) -> Array:
        # A network without any error would have an infinite likelihood.
        smallest = jnp.finfo(outputs.dtype).eps ** 2 * jnp.mean(jnp.square(targets))
        error = jnp.mean(self.score(outputs, targets), axis=-1)
        return jnp.maximum(error, smallest + jnp.finfo(outputs.dtype).tiny)

    def own_calibration(self, outputs: Array, targets: Array) -> Array:
        return self.calibrate(outputs, targets)

    def controlled(
        self, outputs: np.ndarray, validation: np.ndarray, targets: np.ndarray
    ) -> np.ndarray:
        centre = targets.mean(axis=0, dtype=np.float64)
        centred = validation - centre
        spread = np.sum(centred**2)
        factor = np.sum(centred * (targets - centre)) / spread if spread > 0 else 1.0
        return (centre + factor * (outputs - centre)).astype(outputs.dtype)

    def targets_of(self, part: Sequence[Any], name: str) -> Float[np.ndarray, "n c"]:
        targets = super().targets_of(part, name)
        if targets.dtype.kind not in "iuf" or targets.ndim not in (1, 2):
            raise TypeError(
                f"{name} targets must be numbers (examples,) or (examples, outputs), got "
                f"{targets.dtype} {targets.shape}."
            )
        if bad := int(np.sum(~np.isfinite(targets))):
            raise ValueError(f"{name} targets hold {bad} numbers that are NaN or infinite.")
        return targets.reshape(len(targets), -1).astype(np.float32)

    def check(self, shape: tuple[int, ...], targets: Sequence[np.ndarray]) -> None:
        for wanted in targets:
            if shape != (1, wanted.shape[-1]):
                raise ValueError(
                    f"predict_fn must return outputs (batch, {wanted.shape[-1]}), as many as there "
                    f"are targets of an example, got {shape} for a batch of 1."
                )

    @property
    def output_loss(self) -> Loss:
        return "squared_error"

    def curvature_factor(self, calibration: float, width: int) -> float:
        return 0.5 / (width * calibration)


@dataclass(frozen=True)
class Tokens(Task):
    """Logits `(batch, length, vocabulary)`, targets `(batch, length)`, and a mask of padding.

    The loss is the cross-entropy of a token, in nats, a mean over all tokens that the mask does not
    hide; one temperature for all of them. What is drawn anew in intervals is the sequence, not the
    token: tokens of one sequence depend on each other.
    """

    words: ClassVar[TaskWords] = TaskWords(
        name="tokens",
        score=CLASSIFICATION.score._replace(label="accuracy of tokens"),
        per="token",
    )

    def loss(self, outputs: Array, targets: Array, calibration: Array) -> Array:
        scale = jnp.asarray(calibration)[..., None, None, None]
        tokens = metrics.cross_entropy(outputs / scale, jnp.maximum(targets, 0))
        return self._over_tokens(tokens, targets)

    def score(self, outputs: Array, targets: Array) -> Array:
        return self._over_tokens(metrics.correct(outputs, jnp.maximum(targets, 0)), targets)

    def calibrate(self, outputs: Array, targets: Array) -> Array:
        # Logits that are alike say nothing of a temperature: so are those of hidden tokens.
        shown = jnp.where((targets >= 0)[..., None], outputs, 0)
        flat = shown.reshape(*outputs.shape[:-3], -1, outputs.shape[-1])
        return fit_temperature(flat, jnp.maximum(targets, 0).reshape(-1))

    def weights(self, targets: Array) -> Float[Array, " n"]:
        number = jnp.sum(targets >= 0, axis=-1)
        return number / jnp.mean(number)

    @property
    def num_axes(self) -> int:
        return 3

    def targets_of(self, part: Sequence[Any], name: str) -> Int[np.ndarray, "n l"]:
        if len(part) not in (1, 2):
            raise ValueError(
                f"{name} must be (inputs, targets) or (inputs, targets, mask) for tokens, got "
                f"{1 + len(part)} parts."
            )
        targets = np.asarray(part[0])
        if not np.issubdtype(targets.dtype, np.integer) or targets.ndim != 2:
            raise TypeError(
                f"{name} targets must be integers (sequences, length), got {targets.dtype} "
                f"{targets.shape}."
            )
        if len(part) == 1:
            mask = np.ones(targets.shape, bool)
        else:
            mask = np.asarray(part[1])
            if mask.shape != targets.shape or not np.isin(mask, (0, 1)).all():
                raise ValueError(
                    f"the mask of {name} must be true where a token counts, shaped like the "
                    f"targets {targets.shape}, got {mask.dtype} {mask.shape}."
                )
        mask = mask.astype(bool)
        hidden = int(np.sum(~mask.any(axis=1)))
        if hidden:
            raise ValueError(
                f"the mask hides every token of {hidden} of the {len(mask)} {name} sequences: "
                "leave them out."
            )
        if targets[mask].min() < 0:
            raise ValueError(
                f"{name} targets must not be negative where a token counts: hide padding by a mask."
            )
        return np.where(mask, targets, PADDING).astype(np.int32)

    def check(self, shape: tuple[int, ...], targets: Sequence[np.ndarray]) -> None:
        for wanted in targets:
            if len(shape) != 3 or shape[:2] != (1, wanted.shape[1]):
                raise ValueError(
                    f"predict_fn must return logits (batch, {wanted.shape[1]}, vocabulary), as "
                    f"long as the targets, got {shape} for a batch of 1."
                )
        _check_labels(shape[-1], [wanted[wanted >= 0] for wanted in targets], "targets", "tokens")

    @property
    def output_loss(self) -> Loss:
        return "softmax_cross_entropy"

    def curvature_targets(self, targets: np.ndarray) -> Any:
        return np.maximum(targets, 0), targets >= 0

    def _over_tokens(self, values: Array, targets: Array) -> Array:
        """Return the mean over the tokens of each sequence that count."""
        is_shown = targets >= 0
        total = jnp.sum(jnp.where(is_shown, values, 0), axis=-1)
        return total / jnp.maximum(jnp.sum(is_shown, axis=-1), 1)


@partial(jax.jit, static_argnames="task")
def scores_of(
    task: Task, raw: Float[Array, ""], outputs: Sequence[Array], targets: Sequence[Array]
) -> dict[str, Float[Array, " C"]]:
    """Return `Task.scores`, compiled."""
    return task.scores(raw, outputs, targets)


@partial(jax.jit, static_argnames="task")
def example_values_of(
    task: Task, outputs: Array, targets: Array, raw: Array, calibration: Array
) -> tuple[Array, Array, Array]:
    """Return `Task.example_values`, compiled."""
    return task.example_values(outputs, targets, raw, calibration)


@partial(jax.jit, static_argnames="task")
def own_calibration_of(task: Task, outputs: Array, targets: Array) -> Array:
    """Return `Task.own_calibration`, compiled."""
    return jnp.asarray(task.own_calibration(outputs, targets), jnp.result_type(float))


def _check_labels(num: int, targets: Sequence[np.ndarray], noun: str, kind: str) -> None:
    for name, own in zip(_PARTS, targets, strict=True):
        if own.min() < 0 or own.max() >= num:
            raise ValueError(
                f"{name} {noun} lie in [{own.min()}, {own.max()}] but the network has {num} "
                f"{kind}: {noun} must be 0 to {num - 1}."
            )
