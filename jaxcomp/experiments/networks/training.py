"""Many independent networks trained at once: stochastic gradient descent as in the papers.

Model `m` draws its initial weights, its order of examples and its dropout
from its own key, folded from the seed and the model's number: it comes out the same, to rounding,
whatever is trained beside it. Losses in nats.

Axes: `M` models, `n` examples of one training sample, `E` epochs, `P` examples of the pool.

Long runs survive. Networks are trained in groups of `MODELS_PER_GROUP`, each kept in its own file,
named by the hash of all that shaped it. Within a group a checkpoint is written every
`CHECKPOINT_SECONDS`; training goes on from there to the same bits, because where a run of steps
is cut does not enter any number.
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxcomp import __version__
from jaxcomp.experiments.caches import usable
from jaxcomp.experiments.networks.checkpoints import (
    Files,
    State,
    load_checkpoint,
    load_result,
    save_checkpoint,
    save_result,
)
from jaxcomp.experiments.networks.config import TrainingConfig
from jaxcomp.experiments.networks.descent import (
    Best,
    Epoch,
    Keys,
    Learner,
    Rates,
    better,
    epoch_order,
    initial_learner,
    mean_validation_loss,
    model_keys,
    run_steps,
)
from jaxcomp.experiments.networks.network import Network
from jaxcomp.experiments.networks.reports import ProgressFn, Report
from jaxcomp.experiments.networks.training_data import (
    DeviceData,
    Sample,
    TrainingData,
    check,
    chunks,
    sample_of,
)
from jaxcomp.experiments.reproducibility import numerical_options
from jaxcomp.numerics.threads import options_of_this_thread
from jaxcomp.storage import fingerprint, remove_temporary_files
from jaxcomp.types import Params

MODELS_PER_GROUP = 5
"""Networks trained together. Twenty networks so begin with the five of a smaller run."""

CHECKPOINT_SECONDS = 30.0
"""Least time between two checkpoints of one group."""

SEGMENT_SECONDS = 1.0
"""Intended time of one call into the compiled loop: how often progress is reported."""

_FIRST_SEGMENT_STEPS = 8
_STALE_SECONDS = 3600.0
_EXAMPLES_PER_CHUNK = {False: 1000, True: 16}  # evaluated at once; the key: is it convolutional?
_RECIPE = 3  # to be raised when a change of this package changes the numbers


class TrainedModels(NamedTuple):
    """`M` trained networks; every leaf of the trees of variables has the models first."""

    variables: Params
    """As `Network.init` gives them, after the last epoch, in evaluation form."""
    early_stopped: Params
    """The same after the epoch with the lowest validation loss."""
    best_epoch: Int[np.ndarray, "M"]
    """int32: that epoch, counted from 0."""
    history: dict[str, Float[np.ndarray, "E M"]]
    """float32, nats: `train_loss`, mean over the steps of the epoch in training mode (so of
    changing weights, with dropout), and `validation_loss`, after the epoch in evaluation mode."""


def train(
    network: Network,
    config: TrainingConfig,
    data: TrainingData,
    *,
    seed: int,
    model_ids: Sequence[int],
    weight_decay: Sequence[float] | None = None,
    l1_penalty: Sequence[float] | None = None,
    cache_dir: Path | str | None = None,
    second_cache_dir: Path | str | None = None,
    fingerprint_extra: Mapping[str, Any] | None = None,
    progress: ProgressFn | None = None,
) -> TrainedModels:
    """Train independent networks of one kind, each on its own sample of the pool.

    An epoch is a fresh random order of the `n` examples in batches; the last `n % batch_size`
    examples of an order are left out. With a cache, finished groups are taken from it and an
    interrupted one is continued, to the same bits as without the interruption.

    Args:
        network: from `build`.
        config: settings of the optimizer. The rates are traced: changing them compiles nothing.
        data: what is learned, and what chooses the early stop.
        seed: of the weights, orders and dropout, together with `model_ids`; in [0, 2^32).
        model_ids: number of each model, an integer in [0, 2^32); models of one number begin with
            the same weights and must differ in a penalty.
        weight_decay: of each model, in place of the settings'; traced.
        l1_penalty: of each model, in place of the settings'; traced.
        cache_dir: folder of finished groups and checkpoints; None keeps nothing.
        second_cache_dir: another folder: its files are taken over, and it gets what is finished.
        fingerprint_extra: whatever else should tell two caches apart (what JSON can say). The
            arrays above, the settings, the versions and the kind of device are in the hash anyway.
        progress: called about every second with the steps of all groups, and once for each group
            taken from the cache.

    Returns:
        The trained networks, in the order of `model_ids`.

    Raises:
        TypeError: if indices or labels are not integers.
        ValueError: if the arrays do not fit each other or the network, a batch is larger than a
            sample, or the loss of a network stops being finite.

    A cache that cannot be written is a `RuntimeWarning`: the networks are trained all the same.

    Source: Bu, Gao, Zou, Veeravalli, Entropy 23(10):1255 (2021), section 5.
    """
    sample = sample_of(data, config, model_ids, weight_decay, l1_penalty)
    data = check(network, config, seed, sample, data)
    trainer = _Trainer.on_device(network, config, sample, data)
    cache = None if cache_dir is None else usable(cache_dir)  # before anything is trained
    shared: dict[str, Any] = {}
    if cache is not None:
        # What killed runs left half written, not what others write.
        remove_temporary_files(cache, older_than_seconds=_STALE_SECONDS)
        shared = _identity(trainer, data, seed, fingerprint_extra or {})
    groups = [
        sample.part(start, start + MODELS_PER_GROUP)
        for start in range(0, len(sample.model_ids), MODELS_PER_GROUP)
    ]
    steps_per_group = config.epochs * trainer.steps_per_epoch(sample)
    finished = []
    for number, group in enumerate(groups):
        name = "" if cache is None else fingerprint(shared | {"sample": group._asdict()})
        files = Files(cache, name)
        second = Files(None if second_cache_dir is None else usable(second_cache_dir), name)
        second.copy_to(files)
        finished.append(
            _train_group(
                trainer,
                group,
                seed,
                files,
                Report(progress, group, number * steps_per_group, len(groups) * steps_per_group),
            )
        )
        files.copy_to(second)
    return TrainedModels(
        *_joined([(group["variables"], group["early_stopped"]) for group in finished]),
        best_epoch=np.concatenate([group["best_epoch"] for group in finished]),
        history={
            name: np.concatenate([group["history"][name] for group in finished], axis=1)
            for name in ("train_loss", "validation_loss")
        },
    )


def _joined(groups: list[tuple[Params, Params]]) -> tuple[Params, Params]:
    """Put the networks of all groups behind each other, in one program."""
    return groups[0] if len(groups) == 1 else _concatenated(groups)


@jax.jit
def _concatenated(groups: list[tuple[Params, Params]]) -> tuple[Params, Params]:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *groups)


class _Trainer(NamedTuple):
    """What is the same for all groups."""

    network: Network
    config: TrainingConfig
    data: DeviceData
    platform: str
    is_together: bool  # all networks of a group in one program
    is_proximal: bool

    @classmethod
    def on_device(
        cls, network: Network, config: TrainingConfig, sample: Sample, data: TrainingData
    ) -> "_Trainer":
        """Put the data where they are needed, and choose how to compute there."""
        inputs = jnp.asarray(data.inputs, jnp.float32)
        platform = next(iter(inputs.devices())).platform
        validation = chunks(
            np.asarray(data.validation_inputs, np.float32),
            np.asarray(data.validation_labels),
            size=_EXAMPLES_PER_CHUNK[network.is_convolutional],
        )
        on_device = DeviceData(inputs, *validation)
        is_proximal = any(penalty > 0 for penalty in sample.l1_penalty)
        return cls(network, config, on_device, platform, platform != "cpu", is_proximal)

    def steps_per_epoch(self, sample: Sample) -> int:
        return sample.indices.shape[1] // self.config.batch_size

    def rates(self, group: Sample) -> Rates:
        num_models = len(group.model_ids)
        rates = (
            np.full(num_models, self.config.learning_rate, np.float32),
            np.full(num_models, self.config.momentum, np.float32),
            np.asarray(group.weight_decay, np.float32),
            np.asarray(group.l1_penalty, np.float32),
        )
        return Rates(*jax.device_put(rates))  # which compiles nothing


def _identity(
    trainer: _Trainer, data: TrainingData, seed: int, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """What shapes the networks beside the samples of a group: the names of files are its hash."""
    return {
        "recipe": _RECIPE,
        "versions": [__version__, *(metadata.version(name) for name in ("jax", "flax", "optax"))],
        "platform": trainer.platform,
        "options": numerical_options(),
        "network": trainer.network,
        "config": trainer.config,
        "seed": seed,
        "extra": dict(extra),
        "inputs": fingerprint(np.asarray(trainer.data.inputs)),
        "validation": fingerprint([np.asarray(data.validation_inputs), data.validation_labels]),
    }


def _train_group(
    trainer: _Trainer, group: Sample, seed: int, files: Files, report: Report
) -> dict[str, Any]:
    """Train one group, or take it from the cache, or go on from its checkpoint."""
    config = trainer.config
    num_steps = trainer.steps_per_epoch(group)
    result = load_result(files, report)
    if result is not None:
        report(config.epochs * num_steps, f"{report.models}: from the cache")
        return result

    keys = model_keys(seed, jax.device_put(np.asarray(group.model_ids, np.uint32)))
    state = load_checkpoint(files, report, _initial_state(trainer, group, keys.weights))
    indices, labels = jax.device_put((group.indices, group.labels))
    rates = trainer.rates(group)
    num_next, is_compiled = _FIRST_SEGMENT_STEPS, False
    saved_at = time.monotonic()
    for epoch in range(int(state.epoch), config.epochs):
        examples = epoch_order(
            keys.order, epoch, indices, labels, num_steps=num_steps, batch_size=config.batch_size
        )
        while state.step < num_steps:
            first = int(state.step)
            stop = min(first + num_next, num_steps)
            started = time.monotonic()
            learner = _run_steps(trainer, state.learner, examples, keys, rates, first, stop)
            state = state._replace(learner=learner, step=np.int32(stop))
            mean_loss = np.asarray(learner.loss_sum) / stop  # waits for the device
            seconds = max(time.monotonic() - started, 1e-6)
            if is_compiled:
                num_next = max(1, round((stop - first) * SEGMENT_SECONDS / seconds))
            is_compiled = True
            _check_finite(mean_loss, group, epoch, config, files)
            if time.monotonic() - saved_at >= CHECKPOINT_SECONDS:
                save_checkpoint(files, state)
                saved_at = time.monotonic()
            report(
                epoch * num_steps + stop,
                f"{report.models}: epoch {epoch + 1} of {config.epochs}, "
                f"train loss {mean_loss.mean():.4f}",
            )
        state = _finish_epoch(trainer, state, num_steps)
        _check_finite(state.validation_loss[epoch], group, epoch, config, files)
    return save_result(files, group, state)


def _run_steps(
    trainer: _Trainer,
    learner: Learner,
    examples: Epoch,
    keys: Keys,
    rates: Rates,
    first: int,
    stop: int,
) -> Learner:
    """Train all models of a group for some steps of an epoch."""

    def run(
        own: Learner,
        order: Array,
        labels: Array,
        dropout: Key[Array, "M"],
        own_rates: Rates,
        *,
        first: int,
        stop: int,
    ) -> Learner:
        return run_steps(
            own,
            trainer.data.inputs,
            Epoch(order, labels, examples.steps_before),
            dropout,
            own_rates,
            first,
            stop,
            network=trainer.network,
            is_proximal=trainer.is_proximal,
        )

    # As many turns as threads, so that all of them end at once.
    number = 1 if trainer.is_together else min(_num_threads(), stop - first)
    cuts = np.linspace(first, stop, 1 + number).astype(int).tolist()
    turns = [partial(run, first=a, stop=b) for a, b in itertools.pairwise(cuts)]
    return _by_model(trainer, turns, learner, examples.order, examples.labels, keys.dropout, rates)


def _by_model(
    trainer: _Trainer, turns: Sequence[Callable[..., Any]], state: Any, *arguments: Any
) -> Any:
    """Call functions of models one after the other, on accelerators each of all models at once.

    On CPUs a thread takes one turn of one model after the other: all models have the first, then
    all the second. Small products of many models at once leave a CPU's cache, and the cores that
    share one wait for each other; on an accelerator many small programs would wait to be started.

    Args:
        trainer: says which.
        turns: `(state, *arguments) -> state`, both of some models.
        state: of all models.
        arguments: likewise.
    """
    num_models = len(jax.tree.leaves(state)[0])
    if trainer.is_together or num_models == 1:
        for turn in turns:
            state = turn(state, *arguments)
        return state
    options = options_of_this_thread()

    def one(number: int, turn: Callable[..., Any], before: Future[Any] | None) -> Any:
        with options():
            own = _row_of(state, number) if before is None else before.result()
            return jax.block_until_ready(turn(own, *_row_of(arguments, number)))

    with ThreadPoolExecutor(min(num_models, _num_threads())) as pool:
        found: list[Future[Any] | None] = [None] * num_models
        for turn in turns:
            # What a turn waits for was begun before it: threads take turns in this order.
            found = [pool.submit(one, number, turn, own) for number, own in enumerate(found)]
    rows = [own.result() for own in found if own is not None]
    return jax.device_put(jax.tree.map(lambda *rows: np.concatenate(rows), *rows))


def _num_threads() -> int:
    return os.cpu_count() or 1


def _row_of(arguments: Any, number: int) -> Any:
    return jax.tree.map(lambda leaf: _row(leaf, number), arguments)


def _row(leaf: Array, number: int) -> Any:
    """One model of an array, as an array of one: on the host, where it compiles nothing."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return leaf[number : number + 1]
    return np.array(np.asarray(leaf)[number : number + 1])


