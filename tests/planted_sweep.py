"""Losses of a made-up sweep whose true effects are known, for tests of what is claimed of it."""

import numpy as np
import pandas as pd

from jaxcomp.experiments.sweep.candidates import VariantLosses
from jaxcomp.experiments.sweep.claims import evaluate_claims

NUM_VALIDATION = 400

# variant: kind, method, importance, penalty_form, diameter_penalty, num_clusters, parameter, bits
ORIGINAL = {"original": ("original", "original", "original", "none", 0.0, 0, np.nan, 3200.0)}
PLAIN = {
    "plain-4": ("compressed", "kmeans", "none", "none", 0.0, 4, np.nan, 200.0),
    "plain-8": ("compressed", "kmeans", "none", "none", 0.0, 8, np.nan, 300.0),
    "plain-16": ("compressed", "kmeans", "none", "none", 0.0, 16, np.nan, 400.0),
}
PENALISED = {
    "penalised-8": ("compressed", "kmeans", "none", "monotone", 0.05, 8, np.nan, 275.0),
    "penalised-16": ("compressed", "kmeans", "none", "monotone", 0.05, 16, np.nan, 350.0),
}
OTHERS = {
    "uniform-8": ("compressed", "uniform", "uniform", "none", 0.0, 8, np.nan, 290.0),
    "int4": ("compressed", "round_to_nearest", "round_to_nearest", "none", 0.0, 0, 4.0, 410.0),
}
CONTROLS = {
    "T": ("control", "temperature", "control", "none", 0.0, 0, np.nan, 3200.0),
    "stop": ("control", "early_stopping", "control", "none", 0.0, 0, np.nan, 3200.0),
}


class PlantedSweep:
    """A synthetic sweep whose true effects are known.

    `effects` are true differences from the original by variant and quantity; `spread` is the
    standard deviation over networks of what a network makes of a variant, on all examples alike.
    """

    def __init__(
        self, seed, variants, *, effects=None, num_models=5, num_examples=200, spread=0.0, noise=0.1
    ):
        rng = np.random.default_rng(seed)
        effects = effects or {}
        rows, self.losses = [], {}
        shape = (num_models, num_examples + NUM_VALIDATION)
        original = {
            quantity: level + 0.3 * rng.standard_normal(shape)
            for quantity, level in (("loss", 1.0), ("loss_tempered", 0.8))
        }
        for name, about in variants.items():
            columns = {}
            scale = 0.0 if name == "original" else 1.0
            shift = effects.get(name, {})
            for quantity, base in original.items():
                own = scale * spread * rng.standard_normal((num_models, 1))
                single = scale * noise * rng.standard_normal(shape)
                columns[quantity] = base + shift.get(quantity, 0.0) + own + single
            rate = 0.8 + shift.get("accuracy", 0.0) + spread * rng.uniform(-1, 1, (num_models, 1))
            columns["score"] = rng.random(shape) < rate
            self.losses[name] = VariantLosses(
                **{field: values[:, NUM_VALIDATION:] for field, values in columns.items()}
            )
            selected = {k: values[:, :NUM_VALIDATION].mean(axis=1) for k, values in columns.items()}
            rows.extend(
                ("mnist", "mlp", 0.3, name, *about, seed, *(selected[k][seed] for k in columns))
                for seed in range(num_models)
            )
        self.table = pd.DataFrame(rows, columns=COLUMNS)

    def claims(self, **options):
        claims = evaluate_claims(self.table, self.losses.__getitem__, **options)
        return {claim.name: claim for claim in claims}


COLUMNS = (
    "dataset",
    "model",
    "label_noise",
    "variant",
    "kind",
    "method",
    "importance",
    "penalty_form",
    "diameter_penalty",
    "num_clusters",
    "parameter",
    "size_bits_estimated",
    "model_seed",
    "validation_loss",
    "validation_loss_tempered",
    "validation_accuracy",
)
