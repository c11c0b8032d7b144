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
from jaxcomp.experiments.sweep.engine import Parts, Subject
from jaxcomp.experiments.sweep.given import Given
from jaxcomp.long_call import LongCall
from jaxcomp.progress import Progress
from jaxcomp.trees.paths import leaves_by_path
from jaxcomp.trees.selection import Select, selected_paths, uncompressible
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
    for number in range(config.num_models):
        params = jax.tree.map(lambda leaf, n=number: leaf[n], trained.variables)
        if not subjects:  # all networks are alike
            uses = find_uses(network.predict, params, samples.test.inputs[:2])
        subjects.append(
            _subject(
                network.predict,
                params,
                selected_paths(params, uses=uses),
                uses,
                otherwise=jax.tree.map(lambda leaf, n=number: leaf[n], otherwise),
                model_seed=number,
                num_distinct=len(np.unique(samples.train_indices[number])),
            )
        )

    def parts_of(number: int) -> Parts:
        return Parts(samples.train(number), samples.validation, samples.test)

    return subjects, parts_of


def given_parts(train: Any, validation: Any, test: Any) -> Parts:
    """Check `(inputs, labels)` of three parts.

    Raises:
        ValueError: if one is empty or does not match the others.
        TypeError: if labels are not integers.
    """
    parts = Parts(
        _examples(train, "train"), _examples(validation, "validation"), _examples(test, "test")
    )
    _check_parts(parts)
    return parts


def given_subject(
    given: Given,
    parts: Parts,
    *,
    select: Select,
    last_layer: str | None,
    early_stopped: Params | None,
    refresh_fn: Callable[[Params, Any], Params] | None,
) -> Subject:
    """Check a network that was trained elsewhere, and find what of it can be compressed.

    Args:
        given: the network.
        parts: its three parts.
        select: which leaves are compressed.
        last_layer: name of the layer that makes the logits; None to find it.
        early_stopped: the same network stopped early.
        refresh_fn: re-estimates batch statistics.

    Raises:
        ValueError: if there is nothing to compress, weights are not finite, labels out of range or
            the layer unknown.
    """
    predict_fn, params = given.predict_fn, given.params
    leaves = leaves_by_path(params).values()
    if not any(uncompressible(leaf) is None and jnp.ndim(leaf) > 1 for leaf in leaves):
        raise ValueError(
            "there is nothing to compress: params has no floating-point leaf with two axes or more."
        )
    _check_logits(predict_fn, params, parts)
    uses = find_uses(predict_fn, params, parts.test.inputs[:2])
    subject = _subject(
        predict_fn,
        params,
        selected_paths(params, select, uses=uses),
        uses,
        as_given=given.restore,
        refresh_fn=None if refresh_fn is None else given.refreshed_by(refresh_fn),
        otherwise={}
        if early_stopped is None
        else {"early_stopping": given.arrays_of(early_stopped)},
    )
    _check_weights(subject)
    _check_labels(predict_fn, params, parts)
    if last_layer is None:
        return subject
    if last_layer not in subject.layers:
        raise ValueError(
            f"last_layer {last_layer!r} is not compressed: choose from {subject.layers}."
        )
    return replace(subject, last_layer=last_layer)


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


def _examples(part: tuple[Any, Any], name: str) -> Examples:
    inputs, labels = (np.asarray(array) for array in part)
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise TypeError(
            f"{name} labels must be a vector of integers, got {labels.dtype} {labels.shape}."
        )
    if len(inputs) != len(labels) or not len(labels):
        raise ValueError(
            f"{name} must hold as many inputs as labels, and at least one: "
            f"got {len(inputs)} inputs and {len(labels)} labels."
        )
    return Examples(inputs, labels.astype(np.int32))


def _check_parts(parts: Parts) -> None:
    for first, second in ((parts.train, parts.validation), (parts.train, parts.test)):
        if first.inputs.shape[1:] != second.inputs.shape[1:]:
            raise ValueError(
                f"inputs of the three parts must have the same shape, got "
                f"{first.inputs.shape[1:]} and {second.inputs.shape[1:]}."
            )


def _check_logits(predict_fn: PredictFn, params: Params, parts: Parts) -> None:
    logits = jax.eval_shape(predict_fn, params, parts.test.inputs[:2])
    if getattr(logits, "ndim", 0) != 2 or logits.shape[0] != 2:
        raise ValueError(
            "predict_fn must return logits (batch, classes), got "
            f"{getattr(logits, 'shape', logits)} for a batch of 2."
        )


def _check_labels(predict_fn: PredictFn, params: Params, parts: Parts) -> None:
    num_classes = jax.eval_shape(predict_fn, params, parts.test.inputs[:1]).shape[-1]
    for label, part in parts._asdict().items():
        if part.labels.min() < 0 or part.labels.max() >= num_classes:
            raise ValueError(
                f"{label} labels lie in [{part.labels.min()}, {part.labels.max()}] but the "
                f"network has {num_classes} classes: labels must be 0 to {num_classes - 1}."
            )


def _check_weights(subject: Subject) -> None:
    if not subject.layers:
        raise ValueError(
            "there is nothing to compress: predict_fn uses no leaf with two axes or more as a "
            "factor of a product; name some by select, which names none that can be compressed now."
        )
    leaves = leaves_by_path(subject.params)
    for path in subject.paths:
        bad = int(jnp.sum(~jnp.isfinite(jnp.asarray(leaves[path]))))
        if bad:
            raise ValueError(f"{path} holds {bad} weights that are NaN or infinite.")
