"""A made-up table of a sweep with the shapes that real ones have, for tests of what shows them.

Losses explode at small K, the raw loss has a valley, the tempered loss only rises (clean labels)
or has a valley where the penalty is strong (label noise); networks differ from each other.
"""

import math

import numpy as np
import pandas as pd

from jaxcomp.experiments.sweep.candidates import ratio_column
from jaxcomp.experiments.sweep.claims import Claim
from jaxcomp.experiments.sweep.smallest import SmallestNetwork
from jaxcomp.experiments.sweep.variants import (
    ORIGINAL,
    Variant,
    compressed_variants,
    control_variants,
)

QUICK = {
    "importance": ("none", "gauss_newton"),
    "penalty_form": ("monotone",),
    "diameter_penalty": (0.01, 0.05, 0.2),
    "num_clusters": (2, 4, 8, 16, 32),
    "baselines": True,
}
SMALL = QUICK | {"num_clusters": (2, 4, 16), "diameter_penalty": (0.05,)}
METHODS = QUICK | {
    "method": ("kmeans", "optimal", "entropy_constrained", "vector"),
    "allocation": ("equal", "optimal"),
}
PAPER = QUICK | {
    "diameter_penalty": (0.003, 0.01, 0.03, 0.05, 0.1, 0.3),
    "num_clusters": (2, 3, 4, 6, 8, 12, 16, 32),
}


def synthetic_table(
    grid: dict = QUICK,
    *,
    num_models: int = 5,
    dataset: str = "mnist",
    model: str = "mlp",
    label_noise: float = 0.0,
    seed: int = 0,
    with_files: bool = False,
) -> pd.DataFrame:
    """One row per variant and network; without files, as in a sweep without `constriction`."""
    generator = np.random.default_rng(seed)
    variants = [
        ORIGINAL,
        *compressed_variants(**grid),
        *control_variants(
            num_clusters=grid["num_clusters"],
            trained_otherwise=("early_stopping",),
            has_last_layer=True,
        ),
    ]
    networks = generator.normal(0, 1, (num_models, 3))
    rows = [
        _row(variant, number, effects, label_noise, generator)
        for number, effects in enumerate(networks)
        for variant in variants
    ]
    name = f"{dataset}-{model}-noise{label_noise:g}"
    table = pd.DataFrame(rows)
    original = table[table["kind"] == "original"].set_index("model_seed")["train_loss"]
    table["measured_rise_nats"] = table["train_loss"] - table["model_seed"].map(original)
    original_bytes = 4 * 268_700
    # What the estimate leaves out: biases, names and checks.
    size = np.where(
        table["kind"] == "compressed", table["size_bits_estimated"] / 8 + 3_100, original_bytes
    )
    if not with_files:
        size[table["kind"] == "compressed"] = np.nan
    table["size_bytes"], table["ratio"] = size, original_bytes / size
    return table.assign(setting=name, dataset=dataset, model=model, label_noise=label_noise)


