"""The main job: train networks, compress them at every rate, say what of it is real.

`run` does it for the project's own networks and data, `evaluate` for a network trained
elsewhere. Both go through the same engine; a run that dies continues from its last chunk.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxcomp import storage
from jaxcomp.experiments import networks
from jaxcomp.experiments.caches import network_cache
from jaxcomp.experiments.reproducibility import random_key
from jaxcomp.experiments.samples import Examples, draw_samples
from jaxcomp.experiments.sweep import variants as grid
from jaxcomp.experiments.sweep.claims import (
    CalibrationShare,
    Claim,
    SmallestNetwork,
    VariantLosses,
    calibration_share,
    evaluate_claims,
    smallest_without_loss,
)
from jaxcomp.experiments.sweep.codebooks import Codebooks, solve_codebooks
from jaxcomp.experiments.sweep.config import Setting, SweepConfig, sorted_clusters
from jaxcomp.experiments.sweep.curvature import measure_curvature
from jaxcomp.experiments.sweep.engine import (
    Evaluator,
    Network,
    Parts,
    Row,
    Scorer,
    Subject,
    chunked,
    stack_losses,
)
from jaxcomp.experiments.sweep.given import Given, fingerprint_of
from jaxcomp.experiments.sweep.results import SweepDirectory, SweepResult
from jaxcomp.experiments.sweep.variants import Variant
from jaxcomp.numerics.transformations import all_transfers
from jaxcomp.progress import Progress
from jaxcomp.trees.paths import leaves_by_path
from jaxcomp.trees.selection import Select, selected_paths, uncompressible
from jaxcomp.trees.uses import LeafUse, find_uses, output_layer
from jaxcomp.types import Params, PredictFn

# Streams of random numbers; each is folded into the sweep's seed.
_CURVATURE, _NOISE, _START = 1, 2, 3


@dataclass(frozen=True)
class Options:
    """What the engine needs to know beside networks, parts and variants."""

    importance: tuple[str, ...]
    num_probes: int
    curvature_examples: int
    num_bins: int
    num_iterations: int
    seed: int


@all_transfers
def run(
    config: SweepConfig,
    *,
    out: Path | str | None = None,
    data_dir: Path | str | None = None,
    download: bool = False,
    cache_dir: Path | str | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> SweepResult:
    """Train networks and sweep their compression rate.

    Args:
        config: settings; `jaxcomp.experiments.sweep.preset` makes them.
        out: directory of results, written as the run goes on, and continued from if it holds
            the same settings; None keeps everything in memory.
        data_dir: folder with data files (else the environment's `JAXCOMP_DATA_DIR`).
        download: whether data may be fetched from OpenML.
        cache_dir: where trained networks are kept; None for the user's cache.
        resume: whether finished parts in `out` are used.
        quiet: no progress on stderr.

    Returns:
        Table, claims and networks.

    Raises:
        ValueError: on data that are missing or do not fit, an unusable `out`, or a network
            whose loss is not finite after training.
    """
    started = time.perf_counter()
    options = Options(
        config.importance,
        config.num_probes,
        config.curvature_examples,
        config.num_bins,
        config.num_iterations,
        config.seed,
    )
    outcome: list[_Outcome] = []
    with SweepDirectory(_path(out), config.to_dict(), resume=resume) as directory:
        if (result := directory.finished(SweepResult.load)) is not None:
            return result
        directory.describe()
        networks = network_cache(cache_dir)
        with Progress(quiet=quiet) as progress:
            for setting in config.settings():
                subjects, parts_of = _train(
                    config, setting, data_dir, download, networks, progress, directory
                )
                variants = _variants(config, subjects[0])
                outcome.append(
                    _sweep(setting, subjects, parts_of, variants, options, directory, progress)
                )
        return _finish(directory, outcome, started)


@all_transfers
def evaluate(
    predict_fn: PredictFn,
    params: Params,
    train: tuple[Any, Any],
    validation: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    select: Select = None,
    method: Sequence[str] | str = ("kmeans",),
    allocation: Sequence[str] | str = ("equal",),
    importance: Sequence[str] | str = ("none", "gauss_newton"),
    penalty_form: Sequence[str] | str = ("monotone",),
    diameter_penalty: Sequence[float] | float = (0.0, 0.003, 0.01, 0.05),
    num_clusters: Sequence[int] | int = (2, 3, 4, 6, 8, 16, 32),
    sensitivity_clusters: Sequence[int] | int = (4, 16),
    baselines: bool = True,
    controls: bool = True,
    early_stopped: Params | None = None,
    last_layer: str | None = None,
    refresh_fn: Callable[[Params, Any], Params] | None = None,
    num_probes: int = 64,
    curvature_examples: int = 1000,
    num_bins: int = 4096,
    num_iterations: int = 100,
    name: str = "network",
    seed: int = 0,
    out: Path | str | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> SweepResult:
    """Sweep the compression rate of a classifier that was trained elsewhere.

    Args:
        predict_fn: `(params, inputs) -> logits (batch, classes)` in evaluation mode; pure,
            hashable, traceable by JAX. `jaxcomp.adapters.nnx_predict_fn` and `linen_predict_fn`
            make one.
        params: any pytree; arrays of JAX or NumPy among its leaves, tensors of PyTorch, and
            anything else, which is left alone.
        train: `(inputs, labels)` that the network learned from; labels are integers.
        validation: examples that choices and temperatures are made on.
        test: examples that only the final numbers see.
        select: which leaves are compressed (see `jaxcomp.trees.selection`); by default those with
            two axes or more that `predict_fn` uses as factors of matrix products and convolutions,
            or looks rows up in. A stack of layers that it scans is compressed layer by layer.
        method: of kmeans, optimal, entropy_constrained, vector; as all axes one or several.
        allocation: of equal, optimal: how layers share the bits (see `SweepConfig`).
        importance: of none, gauss_newton, hutchinson, fisher, adam.
        penalty_form: of monotone, published, linear.
        diameter_penalty: relative strengths; 0 is always included.
        num_clusters: codebook sizes K.
        sensitivity_clusters: codebook sizes for the table of one layer at a time; may be empty.
        baselines: whether integer rounding, pruning and uniform quantization are included.
        controls: whether controls that compress nothing are included.
        early_stopped: the same network stopped early, a control.
        last_layer: name of the layer that makes the logits; None for the one that `predict_fn`
            uses last (and the control that scales it is left out if there is none, or several).
        refresh_fn: `(params, train inputs) -> params`, re-estimates batch statistics after
            compression.
        num_probes: Hutchinson probes.
        curvature_examples: training examples for the curvature.
        num_bins: bins of the histogram of moments.
        num_iterations: Lloyd iterations at most.
        name: how the table calls the network.
        seed: of probes and noise.
        out: directory for results; None keeps them in memory.
        resume: whether finished parts in `out` are used.
        quiet: no progress on stderr.

    Returns:
        Table, claims (over examples: there is one network), sensitivity, and the networks.

    Raises:
        ValueError: on parts that are empty or do not match, labels out of range, weights that
            are not finite, or settings that are not allowed.
        TypeError: if `predict_fn` cannot be hashed or labels are not integers.
    """
    started = time.perf_counter()
    if not re.fullmatch(r"[\w .+=-]+", name):
        raise ValueError(
            f"name becomes part of file names: use letters, digits, spaces and . + = - _ in it, "
            f"got {name!r}."
        )
    # The sweep's own settings carry the checks of every axis.
    config = SweepConfig(
        method=cast("tuple[str, ...]", method),
        allocation=cast("tuple[str, ...]", allocation),
        importance=cast("tuple[str, ...]", importance),
        penalty_form=cast("tuple[str, ...]", penalty_form),
        diameter_penalty=cast("tuple[float, ...]", diameter_penalty),
        num_clusters=cast("tuple[int, ...]", num_clusters),
        num_probes=num_probes,
        curvature_examples=curvature_examples,
        num_bins=num_bins,
        num_iterations=num_iterations,
        baselines=baselines,
        controls=controls,
    )
    parts = Parts(
        _examples(train, "train"), _examples(validation, "validation"), _examples(test, "test")
    )
    _check_parts(parts)
    given = Given.from_params(predict_fn, params)
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
        early_stopped=None if early_stopped is None else given.arrays_of(early_stopped),
    )
    layers = subject.layers
    _check_weights(subject)
    num_classes = jax.eval_shape(predict_fn, params, parts.test.inputs[:1]).shape[-1]
    for label, part in zip(("train", "validation", "test"), parts, strict=True):
        if part.labels.min() < 0 or part.labels.max() >= num_classes:
            raise ValueError(
                f"{label} labels lie in [{part.labels.min()}, {part.labels.max()}] but the "
                f"network has {num_classes} classes: labels must be 0 to {num_classes - 1}."
            )
    if last_layer is not None and last_layer not in layers:
        raise ValueError(f"last_layer {last_layer!r} is not compressed: choose from {layers}.")
    if last_layer is not None:
        subject = replace(subject, last_layer=last_layer)
    variants = _variants(config, subject)
    has_sensitivity = isinstance(sensitivity_clusters, int) or len(sensitivity_clusters) > 0
    if len(layers) > 1 and has_sensitivity:
        sensitivity = sorted_clusters(sensitivity_clusters, "sensitivity_clusters")
        variants += grid.sensitivity_variants(layers, num_clusters=sensitivity)
    options = Options(
        config.importance, num_probes, curvature_examples, num_bins, num_iterations, seed
    )
    settings = {
        "name": name,
        "seed": seed,
        "variants": [variant.id for variant in variants],
        "options": [
            str(value) for value in (num_probes, curvature_examples, num_bins, num_iterations)
        ],
        "refreshed": refresh_fn is not None,
        "layers": list(layers),
        "last_layer": subject.last_layer,
        "network": given.fingerprint(),
        "early_stopped": None
        if subject.early_stopped is None
        else fingerprint_of(subject.early_stopped),
        "examples": storage.fingerprint([np.asarray(array) for part in parts for array in part]),
    }
    setting = Setting("given", name, 0.0)
    with SweepDirectory(_path(out), settings, resume=resume) as directory:
        if (result := directory.finished(SweepResult.load)) is not None:
            return result.with_subject(subject)
        directory.describe()
        with Progress(quiet=quiet) as progress:
            outcome = _sweep(
                setting, [subject], lambda _: parts, variants, options, directory, progress
            )
        return _finish(directory, [outcome], started)


class _Outcome(NamedTuple):
    """What came of one setting."""

    table: pd.DataFrame
    claims: list[Claim]
    calibration: CalibrationShare | None
    smallest: SmallestNetwork | None


def _sweep(
    setting: Setting,
    subjects: Sequence[Subject],
    parts_of: Callable[[int], Parts],
    variants: Sequence[Variant],
    options: Options,
    directory: SweepDirectory,
    progress: Progress,
) -> _Outcome:
    """Score every variant of every network of one setting, then make its claims."""
    name = setting.name
    evaluator = Evaluator(subjects[0], parts_of(0))
    told = progress.task(f"{name}: compressing and scoring", len(variants) * len(subjects))
    rows: list[Row] = []
    networks: list[Network] = []
    for number, subject in enumerate(subjects):
        file = f"{name}-{subject.model_seed:03d}"
        parts = parts_of(number)
        key = jax.random.fold_in(random_key(options.seed), subject.model_seed)
        codebooks, scorer = directory.load_codebooks(file, subject), None
        for chunk, members in chunked(variants, evaluator.num_chunk_variants):
            found = directory.load_rows(f"{file}-{chunk:04d}", [variant.id for variant in members])
            if found is None or codebooks is None:
                if scorer is None:
                    evaluator.check_finite(subject, parts)
                    scorer = _scorer(subject, parts, variants, options, evaluator, codebooks, key)
                    codebooks = scorer.network.codebooks
                    directory.save_network(name, file, scorer.network)
                found = scorer.score(members)
                directory.save_rows(f"{file}-{chunk:04d}", found)
            rows += found
            told(len(rows), len(variants) * len(subjects), "")
        assert codebooks is not None
        networks.append(Network(subject, codebooks, jax.random.fold_in(key, _NOISE)))
        directory.networks[name, subject.model_seed] = networks[-1]
    table = _table(setting, rows)
    temperatures = {(row["variant"], row["model_seed"]): row["temperature"] for row in rows}
    by_id = {variant.id: variant for variant in variants}

    @cache
    def losses(variant_id: str) -> VariantLosses:
        return stack_losses(
            [
                Scorer(network, parts_of(number), evaluator).losses(
                    by_id[variant_id], temperatures[variant_id, network.subject.model_seed]
                )
                for number, network in enumerate(networks)
            ]
        )

    judged = table.loc[table["kind"] != "sensitivity"]
    claims = [claim._replace(setting=name) for claim in evaluate_claims(judged, losses)]
    smallest = smallest_without_loss(judged, losses)
    if smallest is not None:
        smallest = smallest._replace(setting=name)
    return _Outcome(table, claims, calibration_share(judged, losses), smallest)


def _table(setting: Setting, rows: Sequence[Row]) -> pd.DataFrame:
    """Rows with the setting they belong to and the measured rise of the training loss."""
    table = pd.DataFrame(rows)
    originals = {row["model_seed"]: row["train_loss"] for row in rows if row["kind"] == "original"}
    rise = [row["train_loss"] - originals[row["model_seed"]] for row in rows]
    place = list(table.columns).index("predicted_rise_nats") + 1
    table.insert(place, "measured_rise_nats", rise)
    identity = {
        "setting": setting.name,
        "dataset": setting.dataset,
        "model": setting.model,
        "label_noise": setting.label_noise,
    }
    for place, (column, value) in enumerate(identity.items()):
        table.insert(place, column, value)
    return table


def _scorer(
    subject: Subject,
    parts: Parts,
    variants: Sequence[Variant],
    options: Options,
    evaluator: Evaluator,
    codebooks: Codebooks | None,
    key: jax.Array,
) -> Scorer:
    """Measure the curvature of one network and solve its codebooks, unless they are given."""
    inputs, labels = parts.train
    curvatures = measure_curvature(
        subject.predict_fn,
        subject.params,
        (inputs[: options.curvature_examples], labels[: options.curvature_examples]),
        options.importance,
        # By name, not as patterns: a path may hold a character that a pattern gives a meaning.
        select=lambda path, leaf: path in subject.paths,
        num_probes=options.num_probes,
        key=jax.random.fold_in(key, _CURVATURE),
    )
    reference = subject.layers_of(curvatures.reference)
    if codebooks is None:
        codebooks = solve_codebooks(
            subject.weights(),
            {
                name: None if leaves is None else subject.layers_of(leaves)
                for name, leaves in curvatures.importance.items()
            },
            variants,
            num_bins=options.num_bins,
            num_iterations=options.num_iterations,
            layer_weight={name: float(jnp.mean(layer)) for name, layer in reference.items()},
            key=jax.random.fold_in(key, _START),
        )
    network = Network(subject, codebooks, jax.random.fold_in(key, _NOISE))
    return Scorer(network, parts, evaluator, reference=reference)


def _train(
    config: SweepConfig,
    setting: Setting,
    data_dir: Path | str | None,
    download: bool,
    cache: Path | None,
    progress: Progress,
    directory: SweepDirectory,
) -> tuple[list[Subject], Callable[[int], Parts]]:
    """Train the networks of a setting (or take them from the cache) and lay out their parts."""
    started = time.perf_counter()
    samples = draw_samples(
        setting.dataset,
        data_dir=data_dir,
        download=download,
        num_models=config.num_models,
        train_size=config.train_size,
        validation_size=config.validation_size,
        replacement=config.replacement,
        label_noise=setting.label_noise,
        standardize=config.standardize,
        seed=config.seed,
    )
    if not directory.is_made_from(setting.name, samples.fingerprint):
        for number in range(config.num_models):
            directory.forget(f"{setting.name}-{number:03d}")
    network = networks.build(
        setting.model,
        input_shape=samples.pool.shape[1:],
        num_classes=samples.num_classes,
        width=config.width,
        dropout=config.dropout,
    )
    trained = networks.train(
        network,
        networks.TrainingConfig(
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        ),
        inputs=samples.pool,
        train_indices=samples.train_indices,
        train_labels=samples.train_labels,
        validation_inputs=samples.validation.inputs,
        validation_labels=samples.validation.labels,
        seed=config.seed,
        model_ids=tuple(range(config.num_models)),
        cache_dir=cache,
        fingerprint_extra={
            "dataset": samples.fingerprint,
            "standardize": config.standardize,
        },
        progress=progress.task(f"{setting.name}: training {config.num_models} networks", 1),
    )
    times = directory.manifest["times"]
    times[f"{setting.name} training seconds"] = round(time.perf_counter() - started, 3)
    subjects: list[Subject] = []
    uses: dict[str, LeafUse] = {}
    for number in range(config.num_models):
        params = jax.tree.map(lambda leaf, n=number: leaf[n], trained.variables)
        early = jax.tree.map(lambda leaf, n=number: leaf[n], trained.early_stopped)
        if not subjects:  # all networks are alike
            uses = find_uses(network.predict, params, samples.test.inputs[:2])
        subjects.append(
            _subject(
                network.predict,
                params,
                selected_paths(params, uses=uses),
                uses,
                early_stopped=early,
                model_seed=number,
                num_distinct=len(np.unique(samples.train_indices[number])),
            )
        )

    def parts_of(number: int) -> Parts:
        return Parts(samples.train(number), samples.validation, samples.test)

    return subjects, parts_of


def _variants(config: SweepConfig, subject: Subject) -> list[Variant]:
    variants = [
        grid.ORIGINAL,
        *grid.compressed_variants(
            importance=config.importance,
            penalty_form=config.penalty_form,
            diameter_penalty=config.diameter_penalty,
            num_clusters=config.num_clusters,
            baselines=config.baselines,
            method=config.method,
            allocation=config.allocation,
        ),
    ]
    if config.controls:
        variants += grid.control_variants(
            num_clusters=config.num_clusters,
            has_early_stopping=subject.early_stopped is not None,
            has_last_layer=subject.last_layer is not None,
        )
    return variants


def _finish(directory: SweepDirectory, outcome: Sequence[_Outcome], started: float) -> SweepResult:
    table = pd.concat([part.table for part in outcome], ignore_index=True)
    is_sensitivity = table["kind"] == "sensitivity"
    times = directory.manifest["times"]
    times["last session seconds"] = round(time.perf_counter() - started, 3)
    shares = [part.calibration for part in outcome]
    result = SweepResult(
        table=table.loc[~is_sensitivity].drop(columns="layer").reset_index(drop=True),
        claims=[claim for part in outcome for claim in part.claims],
        calibration=[share.sentence for share in shares if share is not None],
        smallest=[part.smallest for part in outcome if part.smallest is not None],
        manifest=directory.manifest,
        sensitivity=table.loc[is_sensitivity].reset_index(drop=True),
        directory=directory.path,
        _networks=directory.networks,
    )
    if directory.path is not None:
        result.save()
    directory.finish()
    return result


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


def _path(out: Path | str | None) -> Path | None:
    return None if out is None else Path(out)
