"""The work of a sweep on one setting: every variant of every network, and what is claimed of them.

Parts are a network with its codebooks, and the rows of a chunk of its variants.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from jaxcomp.experiments.parts import Part, complete
from jaxcomp.experiments.reproducibility import random_key
from jaxcomp.experiments.run import Row, Rows, Run
from jaxcomp.experiments.sweep.beyond_controls import Undecided, beyond_controls
from jaxcomp.experiments.sweep.calibration import CalibrationShare, calibration_share
from jaxcomp.experiments.sweep.candidates import VariantLosses
from jaxcomp.experiments.sweep.claims import Claim, evaluate_claims
from jaxcomp.experiments.sweep.codebooks import Codebooks, solve_codebooks
from jaxcomp.experiments.sweep.config import Setting, SweepConfig
from jaxcomp.experiments.sweep.curvature import Curvatures, measure_curvature
from jaxcomp.experiments.sweep.engine import (
    Network,
    Scorer,
    chunked,
    stack_losses,
)
from jaxcomp.experiments.sweep.evaluator import Evaluator
from jaxcomp.experiments.sweep.smallest import SmallestNetwork, smallest_without_loss
from jaxcomp.experiments.sweep.stored import StoredNetwork, write_file
from jaxcomp.experiments.sweep.subject import Parts, Subject
from jaxcomp.experiments.sweep.variants import ORIGINAL, Variant
from jaxcomp.progress import Progress

# Streams of random numbers; each is folded into the sweep's seed.
_CURVATURE, _NOISE, _START = 1, 2, 3
_FILES_AT_ONCE = 4


class Outcome(NamedTuple):
    """What came of one setting."""

    setting: Setting
    table: pd.DataFrame
    networks: list[Network]
    claims: list[Claim]
    calibration: CalibrationShare | None
    smallest: SmallestNetwork | None
    beyond: Undecided | None


@dataclass(frozen=True)
class Scored:
    """All rows of a setting, and what its claims are made from.

    Attributes:
        setting: its name is that of files and rows.
        networks: with their codebooks.
        rows: of every variant of every network.
        parts_of: number of a network -> its three parts.
        variants: in the order of the table.
        evaluator: of the setting.
        is_compared: whether compression is compared with what compresses nothing.
    """

    setting: Setting
    networks: list[Network]
    rows: list[Row]
    parts_of: Callable[[int], Parts]
    variants: Sequence[Variant]
    evaluator: Evaluator
    is_compared: bool

    def outcome(self) -> Outcome:
        """Make the claims."""
        name = self.setting.name
        table = _table(self.setting, self.rows)
        calibration = self.evaluator.task.words.calibration
        calibrations = {(row["variant"], row["model_seed"]): row[calibration] for row in self.rows}
        by_id = {variant.id: variant for variant in self.variants}

        scorers = [
            Scorer(network, self.parts_of(number), self.evaluator)
            for number, network in enumerate(self.networks)
        ]

        @cache
        def losses(variant_id: str) -> VariantLosses:
            return stack_losses(
                [
                    scorer.losses(
                        by_id[variant_id], calibrations[variant_id, scorer.subject.model_seed]
                    )
                    for scorer in scorers
                ]
            )

        judged = table.loc[table["kind"] != "sensitivity"]
        words = self.evaluator.task.words
        claims = [
            claim._replace(setting=name) for claim in evaluate_claims(judged, losses, words=words)
        ]
        beyond = beyond_controls(judged, losses, words=words) if self.is_compared else None
        smallest = smallest_without_loss(judged, losses, words=words)
        if smallest is not None:
            smallest = smallest._replace(setting=name)
        share = calibration_share(judged, losses, words=words)
        return Outcome(self.setting, table, self.networks, claims, share, smallest, beyond)


def score_setting(
    setting: Setting,
    subjects: Sequence[Subject],
    parts_of: Callable[[int], Parts],
    variants: Sequence[Variant],
    config: SweepConfig,
    run: Run,
    progress: Progress,
    devices: Sequence[Any] = (),
    *,
    is_compared: bool = False,
) -> Scored:
    """Score every variant of every network of one setting.

    Args:
        setting: names files and rows.
        subjects: its networks.
        parts_of: number of a network -> its three parts.
        variants: in the order of the table.
        config: importances, and how curvature and codebooks are computed.
        run: whose parts are used again.
        progress: is told how many variants are scored.
        devices: of the workers, see `jaxcomp.experiments.parts.complete`.
        is_compared: whether compression is compared with what compresses nothing.
    """
    name = setting.name
    evaluator = Evaluator(subjects[0], parts_of(0))
    total = len(variants) * len(subjects)
    report = progress.task(f"{name}: compressing and scoring", total)
    work = [
        _NetworkWork(name, subject, partial(parts_of, number), variants, evaluator, config, run)
        for number, subject in enumerate(subjects)
    ]
    chunks = [own.chunks() for own in work]

    def tell(found: Mapping[str, Any], is_waiting: bool) -> None:
        done = sum(len(found.get(part.name, ())) for own in chunks for part in own)
        report(done, total, "waiting for others" if is_waiting else "")

    ordered = [
        part for own, rows in zip(work, chunks, strict=True) for part in (own.network(), *rows)
    ]
    # Of several workers of a CPU the second compiles what scores; programs are for all of them.
    place = itertools.count()

    def desk() -> _Desk:
        return _Desk(compiles_scores=next(place) == 1 and evaluator.is_on_cpu)

    found = complete(run, ordered, desk, tell, devices=devices)
    return Scored(
        setting,
        [found[own.file] for own in work],
        [row for own in chunks for part in own for row in found[part.name]],
        parts_of,
        variants,
        evaluator,
        is_compared=is_compared,
    )


class _NetworkWork:
    """The parts of one network: its codebooks, and a row for every variant."""

    def __init__(
        self,
        name: str,
        subject: Subject,
        parts: Callable[[], Parts],
        variants: Sequence[Variant],
        evaluator: Evaluator,
        config: SweepConfig,
        run: Run,
    ) -> None:
        self.name = name
        self.file = f"{name}-{subject.model_seed:03d}"
        self.subject = subject
        self.parts = parts
        self.variants = variants
        self.evaluator = evaluator
        self.config = config
        self.run = run
        self.key = jax.random.fold_in(random_key(config.seed), subject.model_seed)
        self.noise = jax.random.fold_in(self.key, _NOISE)

    def network(self) -> "Part[_Desk]":
        """The network with its codebooks."""
        like = StoredNetwork(self.name, self.subject, self.noise)
        return Part(self.file, like, lambda desk, _: desk.solve(self))

    def chunks(self) -> "list[Part[_Desk]]":
        """Rows, a chunk of variants each."""

        def score(members: Sequence[Variant], desk: _Desk, network: Network) -> list[Row]:
            return desk.at(self).score(network, members)

        return [
            Part(
                f"{self.file}-{number:04d}",
                Rows([variant.id for variant in members]),
                partial(score, members),
                needs=self.file,
            )
            for number, members in chunked(self.variants, self.evaluator.num_chunk_variants)
        ]


class _Tools:
    """What a worker computes once for all parts of a network."""

    def __init__(self, work: _NetworkWork) -> None:
        self.work = work
        self._scorer: Scorer | None = None

    @cached_property
    def parts(self) -> Parts:
        """The three parts of its data, at which outputs of the network are finite."""
        parts = self.work.parts()
        self.work.evaluator.check_finite(self.work.subject, parts)
        return parts

    @cached_property
    def curvatures(self) -> Curvatures:
        """The curvature at the network."""
        work = self.work
        key = jax.random.fold_in(work.key, _CURVATURE)
        return _measure(work.subject, self.parts, work.config, key, self.calibration)

    @cached_property
    def calibration(self) -> jax.Array:
        """What the network brings."""
        return self.work.evaluator.own_calibration(self.work.subject, self.parts)

    def compile_scores(self) -> None:
        """Compile the programs that score variants, by what needs no codebooks."""
        work = self.work
        network = Network(work.subject, Codebooks({}, {}), work.noise)
        scorer = Scorer(network, self.parts, work.evaluator)
        scorer.score([ORIGINAL])
        scorer.losses(ORIGINAL, 1.0)
        controls = {v.method: v for v in work.variants if v.kind == "control"}
        controls.pop("gaussian_noise", None)  # as strong as a codebook that is not there yet
        for variant in controls.values():
            scorer.apply(variant)

    def solve(self) -> Network:
        """Solve all codebooks."""
        work = self.work
        start = 0
        if any(variant.method == "vector" for variant in work.variants):
            key = jax.random.fold_in(work.key, _START)
            start = int(jax.random.randint(key, (), 0, 2**31 - 1))
        solved = _solve(work.subject, self.curvatures, work.variants, work.config, start)
        return Network(work.subject, solved, work.noise)

    def score(self, network: Network, variants: Sequence[Variant]) -> list[Row]:
        """Score variants; their files are on the disk when it returns.

        A disk takes longer to keep a small file for good than it takes to make one: the next are
        made meanwhile, and several are kept at once.
        """
        scorer, path = self._scorer_of(network), self.work.run.path
        if path is None:
            return scorer.score(variants)
        written: list[Future[None]] = []
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            write = partial(pool.submit, write_file, path, self.work.file)
            rows = scorer.score(variants, lambda *file: written.append(write(*file)))
            for own in written:
                own.result()
        return rows

    def _scorer_of(self, network: Network) -> Scorer:
        if self._scorer is None:
            work = self.work
            self._scorer = Scorer(
                network,
                self.parts,
                work.evaluator,
                reference=work.subject.layers_of(self.curvatures.reference),
            )
        return self._scorer


class _Desk:
    """What a worker has at hand: the tools for one network at a time.

    Args:
        compiles_scores: whether the worker compiles what scores variants before it solves the
            codebooks of its first network, while another compiles what solves them. Both would
            wait for each other's programs else.
    """

    def __init__(self, *, compiles_scores: bool = False) -> None:
        self._tools: _Tools | None = None
        self._compiles_scores = compiles_scores

    def solve(self, work: _NetworkWork) -> Network:
        """Return a network with its codebooks."""
        tools = self.at(work)
        if self._compiles_scores:
            self._compiles_scores = False
            tools.compile_scores()
        return tools.solve()

    def at(self, work: _NetworkWork) -> _Tools:
        """Return the tools for a network."""
        if self._tools is None or self._tools.work is not work:
            self._tools = _Tools(work)
        return self._tools


def _measure(
    subject: Subject, parts: Parts, config: SweepConfig, key: jax.Array, calibration: jax.Array
) -> Curvatures:
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
        task=subject.task,
        calibration=float(calibration),
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
        layer_weight={
            name: float(np.mean(np.asarray(layer), dtype=np.float64))
            for name, layer in reference.items()
        },
        seed=seed,
        methods=subject.methods,
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
    if setting.train_size is not None:
        identity["train_size"] = setting.train_size
    for place, (column, value) in enumerate(identity.items()):
        table.insert(place, column, value)
    return table
