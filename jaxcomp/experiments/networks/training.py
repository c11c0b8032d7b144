"""Many independent networks trained at once: stochastic gradient descent as in the papers.

Plain SGD with momentum and L2 weight decay added to the gradient (of all trainable parameters),
as `torch.optim.SGD`. Model `m` draws its initial weights, its order of examples and its dropout
from its own key, folded from the seed and the model's number: it comes out the same, to rounding,
whatever is trained beside it. Losses in nats.

An L1 penalty enters by proximal steps: after the gradient step every weight moves towards zero by
`rate l1 / (1 - momentum)` and stays there if it gets that far, which the gradient of |w| never
brings about. The factor is that of the gradient: momentum makes each count `1 / (1 - momentum)`
times, so that a weight rests where `|dL/dw| = l1`, as the penalised loss wants it.

Axes: `M` models, `n` examples of one training sample, `E` epochs, `P` examples of the pool.

Long runs survive. Networks are trained in groups of `MODELS_PER_GROUP`, each kept in its own file,
named by the hash of all that shaped it. Within a group a checkpoint is written every
`CHECKPOINT_SECONDS`; training goes on from there to the same bits, because where a run of steps
is cut does not enter any number.
"""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key
from numpy.typing import ArrayLike

from jaxcomp import __version__
from jaxcomp.experiments.caches import usable
from jaxcomp.experiments.networks.network import Network
from jaxcomp.experiments.reproducibility import KEY_IMPLEMENTATION, numerical_options
from jaxcomp.numerics.checks import check_count, check_positive
from jaxcomp.storage import (
    fingerprint,
    flatten_tree,
    load_arrays,
    remove_temporary_files,
    save_arrays,
    unflatten_tree,
)
from jaxcomp.types import AnyArray, Params

ProgressFn: TypeAlias = Callable[[int, int, str], None]
"""`(steps done, steps in all, message) -> None`."""

MODELS_PER_GROUP = 5
"""Networks trained together. Twenty networks so begin with the five of a smaller run."""

CHECKPOINT_SECONDS = 30.0
"""Least time between two checkpoints of one group."""

SEGMENT_SECONDS = 1.0
"""Intended time of one call into the compiled loop: how often progress is reported."""