def _row(
    variant: Variant, number: int, effects: np.ndarray, noise: float, generator: np.random.Generator
) -> dict:
    is_noisy = noise > 0
    rise, shrinkage, bits, codebook, parameter_gain = _compression(variant)
    rise *= math.exp(0.12 * effects[0] + 0.10 * generator.normal())
    raw, best, error = (1.35, 0.62, 0.175) if is_noisy else (0.32, 0.205, 0.053)
    train = 0.012 * math.exp(0.1 * effects[1]) + (0.02 if is_noisy else 0.0)
    gain = parameter_gain if is_noisy else 0.0
    test = best + (raw - best) * (1 - shrinkage) ** 2 + 0.9 * rise + 0.012 * effects[0]
    tempered = best * (1 - 0.08 * gain) + 0.55 * min(rise, 3.0) ** 0.9 + 0.006 * effects[0]
    if variant.method == "temperature":
        test = tempered
    wrong = error * (1 - 0.17 * gain) + 0.22 * (1 - math.exp(-1.2 * rise)) + 0.002 * effects[1]
    calibration = 0.035 * (1 - shrinkage) + 0.06 * min(rise, 2.0) + 0.002
    size = bits * 268_000 + codebook
    accuracy = 1 - wrong
    jitter = 1 + 0.004 * generator.normal(size=3)
    train_loss = train + rise + 0.08 * shrinkage**2 * (0.2 + is_noisy)
    return {
        "variant": variant.id,
        "kind": variant.kind,
        "method": variant.method,
        "importance": variant.importance,
        "penalty_form": variant.penalty_form,
        "diameter_penalty": variant.diameter_penalty,
        "num_clusters": variant.num_clusters,
        "parameter": variant.parameter,
        "allocation": variant.allocation,
        "model_seed": number,
        "train_loss": train_loss,
        "test_loss": test,
        "validation_loss": test * jitter[0] + 0.004,
        "generalization_gap": test - train_loss,
        "train_accuracy": min(1.0, 0.9995 - 0.25 * (1 - math.exp(-1.1 * rise))),
        "accuracy": accuracy,
        "validation_accuracy": accuracy * jitter[1],
        "temperature": 1.0 + 0.9 * (1 - shrinkage),
        "validation_loss_tempered": tempered * jitter[2] + 0.003,
        "test_loss_tempered": tempered,
        "brier_score": 1.6 * wrong,
        "brier_score_tempered": 1.5 * wrong,
        "calibration_error": calibration,
        "calibration_error_tempered": 0.008 + 0.02 * min(rise, 2.0),
        "predicted_rise_nats": 0.8 * rise**0.93 if variant.method != "original" else math.nan,
        "fixed_bits_per_weight": float(math.ceil(bits)),
        "entropy_bits_per_weight": bits,
        "codebook_bits": codebook,
        "size_bits_estimated": size,
        "description_bits": 1.02 * size + 700 * 32,
        "ratio_estimated": 32 * 268_000 / size,
        "ratio_with_biases": 32 * 268_700 / (size + 700 * 32),
        "zero_one_bound": math.sqrt(math.log(2) * (1.02 * size + 700 * 32) / (2 * 3_800)),
        "num_used": float(variant.num_clusters),
        "num_empty": 0.0,
        "converged": True,
    }


def _compression(variant: Variant) -> tuple[float, float, float, float, float]:
    """Rise of the training loss, shrinkage of the logits, bits, codebook bits, real gain."""
    k, penalty, parameter = variant.num_clusters, variant.diameter_penalty, variant.parameter
    if variant.method == "kmeans":
        better = {"none": 1.0, "gauss_newton": 0.55, "fisher": 0.65}[variant.importance]
        rise = 14 * better * k**-3.1 + 0.25 * penalty**1.5
        shrinkage = min(0.75, 1.1 / k + 1.1 * penalty**0.5)
        bits = max(0.15, 0.78 * math.log2(k) * (1 - 0.25 * penalty) + 0.1 * (k > 2))
        gain = max(0.0, 1 - abs(math.log(max(penalty, 1e-9) / 0.06)) / 1.5)
        return rise, shrinkage, bits, 96.0 * k, gain * (0.4 + 0.6 * (variant.importance != "none"))
    if variant.method in ("optimal", "vector"):
        bits = (0.5 if variant.method == "vector" else 0.8) * math.log2(k)
        return 12 * k**-3.1, 1 / k, bits, 96.0 * k, 0.1
    if variant.method == "entropy_constrained":
        bits = max(0.05, 1.5 - math.log2(parameter) / 2)
        return 2 * parameter**1.5, min(0.6, parameter), bits, 900.0, 0.1
    if variant.method == "uniform":
        return 60 * k**-2.9, 0.9 / k, 0.62 * math.log2(k) + 0.05, 96.0 * k, 0.0
    if variant.method == "round_to_nearest":
        return (0.0001, 0.0, 7.2, 33_000.0, 0.0) if parameter == 8 else (0.03, 0.05, 3.1, 33_000, 0)
    if variant.method == "magnitude_pruning":
        return 0.6 * parameter**9, 0.1, 32 * (1 - parameter) + 0.8, 0.0, 0.0
    if variant.method == "last_layer_scaled":
        return 0.03 * (1 - parameter) ** 2, 1 - parameter, 32.0, 0.0, 0.0
    if variant.method == "weights_clipped":
        return 0.5 * parameter, min(0.5, 8 * parameter), 32.0, 0.0, 0.3
    if variant.method == "gaussian_noise":
        return 30 * k**-3.0, -0.4 / k, 32.0, 0.0, 0.0
    if variant.method == "early_stopping":
        return 0.02, 0.45, 32.0, 0.0, 1.3
    return 0.0, 0.0, 32.0, 0.0, 0.0


