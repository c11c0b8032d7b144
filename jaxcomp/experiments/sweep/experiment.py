"""The main job: train networks, compress them at every rate, say what of it is real.

`run` does it for the project's own networks and data, `evaluate` for a network trained
elsewhere. Both go through the same engine; a run that dies continues from its last chunk.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

import jax
import numpy as np
import pandas as pd

from jaxcomp import storage
from jaxcomp.experiments.caches import network_cache
from jaxcomp.experiments.run import Run
from jaxcomp.experiments.sweep import variants as grid
from jaxcomp.experiments.sweep.beyond_controls import decided
from jaxcomp.experiments.sweep.config import (
    GridSettings,
    Setting,
    SweepConfig,
    grid_config,
    sorted_clusters,
)
from jaxcomp.experiments.sweep.engine import Parts, Subject
from jaxcomp.experiments.sweep.given import Given, fingerprint_of
from jaxcomp.experiments.sweep.results import NOUN, SweepResult
from jaxcomp.experiments.sweep.scoring import Outcome, Scored, score_setting
from jaxcomp.experiments.sweep.stored import FOLDERS
from jaxcomp.experiments.sweep.subjects import given_parts, given_subject, trained_subjects
from jaxcomp.experiments.sweep.variants import Variant
from jaxcomp.experiments.team import ALONE, Team
from jaxcomp.long_call import LongCall
from jaxcomp.numerics.transformations import all_transfers
from jaxcomp.progress import Progress
from jaxcomp.trees.selection import Select
from jaxcomp.types import Params, PredictFn


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

    Variants are spread over all devices of the process, unless JAX has a default device.

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
    result = run_in_team(
        config,
        ALONE,
        out=out,
        data_dir=data_dir,
        download=download,
        cache_dir=cache_dir,
        resume=resume,
        quiet=quiet,
    )
    assert result is not None
    return result


@all_transfers
def run_in_team(
    config: SweepConfig,
    team: Team,
    *,
    out: Path | str | None,
    data_dir: Path | str | None = None,
    download: bool = False,
    cache_dir: Path | str | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> SweepResult | None:
    """Do the share of one process of a sweep that several make together.

    Args:
        config: settings, the same in all processes.
        team: which process this is; every process of the team calls this function.
        out: directory that all processes share.
        data_dir: as in `run`.
        download: as in `run`.
        cache_dir: as in `run`; networks are kept in `out` too, where the other processes see them.
        resume: as in `run`; the first process decides.
        quiet: as in `run`.

    Returns:
        Table, claims and networks in the process that leads: the first, or another if that is
        lost. None in the others, when nothing is left to do for them.

    Raises:
        ValueError: as in `run`, or if versions, devices, options of JAX, settings or data are not
            those of the first process.
    """
    with Run(out, config.to_dict(), noun=NOUN, folders=FOLDERS, resume=resume, team=team) as run:
        if not run.is_lead and run.is_finished:
            return None
        if (result := run.finished(SweepResult.load, quiet=quiet)) is not None:
            return result
        if run.is_lead:
            run.describe()
        cache = network_cache(cache_dir)
        has_default = getattr(jax.config, "jax_default_device", None) is not None
        devices = () if has_default else jax.local_devices()
        scored: list[Scored] = []
        outcomes: list[Outcome] = []
        with Progress(quiet=quiet) as progress:
            for setting in config.settings():
                subjects, parts_of = trained_subjects(
                    config,
                    setting,
                    run,
                    progress,
                    data_dir=data_dir,
                    download=download,
                    cache=cache,
                )
                variants = _variants(config, subjects[0])
                scored.append(
                    score_setting(
                        setting, subjects, parts_of, variants, config, run, progress, devices
                    )
                )
                if run.is_lead:
                    with LongCall(f"{setting.name}: deciding claims", 1, display=progress):
                        outcomes += [own.outcome() for own in scored]
                    scored.clear()  # they hold the data of their settings
        if not run.take_lead():
            return None
        outcomes += [own.outcome() for own in scored]
        result = _result(run, outcomes)
        run.finish(result, quiet=quiet)
        return result


@all_transfers
def evaluate(
    predict_fn: PredictFn,
    params: Params,
    train: tuple[Any, Any],
    validation: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    select: Select = None,
    sensitivity_clusters: Sequence[int] | int = (4, 16),
    early_stopped: Params | None = None,
    last_layer: str | None = None,
    refresh_fn: Callable[[Params, Any], Params] | None = None,
    name: str = "network",
    out: Path | str | None = None,
    resume: bool = True,
    quiet: bool = False,
    **settings: Unpack[GridSettings],
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
        sensitivity_clusters: codebook sizes for the table of one layer at a time; may be empty.
        early_stopped: the same network stopped early, a control.
        last_layer: name of the layer that makes the logits; None for the one that `predict_fn`
            uses last (and the control that scales it is left out if there is none, or several).
        refresh_fn: `(params, train inputs) -> params`, re-estimates batch statistics after
            compression.
        name: how the table calls the network.
        out: directory for results; None keeps them in memory.
        resume: whether finished parts in `out` are used.
        quiet: no progress on stderr.
        **settings: how the network is compressed, fields of `SweepConfig` with its defaults:
            `method`, `allocation`, `importance`, `penalty_form`, `diameter_penalty`,
            `num_clusters` (each one value or several), `baselines`, `controls`, `num_probes`,
            `curvature_examples`, `num_bins`, `num_iterations`, `seed`.

    Returns:
        Table, claims (over examples: there is one network), sensitivity, and the networks.

    Raises:
        ValueError: on parts that are empty or do not match, labels out of range, weights that
            are not finite, or settings that are not allowed.
        TypeError: if `predict_fn` cannot be hashed, labels are not integers, or a setting is
            unknown.
    """
    if not re.fullmatch(r"[\w .+=-]+", name):
        raise ValueError(
            f"name becomes part of file names: use letters, digits, spaces and . + = - _ in it, "
            f"got {name!r}."
        )
    config = grid_config(settings)
    parts = given_parts(train, validation, test)
    given = Given.from_params(predict_fn, params)
    subject = given_subject(
        given,
        parts,
        select=select,
        last_layer=last_layer,
        early_stopped=early_stopped,
        refresh_fn=refresh_fn,
    )
    variants = _variants(config, subject) + _sensitivity(subject, sensitivity_clusters)
    identity = _identity(name, config, subject, variants, given, parts)
    setting = Setting("given", name, 0.0)
    with Run(out, identity, noun=NOUN, folders=FOLDERS, resume=resume) as run:
        if (result := run.finished(SweepResult.load, quiet=quiet)) is not None:
            return result.with_subject(subject)
        run.describe()
        with Progress(quiet=quiet) as progress:
            outcome = score_setting(
                setting, [subject], lambda _: parts, variants, config, run, progress
            ).outcome()
        result = _result(run, [outcome])
        run.finish(result, quiet=quiet)
        return result


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
            trained_otherwise=subject.otherwise,
            has_last_layer=subject.last_layer is not None,
        )
    return variants