_FIRST_SEGMENT_STEPS = 8
_STALE_SECONDS = 3600.0
_EXAMPLES_PER_CHUNK = {False: 1000, True: 50}  # evaluated at once; the key: is it convolutional?
_RECIPE = 1  # to be raised when a change of this package changes the numbers


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the optimizer; the defaults are the published ones.

    Attributes:
        epochs: passes over the training sample, at least 1.
        batch_size: examples per step, at least 1.
        learning_rate: positive.
        momentum: in [0, 1).
        weight_decay: times the weights, added to the gradient; at least 0.
        l1_penalty: of `|w|` beside the mean loss, by proximal steps; at least 0.

    Raises:
        ValueError: when made, for a value outside these ranges.
    """

    epochs: int = 25
    batch_size: int = 10
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    l1_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            check_count(name, getattr(self, name))
        check_positive("learning_rate", self.learning_rate)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}.")
        for name in ("weight_decay", "l1_penalty"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")


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
    *,
    inputs: Float[AnyArray, "P ..."],
    train_indices: Int[AnyArray, "M n"],
    train_labels: Int[AnyArray, "M n"],
    validation_inputs: Float[AnyArray, "validation ..."],
    validation_labels: Int[AnyArray, "validation"],
    seed: int,
    model_ids: Sequence[int],
    weight_decay: Sequence[float] | None = None,
    l1_penalty: Sequence[float] | None = None,
    cache_dir: Path | str | None = None,
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
        inputs: pool of examples of the network's `input_shape`, float32.
        train_indices: rows of the pool, one sample for each model; repetitions allowed.
        train_labels: classes, aligned with `train_indices` (labels may be noisy, so they belong
            to the sample and not to the pool).
        validation_inputs: examples, apart from all training samples, that choose the early stop.
        validation_labels: their classes.
        seed: of the weights, orders and dropout, together with `model_ids`; in [0, 2^32).
        model_ids: number of each model, an integer in [0, 2^32); models of one number begin with
            the same weights and must differ in a penalty.
        weight_decay: of each model, in place of the settings'; traced.
        l1_penalty: of each model, in place of the settings'; traced.
        cache_dir: folder of finished groups and checkpoints; None keeps nothing.
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
    ids = tuple(model_ids)
    sample = _Sample(
        ids,
        _integers("train_indices", train_indices),
        _integers("train_labels", train_labels),
        _penalties("weight_decay", weight_decay, config.weight_decay, len(ids)),
        _penalties("l1_penalty", l1_penalty, config.l1_penalty, len(ids)),
    )
    validation_labels = _integers("validation_labels", validation_labels)
    _check(network, config, seed, sample, inputs, validation_inputs, validation_labels)
    data = _Data(
        jnp.asarray(inputs, jnp.float32),
        *_chunks(
            np.asarray(validation_inputs, np.float32),
            validation_labels,
            size=_EXAMPLES_PER_CHUNK[network.is_convolutional],
        ),
    )
    platform = next(iter(data.inputs.devices())).platform
    # Separate programs for each model overlap well on the cores of a CPU (1.5 times as fast as
    # vmap for dense layers); convolutions and accelerators do better on one batched program.
    trainer = _Trainer(
        network,
        config,
        data,
        platform == "cpu" and not network.is_convolutional,
        any(penalty > 0 for penalty in sample.l1_penalty),
    )
    if cache_dir is not None:
        cache_dir = usable(cache_dir)  # before anything is trained
    shared: dict[str, Any] = {
        "recipe": _RECIPE,
        "versions": [__version__, *(metadata.version(name) for name in ("jax", "flax", "optax"))],
        "platform": platform,
        "options": numerical_options(),
        "network": network,
        "config": config,
        "seed": seed,
        "extra": dict(fingerprint_extra or {}),
    }
    if cache_dir is not None:
        # What killed runs left half written, not what others write.
        remove_temporary_files(cache_dir, older_than_seconds=_STALE_SECONDS)
        shared["inputs"] = fingerprint(np.asarray(data.inputs))
        shared["validation"] = fingerprint([np.asarray(validation_inputs), validation_labels])

    groups = [
        sample.part(start, start + MODELS_PER_GROUP)
        for start in range(0, len(sample.model_ids), MODELS_PER_GROUP)
    ]
    steps_per_group = config.epochs * trainer.steps_per_epoch(sample)
    finished = []
    for number, group in enumerate(groups):
        name = "" if cache_dir is None else fingerprint(shared | {"sample": group._asdict()})
        finished.append(
            _train_group(
                trainer,
                group,
                seed,
                _Files(None if cache_dir is None else Path(cache_dir), name),
                _Report(progress, group, number * steps_per_group, len(groups) * steps_per_group),
            )
        )
    return TrainedModels(
        *(
            jax.tree.map(
                lambda *parts: jnp.concatenate(parts), *(group[name] for group in finished)
            )
            for name in ("variables", "early_stopped")
        ),
        best_epoch=np.concatenate([group["best_epoch"] for group in finished]),
        history={
            name: np.concatenate([group["history"][name] for group in finished], axis=1)
            for name in ("train_loss", "validation_loss")
        },
    )


class _Sample(NamedTuple):
    """Which examples train which model."""

    model_ids: tuple[int, ...]
    indices: Int[np.ndarray, "M n"]
    labels: Int[np.ndarray, "M n"]
    weight_decay: tuple[float, ...]
    l1_penalty: tuple[float, ...]

    def part(self, start: int, stop: int) -> "_Sample":
        return _Sample(
            self.model_ids[start:stop],
            self.indices[start:stop],
            self.labels[start:stop],
            self.weight_decay[start:stop],
            self.l1_penalty[start:stop],
        )


class _Data(NamedTuple):
    """Arrays on the device that all models share."""

    inputs: Float[Array, "P ..."]
    validation_inputs: Float[Array, "chunks examples ..."]
    validation_labels: Int[Array, "chunks examples"]  # -1 fills the last chunk


class _Rates(NamedTuple):
    """Numbers of the optimizer, traced; of all models, or of one."""

    learning_rate: Float[Array, "*M"]
    momentum: Float[Array, "*M"]
    weight_decay: Float[Array, "*M"]
    l1_penalty: Float[Array, "*M"]


class _Keys(NamedTuple):
    """One key for each use and model."""

    weights: Key[Array, "M"]
    order: Key[Array, "M"]
    dropout: Key[Array, "M"]


class _Learner(NamedTuple):
    """What a training step changes; the models are the first axis of every leaf."""

    variables: Params
    optimizer: Any
    loss_sum: Float[Array, "M"]  # over the steps of the epoch so far


class _Best(NamedTuple):
    """The epoch with the lowest validation loss so far."""

    variables: Params
    loss: Float[Array, "M"]
    epoch: Int[Array, "M"]


class _State(NamedTuple):
    """All that a checkpoint keeps: where a group stands."""

    learner: _Learner
    best: _Best
    train_loss: Float[np.ndarray, "E M"]  # NaN in the epochs to come
    validation_loss: Float[np.ndarray, "E M"]
    epoch: np.int32
    step: np.int32  # within the epoch


class _Trainer(NamedTuple):
    """What is the same for all groups."""

    network: Network
    config: TrainingConfig
    data: _Data
    is_unrolled: bool
    is_proximal: bool

    def steps_per_epoch(self, sample: _Sample) -> int:
        return sample.indices.shape[1] // self.config.batch_size

    def rates(self, group: _Sample) -> _Rates:
        num_models = len(group.model_ids)
        return _Rates(
            jnp.full(num_models, self.config.learning_rate, jnp.float32),
            jnp.full(num_models, self.config.momentum, jnp.float32),
            jnp.asarray(group.weight_decay, jnp.float32),
            jnp.asarray(group.l1_penalty, jnp.float32),
        )


class _Files(NamedTuple):
    """Where a group is kept: nowhere if there is no folder."""

    directory: Path | None
    name: str

    @property
    def result(self) -> Path | None:
        return self.directory and self.directory / f"{self.name}.npz"

    @property
    def checkpoint(self) -> Path | None:
        return self.directory and self.directory / f"{self.name}.checkpoint.npz"


class _Report(NamedTuple):
    """Says how far a group is, in steps of all groups."""

    progress: ProgressFn | None
    group: _Sample
    done_before: int
    total: int

    @property
    def models(self) -> str:
        ids = list(dict.fromkeys(self.group.model_ids))
        return f"model{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids))}"

    def __call__(self, done: int, message: str) -> None:
        if self.progress is not None:
            self.progress(self.done_before + done, self.total, message)

    def warn(self, message: str) -> None:
        """Say something that must not get lost when nobody follows the progress."""
        if self.progress is None:
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        else:
            self(0, message)


def _train_group(
    trainer: _Trainer, group: _Sample, seed: int, files: _Files, report: _Report
) -> dict[str, Any]:
    """Train one group, or take it from the cache, or go on from its checkpoint."""
    config = trainer.config
    num_steps = trainer.steps_per_epoch(group)
    result = _load_result(files, report)
    if result is not None:
        report(config.epochs * num_steps, f"{report.models}: from the cache")
        return result

    keys = _model_keys(seed, jnp.asarray(group.model_ids, jnp.uint32))
    state = _load_checkpoint(files, report, _initial_state(trainer, group, keys.weights))
    indices, labels = jnp.asarray(group.indices), jnp.asarray(group.labels)
    num_next, is_compiled = _FIRST_SEGMENT_STEPS, False
    saved_at = time.monotonic()
    for epoch in range(int(state.epoch), config.epochs):
        order, order_labels = _epoch_order(
            keys.order, epoch, indices, labels, num_steps=num_steps, batch_size=config.batch_size
        )
        while state.step < num_steps:
            first = int(state.step)
            stop = min(first + num_next, num_steps)
            started = time.monotonic()
            learner = _run_steps(
                state.learner,
                trainer.data.inputs,
                order,
                order_labels,
                keys.dropout,
                trainer.rates(group),
                first,
                stop,
                epoch * num_steps,
                network=trainer.network,
                is_unrolled=trainer.is_unrolled,
                is_proximal=trainer.is_proximal,
            )
            state = state._replace(learner=learner, step=np.int32(stop))
            mean_loss = np.asarray(learner.loss_sum) / stop  # waits for the device
            seconds = max(time.monotonic() - started, 1e-6)
            if is_compiled:
                num_next = max(1, round((stop - first) * SEGMENT_SECONDS / seconds))
            is_compiled = True
            _check_finite(mean_loss, group, epoch, config, files)
            if time.monotonic() - saved_at >= CHECKPOINT_SECONDS:
                _save_checkpoint(files, state)
                saved_at = time.monotonic()
            report(
                epoch * num_steps + stop,
                f"{report.models}: epoch {epoch + 1} of {config.epochs}, "
                f"train loss {mean_loss.mean():.4f}",
            )
        state = _finish_epoch(trainer, state, num_steps)
        _check_finite(state.validation_loss[epoch], group, epoch, config, files)
    return _save_result(files, group, state)


def _finish_epoch(trainer: _Trainer, state: _State, num_steps: int) -> _State:
    """Evaluate on the validation set, keep the best, begin the next epoch."""
    epoch = int(state.epoch)
    train_loss, validation_loss = state.train_loss.copy(), state.validation_loss.copy()
    train_loss[epoch] = np.asarray(state.learner.loss_sum) / num_steps
    losses = _validation_loss(
        state.learner.variables,
        trainer.data.validation_inputs,
        trainer.data.validation_labels,
        network=trainer.network,
    )
    validation_loss[epoch] = np.asarray(losses)
    return _State(
        state.learner._replace(loss_sum=jnp.zeros_like(state.learner.loss_sum)),
        _better(state.best, state.learner.variables, losses, epoch),
        train_loss,
        validation_loss,
        np.int32(epoch + 1),
        np.int32(0),
    )


@jax.jit
def _model_keys(seed: int, model_ids: Int[Array, "M"]) -> _Keys:
    # The implementation is named: the numbers must not depend on a global setting of JAX.
    base = jax.random.key(seed, impl=KEY_IMPLEMENTATION)
    keys = jax.vmap(lambda number: jax.random.split(jax.random.fold_in(base, number), 3))(model_ids)
    return _Keys(keys[:, 0], keys[:, 1], keys[:, 2])


def _initial_state(trainer: _Trainer, group: _Sample, keys: Key[Array, "M"]) -> _State:
    learner = _initial_learner(keys, trainer.rates(group), network=trainer.network)
    num_models = len(keys)
    # A copy: the learner's own arrays are given away to the first steps.
    best = _Best(
        jax.tree.map(jnp.copy, learner.variables),
        jnp.full(num_models, jnp.inf, jnp.float32),
        jnp.zeros(num_models, jnp.int32),
    )
    unknown = np.full((trainer.config.epochs, num_models), np.nan, np.float32)
    return _State(learner, best, unknown, unknown, np.int32(0), np.int32(0))


@partial(jax.jit, static_argnames=("network",))
def _initial_learner(keys: Key[Array, "M"], rates: _Rates, *, network: Network) -> _Learner:
    variables = jax.vmap(network.init)(keys)
    optimizer = jax.vmap(lambda own, params: _optimizer(own).init(params))(
        rates, variables["params"]
    )
    return _Learner(variables, optimizer, jnp.zeros(len(keys), jnp.float32))


@partial(jax.jit, static_argnames=("num_steps", "batch_size"))
def _epoch_order(
    keys: Key[Array, "M"],
    epoch: int,
    indices: Int[Array, "M n"],
    labels: Int[Array, "M n"],
    *,
    num_steps: int,
    batch_size: int,
) -> tuple[Int[Array, "M steps batch"], Int[Array, "M steps batch"]]:
    """Put every model's examples into the order of this epoch, cut into batches."""

    def shuffle(
        key: Key[Array, ""], rows: Int[Array, "n"], classes: Int[Array, "n"]
    ) -> tuple[Array, Array]:
        order = jax.random.permutation(jax.random.fold_in(key, epoch), rows.shape[0])
        order = order[: num_steps * batch_size].reshape(num_steps, batch_size)
        return rows[order], classes[order]

    return jax.vmap(shuffle)(keys, indices, labels)


