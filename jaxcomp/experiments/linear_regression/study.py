"""The whole example in one run: simulate, compare with the closed forms, test, write down.

A run directory holds, each file written whole or not at all::

    manifest.json            settings, versions, device, times, status
    chunks/*.npz             finished chunks of data sets (what a resumed run continues from)
    table.csv, .parquet      one row per number of examples, compressor and place of the rate grid
    information.csv          entropies of rounded least squares and ridge, and the bound they give
    claims.json, report.md   the paired tests of the improvement
    *.png, *.svg             pictures

Chunks are split in two halves: rates and penalties are chosen on the first, and claims are tested
on the second.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import special

from jaxcomp import storage
from jaxcomp.evaluation import statistics
from jaxcomp.experiments.directory import RunDirectory, loading, read_table, seal, write_table
from jaxcomp.experiments.drawing import own_look
from jaxcomp.experiments.linear_regression import figure as pictures
from jaxcomp.experiments.reporting import Labelled, brief, markdown_labelled
from jaxcomp.experiments.reproducibility import random_key
from jaxcomp.linear_regression.closed_forms import (
    CHANNELS,
    best_rate,
    channel_risks,
    least_squares_risks,
    shrinkage_risks,
)
from jaxcomp.linear_regression.codebooks import ADAPTIVE, DESIGNED
from jaxcomp.linear_regression.information import (
    channel_gap_bound,
    coordinate_entropy_nats,
    design_information_nats,
    estimated_entropy_nats,
    least_squares_relative_gap,
    least_squares_rounded_entropy_bound_nats,
    relative_gap_bound,
    ridge_entropy_nats,
    rounded_entropy_nats,
)
from jaxcomp.linear_regression.problem import (
    Problem,
    correlated_covariance,
    random_problem,
)
from jaxcomp.linear_regression.simulation import (
    CONTROLS,
    QUANTITIES,
    Simulation,
    codebooks_for,
    default_penalties,
    draw_solutions,
    ridge_solutions,
    simulate,
)
from jaxcomp.numerics.transformations import all_transfers
from jaxcomp.numerics.units import LN2
from jaxcomp.progress import Progress, Report

# Streams of random numbers; each is folded into the study's seed.
_PROBLEM, _DESIGN, _DATA_SETS, _INFORMATION = range(4)


@dataclass(frozen=True)
class StudyConfig:
    """Settings of a study.

    Attributes:
        dim: d, weights.
        num_examples: n of each simulation; the first one is drawn in detail.
        signal: B, variance of the outputs that the weights explain.
        noise_variance: s2.
        correlation: of neighbouring inputs, `Sigma_ij = correlation^|i - j|`.
        num_datasets: data sets drawn for every n.
        num_rates: places of the rate grid, 2 to 64: K = 1, 2, ... for the fixed-rate quantizers,
            equally spaced up to `max_bits` for channels and the entropy code.
        max_bits: highest rate of the channels, bits a weight.
        diameter_penalty: relative strength.
        adaptive: whether codebooks made from the weights they serve are included.
        decimals: what weights are rounded to for the learner's own information.
        num_penalties: ridge penalties for it, beside none.
        information_datasets: data sets drawn for it.
        chunk_size: data sets in one stored chunk.
        seed: of everything random.
    """

    dim: int = 50
    num_examples: tuple[int, ...] = (80, 160, 400, 1000, 5000)
    signal: float = 2.0
    noise_variance: float = 1.0
    correlation: float = 0.0
    num_datasets: int = 10_000
    num_rates: int = 32
    max_bits: float = 5.0
    diameter_penalty: float = 0.05
    adaptive: bool = True
    decimals: tuple[int, ...] = (1, 2, 3)
    num_penalties: int = 8
    information_datasets: int = 4000
    chunk_size: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be computed, in one sentence."""
        for name, least in (
            ("dim", 2),
            ("num_datasets", 4),
            ("num_rates", 2),
            ("num_penalties", 0),
            ("information_datasets", 100),
            ("chunk_size", 2),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.num_rates > 64:
            raise ValueError(f"num_rates must be at most 64, got {self.num_rates}.")
        if not self.num_examples or min(self.num_examples) < self.dim + 8:
            raise ValueError(
                f"num_examples must be at least dim + 8 = {self.dim + 8}, where the standard "
                f"errors of the risks can be trusted, got {self.num_examples}."
            )
        if len(set(self.num_examples)) != len(self.num_examples):
            raise ValueError(f"num_examples must be different, got {self.num_examples}.")
        if not self.decimals or min(self.decimals) < 0 or max(self.decimals) > 5:
            raise ValueError(f"decimals must lie between 0 and 5, got {self.decimals}.")
        for name in ("noise_variance", "max_bits"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, got {value}.")
        correlated_covariance(self.dim, self.correlation)
        for name in ("signal", "diameter_penalty"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be finite and at least 0, got {value}.")

    @property
    def compressors(self) -> tuple[str, ...]:
        """Names in the order of the table."""
        kept = (*CHANNELS, *CONTROLS, *DESIGNED)
        return (*kept, *ADAPTIVE) if self.adaptive else kept

    @property
    def rates_nats(self) -> np.ndarray:
        """(R,) of the whole model, for channels, shrinkage and the entropy code."""
        return self.dim * LN2 * np.linspace(0, self.max_bits, self.num_rates)

    def problem(self) -> Problem:
        """True weights in a random direction, and the covariance of the inputs."""
        return random_problem(
            jax.random.fold_in(random_key(self.seed), _PROBLEM),
            self.dim,
            signal=self.signal,
            noise_variance=self.noise_variance,
            covariance=correlated_covariance(self.dim, self.correlation),
        )


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


@dataclass(repr=False)
class StudyResult:
    """Tables, claims and pictures.

    Attributes:
        table: one row per number of examples, compressor and place of the rate grid. Means and
            standard errors (`_se`) of `simulation.QUANTITIES` (rates in bits a weight), closed
            forms (`theory_*`) where there are any, bounds on the gap.
        information: one row per number of examples, ridge penalty and number of decimals.
        claims: what compression does to the population risk.
        manifest: settings, versions, device, times.
        directory: where the files are, if they were written.
    """

    table: pd.DataFrame
    information: pd.DataFrame
    claims: list[Claim]
    manifest: dict[str, Any]
    directory: Path | None = None

    def __repr__(self) -> str:
        """What was found, in five lines; the rest is in `report()` and `table`."""
        files = "" if self.directory is None else f", files in {self.directory}"
        see = f".report(), .plot(), .table ({len(self.table)} rows), .claims ({len(self.claims)})"
        return brief("StudyResult", [self.first_lines()], see + files)

    def first_lines(self) -> Labelled:
        """What was compressed, and what helped at the first number of examples."""
        config = _config(self.manifest["settings"])
        first = config.num_examples[0]
        setting = config.problem().setting(first)
        risk = config.noise_variance + float(setting.excess_risk)
        best = best_rate(setting, channel="uninformed_zero_mean")
        bits = float(best.rate_nats) / (config.dim * LN2)
        theory = (
            f"a channel centred at 0 is best at {bits:.2f} bits a weight, {best.population:.3f}"
        )
        if not bool(best.exists):
            theory = f"send nothing, {float(best.population):.3f}"
        own = [claim for claim in self.claims if claim.num_examples == first]
        return [
            (
                "compressed",
                f"least squares, d = {config.dim}, n = {', '.join(map(str, config.num_examples))}; "
                f"{config.num_datasets:,} data sets each",
            ),
            ("theory", f"n = {first}: population risk of least squares {risk:.3f}; {theory}"),
            ("quantizers", _best_line(self.table, own, first, ("designed", "adaptive"))),
            ("controls", _best_line(self.table, own, first, ("control",))),
        ]

    @own_look()
    def plot(self) -> Figure:
        """Draw the risks against the rate, for the first number of examples."""
        return pictures.plot_risks(self.table, self.claims)

    @own_look()
    def plot_information(self) -> Figure:
        """Draw the learner's own information and the bound it gives."""
        return pictures.plot_information(self.information)

    def report(self) -> str:
        """The claims and bounds in words."""
        config = _config(self.manifest["settings"])
        lines = [markdown_labelled(self.first_lines()), ""]
        lines += ["## What compression does to the population risk", ""]
        lines += [f"- {claim.sentence}" for claim in self.claims]
        lines += ["", "## What the theory says", ""]
        lines += [f"- {line}" for line in _theory_lines(config)]
        lines += ["", "## The learner's own information", ""]
        if config.correlation:
            lines.append("- for uncorrelated inputs, where its density is known.")
        lines += [f"- {line}" for line in _information_lines(self.information)]
        return "\n".join(lines) + "\n"

    @own_look()
    def save(self, directory: Path | str | None = None) -> list[Path]:
        """Write tables, claims, report and pictures; return the files.

        Raises:
            ValueError: if no directory is known or it cannot be written.
        """
        folder = Path(directory) if directory is not None else self.directory
        if folder is None:
            raise ValueError("name a directory: this study was run without one.")
        storage.ensure_writable_directory(folder)
        contents = {
            "information.csv": self.information.to_csv(index=False).encode(),
            "report.md": ("# Linear regression\n\n" + self.report()).encode(),
        }
        for name, data in contents.items():
            storage.write_bytes_atomic(folder / name, data)
        claims = {"claims": [claim._asdict() for claim in self.claims]}
        storage.write_json(folder / "claims.json", claims)
        drawn = pictures.save_figures(
            folder, risks=self.plot(), information=self.plot_information()
        )
        tables = write_table(self.table, folder)
        if folder == self.directory:
            is_read = ("table.parquet", "information.csv", "claims.json")
            seal(self.manifest, folder, [folder / name for name in is_read])
        return [*tables, *(folder / name for name in contents), folder / "claims.json", *drawn]

    @classmethod
    def load(cls, directory: Path | str) -> "StudyResult":
        """Read a finished study back.

        Raises:
            ValueError: if the directory holds no finished study or a file is damaged.
        """
        folder = Path(directory)
        with loading(folder, StudyDirectory.noun) as manifest:
            _config(manifest["settings"])  # which the report needs
            return cls(
                table=read_table(folder / "table.parquet"),
                information=read_table(folder / "information.csv"),
                claims=[
                    _claim(told) for told in storage.read_json(folder / "claims.json")["claims"]
                ],
                manifest=manifest,
                directory=folder,
            )


@all_transfers
def run(
    config: StudyConfig,
    *,
    out: Path | str | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> StudyResult:
    """Simulate, compare with the closed forms, and test the improvement.

    Args:
        config: settings.
        out: directory of results, written as the run goes on and continued from if it holds the
            same settings; None keeps everything in memory.
        resume: whether finished parts in `out` are used.
        quiet: no progress on stderr.

    Returns:
        Tables, claims and pictures.

    Raises:
        ValueError: if `out` cannot be used.
    """
    started = time.perf_counter()
    with StudyDirectory(
        None if out is None else Path(out), asdict(config), resume=resume
    ) as directory:
        if (result := directory.finished(StudyResult.load)) is not None:
            return result
        directory.describe()
        problem = config.problem()
        tables, claims = [], []
        with Progress(quiet=quiet) as progress:
            total = config.num_datasets * len(config.num_examples)
            report = progress.task("compressing data sets", total)
            for number, num_examples in enumerate(config.num_examples):
                done = number * config.num_datasets
                halves = _simulate(config, problem, num_examples, directory, report, done, total)
                tables.append(_table(config, problem, num_examples, halves[0].merge(halves[1])))
                claims += _claims(config, num_examples, *halves)
            # The densities that it integrates are those for uncorrelated inputs.
            plain = replace(config, correlation=0.0).problem()
            information = _information(config, plain, progress)
        directory.manifest["times"] = {"seconds": time.perf_counter() - started}
        result = StudyResult(
            pd.concat(tables, ignore_index=True),
            information,
            claims,
            directory.manifest,
            directory.path,
        )
        if directory.path is not None:
            result.save()
        directory.finish()
        return result


class StudyDirectory(RunDirectory):
    """The files of one study: finished chunks of data sets."""

    noun = "study"
    folders = ("chunks",)

    def load(self, name: str, like: tuple[tuple[str, ...], np.ndarray]) -> Simulation | None:
        """A finished chunk, or None if it is missing, damaged or of other compressors."""
        if self.path is None:
            return None
        try:
            arrays, metadata = storage.load_arrays(self.path / "chunks" / f"{name}.npz")
            names, rates = tuple(metadata["compressors"]), arrays["rates_nats"]
            if names != like[0] or not np.array_equal(rates, like[1]):
                return None
            count = int(metadata["num_datasets"])
            return Simulation(count, names, rates, arrays["means"], arrays["squares"])
        except (ValueError, KeyError):
            return None

    def save(self, name: str, chunk: Simulation) -> None:
        """Write a finished chunk."""
        if self.path is not None:
            storage.save_arrays(
                self.path / "chunks" / f"{name}.npz",
                {
                    "rates_nats": chunk.rates_nats,
                    "means": chunk.means,
                    "squares": chunk.squares,
                },
                {"compressors": list(chunk.compressors), "num_datasets": chunk.num_datasets},
            )


def _simulate(
    config: StudyConfig,
    problem: Problem,
    num_examples: int,
    directory: StudyDirectory,
    report: Report,
    done_before: int,
    total: int,
) -> tuple[Simulation, Simulation]:
    """Simulate all chunks of one n; return the half for choosing and the half for testing."""
    key = jax.random.fold_in(random_key(config.seed), num_examples)
    clusters = tuple(range(1, config.num_rates + 1))
    codebooks = None
    halves: list[Simulation | None] = [None, None]
    # Two chunks at least, one for each half.
    size = min(config.chunk_size, -(-config.num_datasets // 2))
    starts = range(0, config.num_datasets, size)
    for chunk, start in enumerate(starts):
        name = f"n{num_examples:06d}-{chunk:04d}"
        count = min(size, config.num_datasets - start)
        found = directory.load(name, (config.compressors, config.rates_nats))
        if found is None:
            if codebooks is None:
                codebooks = codebooks_for(
                    problem,
                    jax.random.fold_in(key, _DESIGN),
                    num_examples=num_examples,
                    num_clusters=clusters,
                    rates_nats=config.rates_nats,
                    diameter_penalty=config.diameter_penalty,
                )
            found = simulate(
                problem,
                jax.random.fold_in(key, _DATA_SETS),
                num_examples=num_examples,
                num_datasets=count,
                num_clusters=clusters,
                rates_nats=config.rates_nats,
                compressors=config.compressors,
                codebooks=codebooks,
                diameter_penalty=config.diameter_penalty,
                first_dataset=start,
                chunk_size=min(size, 512),
            )
            directory.save(name, found)
        half = halves[chunk % 2]
        halves[chunk % 2] = found if half is None else half.merge(found)
        report(done_before + start + count, total, f"n = {num_examples}")
    first, second = halves
    assert first is not None
    assert second is not None
    return first, second


def _table(
    config: StudyConfig, problem: Problem, num_examples: int, simulation: Simulation
) -> pd.DataFrame:
    """Simulation, closed forms and bounds of one n, side by side."""
    setting = problem.setting(num_examples)
    rates = config.rates_nats
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


def _claims(
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


def _best_line(
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


def _information(config: StudyConfig, problem: Problem, progress: Progress) -> pd.DataFrame:
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
            jax.random.fold_in(key, _INFORMATION),
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


def _claim(told: Mapping[str, Any]) -> Claim:
    """A claim as it was before JSON, which has no word for NaN and infinity."""
    fields: dict[str, Any] = {k: math.nan if v is None else v for k, v in told.items()}
    return Claim(**fields)


def _config(settings: Mapping[str, Any]) -> StudyConfig:
    """Settings as they were before JSON made lists of tuples."""
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return StudyConfig(**plain)


def _theory_lines(config: StudyConfig) -> list[str]:
    problem = config.problem()
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
