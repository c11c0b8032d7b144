"""The whole example in one run: simulate, compare with the closed forms, test, write down.

Chunks of data sets are split in two halves: rates and penalties are chosen on the first, and claims
are tested on the second.
"""

import time
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from jaxcomp import storage
from jaxcomp.experiments.directory import RunDirectory
from jaxcomp.experiments.linear_regression.claims import evaluate_claims
from jaxcomp.experiments.linear_regression.config import StudyConfig
from jaxcomp.experiments.linear_regression.grid import (
    DATA_SETS_STREAM,
    DESIGN_STREAM,
    compressors_of,
    problem_of,
    rates_nats_of,
)
from jaxcomp.experiments.linear_regression.information import measure_information
from jaxcomp.experiments.linear_regression.results import NOUN, StudyResult
from jaxcomp.experiments.linear_regression.table import risk_table
from jaxcomp.experiments.reproducibility import random_key
from jaxcomp.linear_regression.problem import Problem
from jaxcomp.linear_regression.simulation import Simulation, codebooks_for, simulate
from jaxcomp.numerics.transformations import all_transfers
from jaxcomp.progress import Progress, Report


class StudyDirectory(RunDirectory):
    """The files of one study: finished chunks of data sets."""

    noun = NOUN
    folders = ("chunks",)

    def load(self, name: str, like: tuple[tuple[str, ...], np.ndarray]) -> Simulation | None:
        """A finished chunk, or None if it is missing, damaged or of other compressors."""
        if self.path is None:
            return None
        try:
            arrays, metadata = storage.load_arrays(self.path / "chunks" / f"{name}.npz")
            names, rates = tuple(metadata["compressors"]), arrays["rates_nats"]
            if names != like[0] or not np.array_equal(rates, like[1]):
                return None
            count = int(metadata["num_datasets"])
            return Simulation(count, names, rates, arrays["means"], arrays["squares"])
        except (ValueError, KeyError):
            return None

    def save(self, name: str, chunk: Simulation) -> None:
        """Write a finished chunk."""
        if self.path is not None:
            storage.save_arrays(
                self.path / "chunks" / f"{name}.npz",
                {
                    "rates_nats": chunk.rates_nats,
                    "means": chunk.means,
                    "squares": chunk.squares,
                },
                {"compressors": list(chunk.compressors), "num_datasets": chunk.num_datasets},
            )


@all_transfers
def run(
    config: StudyConfig,
    *,
    out: Path | str | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> StudyResult:
    """Simulate, compare with the closed forms, and test the improvement.

    Args:
        config: settings.
        out: directory of results, written as the run goes on and continued from if it holds the
            same settings; None keeps everything in memory.
        resume: whether finished parts in `out` are used.
        quiet: no progress on stderr.

    Returns:
        Tables, claims and pictures.

    Raises:
        ValueError: if `out` cannot be used.
    """
    started = time.perf_counter()
    with StudyDirectory(
        None if out is None else Path(out), asdict(config), resume=resume
    ) as directory:
        if (result := directory.finished(StudyResult.load)) is not None:
            return result
        directory.describe()
        problem = problem_of(config)
        tables, claims = [], []
        with Progress(quiet=quiet) as progress:
            total = config.num_datasets * len(config.num_examples)
            report = progress.task("compressing data sets", total)
            for number, num_examples in enumerate(config.num_examples):
                done = number * config.num_datasets
                halves = _simulate(config, problem, num_examples, directory, report, done, total)
                tables.append(risk_table(config, problem, num_examples, halves[0].merge(halves[1])))
                claims += evaluate_claims(config, num_examples, *halves)
            # The densities that it integrates are those for uncorrelated inputs.
            plain = problem_of(replace(config, correlation=0.0))
            information = measure_information(config, plain, progress)
        directory.manifest["times"] = {"seconds": time.perf_counter() - started}
        result = StudyResult(
            pd.concat(tables, ignore_index=True),
            information,
            claims,
            directory.manifest,
            directory.path,
        )
        if directory.path is not None:
            result.save()
        directory.finish()
        return result


def _simulate(
    config: StudyConfig,
    problem: Problem,
    num_examples: int,
    directory: StudyDirectory,
    report: Report,
    done_before: int,
    total: int,
) -> tuple[Simulation, Simulation]:
    """Simulate all chunks of one n; return the half for choosing and the half for testing."""
    key = jax.random.fold_in(random_key(config.seed), num_examples)
    clusters = tuple(range(1, config.num_rates + 1))
    codebooks = None
    halves: list[Simulation | None] = [None, None]
    # Two chunks at least, one for each half.
    size = min(config.chunk_size, -(-config.num_datasets // 2))
    starts = range(0, config.num_datasets, size)
    for chunk, start in enumerate(starts):
        name = f"n{num_examples:06d}-{chunk:04d}"
        count = min(size, config.num_datasets - start)
        found = directory.load(name, (compressors_of(config), rates_nats_of(config)))
        if found is None:
            if codebooks is None:
                codebooks = codebooks_for(
                    problem,
                    jax.random.fold_in(key, DESIGN_STREAM),
                    num_examples=num_examples,
                    num_clusters=clusters,
                    rates_nats=rates_nats_of(config),
                    diameter_penalty=config.diameter_penalty,
                )
            found = simulate(
                problem,
                jax.random.fold_in(key, DATA_SETS_STREAM),
                num_examples=num_examples,
                num_datasets=count,
                num_clusters=clusters,
                rates_nats=rates_nats_of(config),
                compressors=compressors_of(config),
                codebooks=codebooks,
                diameter_penalty=config.diameter_penalty,
                first_dataset=start,
                chunk_size=min(size, 512),
            )
            directory.save(name, found)
        half = halves[chunk % 2]
        halves[chunk % 2] = found if half is None else half.merge(found)
        report(done_before + start + count, total, f"n = {num_examples}")
    first, second = halves
    assert first is not None
    assert second is not None
    return first, second
