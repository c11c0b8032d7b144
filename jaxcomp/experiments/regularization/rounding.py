"""How many models are left when weights are rounded to decimals?

What is counted: many data sets of one linear-regression problem are drawn, each is solved by ridge
at every penalty, the weights are rounded to n decimals, and equal models are counted once. The
entropy of the rounded model over data sets is all that the model can say about its sample, so a
stronger penalty, which lets fewer models remain, compresses in the strictest sense of all.

Two numbers for that entropy. From the counts: the entropy of the observed shares with Miller's and
Madow's correction, (models - 1) / (2 data sets) nats. Counts cannot show more than the logarithm of
the number of data sets, so that near it the estimate says no more than "at least". From the
density: `h(W) - d ln(step)` with the exact density of the ridge solution over all data sets that
could be drawn, the limit for fine steps; for a step of one standard deviation of the weights it is
off by some 0.06 bit a weight.
"""

import math
from typing import Any

import jax
import numpy as np

from jaxcomp.coding.grid import nearest_index
from jaxcomp.linear_regression import (
    draw_solutions,
    random_problem,
    ridge_entropy_nats,
    ridge_solutions,
    rounded_entropy_nats,
)
from jaxcomp.numerics.units import LN2

DIM, NUM_EXAMPLES, SIGNAL = 3, 20, 2.0
PENALTIES = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""On `|w|^2` beside the sum of squared residuals: `n weight_decay` for a mean of half squares."""


def count_rounded_models(
    key: jax.Array, *, decimals: tuple[int, ...], num_problems: int
) -> list[dict[str, Any]]:
    """Count the models that ridge can end in, rounded, by penalty and number of decimals.

    Args:
        key: of the true weights and the data sets, consumed.
        decimals: numbers of decimals.
        num_problems: data sets drawn.

    Returns:
        Rows: `penalty`, `decimals`, `distinct_models`, `num_problems`, `entropy_bits` (estimated
        from the counts; beyond `log2(num_problems)` only the correction goes), `entropy_bits_exact`
        (from the exact density; NaN where a step is wider than the spread of the weights, for
        which it does not hold).
    """
    problem_key, data_key = jax.random.split(key)
    problem = random_problem(problem_key, DIM, signal=SIGNAL)
    solutions = draw_solutions(
        problem, data_key, num_examples=NUM_EXAMPLES, num_datasets=num_problems
    )
    solved = ridge_solutions(
        problem,
        solutions,
        *jax.device_put((np.asarray(PENALTIES), np.zeros(1))),
        num_examples=NUM_EXAMPLES,
    )
    setting = problem.setting(NUM_EXAMPLES)
    rows = []
    all_weights = np.asarray(solved.weights, np.float64)
    for place, penalty in enumerate(PENALTIES):
        weights = all_weights[:, place]
        entropy = ridge_entropy_nats(setting, penalty)
        for number in decimals:
            step = 10.0**-number
            cells = nearest_index(weights, step, dtype=weights.dtype).astype(np.int64)
            _, counts = np.unique(cells, axis=0, return_counts=True)
            is_fine = step <= weights.std(axis=0).min()
            exact = float(rounded_entropy_nats(entropy, DIM, step)) / LN2
            rows.append(
                {
                    "penalty": penalty,
                    "decimals": number,
                    "distinct_models": len(counts),
                    "num_problems": num_problems,
                    "entropy_bits": entropy_of_counts(counts) / LN2,
                    "entropy_bits_exact": exact if is_fine else math.nan,
                }
            )
    return rows


def entropy_of_counts(counts: np.ndarray) -> float:
    """Return the entropy in nats of what was counted, with Miller's and Madow's correction."""
    shares = counts / counts.sum()
    return float(-np.sum(shares * np.log(shares)) + (len(counts) - 1) / (2 * counts.sum()))
