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
from jaxcomp.compressed import random_code_of_size
from jaxcomp.experiments.train_small.config import TrainSmallConfig
from jaxcomp.experiments.train_small.descent import (
    Images,
    Phase,
    Schedule,
    State,
    code_blocks,
    initial_state,
    mean_losses,
    run_steps,
)
from jaxcomp.experiments.train_small.networks import initial_params
from jaxcomp.numerics.host import part_of
from jaxcomp.training import Coded, Latents, RandomCode, initial_latents, initial_posterior
from jaxcomp.training.minimal_random_codes import nothing_coded
from jaxcomp.types import Params

CHECKPOINT_SECONDS = 30.0
"""Least time between two checkpoints."""

_SEGMENT_SECONDS = 3.0
_FIRST_SEGMENT_STEPS = 4
_PRETRAINING_RATE = 1e-3
_FOR_THE_START = 1_000  # examples on which the loss before training is measured

_PRETRAINED = "pretrained"

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
        self._labels = jax.device_put(np.asarray(images.labels))
        width = ((0, 0), (config.shift, config.shift), (config.shift, config.shift), (0, 0))
        pixels = np.asarray(images.pixels)
        self._padded = jax.device_put(np.pad(pixels, width))
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
            _PRETRAINED,
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

    def random_coded(
        self, params: Params, place: int, report: ReportFn
    ) -> tuple[RandomCode, Coded]:
        """Return the code of one of the sizes, and indices of networks in it, seeds first.

        A posterior is trained from networks. From the middle of the epochs on some blocks are coded
        after each, and what is not coded yet is trained on.

        Raises:
            ValueError: if the size is too small or too large for the network.
        """
        config = self._config
        code = self.code(params, place)
        posterior = jax.vmap(partial(initial_posterior, code))(params)
        coded = jax.vmap(partial(nothing_coded, code))(posterior)
        training = _Training(
            f"random-codes{place:02d}",
            initial_state(posterior, coded),
            self._phase(is_priced=False)._replace(code=code),
            config.learning_rate,
            0.0,
            config.epochs,
            2,
        )
        found = self._trained(training, report).coded
        assert found is not None
        return code, found

    def code(self, params: Params, place: int) -> RandomCode:
        """Return the code of one of the sizes, for networks, seeds first."""
        one = part_of(params, 0)
        size, bits = self._config.sizes[place], self._config.block_bits
        return random_code_of_size(one, size, block_bits=bits, seed=self._config.seed)

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
                order = jax.device_put(self._order(training.stream, epoch))
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
                state = _code_some(state, keys, training, epoch)
                if done == per_epoch and training.name == _PRETRAINED:
                    self._check_decrease(training.start.trained, state.trained)
                state = state._replace(loss_sum=jnp.zeros_like(state.loss_sum))
            if done == total or time.monotonic() - saved_at >= CHECKPOINT_SECONDS:
                self._keep(name, state, done)
                saved_at = time.monotonic()
            told = f"{name}: loss {losses.mean():.4f}"
            if training.phase.is_priced:
                told += f", {float(state.bits.mean()) / 8:,.0f} bytes"
            if state.coded is not None:
                share = float(np.mean(np.asarray(state.coded.indices) >= 0))
                told += f", {share:.0%} of the blocks coded"
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
            return _copied(training.start), 0
        try:
            arrays, header = storage.load_arrays(file)
            saved = jax.device_put([arrays[f"{place:04d}"] for place in range(len(leaves))])
            if any(own.shape != jnp.shape(leaf) for own, leaf in zip(saved, leaves, strict=True)):
                raise ValueError("other shapes")
            return structure.unflatten(saved), int(header["done"])
        except (ValueError, KeyError):
            return _copied(training.start), 0

    def _keep(self, name: str, state: State, done: int) -> None:
        if self._folder is not None:
            arrays = {
                f"{place:04d}": np.asarray(leaf)
                for place, leaf in enumerate(jax.tree.leaves(state))
            }
            storage.save_arrays(self._folder / f"{name}.npz", arrays, {"done": done})


@jax.jit
def _copied(state: State) -> State:
    """Copy a state that is given away to the first steps: its start is compared later."""
    return jax.tree.map(jnp.copy, state)


def _code_some(state: State, keys: Any, training: _Training, epoch: int) -> State:
    """Code the blocks that are due after an epoch: all by the last one, from the middle on."""
    code = training.phase.code
    if code is None:
        return state
    first = training.epochs // 2

    def due(epochs: int) -> int:
        return code.layout.num_blocks * max(epochs - first, 0) // (training.epochs - first)

    start, stop = due(epoch), due(epoch + 1)
    if start == stop:
        return state
    return code_blocks(state, keys, jnp.int32(start), jnp.int32(stop), code=code)
