"""The whole example in one run: simulate, compare with the closed forms, test, write down.

Chunks of data sets are split in two halves: rates and penalties are chosen on the first, and claims
are tested on the second.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial, reduce
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxcomp import storage
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
from jaxcomp.experiments.run import Run
from jaxcomp.linear_regression.problem import Problem
from jaxcomp.linear_regression.simulation import (
    DesignedCodebooks,
    Simulation,
    codebooks_for,
    simulate,
)
from jaxcomp.numerics.transformations import all_transfers
from jaxcomp.progress import Progress


@dataclass(frozen=True)
class StoredChunk:
    """How a chunk of data sets is kept, in `chunks/NAME.npz`.

    Attributes:
        compressors: that it was simulated with.
        rates_nats: likewise.
    """

    compressors: tuple[str, ...]
    rates_nats: Float[np.ndarray, "R"]

    def read(self, folder: Path, name: str) -> Simulation | None:
        """A finished chunk, or None if it is missing, damaged or of other compressors."""
        try:
            arrays, metadata = storage.load_arrays(folder / "chunks" / f"{name}.npz")
            names, rates = tuple(metadata["compressors"]), arrays["rates_nats"]
            if names != self.compressors or not np.array_equal(rates, self.rates_nats):
                return None
            count = int(metadata["num_datasets"])
            return Simulation(count, names, rates, arrays["means"], arrays["squares"])
        except (ValueError, KeyError):
            return None

    def write(self, folder: Path, name: str, value: Simulation) -> None:
        """Write a finished chunk."""
        storage.save_arrays(
            folder / "chunks" / f"{name}.npz",
            {"rates_nats": value.rates_nats, "means": value.means, "squares": value.squares},
            {"compressors": list(value.compressors), "num_datasets": value.num_datasets},
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
    with Run(out, asdict(config), noun=NOUN, folders=("chunks",), resume=resume) as run:
        if (result := run.finished(StudyResult.load, quiet=quiet)) is not None:
            return result
        run.describe()
        problem = problem_of(config)
        tables, claims = [], []
        with Progress(quiet=quiet) as progress:
            total = config.num_datasets * len(config.num_examples)
            report = progress.task("compressing data sets", total)
            for number, num_examples in enumerate(config.num_examples):
                done = number * config.num_datasets

                def tell(count: int, before: int = done, of: int = num_examples) -> None:
                    report(before + count, total, f"n = {of}")

                halves = _simulate(config, problem, num_examples, run, tell)
                tables.append(risk_table(config, problem, num_examples, halves[0].merge(halves[1])))
                claims += evaluate_claims(config, num_examples, *halves)
            # The densities that it integrates are those for uncorrelated inputs.
            plain = problem_of(replace(config, correlation=0.0))
            information = measure_information(config, plain, progress)
        result = StudyResult(
            pd.concat(tables, ignore_index=True), information, claims, run.manifest, run.path
        )
        run.finish(result, quiet=quiet)
        return result


def _simulate(
    config: StudyConfig,
    problem: Problem,
    num_examples: int,
    run: Run,
    tell: Callable[[int], None],
) -> tuple[Simulation, Simulation]:
    """Simulate all chunks of one n; return the half for choosing and the half for testing."""
    key = jax.random.fold_in(random_key(config.seed), num_examples)
    clusters = tuple(range(1, config.num_rates + 1))
    like = StoredChunk(compressors_of(config), rates_nats_of(config))
    # Two chunks at least, one for each half.
    size = min(config.chunk_size, -(-config.num_datasets // 2))

    @cache
    def codebooks() -> DesignedCodebooks:
        return codebooks_for(
            problem,
            jax.random.fold_in(key, DESIGN_STREAM),
            num_examples=num_examples,
            num_clusters=clusters,
            rates_nats=like.rates_nats,
            diameter_penalty=config.diameter_penalty,
        )

    def chunk_from(start: int, count: int) -> Simulation:
        return simulate(
            problem,
            jax.random.fold_in(key, DATA_SETS_STREAM),
            num_examples=num_examples,
            num_datasets=count,
            num_clusters=clusters,
            rates_nats=like.rates_nats,
            compressors=like.compressors,
            codebooks=codebooks(),
            diameter_penalty=config.diameter_penalty,
            first_dataset=start,
            chunk_size=min(size, 512),
        )

    halves: tuple[list[Simulation], list[Simulation]] = [], []
    for number, start in enumerate(range(0, config.num_datasets, size)):
        count = min(size, config.num_datasets - start)
        name = f"n{num_examples:06d}-{number:04d}"
        halves[number % 2].append(run.part(name, partial(chunk_from, start, count), like))
        tell(start + count)
    first, second = (reduce(Simulation.merge, chunks) for chunks in halves)
    return first, second