@partial(
    jax.jit, static_argnames=("network", "is_unrolled", "is_proximal"), donate_argnames=("learner",)
)
def _run_steps(
    learner: _Learner,
    inputs: Float[Array, "P ..."],
    order: Int[Array, "M steps batch"],
    labels: Int[Array, "M steps batch"],
    keys: Key[Array, "M"],
    rates: _Rates,
    first: int,
    stop: int,
    steps_before: int,
    *,
    network: Network,
    is_unrolled: bool,
    is_proximal: bool,
) -> _Learner:
    """Train all models for the steps `first` to `stop` of an epoch (traced: compiled once)."""
    step = partial(_step, network, inputs, is_proximal)
    own_rates = [jax.tree.map(lambda leaf, m=m: leaf[m], rates) for m in range(len(keys))]

    def batched(number: Array, learners: _Learner) -> _Learner:
        return jax.vmap(partial(step, number + steps_before))(
            rates, learners, order[:, number], labels[:, number], keys
        )

    def unrolled(number: Array, learners: list[_Learner]) -> list[_Learner]:
        return [
            step(
                number + steps_before,
                own_rates[m],
                one,
                order[m, number],
                labels[m, number],
                keys[m],
            )
            for m, one in enumerate(learners)
        ]

    if not is_unrolled:
        return jax.lax.fori_loop(first, stop, batched, learner)
    # A list, taken apart and put together outside the loop: inside, it would copy all weights.
    learners = [jax.tree.map(lambda leaf, m=m: leaf[m], learner) for m in range(len(keys))]
    learners = jax.lax.fori_loop(first, stop, unrolled, learners)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *learners)


