"""Why the training loss rises more than the curvature-weighted distortion predicts, part by part.

    jaxcomp sweep --out runs/quick
    python benchmarks/predicted_rise.py runs/quick

For every variant, mean over the networks of a sweep of one setting (the training sample of each):
the prediction `1/2 sum h d^2` from the diagonal, `1/2 d^T H d` from the whole Gauss-Newton matrix,
the gradient's part `g^T d`, and the measured rise, in nats; `d` is the change of the weights.
`docs/findings.md` has the table. Nothing is timed.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

from jaxcomp.experiments import networks
from jaxcomp.experiments.samples import draw_samples
from jaxcomp.experiments.sweep import SweepResult


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="directory of a finished sweep of one setting")
    parser.add_argument("--data-dir", type=Path, help="folder with the data files")
    options = parser.parse_args()
    result = SweepResult.load(options.run)
    settings = result.manifest["settings"]
    samples = draw_samples(
        settings["dataset"][0],
        data_dir=options.data_dir,
        download=False,
        train_size=settings["train_size"][0],
        label_noise=settings["label_noise"][0],
        **{
            name: settings[name]
            for name in ("num_models", "validation_size", "replacement", "standardize", "seed")
        },
    )
    network = networks.build(
        settings["model"][0],
        input_shape=samples.pool.shape[1:],
        num_classes=samples.num_classes,
        width=settings["width"],
        dropout=settings["dropout"],
    )

    @jax.jit
    def parts(params, changed, inputs, labels):
        change = jax.tree.map(jnp.subtract, changed, params)
        logits, moved = jax.jvp(lambda p: network.predict(p, inputs), (params,), (change,))
        shares = jax.nn.softmax(logits)
        variances = jnp.sum(shares * moved**2, -1) - jnp.sum(shares * moved, -1) ** 2
        slopes = jnp.sum((shares - jax.nn.one_hot(labels, samples.num_classes)) * moved, -1)
        return jnp.mean(variances) / 2, jnp.mean(slopes)

    table = result.table
    predicted = table["predicted_rise_nats"].notna() & (table["kind"] != "original")
    line = "{:<40}{:>11}{:>11}{:>11}{:>11}{:>9}\n"
    sys.stdout.write(
        line.format("variant", "diagonal", "all pairs", "gradient", "measured", "times")
    )
    means = table[predicted].groupby("variant", sort=False)[
        ["predicted_rise_nats", "measured_rise_nats"]
    ].mean()  # fmt: skip
    for variant, (diagonal, measured) in zip(means.index, means.to_numpy(), strict=True):
        found = []
        for model in range(settings["num_models"]):
            inputs, labels = samples.train(model)
            params = result.params("original", model_seed=model)
            changed = result.params(str(variant), model_seed=model)
            found.append([float(x) for x in parts(params, changed, inputs, labels)])
        pairs, gradient = np.mean(found, axis=0)
        numbers = (f"{x:.2e}" for x in (diagonal, pairs, gradient, measured))
        sys.stdout.write(line.format(str(variant), *numbers, f"{measured / diagonal:.1f}"))
    compressed = table[predicted & (table["kind"] == "compressed")].groupby("variant")
    order = compressed[["predicted_rise_nats", "measured_rise_nats"]].mean()
    ranks = spearmanr(order["predicted_rise_nats"], order["measured_rise_nats"]).statistic
    sys.stdout.write(f"rank correlation over {len(order)} compressed variants: {ranks:.3f}\n")


if __name__ == "__main__":
    main()
