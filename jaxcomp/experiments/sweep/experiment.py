"""The main job: train networks, compress them at every rate, say what of it is real.

`run` does it for the project's own networks and data, `evaluate` for networks trained
elsewhere. Both go through the same engine; a run that dies continues from its last chunk.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxcomp import storage
from jaxcomp.experiments.caches import network_cache
from jaxcomp.experiments.parts import worker_devices
from jaxcomp.experiments.run import Run
from jaxcomp.experiments.sweep import variants as grid_variants
from jaxcomp.experiments.sweep.beyond_controls import decided
from jaxcomp.experiments.sweep.config import Setting, SweepConfig
from jaxcomp.experiments.sweep.given import Given, fingerprint_of
from jaxcomp.experiments.sweep.handed_in import Data, Grid, Networks
from jaxcomp.experiments.sweep.results import NOUN, SweepResult
from jaxcomp.experiments.sweep.scoring import Outcome, Scored, score_setting
from jaxcomp.experiments.sweep.stored import FOLDERS
from jaxcomp.experiments.sweep.subject import Parts, Subject
from jaxcomp.experiments.sweep.subjects import (
    given_networks,
    given_parts,
    given_subjects,
    trained_subjects,
)
from jaxcomp.experiments.sweep.task_words import CLASSIFICATION, TaskWords, words_to_dict
from jaxcomp.experiments.sweep.tasks import Classification, Task
from jaxcomp.experiments.sweep.variants import Variant
from jaxcomp.experiments.team import ALONE, Team
from jaxcomp.long_call import LongCall
from jaxcomp.numerics.transformations import all_transfers
from jaxcomp.progress import Progress


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

    Variants are spread over all devices of the process (a CPU alone has two workers), unless JAX
    has a default device.

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
                variants = _variants(config, subjects[0], config.method)
                scored.append(
                    score_setting(
                        setting,
                        subjects,
                        parts_of,
                        variants,
                        config,
                        run,
                        progress,
                        worker_devices(),
                        is_compared=len(config.settings()) > 1,
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
    networks: Networks,
    data: Data,
    task: Task = Classification(),  # noqa: B008
    grid: Grid | None = None,
    *,
    out: Path | str | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> SweepResult:
    """Sweep the compression rate of networks that were trained elsewhere.

    Variants are spread over all devices of the process, unless JAX has a default device or the
    weights are spread already.

    Args:
        networks: their function, and for each its weights. With several of them (trained from
            several seeds) claims are about networks of that kind; with one, about that network.
        data: what they learned from, what choices are made on, and what the numbers are from.
        task: `Classification`, `Regression`, `Tokens`, or one of your own.
        grid: how they are compressed, and beside which controls.
        out: directory for results; None keeps them in memory.
        resume: whether finished parts in `out` are used.
        quiet: no progress on stderr.

    Returns:
        Table, claims (crossed over networks and examples), sensitivity, and the networks.

    Raises:
        ValueError: on samples that are empty or do not match, targets out of range, outputs that
            are not those of the task, networks or controls of different structures, weights that
            are not finite, or settings that are not allowed.
        TypeError: if `predict_fn` cannot be hashed, or targets have another dtype than the task's.
    """
    grid = Grid() if grid is None else grid
    config = grid.config()
    parts = given_parts(data, task)
    givens = given_networks(networks)
    subjects = given_subjects(givens, networks, parts, task, grid, data.validation)
    first = subjects[0]
    variants = _variants(config, first, grid.names)
    parameters = {label: own for label, (_, own) in grid.own_methods().items()}
    variants[1:1] = grid_variants.own_variants(parameters, config.importance)
    variants += _sensitivity(first, grid.sensitivity_clusters)
    identity = _identity(networks.name, givens, config, subjects, variants, parts)
    setting = Setting("given", networks.name, 0.0)
    with Run(out, identity, noun=NOUN, folders=FOLDERS, resume=resume) as run:
        if (result := run.finished(SweepResult.load, quiet=quiet)) is not None:
            return result.with_subjects(subjects)
        run.manifest["task_words"] = words_to_dict(task.words)
        run.describe()
        with Progress(quiet=quiet) as progress:
            outcome = score_setting(
                setting,
                subjects,
                lambda _: parts,
                variants,
                config,
                run,
                progress,
                # Functions of users need not be made for several threads.
                worker_devices([subject.params for subject in subjects], cpu_workers=1),
                is_compared=config.controls or bool(grid.own_controls),
            ).outcome()
        result = _result(run, [outcome], task.words)
        run.finish(result, quiet=quiet)
        return result


def _variants(config: SweepConfig, subject: Subject, method: Sequence[str]) -> list[Variant]:
    variants = [
        grid_variants.ORIGINAL,
        *grid_variants.compressed_variants(
            importance=config.importance,
            penalty_form=config.penalty_form,
            diameter_penalty=config.diameter_penalty,
            num_clusters=config.num_clusters,
            baselines=config.baselines,
            method=method,
            allocation=config.allocation,
        ),
    ]
    if config.controls:
        variants += grid_variants.control_variants(
            num_clusters=config.num_clusters,
            trained_otherwise=subject.otherwise,
            has_last_layer=subject.last_layer is not None,
            on_outputs=subject.task.words.control,
        )
    else:
        variants += grid_variants.otherwise_variants(subject.otherwise)
    return variants


def _sensitivity(subject: Subject, sizes: Any) -> list[Variant]:
    """One layer compressed at a time, if there are several."""
    if len(subject.layers) < 2:
        return []
    return grid_variants.sensitivity_variants(subject.layers, num_clusters=sizes)


def _identity(
    name: str,
    givens: Sequence[Given],
    config: SweepConfig,
    subjects: Sequence[Subject],
    variants: Sequence[Variant],
    parts: Parts,
) -> dict[str, Any]:
    """What decides the results of networks trained elsewhere, as plain values."""
    counts = (
        config.num_probes,
        config.curvature_examples,
        config.num_bins,
        config.num_iterations,
    )
    first = subjects[0]
    return {
        "name": name,
        "task": repr(first.task),
        "seed": config.seed,
        "variants": [variant.id for variant in variants],
        "options": [str(value) for value in counts],
        "refreshed": first.refresh_fn is not None,
        "layers": list(first.layers),
        "last_layer": first.last_layer,
        "networks": [given.fingerprint() for given in givens],
        "otherwise": {
            name: [fingerprint_of(subject.otherwise[name]) for subject in subjects]
            for name in first.otherwise
        },
        "examples": storage.fingerprint([np.asarray(array) for part in parts for array in part]),
    }


def _result(
    run: Run, outcomes: Sequence[Outcome], words: TaskWords = CLASSIFICATION
) -> SweepResult:
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
        words=words,
        _networks={
            (part.setting.name, network.subject.model_seed): network
            for part in outcomes
            for network in part.networks
        },
    )