def _finish_epoch(trainer: _Trainer, state: State, num_steps: int) -> State:
    """Evaluate on the validation set, keep the best, begin the next epoch."""
    epoch = int(state.epoch)
    train_loss, validation_loss = state.train_loss.copy(), state.validation_loss.copy()
    train_loss[epoch] = np.asarray(state.learner.loss_sum) / num_steps

    def loss_of(variables: Params) -> Array:
        return mean_validation_loss(
            variables,
            trainer.data.validation_inputs,
            trainer.data.validation_labels,
            network=trainer.network,
        )

    losses = _by_model(trainer, [loss_of], state.learner.variables)
    validation_loss[epoch] = np.asarray(losses)
    return State(
        state.learner._replace(loss_sum=np.zeros(losses.shape, np.float32)),
        better(state.best, state.learner.variables, losses, jax.device_put(np.int32(epoch))),
        train_loss,
        validation_loss,
        np.int32(epoch + 1),
        np.int32(0),
    )


def _initial_state(trainer: _Trainer, group: Sample, keys: Key[Array, "M"]) -> State:
    learner = initial_learner(keys, network=trainer.network)
    num_models = len(keys)
    # A copy: the learner's own arrays are given away to the first steps.
    variables = jax.tree.map(np.array, learner.variables)
    worst = np.full(num_models, np.inf, np.float32), np.zeros(num_models, np.int32)
    best = Best(*jax.device_put((variables, *worst)))
    unknown = np.full((trainer.config.epochs, num_models), np.nan, np.float32)
    return State(learner, best, unknown, unknown, np.int32(0), np.int32(0))


def _check_finite(
    losses: np.ndarray, group: Sample, epoch: int, config: TrainingConfig, files: Files
) -> None:
    """Give up on a group in which a network diverged: going on would not bring it back."""
    diverged = [
        str(number)
        for number, loss in zip(group.model_ids, losses, strict=True)
        if not math.isfinite(loss)
    ]
    if not diverged:
        return
    if files.checkpoint is not None:
        files.checkpoint.unlink(missing_ok=True)
    raise ValueError(
        f"The loss of model {', '.join(diverged)} is not finite in epoch {epoch + 1} of "
        f"{config.epochs}; choose a learning rate below {config.learning_rate:g} or check the "
        "inputs for values that are not finite."
    )
