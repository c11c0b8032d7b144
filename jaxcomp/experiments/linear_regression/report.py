"""The study in words: what was found, and what the theory says."""

from collections.abc import Sequence

import pandas as pd

from jaxcomp.experiments.linear_regression.claims import Claim, best_line
from jaxcomp.experiments.linear_regression.config import StudyConfig
from jaxcomp.experiments.linear_regression.grid import problem_of
from jaxcomp.experiments.reporting import Labelled, markdown_labelled
from jaxcomp.linear_regression.closed_forms import best_rate
from jaxcomp.numerics.units import LN2


def first_lines(config: StudyConfig, table: pd.DataFrame, claims: Sequence[Claim]) -> Labelled:
    """What was compressed, and what helped at the first number of examples."""
    first = config.num_examples[0]
    setting = problem_of(config).setting(first)
    risk = config.noise_variance + float(setting.excess_risk)
    best = best_rate(setting, channel="uninformed_zero_mean")
    bits = float(best.rate_nats) / (config.dim * LN2)
    theory = f"a channel centred at 0 is best at {bits:.2f} bits a weight, {best.population:.3f}"
    if not bool(best.exists):
        theory = f"send nothing, {float(best.population):.3f}"
    own = [claim for claim in claims if claim.num_examples == first]
    return [
        (
            "compressed",
            f"least squares, d = {config.dim}, n = {', '.join(map(str, config.num_examples))}; "
            f"{config.num_datasets:,} data sets each",
        ),
        ("theory", f"n = {first}: population risk of least squares {risk:.3f}; {theory}"),
        ("quantizers", best_line(table, own, first, ("designed", "adaptive"))),
        ("controls", best_line(table, own, first, ("control",))),
    ]


def report_markdown(
    config: StudyConfig, table: pd.DataFrame, information: pd.DataFrame, claims: Sequence[Claim]
) -> str:
    """The claims and bounds in words."""
    lines = [markdown_labelled(first_lines(config, table, claims)), ""]
    lines += ["## What compression does to the population risk", ""]
    lines += [f"- {claim.sentence}" for claim in claims]
    lines += ["", "## What the theory says", ""]
    lines += [f"- {line}" for line in _theory_lines(config)]
    lines += ["", "## The learner's own information", ""]
    if config.correlation:
        lines.append("- for uncorrelated inputs, where its density is known.")
    lines += [f"- {line}" for line in _information_lines(information)]
    return "\n".join(lines) + "\n"


def _theory_lines(config: StudyConfig) -> list[str]:
    problem = problem_of(config)
    lines = []
    for num_examples in config.num_examples:
        setting = problem.setting(num_examples)
        V = float(setting.excess_risk)
        best = best_rate(setting, channel="uninformed_zero_mean")
        least = float(best.population)
        if bool(best.exists):
            bits = float(best.rate_nats) / (config.dim * LN2)
            told = (
                f"a channel centred at 0 is best at {bits:.2f} bits a weight, population risk "
                f"{least:.4f}"
            )
        else:
            told = f"2B <= V, so that R = 0 wins: send nothing, population risk {least:.4f}"
        lines.append(
            f"n = {num_examples}: least squares {config.noise_variance + V:.4f}; {told}; the "
            f"best shrinkage aW, which compresses nothing, "
            f"{config.noise_variance + config.signal * V / (config.signal + V):.4f}."
        )
    return lines


def _information_lines(information: pd.DataFrame) -> list[str]:
    lines = []
    # Where the gap itself cannot be told from zero, a ratio to it says nothing.
    is_seen = information["relative_gap"] > 5 * information["relative_gap_se"]
    seen = information.loc[is_seen]
    if seen.empty:
        return ["no relative gap can be told from zero: draw more data sets."]
    ratio = seen["relative_gap_bound"] / seen["relative_gap"]
    tightest = seen.loc[ratio.idxmin()]
    lines.append(
        f"the bound on the relative gap is tightest, {ratio.min():.2f} times the gap "
        f"{tightest['relative_gap']:.4f}, at n = {tightest['num_examples']:.0f}, penalty "
        f"{tightest['penalty']:.3g}, {tightest['decimals']:.0f} decimals."
    )
    plain = seen.loc[seen["penalty"] == 0]
    for num_examples, rows in plain.groupby("num_examples"):
        at = rows.loc[(rows["relative_gap_bound"] / rows["relative_gap"]).idxmin()]
        lines.append(
            f"n = {num_examples}: least squares rounded to {at['decimals']:.0f} decimals holds "
            f"between {at['bits']:.1f} and {at['bits_upper']:.1f} bits; relative gap "
            f"{at['relative_gap']:.4f} +- {at['relative_gap_se']:.4f}, bound "
            f"{at['relative_gap_bound']:.4f}."
        )
    return lines
