"""The experiment from end to end: train, measure, count, judge, write down.

A run that dies goes on from its finished variants; the networks themselves are in the trainer's
cache, so that nothing finished is computed twice, and the results are the same to the bit.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import pandas as pd

from jaxcomp import storage
from jaxcomp.coding.ans import stream_module
from jaxcomp.experiments import networks
from jaxcomp.experiments.caches import network_cache
from jaxcomp.experiments.regularization.claims import add_differences, evaluate_claims
from jaxcomp.experiments.regularization.config import RegularizationConfig, Variant
from jaxcomp.experiments.regularization.measure import Measured, measure
from jaxcomp.experiments.regularization.results import NOUN, RegularizationResult
from jaxcomp.experiments.regularization.rounding import PENALTIES, count_rounded_models
from jaxcomp.experiments.reproducibility import random_key
from jaxcomp.experiments.run import Row, Rows, Run
from jaxcomp.experiments.samples import Samples, draw_samples
from jaxcomp.long_call import LongCall
from jaxcomp.numerics.host import part_of
from jaxcomp.numerics.transformations import all_transfers
from jaxcomp.progress import Progress, Report
from jaxcomp.types import Params, PredictFn

# Streams of random numbers; each is folded into the run's seed.
_ROUNDING = 1


FOLDERS = ("variants", "losses")


@dataclass(frozen=True)
class StoredVariant:
    """How a measured variant is kept: rows, and test losses in `losses/NAME.npz`."""

    variant: Variant
    num_models: int

    def read(self, folder: Path, name: str) -> Measured | None:
        """A finished variant; None if a part is missing or damaged."""
        rows = self._rows.read(folder, name)
        try:
            losses, _ = storage.load_arrays(folder / "losses" / f"{name}.npz")
        except ValueError:
            return None
        return None if rows is None else Measured(rows, losses)

    def write(self, folder: Path, name: str, value: Measured) -> None:
        """Write a finished variant."""
        storage.save_arrays(folder / "losses" / f"{name}.npz", value.losses)
        self._rows.write(folder, name, value.rows)

    @property
    def _rows(self) -> Rows:
        return Rows([self.variant.id] * self.num_models)


@all_transfers
def run(
    config: RegularizationConfig,
    *,
    out: Path | str | None = None,
    data_dir: Path | str | None = None,
    download: bool = False,
    cache_dir: Path | str | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> RegularizationResult:
    """Train networks at every strength and measure what their weights cost.

    Args:
        config: settings; `jaxcomp.experiments.regularization.preset` makes them.
        out: directory of results, written as the run goes on, and continued from if it holds
            the same settings; None keeps everything in memory.
        data_dir: folder with data files (else the environment's `JAXCOMP_DATA_DIR`).
        download: whether data may be fetched from OpenML.
        cache_dir: where trained networks are kept; None for the user's cache.
        resume: whether finished parts in `out` are used.
        quiet: no progress on stderr.

    Returns:
        Tables and claims.

    Raises:
        ImportError: without `constriction` (install `jaxcomp[coding]`).
        ValueError: on data that are missing or do not fit, an unusable `out`, or a network whose
            loss stops being finite.
    """
    stream_module()  # before anything is trained
    with Run(
        out, config.to_dict(), noun=NOUN, folders=("variants", "losses"), resume=resume
    ) as run:
        if (result := run.finished(RegularizationResult.load, quiet=quiet)) is not None:
            return result
        run.describe()
        with Progress(quiet=quiet) as progress:
            measured = _measure_all(config, run, progress, data_dir, download, cache_dir)
            with LongCall("counting rounded models", 1, display=progress):
                rounding = _count_rounded(config, run)
            table = pd.DataFrame([row for part in measured.values() for row in part.rows])
            table.insert(0, "dataset", config.dataset)
            losses = {variant.id: part.losses for variant, part in measured.items()}
            table = add_differences(table, losses)
            with LongCall("deciding claims", 1, display=progress):
                claims = evaluate_claims(table, losses)
        result = RegularizationResult(table, pd.DataFrame(rounding), claims, run.manifest, run.path)
        run.finish(result, quiet=quiet)
        return result


def _measure_all(
    config: RegularizationConfig,
    run: Run,
    progress: Progress,
    data_dir: Path | str | None,
    download: bool,
    cache_dir: Path | str | None,
) -> dict[Variant, Measured]:
    """Measure every variant, or take it from the run; without data if all are there."""
    parts = {variant: StoredVariant(variant, config.num_models) for variant in config.variants()}
    found = {variant: run.find(variant.id, part) for variant, part in parts.items()}
    finished = {variant: part for variant, part in found.items() if part is not None}
    if len(finished) == len(parts):
        return finished
    started = time.perf_counter()
    with LongCall("loading data", 1, display=progress):
        samples = draw_samples(
            config.dataset,
            data_dir=data_dir,
            download=download,
            num_models=config.num_models,
            train_size=config.train_size,
            validation_size=config.validation_size,
            # Certificates speak of distinct examples.
            replacement=False,
            label_noise=config.label_noise,
            standardize=config.standardize,
            seed=config.seed,
        )
    run.make_from(config.dataset, samples.fingerprint, run.discard)
    trained = _train(
        config,
        list(parts),
        samples,
        network_cache(cache_dir),
        progress.task("training networks", 1),
    )
    run.manifest["times"]["training seconds"] = round(time.perf_counter() - started, 3)
    report = progress.task("coding and measuring", len(parts))
    measured: dict[Variant, Measured] = {}
    for place, (variant, like) in enumerate(parts.items(), start=1):
        compute = partial(measure, *trained[variant], variant, samples, config)
        measured[variant] = run.part(variant.id, compute, like)
        report(place, len(parts), variant.label)
    return measured


def _train(
    config: RegularizationConfig,
    variants: list[Variant],
    samples: Samples,
    cache: Path | None,
    report: Report,
) -> dict[Variant, tuple[PredictFn, Params]]:
    """Train the networks of every variant; those that penalties tell apart share one program."""
    penalties = [variant for variant in variants if variant.kind in ("none", "l2", "l1")]
    dropouts = [variant for variant in variants if variant.kind == "dropout"]
    groups = [(0.0, penalties), *((variant.strength, [variant]) for variant in dropouts)]
    num_done, num_all = 0, len(penalties) + len(dropouts)
    found: dict[Variant, tuple[PredictFn, Params]] = {}

    def build(rate: float) -> networks.Network:
        return networks.build(
            "mlp",
            input_shape=samples.pool.shape[1:],
            num_classes=samples.num_classes,
            width=config.width,
            dropout=rate,
        )

    # In evaluation mode all networks are the same function, compiled once.
    predict_fn = build(0.0).predict
    for rate, members in groups:

        def tell(
            done: int, total: int, message: str, before: int = num_done, count: int = len(members)
        ) -> None:
            # Steps of this group as a part of those of all groups, equally many for every
            # variant.
            report(before * total // count + done, num_all * total // count, message)

        trained = networks.train(
            build(rate),
            networks.TrainingConfig(
                epochs=config.epochs,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                momentum=config.momentum,
                weight_decay=0.0,
            ),
            samples.training_data(repeated=len(members)),
            seed=config.seed,
            model_ids=list(range(config.num_models)) * len(members),
            weight_decay=_repeated(members, "l2", config.num_models),
            l1_penalty=_repeated(members, "l1", config.num_models),
            cache_dir=cache,
            fingerprint_extra={
                "dataset": samples.fingerprint,
                "standardize": config.standardize,
            },
            progress=tell,
        )
        num_done += len(members)
        for place, variant in enumerate(members):
            own = slice(place * config.num_models, (place + 1) * config.num_models)
            found[variant] = (predict_fn, part_of(trained.variables, own))
            if variant.kind == "none":
                found[Variant("temperature")] = found[variant]
                found[Variant("early stopping")] = (
                    predict_fn,
                    part_of(trained.early_stopped, own),
                )
    return found


def _repeated(variants: list[Variant], kind: str, num_models: int) -> list[float]:
    """Strength of one kind of penalty for every network of the variants."""
    return [
        variant.strength if variant.kind == kind else 0.0
        for variant in variants
        for _ in range(num_models)
    ]


def _count_rounded(config: RegularizationConfig, run: Run) -> list[Row]:
    """Count the models that rounding leaves, or take the counts from the run."""
    names = [f"{penalty:g}-{n}" for penalty in PENALTIES for n in config.decimals]

    def count() -> list[Row]:
        counted = count_rounded_models(
            jax.random.fold_in(random_key(config.seed), _ROUNDING),
            decimals=config.decimals,
            num_problems=config.num_problems,
        )
        return [{"variant": name, **row} for name, row in zip(names, counted, strict=True)]

    rows = run.part("rounding", count, Rows(names))
    return [{k: v for k, v in row.items() if k != "variant"} for row in rows]
