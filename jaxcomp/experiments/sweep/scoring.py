"""The work of a sweep on one setting: every variant of every network, and what is claimed of them.

Parts are a network with its codebooks, and the rows of a chunk of its variants.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pandas as pd

from jaxcomp.experiments.reproducibility import random_key
from jaxcomp.experiments.run import Row, Rows, Run
from jaxcomp.experiments.sweep.calibration import CalibrationShare, calibration_share
from jaxcomp.experiments.sweep.candidates import VariantLosses
from jaxcomp.experiments.sweep.claims import Claim, evaluate_claims
from jaxcomp.experiments.sweep.codebooks import Codebooks, solve_codebooks
from jaxcomp.experiments.sweep.config import Setting, SweepConfig
from jaxcomp.experiments.sweep.curvature import Curvatures, measure_curvature
from jaxcomp.experiments.sweep.engine import (
    Evaluator,
    Network,
    Parts,
    Scorer,
    Subject,
    chunked,
    stack_losses,
)
from jaxcomp.experiments.sweep.smallest import SmallestNetwork, smallest_without_loss
from jaxcomp.experiments.sweep.stored import StoredNetwork, write_file
from jaxcomp.experiments.sweep.variants import Variant
from jaxcomp.progress import Progress

# Streams of random numbers; each is folded into the sweep's seed.
_CURVATURE, _NOISE, _START = 1, 2, 3


class Outcome(NamedTuple):
    """What came of one setting."""

    setting: Setting
    table: pd.DataFrame
    networks: list[Network]
    claims: list[Claim]
    calibration: CalibrationShare | None
    smallest: SmallestNetwork | None


def score_setting(
    setting: Setting,
    subjects: Sequence[Subject],
    parts_of: Callable[[int], Parts],
    variants: Sequence[Variant],
    config: SweepConfig,
    run: Run,
    progress: Progress,
) -> Outcome:
    """Score every variant of every network of one setting, then make its claims.

    Args:
        setting: names files and rows.
        subjects: its networks.
        parts_of: number of a network -> its three parts.
        variants: in the order of the table.
        config: importances, and how curvature and codebooks are computed.
        run: whose parts are used again.
        progress: is told how many variants are scored.
    """
    name = setting.name
    evaluator = Evaluator(subjects[0], parts_of(0))
    total = len(variants) * len(subjects)
    report = progress.task(f"{name}: compressing and scoring", total)
    rows: list[Row] = []
    networks: list[Network] = []
    for number, subject in enumerate(subjects):

        def tell(done: int, before: int = len(rows)) -> None:
            report(before + done, total, "")

        network, own = _score_network(
            name, subject, parts_of(number), variants, evaluator, config, run, tell
        )
        networks.append(network)
        rows += own
    table = _table(setting, rows)
    temperatures = {(row["variant"], row["model_seed"]): row["temperature"] for row in rows}
    by_id = {variant.id: variant for variant in variants}

    @cache
    def losses(variant_id: str) -> VariantLosses:
        return stack_losses(
            [
                Scorer(network, parts_of(number), evaluator).losses(
                    by_id[variant_id], temperatures[variant_id, network.subject.model_seed]
                )
                for number, network in enumerate(networks)
            ]
        )

    judged = table.loc[table["kind"] != "sensitivity"]
    claims = [claim._replace(setting=name) for claim in evaluate_claims(judged, losses)]
    smallest = smallest_without_loss(judged, losses)
    if smallest is not None:
        smallest = smallest._replace(setting=name)
    return Outcome(setting, table, networks, claims, calibration_share(judged, losses), smallest)


def _score_network(
    name: str,
    subject: Subject,
    parts: Parts,
    variants: Sequence[Variant],
    evaluator: Evaluator,
    config: SweepConfig,
    run: Run,
    tell: Callable[[int], None],
) -> tuple[Network, list[Row]]:
    """A network with its codebooks, and a row for every variant; what is stored is not computed."""
    file = f"{name}-{subject.model_seed:03d}"
    key = jax.random.fold_in(random_key(config.seed), subject.model_seed)
    noise = jax.random.fold_in(key, _NOISE)

    @cache
    def curvatures() -> Curvatures:
        evaluator.check_finite(subject, parts)
        return _measure(subject, parts, config, jax.random.fold_in(key, _CURVATURE))

    def solve() -> Network:
        start = int(jax.random.randint(jax.random.fold_in(key, _START), (), 0, 2**31 - 1))
        return Network(subject, _solve(subject, curvatures(), variants, config, start), noise)

    network = run.part(file, solve, StoredNetwork(name, subject, noise))

    @cache
    def scorer() -> Scorer:
        reference = subject.layers_of(curvatures().reference)
        keep = None if run.path is None else partial(write_file, run.path, file)
        return Scorer(network, parts, evaluator, reference=reference, keep=keep)

    def score(members: Sequence[Variant]) -> list[Row]:
        return scorer().score(members)

    rows: list[Row] = []
    for number, members in chunked(variants, evaluator.num_chunk_variants):
        like = Rows([variant.id for variant in members])
        rows += run.part(f"{file}-{number:04d}", partial(score, members), like)
        tell(len(rows))
    return network, rows


def _measure(subject: Subject, parts: Parts, config: SweepConfig, key: jax.Array) -> Curvatures:
    """The curvature at one network, on some of its training examples."""
    inputs, labels = parts.train
    return measure_curvature(
        subject.predict_fn,
        subject.params,
        (inputs[: config.curvature_examples], labels[: config.curvature_examples]),
        config.importance,
        # By name, not as patterns: a path may hold a character that a pattern gives a meaning.
        select=lambda path, leaf: path in subject.paths,
        num_probes=config.num_probes,
        key=key,
    )


def _solve(
    subject: Subject,
    curvatures: Curvatures,
    variants: Sequence[Variant],
    config: SweepConfig,
    seed: int,
) -> Codebooks:
    """The codebooks of one network, for every quantized variant."""
    reference = subject.layers_of(curvatures.reference)
    return solve_codebooks(
        subject.weights(),
        {
            name: None if leaves is None else subject.layers_of(leaves)
            for name, leaves in curvatures.importance.items()
        },
        variants,
        num_bins=config.num_bins,
        num_iterations=config.num_iterations,
        layer_weight={name: float(jnp.mean(layer)) for name, layer in reference.items()},
        seed=seed,
    )


def _table(setting: Setting, rows: Sequence[Row]) -> pd.DataFrame:
    """Rows with the setting they belong to and the measured rise of the training loss."""
    table = pd.DataFrame(rows)
    originals = {row["model_seed"]: row["train_loss"] for row in rows if row["kind"] == "original"}
    rise = [row["train_loss"] - originals[row["model_seed"]] for row in rows]
    place = list(table.columns).index("predicted_rise_nats") + 1
    table.insert(place, "measured_rise_nats", rise)
    identity = {
        "setting": setting.name,
        "dataset": setting.dataset,
        "model": setting.model,
        "label_noise": setting.label_noise,
    }
    for place, (column, value) in enumerate(identity.items()):
        table.insert(place, column, value)
    return table
