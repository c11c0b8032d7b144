"""Train networks for their files, at prices of a bit or of given sizes, and certify each."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcomp import bounds
from jaxcomp.certificates.claims import file_bound
from jaxcomp.certificates.sample import labelled_sample
from jaxcomp.coding.ans import stream_module
from jaxcomp.experiments import data
from jaxcomp.experiments.data.dataset import Dataset
from jaxcomp.experiments.run import Row, Rows, Run
from jaxcomp.experiments.train_small.config import VALIDATION_SIZES, Point, TrainSmallConfig
from jaxcomp.experiments.train_small.descent import Images, evaluate
from jaxcomp.experiments.train_small.files import TrainedFile, best_file, random_codes_file
from jaxcomp.experiments.train_small.results import NOUN, TrainSmallResult
from jaxcomp.experiments.train_small.training import ReportFn, Trainer
from jaxcomp.numerics.host import part_of
from jaxcomp.numerics.transformations import all_transfers
from jaxcomp.progress import Progress
from jaxcomp.storage import PathLike

_NETWORKS = "networks"


@all_transfers
def run(
    config: TrainSmallConfig,
    *,
    out: Path | str | None = None,
    data_dir: PathLike | None = None,
    download: bool = False,
    resume: bool = True,
    quiet: bool = False,
) -> TrainSmallResult:
    """Train, write and certify networks of each seed at each price and size.

    Args:
        config: settings.
        out: directory of results, written as the run goes on and continued from if it holds the
            same settings; None keeps everything in memory.
        data_dir: where the data set is.
        download: whether it may come from the network.
        resume: whether finished parts and checkpoints in `out` are used.
        quiet: no progress on stderr.

    Returns:
        Table, files and picture.

    Raises:
        ImportError: without `constriction` (install `jaxcomp[coding]`).
        ValueError: if `out` cannot be used, the data set is not there or is smaller than a batch,
            or a loss does not fall or is not finite.
    """
    stream_module()  # before anything is trained
    with Run(out, asdict(config), noun=NOUN, folders=("variants", _NETWORKS), resume=resume) as run:
        if (result := run.finished(TrainSmallResult.load, quiet=quiet)) is not None:
            return result
        run.describe()
        loaded = data.load(config.dataset, data_dir=data_dir, download=download)
        run.make_from(config.dataset, loaded.fingerprint, run.discard)
        train, validation, test = split(loaded)
        if config.batch_size > len(train.labels):
            raise ValueError(
                f"batch_size is {config.batch_size:,}, but {config.dataset} has "
                f"{len(train.labels):,} examples to train on; choose at most that."
            )
        folder = None if run.path is None else run.path / _NETWORKS
        trainer = Trainer(config, train, loaded.num_classes, folder)
        counted = _distinct(train)
        variants, rows = [f"model{model}" for model in range(config.models)], []
        with Progress(quiet=quiet) as progress:
            before = trainer.steps(config.pretraining_epochs)
            each = trainer.steps(config.epochs)
            total = before + len(config.points) * each
            tell = progress.task("training for the file", total)
            for place, point in enumerate(config.points):

                def told(base: int) -> ReportFn:
                    return lambda done, _, text: tell(base + done, total, text)

                compute = partial(
                    _rows,
                    config,
                    trainer,
                    point,
                    (counted, train, validation, test),
                    (told(0), told(before + place * each)),
                )
                rows += run.part(f"point{place:02d}", compute, Rows(variants))
                tell(before + (place + 1) * each, total, "")
        result = TrainSmallResult(pd.DataFrame(rows), run.manifest, run.path)
        run.finish(result, quiet=quiet)
        return result


def split(loaded: Dataset) -> tuple[Images, Images, Images]:
    """Return training, validation (the last of the pool) and test images."""
    size = VALIDATION_SIZES[loaded.name]
    parts = (
        (loaded.pool_images[:-size], loaded.pool_labels[:-size]),
        (loaded.pool_images[-size:], loaded.pool_labels[-size:]),
        (loaded.test_images, loaded.test_labels),
    )
    train, validation, test = (Images(*part, loaded.max_value) for part in parts)
    return train, validation, test


def _distinct(train: Images) -> Images:
    """Return each training example once: what certificates count."""
    sample = labelled_sample((train.pixels, train.labels), "train").distinct()
    assert sample.labels is not None
    return Images(np.asarray(sample.inputs), sample.labels, train.max_value)


def _rows(
    config: TrainSmallConfig,
    trainer: Trainer,
    point: Point,
    parts: tuple[Images, Images, Images, Images],
    reports: tuple[ReportFn, ReportFn],
) -> list[Row]:
    """Return a row for each seed, at one point of the curve."""
    counted, train, validation, test = parts
    rows = []
    for model, file in enumerate(_files(config, trainer, point, (train, validation), reports)):
        size = len(file.content)
        row: Row = {
            "variant": f"model{model}",
            "coder": point.coder,
            "setting": float(point.setting),
            "model": model,
            "bytes": size,
            "stream_bytes": file.stream_bits / 8,
            "ideal_bytes": file.ideal_bits / 8,
            "nonzero": file.nonzero,
            "rounded_again": file.is_rounded_again,
        }
        for name, own in (("train", counted), ("validation", validation), ("test", test)):
            loss, wrong = evaluate(file.params, own, config.network)
            row[f"{name}_loss"], row[f"{name}_error"] = loss, wrong / len(own.labels)
            if name == "train":
                bits = 8 * size + float(bounds.self_delimiting_bits(size))
                count = len(own.labels)
                row["num_examples"] = count
                row["bound"] = float(file_bound(wrong, count, bits, config.delta))
        rows.append({**row, "content": file.content.hex()})
    return rows


def _files(
    config: TrainSmallConfig,
    trainer: Trainer,
    point: Point,
    parts: tuple[Images, Images],
    reports: tuple[ReportFn, ReportFn],
) -> Iterator[TrainedFile]:
    """Train at one point of the curve; yield the file of each seed."""
    params = trainer.pretrained(reports[0])
    if point.coder == "random-codes":
        place = config.sizes.index(int(point.setting))
        code, coded = trainer.random_coded(params, place, reports[1])
        for model in range(config.models):
            yield random_codes_file(code, part_of(coded, model))
        return
    place = config.penalties.index(point.setting)
    latents = trainer.priced(params, place, reports[1])
    for model in range(config.models):
        yield best_file(
            part_of(latents, model),
            config.network,
            *parts,
            nats_per_bit=trainer.nats_per_bit(place),
            rounds_again=config.rounds_again,
        )
