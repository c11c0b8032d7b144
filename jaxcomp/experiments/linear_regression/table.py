"""The table of the study: simulation, closed forms and bounds side by side."""

import math
from typing import Any

import numpy as np
import pandas as pd

from jaxcomp.experiments.linear_regression.config import StudyConfig
from jaxcomp.experiments.linear_regression.grid import rates_nats_of
from jaxcomp.linear_regression.closed_forms import (
    CHANNELS,
    channel_risks,
    least_squares_risks,
    shrinkage_risks,
)
from jaxcomp.linear_regression.codebooks import DESIGNED
from jaxcomp.linear_regression.information import (
    channel_gap_bound,
    design_information_nats,
    relative_gap_bound,
)
from jaxcomp.linear_regression.problem import Problem
from jaxcomp.linear_regression.simulation import (
    CONTROLS,
    QUANTITIES,
    Simulation,
    default_penalties,
)
from jaxcomp.numerics.units import LN2


def risk_table(
    config: StudyConfig, problem: Problem, num_examples: int, simulation: Simulation
) -> pd.DataFrame:
    """Simulation, closed forms and bounds of one n, side by side."""
    setting = problem.setting(num_examples)
    rates = rates_nats_of(config)
    penalties = default_penalties(problem, config.num_rates)
    information = float(design_information_nats(config.dim, num_examples))
    parts = []
    for name in simulation.compressors:
        family = _family(name)
        columns: dict[str, Any] = {
            "num_examples": num_examples,
            "compressor": name,
            "family": family,
            "place": np.arange(config.num_rates),
        }
        is_fixed = family == "adaptive" or (family == "designed" and name != "entropy_coded")
        columns["num_clusters"] = np.arange(1, config.num_rates + 1) if is_fixed else 0
        columns["ridge_penalty"] = penalties if name == "ridge" else math.nan
        unit = config.dim * LN2
        length = simulation.mean("rate_nats", name)
        columns["rate_bits"] = length / unit
        grid = config.dim * np.log(columns["num_clusters"]) if is_fixed else rates
        columns["grid_bits_per_weight"] = grid / unit
        for quantity in QUANTITIES[:-1]:
            columns[quantity] = simulation.mean(quantity, name)
            columns[f"{quantity}_se"] = simulation.standard_error(quantity, name)
        columns |= _theory(name, setting, rates)
        paid = length
        if name.startswith("informed"):
            # At R = 0 nothing is sent, not even the spread of the noise.
            paid = np.where(rates > 0, rates + information, 0.0)
        bound = np.asarray(relative_gap_bound(paid, num_examples), np.float64)
        columns["relative_gap_bound"] = np.where(np.isfinite(paid), bound, math.nan)
        if name in ("uninformed", "uninformed_zero_mean"):
            found = channel_gap_bound(setting, rates, channel=name)
            columns["gap_bound"] = np.asarray(found.bound, np.float64)
        else:
            columns["gap_bound"] = math.nan
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _family(name: str) -> str:
    groups = {"channel": CHANNELS, "control": CONTROLS, "designed": DESIGNED}
    return next((family for family, names in groups.items() if name in names), "adaptive")


def _theory(name: str, setting: Any, rates: np.ndarray) -> dict[str, Any]:
    fields = {
        "theory_empirical_risk": "empirical",
        "theory_population_risk": "population",
        "theory_generalization": "generalization",
        "theory_distortion": "distortion",
        "theory_codebook_rate_nats": "codebook_rate_nats",
    }
    if name in CHANNELS:
        risks = channel_risks(setting, rates, channel=name)
    elif name == "shrinkage":
        risks = shrinkage_risks(setting, rates)
    elif name == "least_squares":
        risks = least_squares_risks(setting)
    else:
        return dict.fromkeys(fields, math.nan)
    found = {
        column: np.asarray(getattr(risks, attribute, math.nan), np.float64)
        for column, attribute in fields.items()
    }
    if name == "least_squares":
        found["theory_distortion"] = np.zeros(())
    return {
        column: value if value.ndim else np.full(rates.shape, float(value))
        for column, value in found.items()
    }