def synthetic_claims(table: pd.DataFrame) -> list[Claim]:
    """The five claims about a made-up table of one setting, each with a verdict of its own."""
    means = table.groupby("variant", sort=False).mean(numeric_only=True)
    kinds = table.groupby("variant", sort=False)["kind"].first()
    compressed = means[kinds == "compressed"]
    original = means.loc["original"]
    rows = (
        ("raw loss", "loss", "test_loss", "validation_loss", "holds"),
        ("tempered loss", "loss_tempered", "test_loss_tempered", "validation_loss_tempered",
         "no practical difference"),
        ("accuracy", "accuracy", "accuracy", "validation_accuracy", "not shown"),
        ("penalty, raw loss", "loss", "test_loss", "validation_loss", "holds"),
        ("penalty, tempered loss", "loss_tempered", "test_loss_tempered",
         "validation_loss_tempered", "opposite"),
    )  # fmt: skip
    return [
        _claim(name, quantity, column, criterion, verdict, compressed, original, table)
        for name, quantity, column, criterion, verdict in rows
    ]


def _claim(
    name: str,
    quantity: str,
    column: str,
    criterion: str,
    verdict: str,
    compressed: pd.DataFrame,
    original: pd.Series,
    table: pd.DataFrame,
) -> Claim:
    scores = compressed[criterion]
    if name.startswith("penalty"):
        scores = scores[compressed["diameter_penalty"] > 0]
    variant = str(scores.idxmax() if quantity == "accuracy" else scores.idxmin())
    effect = float(compressed.loc[variant, column] - original[column])
    words = {
        "holds": "Compression lowers it",
        "opposite": "Compression raises it",
        "no practical difference": "Compression changes it by less than 3 %",
        "not shown": "Compression is not shown to lower it",
    }
    return Claim(
        name=name,
        statement=f"Compression moves the {quantity}.",
        setting=str(table["setting"].iloc[0]),
        variant=variant,
        description=f"variant {variant}",
        reference=("original",),
        reference_weights=(1.0,),
        num_candidates=len(compressed),
        quantity=quantity,
        value=float(compressed.loc[variant, column]),
        reference_value=float(original[column]),
        effect=effect,
        low=effect - 0.004,
        high=effect + 0.004,
        relative_effect=effect / float(original[column]),
        p_value=0.001,
        p_adjusted=0.005,
        holds=verdict == "holds",
        verdict=verdict,
        degrees_of_freedom=4.0,
        num_models=int(table["model_seed"].nunique()),
        num_examples=10_000,
        control="temperature",
        control_variant="temperature",
        control_effect=0.05,
        control_low=0.04,
        control_high=0.06,
        confidence=0.95,
        sentence=(
            f"{words[verdict]}: {name} from {original[column]:.4f} to "
            f"{compressed.loc[variant, column]:.4f}. Variant: {variant}, "
            f"chosen among {len(scores)} on the validation set; 5 networks; "
            "p is corrected for 5 claims. It is beaten by the best "
            "control, which compresses nothing (the original with a temperature), by 0.0500 nats "
            "[+0.0400, +0.0600]."
        ),
    )


def synthetic_smallest(table: pd.DataFrame) -> SmallestNetwork:
    """Plain K-means at K = 16 as the smallest network at no loss, with made-up numbers."""
    means = table.groupby("variant").mean(numeric_only=True)
    reference = float(means.loc["original", "test_loss_tempered"])
    return SmallestNetwork(
        setting=str(table["setting"].iloc[0]),
        variant="kmeans/none/K16",
        description="K-means, K = 16",
        ratio=float(means.loc["kmeans/none/K16", ratio_column(table)]),
        size_bytes=None
        if np.isnan(means.loc["kmeans/none/K16", "size_bytes"])
        else float(means.loc["kmeans/none/K16", "size_bytes"]),
        num_candidates=68,
        effect=0.010 * reference,
        low=-0.005 * reference,
        high=0.020 * reference,
        reference_value=reference,
        margin=0.03,
        holds=True,
        scale=reference,
        score_effect=-0.001,
        score_low=-0.003,
        score_high=0.001,
        num_models=int(table["model_seed"].nunique()),
        confidence=0.95,
        sentence="Without loss.",
    )