def _step(
    network: Network,
    inputs: Float[Array, "P ..."],
    is_proximal: bool,
    number: Int[Array, ""],
    rates: _Rates,
    learner: _Learner,
    rows: Int[Array, "batch"],
    labels: Int[Array, "batch"],
    key: Key[Array, ""],
) -> _Learner:
    """One step of one model; `number` counts the steps from the beginning of the training."""
    statistics = learner.variables["statistics"]

    def loss_fn(params: Params) -> tuple[Array, Any]:
        variables = {"params": params, "statistics": statistics}
        return network.train_loss(variables, inputs[rows], labels, jax.random.fold_in(key, number))

    params = learner.variables["params"]
    (loss, statistics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, optimizer = _optimizer(rates).update(gradient, learner.optimizer, params)
    params = optax.apply_updates(params, updates)
    if is_proximal:
        threshold = rates.learning_rate * rates.l1_penalty / (1 - rates.momentum)
        params = jax.tree.map(partial(_soft_threshold, threshold=threshold), params)
    variables = {"params": params, "statistics": statistics}
    return _Learner(variables, optimizer, learner.loss_sum + loss)


def _soft_threshold(weights: Array, threshold: Array) -> Array:
    """Move weights towards zero by a distance, not beyond it: the proximal map of |w|."""
    return jnp.sign(weights) * jnp.maximum(jnp.abs(weights) - threshold, 0)


def _optimizer(rates: _Rates) -> optax.GradientTransformation:
    """`torch.optim.SGD`: v <- momentum v + (g + decay w), w <- w - rate v."""
    return optax.chain(
        optax.add_decayed_weights(rates.weight_decay),
        optax.trace(rates.momentum),
        optax.scale(-rates.learning_rate),
    )


@partial(jax.jit, static_argnames=("network",))
def _validation_loss(
    variables: Params,
    inputs: Float[Array, "chunks examples ..."],
    labels: Int[Array, "chunks examples"],
    *,
    network: Network,
) -> Float[Array, "M"]:
    """Mean cross-entropy of every model in evaluation mode, nats."""

    def one_model(own: Params) -> Array:
        def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
            logits = network.predict(own, chunk[0])
            is_filling = chunk[1] < 0
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, jnp.where(is_filling, 0, chunk[1])
            )
            return total + jnp.where(is_filling, 0.0, losses).sum(), None

        total, _ = jax.lax.scan(add, jnp.zeros((), jnp.float32), (inputs, labels))
        return total / (labels >= 0).sum()

    return jax.vmap(one_model)(variables)


