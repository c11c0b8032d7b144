"""The paired tests of the study: what compression does to the population risk.

Each compressor's place on the rate grid is chosen on one half of the data sets, and its improvement
is tested on the other.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from scipy import special

from jaxcomp.evaluation import statistics
from jaxcomp.experiments.linear_regression.config import StudyConfig
from jaxcomp.linear_regression.simulation import Simulation
from jaxcomp.numerics.units import LN2


class Claim(NamedTuple):
    """A paired test on data sets that nothing was chosen on."""

    num_examples: int
    compressor: str
    place: int
    rate_bits: float
    improvement: float
    """Mean of `L_mu(W) - L_mu(What)`, positive if compression helps."""
    standard_error: float
    p_value: float
    """Two-sided, adjusted by Holm's method over the compressors of this n."""
    sentence: str


def evaluate_claims(
    config: StudyConfig, num_examples: int, choosing: Simulation, testing: Simulation
) -> list[Claim]:
    """Choose each compressor's place on one half, test its improvement on the other."""
    names = [name for name in choosing.compressors if name != "least_squares"]
    found = []
    for name in names:
        place = int(choosing.mean("improvement", name).argmax())
        mean = float(testing.mean("improvement", name)[place])
        error = float(testing.standard_error("improvement", name)[place])
        # Thousands of data sets: the normal distribution is Student's.
        p_value = 2 * float(special.ndtr(-abs(mean) / error)) if error > 0 else float(mean == 0)
        bits = float(testing.mean("rate_nats", name)[place]) / (config.dim * LN2)
        found.append((name, place, bits, mean, error, p_value))
    adjusted = statistics.holm([row[-1] for row in found])
    claims = []
    for (name, place, bits, mean, error, _), p in zip(found, adjusted, strict=True):
        told = _sentence(num_examples, name, bits, mean, error, float(p))
        claims.append(Claim(num_examples, name, place, bits, mean, error, float(p), told))
    return claims


def claim_from_dict(told: Mapping[str, Any]) -> Claim:
    """A claim as it was before JSON, which has no word for NaN and infinity."""
    fields: dict[str, Any] = {k: math.nan if v is None else v for k, v in told.items()}
    return Claim(**fields)


def best_line(
    table: pd.DataFrame, claims: Sequence[Claim], num_examples: int, families: Sequence[str]
) -> str:
    """The compressor of some families that improves the risk most, as its claim says.

    p is adjusted over all compressors, so that it holds for the best of them as well.
    """
    names = set(table.loc[table["family"].isin(families), "compressor"])
    found = [claim for claim in claims if claim.compressor in names]
    if not found:
        return "none in this study"
    best = max(found, key=lambda claim: claim.improvement)
    told = (
        f"{best.compressor} {_price(best.compressor, best.rate_bits)}: "
        f"{best.improvement:+.3g} +- {best.standard_error:.2g} ({_p_words(best.p_value)})"
    )
    is_shown = best.improvement > 0 and best.p_value <= 0.05
    return f"n = {num_examples}: {'lowers it most' if is_shown else 'none lowers it; best'}, {told}"


def _p_words(p_value: float) -> str:
    return "p < 1e-6" if p_value < 1e-6 else f"p = {p_value:.2g}"


def _price(name: str, bits: float) -> str:
    price = f"at {bits:.2f} bits a weight" if math.isfinite(bits) else "(compresses nothing)"
    if name in ("informed", "uninformed"):
        price += ", its codebook holding the true weights,"
    return price


def _sentence(
    num_examples: int,
    name: str,
    bits: float,
    mean: float,
    error: float,
    p_value: float,
) -> str:
    verdict = "lowers" if mean > 0 else "raises"
    if p_value > 0.05:
        verdict = "does not measurably change"
    return (
        f"n = {num_examples}: {name} {_price(name, bits)} {verdict} the population risk of least "
        f"squares: improvement {mean:+.3g} +- {error:.2g} ({_p_words(p_value)})."
    )