def _sensitivity(subject: Subject, sizes: Sequence[int] | int) -> list[Variant]:
    """One layer compressed at a time, if there are several."""
    if len(subject.layers) < 2 or not (isinstance(sizes, int) or len(sizes)):
        return []
    clusters = sorted_clusters(sizes, "sensitivity_clusters")
    return grid.sensitivity_variants(subject.layers, num_clusters=clusters)


def _identity(
    name: str,
    config: SweepConfig,
    subject: Subject,
    variants: Sequence[Variant],
    given: Given,
    parts: Parts,
) -> dict[str, Any]:
    """What decides the results of a network trained elsewhere, as plain values."""
    counts = (
        config.num_probes,
        config.curvature_examples,
        config.num_bins,
        config.num_iterations,
    )
    return {
        "name": name,
        "seed": config.seed,
        "variants": [variant.id for variant in variants],
        "options": [str(value) for value in counts],
        "refreshed": subject.refresh_fn is not None,
        "layers": list(subject.layers),
        "last_layer": subject.last_layer,
        "network": given.fingerprint(),
        "otherwise": {name: fingerprint_of(own) for name, own in subject.otherwise.items()},
        "examples": storage.fingerprint([np.asarray(array) for part in parts for array in part]),
    }


def _result(run: Run, outcomes: Sequence[Outcome]) -> SweepResult:
    """All settings together."""
    table = pd.concat([part.table for part in outcomes], ignore_index=True)
    is_sensitivity = table["kind"] == "sensitivity"
    return SweepResult(
        table=table.loc[~is_sensitivity].drop(columns="layer").reset_index(drop=True),
        claims=[
            *(claim for part in outcomes for claim in part.claims),
            *decided([part.beyond for part in outcomes if part.beyond is not None]),
        ],
        calibration=[part.calibration.sentence for part in outcomes if part.calibration],
        smallest=[part.smallest for part in outcomes if part.smallest is not None],
        manifest=run.manifest,
        sensitivity=table.loc[is_sensitivity].reset_index(drop=True),
        directory=run.path,
        _networks={
            (part.setting.name, network.subject.model_seed): network
            for part in outcomes
            for network in part.networks
        },
    )