@jax.jit
def _better(
    best: _Best, variables: Params, losses: Float[Array, "M"], epoch: Int[Array, ""] | int
) -> _Best:
    """Keep, for each model, the variables with the lower loss; the earlier ones if equal."""
    is_better = losses < best.loss

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(is_better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return _Best(
        jax.tree.map(choose, variables, best.variables),
        choose(losses, best.loss),
        jnp.where(is_better, epoch, best.epoch),
    )


def _load_result(files: _Files, report: _Report) -> dict[str, Any] | None:
    """Read a finished group; None if there is none, or none that can be read."""
    path = files.result
    if path is None or files.checkpoint is None or not path.exists():
        return None
    try:
        arrays, header = load_arrays(path)
        if header["fingerprint"] != files.name:
            raise ValueError("The file has the name of another.")
        result = unflatten_tree(arrays)
    except (ValueError, KeyError):
        report.warn(
            f"The cache file {path} is damaged or not one of this cache, so {report.models} will "
            "be trained again."
        )
        return None
    files.checkpoint.unlink(missing_ok=True)  # a run killed between the two files leaves it
    return _on_device(result)


def _save_result(files: _Files, group: _Sample, state: _State) -> dict[str, Any]:
    """Write a finished group, remove its checkpoint."""
    result = {
        "variables": state.learner.variables,
        "early_stopped": state.best.variables,
        "best_epoch": np.asarray(state.best.epoch),
        "history": {"train_loss": state.train_loss, "validation_loss": state.validation_loss},
    }
    if files.result is not None and files.checkpoint is not None:
        arrays = {name: np.asarray(leaf) for name, leaf in flatten_tree(result).items()}
        header = {"fingerprint": files.name, "model_ids": list(group.model_ids)}
        if _keep(files.result, arrays, header):
            files.checkpoint.unlink(missing_ok=True)
    return _on_device(result)


def _on_device(result: dict[str, Any]) -> dict[str, Any]:
    trees = {
        name: jax.tree.map(jnp.asarray, result[name]) for name in ("variables", "early_stopped")
    }
    return result | trees


def _load_checkpoint(files: _Files, report: _Report, initial: _State) -> _State:
    """Read where an interrupted group stood; the initial state if nothing can be read."""
    path = files.checkpoint
    if path is None or not path.exists():
        return initial
    leaves, structure = jax.tree.flatten(initial)
    try:
        arrays, header = load_arrays(path)
        if header["fingerprint"] != files.name:
            raise ValueError("The file has the name of another.")
        saved = [arrays[f"{index:04d}"] for index in range(len(leaves))]
    except (ValueError, KeyError):
        report.warn(
            f"The checkpoint {path} is damaged or not one of this cache, so {report.models} will "
            "be trained from the beginning."
        )
        return initial
    state: _State = jax.tree.unflatten(structure, saved)
    return state._replace(
        learner=jax.tree.map(jnp.asarray, state.learner), best=jax.tree.map(jnp.asarray, state.best)
    )


def _save_checkpoint(files: _Files, state: _State) -> None:
    if files.checkpoint is None:
        return
    # By position: the state of an optimizer is no tree of named arrays.
    leaves = {f"{index:04d}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(state))}
    _keep(files.checkpoint, leaves, {"fingerprint": files.name})


def _keep(path: Path, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> bool:
    """Write a file of the cache; a disk that is full does not end the training."""
    try:
        save_arrays(path, arrays, header)
    except OSError as error:
        warnings.warn(
            f"{error} The training goes on without keeping its networks.",
            RuntimeWarning,
            stacklevel=1,
        )
        return False
    return True


def _chunks(
    inputs: Float[np.ndarray, "examples ..."], labels: Int[np.ndarray, "examples"], *, size: int
) -> tuple[Array, Array]:
    """Cut examples into chunks of one size on the device; the label -1 marks the filling."""
    num_examples = len(labels)
    num_chunks = -(-num_examples // size)
    size = -(-num_examples // num_chunks)
    missing = num_chunks * size - num_examples
    inputs = np.pad(inputs, [(0, missing)] + [(0, 0)] * (inputs.ndim - 1))
    labels = np.pad(labels, (0, missing), constant_values=-1)
    return (
        jnp.asarray(inputs.reshape(num_chunks, size, *inputs.shape[1:])),
        jnp.asarray(labels.reshape(num_chunks, size)),
    )


def _integers(name: str, array: ArrayLike) -> Int[np.ndarray, "..."]:
    result = np.asarray(array)
    if not np.issubdtype(result.dtype, np.integer):
        raise TypeError(f"{name} must be integers, got {result.dtype}.")
    return result.astype(np.int32)


def _penalties(
    name: str, values: Sequence[float] | None, default: float, num_models: int
) -> tuple[float, ...]:
    if values is None:
        return (float(default),) * num_models
    penalties = tuple(float(value) for value in values)
    if len(penalties) != num_models or not all(0 <= value < math.inf for value in penalties):
        raise ValueError(
            f"{name} must be one number of at least 0 for each of the {num_models} models, got "
            f"{list(penalties)}."
        )
    return penalties


def _check(
    network: Network,
    config: TrainingConfig,
    seed: int,
    sample: _Sample,
    inputs: Any,
    validation_inputs: Any,
    validation_labels: np.ndarray,
) -> None:
    """Refuse data that do not fit the network or each other, before anything is compiled."""
    ids, indices, labels, *penalties = sample
    if indices.ndim != 2 or indices.shape != labels.shape or len(ids) != len(indices) or not ids:
        raise ValueError(
            "train_indices and train_labels must both be (models, examples) with one row for each "
            f"of the model_ids, got {indices.shape}, {labels.shape} and {len(ids)} ids."
        )
    if len(set(zip(ids, *penalties, strict=True))) < len(ids) or not all(
        0 <= number < 2**32 for number in (*ids, seed)
    ):
        raise ValueError(
            "model_ids must be different (for equal penalties), and they and the seed integers in "
            "[0, 2^32), got "
            f"{list(ids)} and {seed}."
        )
    if validation_labels.ndim != 1 or len(validation_labels) != len(validation_inputs):
        raise ValueError(
            "There must be one validation label for each validation input, got "
            f"{validation_labels.shape} labels and {len(validation_inputs)} inputs."
        )
    for name, array in (("inputs", inputs), ("validation_inputs", validation_inputs)):
        shape = np.shape(array)
        if shape[1:] != network.input_shape or shape[0] < 1:
            raise ValueError(
                f"{name} must be at least one example of shape {network.input_shape}, which the "
                f"network was built for, got an array {shape}."
            )
    if not 1 <= config.batch_size <= indices.shape[1]:
        raise ValueError(
            f"A batch of {config.batch_size} examples is larger than the training sample of "
            f"{indices.shape[1]}; choose a smaller batch_size."
        )
    if indices.min() < 0 or indices.max() >= len(inputs):
        raise ValueError(
            f"train_indices must be rows of the pool of {len(inputs)} examples, got values from "
            f"{indices.min()} to {indices.max()}."
        )
    for name, array in (("train_labels", labels), ("validation_labels", validation_labels)):
        if array.min() < 0 or array.max() >= network.num_classes:
            raise ValueError(
                f"{name} must be in 0 to {network.num_classes - 1}, the classes of the network, "
                f"got values from {array.min()} to {array.max()}."
            )


def _check_finite(
    losses: np.ndarray, group: _Sample, epoch: int, config: TrainingConfig, files: _Files
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
