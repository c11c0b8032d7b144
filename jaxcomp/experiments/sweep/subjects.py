"""The networks under test: trained here, or trained elsewhere and checked."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.experiments import networks
from jaxcomp.experiments.run import Run
from jaxcomp.experiments.samples import Examples, draw_samples
from jaxcomp.experiments.sweep.config import Setting, SweepConfig
from jaxcomp.experiments.sweep.given import Given
from jaxcomp.experiments.sweep.handed_in import Control, Data, FittedControl, Grid, Networks
from jaxcomp.experiments.sweep.subject import Parts, Subject
from jaxcomp.experiments.sweep.tasks import Task
from jaxcomp.long_call import LongCall
from jaxcomp.numerics.checks import num_not_finite
from jaxcomp.numerics.host import part_of
from jaxcomp.progress import Progress
from jaxcomp.trees.paths import leaves_by_path
from jaxcomp.trees.selection import selected_paths, uncompressible
from jaxcomp.trees.uses import LeafUse, find_uses, output_layer
from jaxcomp.types import Params, PredictFn


def trained_subjects(
    config: SweepConfig,
    setting: Setting,
    run: Run,
    progress: Progress,
    *,
    data_dir: Path | str | None,
    download: bool,
    cache: Path | None,
) -> tuple[list[Subject], Callable[[int], Parts]]:
    """Train the networks of a setting (or take them from the cache) and lay out their parts."""
    started = time.perf_counter()
    with LongCall(f"{setting.name}: loading data", 1, display=progress):
        samples = draw_samples(
            setting.dataset,
            data_dir=data_dir,
            download=download,
            num_models=config.num_models,
            train_size=setting.train_size or config.train_size[0],
            validation_size=config.validation_size,
            replacement=config.replacement,
            label_noise=setting.label_noise,
            standardize=config.standardize,
            seed=config.seed,
        )

    def forget() -> None:
        for number in range(config.num_models):
            run.forget(f"{setting.name}-{number:03d}")

    run.make_from(setting.name, samples.fingerprint, forget)

    def trained_with(dropout: float, told: str) -> tuple[networks.Network, networks.TrainedModels]:
        network = networks.build(
            setting.model,
            input_shape=samples.pool.shape[1:],
            num_classes=samples.num_classes,
            width=config.width,
            dropout=dropout,
        )
        shared = run.cache(cache)
        return network, networks.train(
            network,
            networks.TrainingConfig(
                epochs=config.epochs,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            ),
            samples.training_data(),
            seed=config.seed,
            model_ids=tuple(range(config.num_models)),
            cache_dir=shared,
            second_cache_dir=None if shared == cache else cache,
            fingerprint_extra={
                "dataset": samples.fingerprint,
                "standardize": config.standardize,
            },
            progress=progress.task(f"{setting.name}: training {told}", 1),
        )

    # One process trains, the others then find the networks in the directory that all see.
    with run.claims.waited_for(f"{setting.name}-training"):
        network, trained = trained_with(config.dropout, f"{config.num_models} networks")
        otherwise = {"early_stopping": trained.early_stopped}
        if config.controls and config.dropout_control:
            told = f"them with {100 * config.dropout_control:g} % dropout"
            _, dropped = trained_with(config.dropout_control, told)
            otherwise["dropout"] = dropped.variables
            otherwise["dropout_early_stopping"] = dropped.early_stopped
    times = run.manifest["times"]
    times[f"{setting.name} training seconds"] = round(time.perf_counter() - started, 3)
    subjects: list[Subject] = []
    uses: dict[str, LeafUse] = {}
    # Cut on the host, which compiles nothing.
    variables, otherwise = jax.device_get((trained.variables, otherwise))
    for number in range(config.num_models):
        params = part_of(variables, number)
        if not subjects:  # all networks are alike
            uses = find_uses(network.predict, params, samples.test.inputs[:2])
        subjects.append(
            _subject(
                network.predict,
                params,
                selected_paths(params, uses=uses),
                uses,
                otherwise=part_of(otherwise, number),
                model_seed=number,
                num_distinct=len(np.unique(samples.train_indices[number])),
                score_fn=network.score,
            )
        )

    def parts_of(number: int) -> Parts:
        return Parts(samples.train(number), samples.validation, samples.test)

    return subjects, parts_of


def given_parts(data: Data, task: Task) -> Parts:
    """Check the three samples.

    Raises:
        ValueError: if one is empty or does not match the others.
        TypeError: if targets have another dtype than the task's.
    """
    parts = Parts(
        *(_examples(getattr(data, name), name, task) for name in ("train", "validation", "test"))
    )
    _check_parts(parts)
    return parts


def given_networks(networks: Networks) -> list[Given]:
    """Take networks that were trained elsewhere, all of one kind.

    Raises:
        ValueError: if they differ in more than the values of their arrays.
    """
    givens = [Given.from_params(networks.predict_fn, own).spread() for own in networks.params]
    for number, given in enumerate(givens):
        givens[0].check_same_kind(given, f"network {number}")
    return givens


def given_subjects(
    givens: Sequence[Given],
    networks: Networks,
    parts: Parts,
    task: Task,
    grid: Grid,
    validation: Sequence[Any],
) -> list[Subject]:
    """Check networks that were trained elsewhere, and find what of them can be compressed.

    Args:
        givens: the networks, as `given_networks` took them.
        networks: as they were handed in.
        parts: the samples.
        task: what the networks are for.
        grid: its methods and controls go with the networks.
        validation: the sample as it was handed in, for controls that are fitted.

    Raises:
        ValueError: if there is nothing to compress, weights are not finite, a control has another
            structure, outputs do not fit the task, or the layer is unknown.
    """
    predict_fn, params = givens[0].predict_fn, givens[0].params
    leaves = leaves_by_path(params).values()
    if not any(uncompressible(leaf) is None and jnp.ndim(leaf) > 1 for leaf in leaves):
        raise ValueError(
            "there is nothing to compress: params has no floating-point leaf with two axes or more."
        )
    _check_outputs(predict_fn, params, parts, task)
    uses = find_uses(predict_fn, params, parts.test.inputs[:2])
    paths = selected_paths(params, networks.select, uses=uses)
    methods = {label: own for label, (own, _) in grid.own_methods().items()}
    subjects = []
    for number, (given, own) in enumerate(zip(givens, networks.params, strict=True)):
        refresh_fn = networks.refresh_fn
        subject = _subject(
            predict_fn,
            given.params,
            paths,
            uses,
            as_given=given.restore,
            refresh_fn=None if refresh_fn is None else given.refreshed_by(refresh_fn),
            otherwise={
                name: given.arrays_of(
                    _controlled(control, name, own, number, len(givens), validation),
                    f"control {name!r}",
                )
                for name, control in grid.own_controls.items()
            },
            model_seed=number,
            task=task,
            methods=methods,
        )
        _check_weights(subject, "" if len(givens) == 1 else f" of network {number}")
        last_layer = networks.last_layer
        if last_layer is not None:
            if last_layer not in subject.layers:
                raise ValueError(
                    f"last_layer {last_layer!r} is not compressed: choose from {subject.layers}."
                )
            subject = replace(subject, last_layer=last_layer)
        subjects.append(subject)
    return subjects


def _controlled(
    control: Control,
    name: str,
    params: Params,
    number: int,
    num_networks: int,
    validation: Sequence[Any],
) -> Params:
    """The weights of one network after a control."""
    if isinstance(control, FittedControl):
        return control.fit(params, tuple(validation))
    if callable(control):
        return control(params)
    if not isinstance(control, list | tuple) or len(control) != num_networks:
        told = f"{len(control)}" if isinstance(control, list | tuple) else type(control).__name__
        raise ValueError(
            f"control {name!r} must be a function of params, a FittedControl, or a list with the "
            f"weights of each of the {num_networks} networks, got {told}."
        )
    return control[number]


def _subject(
    predict_fn: PredictFn,
    params: Params,
    paths: Sequence[str],
    uses: Mapping[str, LeafUse],
    **fields: Any,
) -> Subject:
    """The network under test, with the stacks of layers and the last layer that its use shows."""
    leaves = leaves_by_path(params)
    names: list[str] = []
    stacks: list[tuple[str, int]] = []
    for path in sorted(paths):
        axis, shape = uses[path].stack_axis, jnp.shape(leaves[path])
        # The layers of a stack of vectors are vectors, which no method takes apart.
        if axis is None or len(shape) < 3:
            names.append(path)
        else:
            stacks.append((path, axis))
            names += [f"{path}[{number}]" for number in range(shape[axis])]
    last_layer = output_layer(uses)
    return Subject(
        predict_fn,
        params,
        tuple(names),
        last_layer=last_layer if last_layer in names else None,
        stacks=tuple(stacks),
        **fields,
    )


def _examples(part: Sequence[Any], name: str, task: Task) -> Examples:
    inputs, targets = np.asarray(part[0]), task.targets_of(part[1:], name)
    if len(inputs) != len(targets) or not len(targets):
        raise ValueError(
            f"{name} must hold as many inputs as targets, and at least one: "
            f"got {len(inputs)} inputs and {len(targets)} targets."
        )
    return Examples(inputs, targets)


def _check_parts(parts: Parts) -> None:
    for first, second in ((parts.train, parts.validation), (parts.train, parts.test)):
        if first.inputs.shape[1:] != second.inputs.shape[1:]:
            raise ValueError(
                f"inputs of the three parts must have the same shape, got "
                f"{first.inputs.shape[1:]} and {second.inputs.shape[1:]}."
            )


def _check_outputs(predict_fn: PredictFn, params: Params, parts: Parts, task: Task) -> None:
    outputs = jax.eval_shape(predict_fn, params, parts.test.inputs[:1])
    if not isinstance(outputs, jax.ShapeDtypeStruct):
        raise ValueError(f"predict_fn must return one array, got {type(outputs).__name__}.")
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ValueError(f"predict_fn must return floating numbers, got {outputs.dtype}.")
    task.check(outputs.shape, [part.labels for part in parts])


def _check_weights(subject: Subject, whose: str) -> None:
    if not subject.layers:
        raise ValueError(
            "there is nothing to compress: predict_fn uses no leaf with two axes or more as a "
            "factor of a product; name some by select, which names none that can be compressed now."
        )
    leaves = leaves_by_path(subject.params)
    for path in subject.paths:
        # Leaf by leaf: they may lie on different devices.
        bad = int(num_not_finite(leaves[path]))
        if bad:
            raise ValueError(f"{path}{whose} holds {bad} weights that are NaN or infinite.")
