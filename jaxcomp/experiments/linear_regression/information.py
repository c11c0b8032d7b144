"""The learner's own information: entropies of rounded least squares and ridge over samples."""

import math

import jax
import numpy as np
import pandas as pd

from jaxcomp.experiments.linear_regression.config import StudyConfig
from jaxcomp.experiments.linear_regression.grid import INFORMATION_STREAM
from jaxcomp.experiments.reproducibility import random_key
from jaxcomp.linear_regression.draws import draw_solutions
from jaxcomp.linear_regression.information import (
    coordinate_entropy_nats,
    estimated_entropy_nats,
    least_squares_relative_gap,
    least_squares_rounded_entropy_bound_nats,
    relative_gap_bound,
    rounded_entropy_nats,
)
from jaxcomp.linear_regression.problem import Problem
from jaxcomp.linear_regression.ridge import default_penalties, ridge_solutions
from jaxcomp.linear_regression.ridge_entropy import ridge_entropy_nats
from jaxcomp.numerics.units import LN2
from jaxcomp.progress import Progress


def measure_information(config: StudyConfig, problem: Problem, progress: Progress) -> pd.DataFrame:
    """Entropies of rounded least squares and ridge, over samples, and what they bound."""
    steps = 10.0 ** -np.asarray(config.decimals, np.float64)
    centre = float(default_penalties(problem, 3)[1])
    penalties = np.concatenate([[0.0], centre * np.logspace(-2, 3, config.num_penalties)])
    truth = np.asarray(problem.true_weights, np.float64)
    report = progress.task("the learner's information", len(config.num_examples))
    rows = []
    for done, num_examples in enumerate(config.num_examples):
        key = jax.random.fold_in(random_key(config.seed), num_examples)
        solutions = draw_solutions(
            problem,
            jax.random.fold_in(key, INFORMATION_STREAM),
            num_examples=num_examples,
            num_datasets=config.information_datasets,
        )
        found = jax.device_get(
            ridge_solutions(
                problem,
                solutions,
                np.asarray(penalties, np.float32),
                np.asarray([0.0, *steps], np.float32),
                num_examples=num_examples,
            )
        )
        gaps = 1 - np.asarray(found.empirical, np.float64) / found.population
        for place, penalty in enumerate(penalties):
            setting = problem.setting(num_examples)
            entropy = ridge_entropy_nats(setting, float(penalty))
            weights = np.asarray(found.weights[:, place], np.float64)
            estimate = estimated_entropy_nats(weights, truth)
            for index, (decimals, step) in enumerate(zip(config.decimals, steps, strict=True)):
                if penalty == 0:
                    upper = least_squares_rounded_entropy_bound_nats(
                        truth, num_examples, float(step), noise_variance=config.noise_variance
                    )
                else:
                    upper = coordinate_entropy_nats(weights, float(step))
                gap = gaps[:, place, index + 1]
                cells = np.rint(weights / step).astype(np.int64)
                rows.append(
                    {
                        "num_examples": num_examples,
                        "penalty": penalty,
                        "decimals": decimals,
                        "entropy_nats": entropy,
                        "entropy_nats_simulated": estimate,
                        "bits": float(rounded_entropy_nats(entropy, config.dim, step)) / LN2,
                        "bits_simulated": float(rounded_entropy_nats(estimate, config.dim, step))
                        / LN2,
                        "bits_upper": upper / LN2,
                        "distinct_models": len(np.unique(cells, axis=0)),
                        "num_datasets": config.information_datasets,
                        "relative_gap": gap.mean(),
                        "relative_gap_se": gap.std(ddof=1) / math.sqrt(gap.size),
                        "relative_gap_unrounded": gaps[:, place, 0].mean(),
                        "theory_relative_gap": float(
                            least_squares_relative_gap(config.dim, num_examples)
                        )
                        if penalty == 0
                        else math.nan,
                        "relative_gap_bound": float(relative_gap_bound(upper, num_examples)),
                    }
                )
        report(done + 1, len(config.num_examples), f"n = {num_examples}")
    return pd.DataFrame(rows)
