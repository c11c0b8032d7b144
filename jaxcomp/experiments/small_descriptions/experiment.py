"""Train small descriptions at several prices of a bit, and certify each by its own bytes."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxcomp.certificates.claims import file_bound
from jaxcomp.certificates.sample import labelled_sample
from jaxcomp.decoder import decode_bare
from jaxcomp.experiments import data
from jaxcomp.experiments.data.dataset import Dataset
from jaxcomp.experiments.run import Row, Rows, Run
from jaxcomp.experiments.small_descriptions.architectures import Network, network
from jaxcomp.experiments.small_descriptions.config import DescriptionConfig
from jaxcomp.experiments.small_descriptions.descent import (
    Examples,
    Layer,
    bound_of,
    nothing,
    refined,
    size_bits,
    trained,
)
from jaxcomp.experiments.small_descriptions.pretraining import drawn_digits
from jaxcomp.experiments.small_descriptions.results import NOUN, DescriptionResult
from jaxcomp.numerics.transformations import all_transfers
from jaxcomp.progress import Progress
from jaxcomp.storage import PathLike

_BATCH = 1_000
_MOST_BEFORE = 7  # the highest level of a layer that a transfer begins with


@all_transfers
def run(
    config: DescriptionConfig,
    *,
    out: Path | str | None = None,
    data_dir: PathLike | None = None,
    download: bool = False,
    resume: bool = True,
    quiet: bool = False,
) -> DescriptionResult:
    """Train, refine and certify small descriptions of each seed at each price.

    Args:
        config: settings.
        out: directory of results, written as the run goes on and continued from if it holds the
            same settings; None keeps everything in memory.
        data_dir: where the data set is.
        download: whether it may come from the network.
        resume: whether finished parts in `out` are used.
        quiet: no progress on stderr.

    Returns:
        Table, files and pictures.

    Raises:
        ValueError: if `out` cannot be used, or the data set is not there.
    """
    with Run(out, asdict(config), noun=NOUN, resume=resume) as run:
        if (result := run.finished(DescriptionResult.load, quiet=quiet)) is not None:
            return result
        run.describe()
        loaded = data.load(config.dataset, data_dir=data_dir, download=download)
        run.make_from(config.dataset, loaded.fingerprint, run.discard)
        own = network(
            config.features,
            random_filters=config.random_filters,
            num_classes=loaded.num_classes,
        )
        train, test = _examples(loaded, own)
        start, before = nothing(own.features.num_features, own.num_classes), []
        if config.transfer:
            before = run.part("prior", partial(_prior, config, own), Rows(["prior"]))
            start = layer_of(before[0]["stream"], own)
        variants, rows = [f"{penalty:g}" for penalty in config.penalties], list(before)
        with Progress(quiet=quiet) as progress:
            tell = progress.task("describing networks", config.models)
            for number in range(config.models):
                rows += run.part(
                    f"model{number:02d}",
                    partial(_rows, config, own, train, test, start, number),
                    Rows(variants),
                )
                tell(number + 1, config.models, "")
        table = pd.DataFrame(rows[len(before) :])
        result = DescriptionResult(
            table, start if config.transfer else None, run.manifest, run.path
        )
        run.finish(result, quiet=quiet)
        return result


def layer_of(stream: str, own: Network) -> Layer:
    """Return the layer of a stream in hexadecimal."""
    sides = (own.features.num_features, own.num_classes)
    shapes = [("int8", sides[1:]), ("int8", sides)]
    bias, weights = decode_bare(bytes.fromhex(stream), shapes)
    return Layer(weights, bias)


def _rows(
    config: DescriptionConfig,
    own: Network,
    train: Examples,
    test: Examples,
    start: Layer,
    number: int,
) -> list[Row]:
    """Return a row for each price, of one seed."""
    rows = []
    count, count_test = len(train.labels), len(test.labels)
    for place, penalty in enumerate(config.penalties):
        seed = (config.seed * 1_000_003 + number * 1_009 + place) % (1 << 31)
        first = trained(train, start, config, penalty=penalty, most=config.most, seed=seed)
        layer, errors = refined(train, start, first, most=config.most, delta=config.delta)
        stream = layer.stream()
        whole = layer.added_to(start)
        again = layer_of(stream.hex(), own)
        assert all(np.array_equal(*pair) for pair in zip(layer, again, strict=True))
        wrong = whole.num_errors(test)
        rows.append(
            {
                "variant": f"{penalty:g}",
                "model": number,
                "penalty": penalty,
                "bytes": len(stream),
                "charged_bits": size_bits(len(stream)),
                "nonzero": int(np.count_nonzero(layer.weights)),
                "num_examples": count,
                "num_errors": errors,
                "train_error": errors / count,
                "test_error": wrong / count_test,
                "bound": bound_of(layer, errors, count, config.delta),
                "bound_before_refinement": bound_of(
                    first, first.added_to(start).num_errors(train), count, config.delta
                ),
                "held_out": float(file_bound(wrong, count_test, 0.0, config.delta)),
                "held_out_examples": count_test,
                "stream": stream.hex(),
            }
        )
    return rows


def _prior(config: DescriptionConfig, own: Network) -> list[Row]:
    """Return the layer that a transfer begins with, trained on scikit-learn's digits."""
    images, labels = drawn_digits(config.seed)
    examples = Examples(_features(images, own), labels)
    start = nothing(own.features.num_features, own.num_classes)
    layer = trained(examples, start, config, penalty=0.0, most=_MOST_BEFORE, seed=config.seed)
    return [{"variant": "prior", "stream": layer.stream().hex()}]


def _examples(loaded: Dataset, own: Network) -> tuple[Examples, Examples]:
    """Return distinct training examples, and test examples that are none of them, by features."""
    train = labelled_sample((loaded.pool_images, loaded.pool_labels), "train").distinct()
    test = labelled_sample((loaded.test_images, loaded.test_labels), "test").distinct(train.names)
    found = []
    for sample in (train, test):
        images = sample.inputs.astype(np.float32) / np.float32(loaded.max_value)
        assert sample.labels is not None
        found.append(Examples(_features(images, own), sample.labels.astype(np.int32)))
    return found[0], found[1]


def _features(images: Float[np.ndarray, "n ..."], own: Network) -> np.ndarray:
    """Return the features of all images."""
    found = []
    for begin in range(0, len(images), _BATCH):
        some = images[begin : begin + _BATCH]
        padded = np.concatenate([some, images[: _BATCH - len(some)]]) if begin else some
        found.append(np.asarray(own.features_of(jnp.asarray(padded)))[: len(some)])
    return np.concatenate(found)
