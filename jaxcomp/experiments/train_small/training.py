"""Networks of all seeds, first trained without a price, then from there at each price of a bit.

Every `CHECKPOINT_SECONDS` a training writes down where it stands, and goes on from there to the
same bits: where a run of steps is cut enters no number.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxcomp import storage
from jaxcomp.experiments.train_small.config import TrainSmallConfig
from jaxcomp.experiments.train_small.descent import (
    Images,
    Phase,
    Schedule,
    State,
    initial_state,
    mean_losses,
    run_steps,
)
from jaxcomp.experiments.train_small.networks import initial_params
from jaxcomp.training import Latents, initial_latents
from jaxcomp.types import Params

CHECKPOINT_SECONDS = 30.0
"""Least time between two checkpoints."""

_SEGMENT_SECONDS = 3.0
_FIRST_SEGMENT_STEPS = 4
_PRETRAINING_RATE = 1e-3
_FOR_THE_START = 1_000  # examples on which the loss before training is measured

ReportFn = Callable[[int, int, str], None]
"""`(done, total, text)`, steps."""


class _Training(NamedTuple):
    """One training: what it is called, its state at the start, and what shapes it."""

    name: str
    start: State
    phase: Phase
    learning_rate: float
    nats_per_bit: float
    epochs: int
    stream: int  # of orders and shifts


class Trainer:
    """Trains networks of one configuration, and keeps them.

    Args:
        config: settings.
        images: of training.
        num_classes: logits.
        folder: where networks and checkpoints are kept; None keeps nothing.
    """

    def __init__(
        self, config: TrainSmallConfig, images: Images, num_classes: int, folder: Path | None
    ) -> None:
        self._config = config
        self._labels = jnp.asarray(images.labels)
        width = ((0, 0), (config.shift, config.shift), (config.shift, config.shift), (0, 0))
        pixels = np.asarray(images.pixels)
        self._padded = jnp.asarray(np.pad(pixels, width))
        self._first = pixels[:_FOR_THE_START], np.asarray(images.labels[:_FOR_THE_START])
        self._shape = pixels.shape[1:]
        self._max_value = images.max_value
        self._num_classes = num_classes
        self._folder = folder

    def pretrained(self, report: ReportFn) -> Params:
        """Return networks that are trained without a price, seeds first.

        Raises:
            ValueError: if the loss of a network does not fall in the first epoch.
        """
        config = self._config
        keys = jax.vmap(jax.random.key)(config.seed * 1_009 + jnp.arange(config.models))
        params = jax.vmap(
            lambda key: initial_params(
                config.network, key, shape=self._shape, num_classes=self._num_classes
            )
        )(keys)
        training = _Training(
            "pretrained",
            initial_state(params),
            self._phase(is_priced=False),
            _PRETRAINING_RATE,
            0.0,
            config.pretraining_epochs,
            0,
        )
        return self._trained(training, report).trained

    def priced(self, params: Params, place: int, report: ReportFn) -> Latents:
        """Return latents that are trained from networks at one of the prices, seeds first."""
        config = self._config
        latents = jax.vmap(partial(initial_latents, select="*"))(params)
        training = _Training(
            f"trained{place:02d}",
            initial_state(latents),
            self._phase(is_priced=True),
            config.learning_rate,
            self.nats_per_bit(place),
            config.epochs,
            1,
        )
        return self._trained(training, report).trained

    def nats_per_bit(self, place: int) -> float:
        """Return what a bit costs beside the mean loss, at one of the prices."""
        return self._config.penalties[place] * math.log(2) / len(self._labels)

    def _phase(self, *, is_priced: bool) -> Phase:
        return Phase(self._config.network, is_priced, self._config.shift, self._max_value)

    def steps(self, epochs: int) -> int:
        """Return how many steps so many epochs have."""
        return epochs * (len(self._labels) // self._config.batch_size)

    def _trained(self, training: _Training, report: ReportFn) -> State:
        """Train, or go on, or read what is finished."""
        config, name = self._config, training.name
        per_epoch, total = self.steps(1), self.steps(training.epochs)
        state, done = self._checkpoint(training)
        keys = jax.vmap(jax.random.key)(
            config.seed * 1_009 + 500 * training.stream + 7 + jnp.arange(config.models)
        )
        schedule = Schedule(
            *(
                jnp.float32(number)
                for number in (
                    training.learning_rate,
                    training.nats_per_bit,
                    config.warm,
                    max(total, 1),
                )
            )
        )
        saved_at, num_next, is_compiled = time.monotonic(), _FIRST_SEGMENT_STEPS, False
        epoch, order = -1, None
        while done < total:
            if done // per_epoch != epoch:
                epoch = done // per_epoch
                order = jnp.asarray(self._order(training.stream, epoch))
            first = done - epoch * per_epoch
            stop = min(first + num_next, per_epoch)
            started = time.monotonic()
            state = run_steps(
                state,
                self._padded,
                self._labels,
                order,  # pyright: ignore[reportArgumentType]
                keys,
                schedule,
                *(jnp.int32(number) for number in (first, stop, epoch * per_epoch)),
                phase=training.phase,
            )
            losses = np.asarray(state.loss_sum) / stop  # waits for the device
            seconds = max(time.monotonic() - started, 1e-6)
            if is_compiled:
                num_next = max(1, round((stop - first) * _SEGMENT_SECONDS / seconds))
            is_compiled, done = True, epoch * per_epoch + stop
            self._check_finite(losses, name)
            if stop == per_epoch:
                if done == per_epoch and not training.phase.is_priced:
                    self._check_decrease(training.start.trained, state.trained)
                state = state._replace(loss_sum=jnp.zeros_like(state.loss_sum))
            if done == total or time.monotonic() - saved_at >= CHECKPOINT_SECONDS:
                self._keep(name, state, done)
                saved_at = time.monotonic()
            told = f"{name}: loss {losses.mean():.4f}"
            if training.phase.is_priced:
                told += f", {float(state.bits.mean()) / 8:,.0f} bytes"
            report(done, total, told)
        return state

    def _order(self, stream: int, epoch: int) -> Int[np.ndarray, "M S B"]:
        """Return which examples each step of an epoch has, for every seed."""
        config, steps = self._config, self.steps(1)
        orders = [
            np.random.default_rng([config.seed, model, stream, epoch]).permutation(
                len(self._labels)
            )[: steps * config.batch_size]
            for model in range(config.models)
        ]
        return np.stack(orders).astype(np.int32).reshape(config.models, steps, -1)

    def _check_decrease(self, before: Any, after: Any) -> None:
        """Refuse settings that train nothing, as soon as it is seen."""
        losses = [
            np.asarray(
                mean_losses(
                    trained,
                    *self._first,
                    network=self._config.network,
                    max_value=self._max_value,
                )
            )
            for trained in (before, after)
        ]
        for model, (start, end) in enumerate(zip(*losses, strict=True)):
            if not end < start:
                raise ValueError(
                    f"the loss of model {model} did not fall in the first epoch ({start:.4f} to "
                    f"{end:.4f} nats): check that labels belong to their images, or choose a "
                    "smaller batch_size, so that an epoch has more steps."
                )

    def _check_finite(self, losses: np.ndarray, name: str) -> None:
        wrong = [str(model) for model, loss in enumerate(losses) if not math.isfinite(loss)]
        if wrong:
            if self._folder is not None:
                (self._folder / f"{name}.npz").unlink(missing_ok=True)
            raise ValueError(
                f"the loss of model {', '.join(wrong)} is not finite ({name}); choose a learning "
                f"rate below {self._config.learning_rate:g}."
            )

    def _checkpoint(self, training: _Training) -> tuple[State, int]:
        """Return where a training stood, or its start."""
        leaves, structure = jax.tree.flatten(training.start)
        if self._folder is None or not (file := self._folder / f"{training.name}.npz").exists():
            # A copy: the state is given away to the first steps, its start is compared later.
            return jax.tree.map(jnp.copy, training.start), 0
        try:
            arrays, header = storage.load_arrays(file)
            saved = [jnp.asarray(arrays[f"{place:04d}"]) for place in range(len(leaves))]
            if any(own.shape != jnp.shape(leaf) for own, leaf in zip(saved, leaves, strict=True)):
                raise ValueError("other shapes")
            return structure.unflatten(saved), int(header["done"])
        except (ValueError, KeyError):
            return jax.tree.map(jnp.copy, training.start), 0

    def _keep(self, name: str, state: State, done: int) -> None:
        if self._folder is not None:
            arrays = {
                f"{place:04d}": np.asarray(leaf)
                for place, leaf in enumerate(jax.tree.leaves(state))
            }
            storage.save_arrays(self._folder / f"{name}.npz", arrays, {"done": done})
