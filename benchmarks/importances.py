"""Which curvature serves quantization best, and how few examples suffice to measure it?

    python benchmarks/importances.py [--dataset mnist] [--num-models 5] [--runs runs]

Trains the networks of the published setting (or takes them from the cache), compresses them by
K-means under every importance, without a penalty, and prints Markdown. Losses in nats per example,
accuracy in %; `test` and `accuracy` are on the test set, `tempered` is its loss at the temperature
that fits the validation set. Nothing is chosen: every variant that was run is in the tables.

Differences are paired: the same networks on the same examples. The number behind ± is half of the
95 % interval of the mean over networks (Student's t). It covers the choice of networks, not that
of test examples, and each difference for itself; how many remain after Holm's correction is said.

MNIST is used where the package finds it (`JAXCOMP_DATA_DIR`), otherwise scikit-learn's digits at
the same settings, but for the sizes of the samples.
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from provenance import commit

import jaxcomp
from jaxcomp.curvature import GaussNewton, over_batches
from jaxcomp.evaluation import metrics
from jaxcomp.evaluation.calibration import fit_temperature
from jaxcomp.evaluation.statistics import Interval, holm, model_interval
from jaxcomp.experiments import data, sweep
from jaxcomp.quantizers import KMeans

IMPORTANCES = (
    "none",
    "hutchinson-2",
    "hutchinson-16",
    "hutchinson-256",
    "gauss_newton",
    "fisher",
    "adam",
)
REFERENCE = "gauss_newton"
NUM_CLUSTERS = (4, 8, 16)
NUM_EXAMPLES = (10, 30, 100, 300)
NUM_REFERENCE_EXAMPLES = 1000
# (examples, sampled labels for each of them: two at least, for a standard error)
SAMPLED = ((1000, 2), (1000, 8), (100, 2))
BATCH_SIZE = 256
SCORES = {
    "train_loss": "train loss",
    "test_loss": "test loss",
    "test_loss_tempered": "tempered",
    "accuracy": "accuracy",
}
COMPARED = ("train_loss", "test_loss_tempered")

Scores = dict[str, np.ndarray]
"""Each of `SCORES`, one value for each network."""
Table = dict[tuple[str, int], Scores]
"""By row (an importance, or how it was measured) and number of clusters; 0 for the original."""


def find_dataset() -> str:
    """Name MNIST if it is there, otherwise digits."""
    try:
        data.load("mnist")
    except ValueError:
        return "digits"
    return "mnist"


def make_config(dataset: str, num_models: int) -> sweep.SweepConfig:
    config = sweep.preset(
        "paper",
        dataset=dataset,
        num_models=num_models,
        importance=IMPORTANCES,
        num_clusters=NUM_CLUSTERS,
        diameter_penalty=0.0,
        baselines=False,
        controls=False,
    )
    return replace(config, curvature_examples=min(NUM_REFERENCE_EXAMPLES, config.train_size[0]))


def table_of(result: sweep.SweepResult) -> Table:
    """Scores of a sweep by importance and number of clusters."""
    rows = result.table.sort_values("model_seed")
    rows = rows.assign(accuracy=100 * rows["accuracy"])
    return {
        (str(importance), int(num_clusters)): {name: group[name].to_numpy() for name in SCORES}
        for (importance, num_clusters), group in rows.groupby(["importance", "num_clusters"])
    }


def sampled_labels_table(
    config: sweep.SweepConfig, networks: sweep.SweepResult, cases: Iterable[tuple[int, int | None]]
) -> dict[tuple[int, int | None], dict[int, Scores]]:
    """Compress the networks of a sweep by curvatures that the sweep does not offer.

    Args:
        config: of that sweep.
        networks: its result.
        cases: examples and sampled labels of each; None for the exact diagonal.

    Returns:
        Scores by case and number of clusters.
    """
    dataset = data.load(config.dataset[0])
    drawn = data.draw_parts(
        dataset,
        num_models=config.num_models,
        train_size=config.train_size[0],
        validation_size=config.validation_size,
        replacement=config.replacement,
        label_noise=config.label_noise[0],
        seed=config.seed,
    )
    scale = data.standardization(dataset.pool_images, dataset.max_value)
    pool = data.to_inputs(dataset.pool_images, dataset.max_value, scale)
    validation = pool[drawn.validation_indices], dataset.pool_labels[drawn.validation_indices]
    test_inputs = data.to_inputs(dataset.test_images, dataset.max_value, scale)
    test = test_inputs, dataset.test_labels
    predict = networks.build(
        config.model[0],
        input_shape=pool.shape[1:],
        num_classes=dataset.num_classes,
        width=config.width,
        dropout=config.dropout,
    ).predict
    found: dict[tuple[int, int | None], dict[int, list[dict[str, float]]]] = {
        case: {num_clusters: [] for num_clusters in NUM_CLUSTERS} for case in cases
    }
    for model in range(config.num_models):
        params = networks.params("original", model_seed=model)
        train = pool[drawn.train_indices[model]], drawn.train_labels[model]
        for (num_examples, num_labels), by_clusters in found.items():
            sampling: dict[str, Any] = {}
            if num_labels is not None:
                key = jax.random.fold_in(jax.random.key(config.seed), model)
                sampling = {"num_label_samples": num_labels, "key": key}
            few = [array[: min(num_examples, config.train_size[0])] for array in train]
            batches = [
                tuple(array[start : start + BATCH_SIZE] for array in few)
                for start in range(0, len(few[0]), BATCH_SIZE)
            ]
            curvature = over_batches(GaussNewton(predict, params, **sampling), batches)
            for num_clusters, scores in by_clusters.items():
                method = KMeans(
                    num_clusters, num_iterations=config.num_iterations, num_bins=config.num_bins
                )
                quantized = jaxcomp.compress(params, method, importance=curvature)
                logits = [
                    logits_of(predict, quantized.params(), part[0])
                    for part in (train, validation, test)
                ]
                scores.append(score(logits, [train[1], validation[1], test[1]]))
    return {
        case: {
            num_clusters: {name: np.array([row[name] for row in scores]) for name in SCORES}
            for num_clusters, scores in by_clusters.items()
        }
        for case, by_clusters in found.items()
    }


@partial(jax.jit, static_argnames=("predict_fn",))
def logits_of(predict_fn, params, inputs):
    with jax.default_matmul_precision("highest"):
        return predict_fn(params, inputs)


@jax.jit
def score(logits, labels) -> dict[str, Any]:
    """The scores of one network from its logits on the three parts."""
    (train, validation, test), (train_labels, validation_labels, test_labels) = logits, labels
    temperature = fit_temperature(validation, validation_labels)
    tempered = metrics.cross_entropy(test / temperature, test_labels)
    return {
        "train_loss": jnp.mean(metrics.cross_entropy(train, train_labels)),
        "test_loss": jnp.mean(metrics.cross_entropy(test, test_labels)),
        "test_loss_tempered": jnp.mean(tempered),
        "accuracy": 100 * jnp.mean(metrics.correct(test, test_labels)),
    }


# --- Tables -----------------------------------------------------------------------------------


def difference(table: Table, row: str, other: str, num_clusters: int, name: str) -> Interval:
    """The mean paired difference between two rows, with its interval over networks."""
    return model_interval(table[row, num_clusters][name] - table[other, num_clusters][name])


def plus_minus(interval: Interval, digits: int) -> str:
    half_width = (interval.high - interval.low) / 2
    return f"{interval.estimate:+.{digits}f} ± {half_width:.{digits}f}"


def digits_of(name: str) -> int:
    return 2 if name == "accuracy" else 4


def markdown(lines: Sequence[Sequence[str]]) -> str:
    header, *rows = lines
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def means_table(table: Table, importances: Sequence[str]) -> str:
    """Mean of every score, and its difference to unweighted K-means."""
    header = ["importance", "K"]
    for title in SCORES.values():
        header += [title, "difference"]
    lines = [header]
    for row, num_clusters in [
        ("original", 0),
        *((importance, k) for k in NUM_CLUSTERS for importance in importances),
    ]:
        line = [row, str(num_clusters or "")]
        for name in SCORES:
            digits = digits_of(name)
            line.append(f"{table[row, num_clusters][name].mean():.{digits}f}")
            has_difference = row not in ("original", "none")
            line.append(
                plus_minus(difference(table, row, "none", num_clusters, name), digits)
                if has_difference
                else ""
            )
        lines.append(line)
    return markdown(lines)


def differences_table(table: Table, title: str, rows: Sequence[str], reference: str) -> str:
    """The reference's losses, and how far every row is from them."""
    columns = [(name, k) for name in COMPARED for k in NUM_CLUSTERS]
    lines = [[title, *(f"{SCORES[name]}, K = {k}" for name, k in columns)]]
    lines.append([reference, *(f"{table[reference, k][name].mean():.4f}" for name, k in columns)])
    lines += [
        [row] + [plus_minus(difference(table, row, reference, k, name), 4) for name, k in columns]
        for row in rows
    ]
    return markdown(lines)


def holm_sentence(table: Table, rows: Sequence[str], reference: str) -> str:
    """Say which differences of a table remain when all of them are tested together."""
    compared = [(row, k, name) for row in rows for k in NUM_CLUSTERS for name in COMPARED]
    p_values = holm(
        [difference(table, row, reference, k, name).p_value for row, k, name in compared]
    )
    kept = [
        f"{row} at K = {k} ({SCORES[name]})"
        for (row, k, name), p in zip(compared, p_values, strict=True)
        if p < 0.05
    ]
    told = ": " + ", ".join(kept) if kept else ""
    return (
        f"After Holm's correction {len(kept)} of these {len(compared)} differences remain at "
        f"the 5 % level{told}."
    )


def labelled(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=("mnist", "digits", "fashion-mnist"))
    parser.add_argument("--num-models", type=int, default=5)
    parser.add_argument("--cache-dir", type=Path, help="of trained networks; default: the user's")
    parser.add_argument("--runs", type=Path, help="keep the sweeps here, and go on from them")
    parser.add_argument("--out", type=Path, help="also write all numbers as JSON here")
    options = parser.parse_args()
    if options.num_models < 2:
        parser.error("--num-models must be at least 2: intervals are over networks.")

    config = make_config(options.dataset or find_dataset(), options.num_models)

    def run(config: sweep.SweepConfig, name: str) -> sweep.SweepResult:
        out = options.runs / name if options.runs else None
        return sweep.run(config, out=out, cache_dir=options.cache_dir)

    networks = run(config, "importances")
    table = table_of(networks)
    weighted = [name for name in IMPORTANCES if name not in ("none", REFERENCE)]

    exact = labelled(config.curvature_examples, "example") + ", exact"
    few: Table = {}
    for num_clusters in NUM_CLUSTERS:
        few[exact, num_clusters] = table[REFERENCE, num_clusters]
        few["unweighted", num_clusters] = table["none", num_clusters]
    rows = []
    for num_examples in NUM_EXAMPLES:
        fewer = replace(config, importance=REFERENCE, curvature_examples=num_examples)
        rows.append(labelled(num_examples, "example") + ", exact")
        by_importance = table_of(run(fewer, f"examples-{num_examples}"))
        for num_clusters in NUM_CLUSTERS:
            few[rows[-1], num_clusters] = by_importance[REFERENCE, num_clusters]
    cases = [(min(n, config.curvature_examples), labels) for n, labels in SAMPLED]
    check = (config.curvature_examples, None)
    by_case = sampled_labels_table(config, networks, [check, *cases])
    for num_examples, num_labels in cases:
        rows.append(
            labelled(num_examples, "example") + ", " + labelled(num_labels, "sampled label")
        )
        for num_clusters in NUM_CLUSTERS:
            few[rows[-1], num_clusters] = by_case[num_examples, num_labels][num_clusters]
    # The exact diagonal both ways: what separates them is rounding.
    gap = max(
        float(np.max(np.abs(by_case[check][k][name] - table[REFERENCE, k][name])))
        for k in NUM_CLUSTERS
        for name in COMPARED
    )

    text = "\n\n".join(
        [
            f"{config.dataset[0]}, {config.num_models} networks, {config.train_size[0]:,} training "
            f"draws; curvature on {config.curvature_examples:,} training examples.",
            "Every importance; differences to unweighted K-means (`none`):",
            means_table(table, IMPORTANCES),
            f"Differences to `{REFERENCE}`:",
            differences_table(table, "importance", ["none", *weighted], REFERENCE),
            holm_sentence(table, weighted, REFERENCE),
            f"How few examples suffice; differences to `{exact}`:",
            differences_table(few, "Gauss-Newton diagonal", ["unweighted", *rows], exact),
            holm_sentence(few, rows, exact),
        ]
    )
    sys.stdout.write(text + "\n")
    sys.stderr.write(f"jaxcomp.quantize against the sweep: losses within {gap:.1e} nats\n")
    if options.out is not None:
        report = {
            "config": config.to_dict(),
            "importances": as_json(table),
            "examples": as_json(few),
            "largest_loss_difference_between_paths": gap,
            "environment": {
                "device_kind": jax.devices()[0].device_kind,
                "platform": jax.default_backend(),
                "python": platform.python_version(),
                "jax": jax.__version__,
                "numpy": np.__version__,
                "jaxcomp": jaxcomp.__version__,
                "commit": commit(),
            },
        }
        options.out.write_text(json.dumps(report, indent=2) + "\n")


def as_json(table: Table) -> list[dict[str, Any]]:
    return [
        {"row": row, "num_clusters": k, **{name: list(map(float, scores[name])) for name in SCORES}}
        for (row, k), scores in table.items()
    ]


if __name__ == "__main__":
    main()
