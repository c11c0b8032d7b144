"""A file, a sample and what else is at hand, to a table of certificates.

`docs/certificates.md` says what each row states, and what nobody can check: that what is said to be
fixed before the data was so, and that examples are independent.
"""

from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcomp.bounds.arguments import check_certificate
from jaxcomp.certificates.architecture import Architecture, read_architecture
from jaxcomp.certificates.claims import (
    Claim,
    claim_through_file,
    file_claim,
    posterior_claim,
)
from jaxcomp.certificates.decoded import Decoded, checkpoint_of, decode, weights_of
from jaxcomp.certificates.dense import dense_predict_fn
from jaxcomp.certificates.posterior import (
    Posterior,
    complexity_of,
    error_of_draws,
    read_posterior,
)
from jaxcomp.certificates.report import Report
from jaxcomp.certificates.sample import (
    Classifier,
    Sample,
    labelled_sample,
    unlabelled_sample,
)
from jaxcomp.numerics.checks import check_count
from jaxcomp.numerics.transformations import all_transfers
from jaxcomp.storage import PathLike
from jaxcomp.types import Params, PredictFn, PRNGKey


class Evidence(NamedTuple):
    """Samples of distinct examples; those of `held_out` and `unlabelled` are not in `train`.

    Attributes:
        train: labelled, all of them.
        unseen: those of `train` that the prior was not trained on; None without a prior.
        held_out: labelled, None for none; likewise the others.
        unlabelled: inputs alone.
        test: labelled, as given.
        notes: what was left out.
    """

    train: Sample
    unseen: Sample | None
    held_out: Sample | None
    unlabelled: Sample | None
    test: Sample | None
    notes: tuple[str, ...]


@all_transfers
def certify(
    file: PathLike | bytes,
    predict_fn: PredictFn | None,
    train: tuple[Any, Any],
    *,
    delta: float = 0.05,
    fixed_architecture: PathLike | None = None,
    posterior: PathLike | Any = None,
    prior: PathLike | Params | None = None,
    prior_indices: Any = None,
    held_out: tuple[Any, Any] | None = None,
    original: PathLike | Params | None = None,
    unlabelled: Any = None,
    test: tuple[Any, Any] | None = None,
    like: Params | None = None,
    num_draws: int = 1_000,
    key: PRNGKey | None = None,
) -> Report:
    """Bound the error in the population of the network that a file decodes to.

    For the 0-1 loss, with probability at least 1 - delta over the examples, which are taken to be
    independent and of the population. Each row holds alone at delta; the best of them is told at
    delta over their number.

    Args:
        file: path or bytes of a compressed model; with `fixed_architecture` also a bare stream;
            empty bytes stand for the prior itself.
        predict_fn: `(params, inputs) -> (n, classes)` logits, or `(n,)` whole numbers, each example
            on its own; fixed before the data. None for a chain of dense layers with rectifiers.
        train: `(inputs, labels)` that the network may have been trained on, compressed with, and
            chosen by; (n, ...) and (n,) whole numbers.
        delta: in (0, 1), the probability that a row fails.
        fixed_architecture: file of a description that the user states to have been fixed before
            the data (see `architecture_of`): names and shapes are not charged, only the bare
            stream of the arrays.
        posterior: see `jaxcomp.certificates.posterior.read_posterior`; adds the row of a random
            network. Its prior is a Gaussian around `prior`, or around 0.
        prior: a network that the file holds differences to, or that the posterior is centred on.
        prior_indices: places in `train` of the examples that the prior was trained on or chosen
            by; the rows of the prior leave them out. Required with `prior`; may be empty.
        held_out: `(inputs, labels)` that neither training nor any choice has seen.
        original: another network of the same `predict_fn`, certified through the file.
        unlabelled: inputs that neither the training of the original nor the choice of the file has
            seen; required with `original`.
        test: `(inputs, labels)` for the error that is told beside the certificates.
        like: tree whose structure the weights take over; see `jaxcomp.load`.
        num_draws: of the random network.
        key: of these; None for `jax.random.key(0)`.

    Returns:
        The table.

    Raises:
        FormatError: if the file is damaged.
        OSError: if a file cannot be read.
        TypeError: if labels are no whole numbers, or a sample is no pair.
        ValueError: if delta is not in (0, 1), examples have another shape than the network takes,
            the file is not of jaxcomp or of this architecture, the prior has seen all examples or
            ones that are not there, or the posterior has no variance.
    """
    check_certificate(0.0, 1, delta)
    _check_together("prior", prior, "prior_indices", prior_indices)
    _check_together("original", original, "unlabelled", unlabelled)
    evidence = _evidence(train, prior_indices, held_out, unlabelled, test)
    with ExitStack() as stack:
        architecture = None if fixed_architecture is None else read_architecture(fixed_architecture)
        reference = None if prior is None else checkpoint_of(stack, prior)
        decoded = decode(file, prior=reference, architecture=architecture, like=like)
        if prior is not None and posterior is None and not decoded.holds_differences:
            raise ValueError(
                "the file holds no differences to the prior; leave the prior out, or compress the "
                "model with it as the reference."
            )
        job = _Job(
            evidence,
            decoded,
            _classifier(predict_fn, decoded.params, evidence),
            architecture,
            None if prior is None else weights_of(stack, prior, like),
        )
        claims = [job.of_the_file()]
        if posterior is not None:
            key = jax.random.key(0) if key is None else key
            claims.append(job.of_the_posterior(read_posterior(posterior, like), num_draws, key))
        claims += job.of_labels()
        if original is not None:
            claims.append(job.of_the_original(weights_of(stack, original, like), claims[0]))
    error, num_test = None, 0
    if evidence.test is not None:
        num_test = len(evidence.test)
        error = job.classifier.num_errors(decoded.params, evidence.test) / num_test
    rows = tuple(claim.row(delta, len(claims)) for claim in claims)
    return Report(rows, delta, error, num_test, evidence.notes)


class _Job(NamedTuple):
    """What all rows are made of."""

    evidence: Evidence
    decoded: Decoded
    classifier: Classifier
    architecture: Architecture | None
    prior: Params | None

    def of_the_file(self) -> Claim:
        """Return row (a), or (c) for a file that holds differences to the prior."""
        fixed = "Fixed before the data: the decoder and predict_fn"
        if self.architecture is not None:
            fixed += (
                "; and, as the user states, the architecture with the SHA-256 "
                f"{self.architecture.digest}"
            )
        size = (
            f"charged are {self.decoded.size_bytes:,} bytes, {self.decoded.note}, and "
            f"{self.decoded.size_bits - 8 * self.decoded.size_bytes:.1f} bits that say how long it "
            "is"
            + (" and what was chosen" if self.architecture and self.architecture.choices else "")
        )
        if self.decoded.size_bytes == 0:
            size = f"charged is {self.decoded.note}"
        if self.decoded.holds_differences:
            sample = self.evidence.unseen
            assert sample is not None
            of = "the prior and the file"
            # A prior that has seen none was trained elsewhere.
            name = "c: data split" if self._num_seen else "c: transfer"
            trained = (
                f"trained on {self._num_seen:,} examples that are not counted"
                if self._num_seen
                else "trained on none of the examples"
            )
            random = (
                f"Fixed, too: the prior, {trained}. Random: the {len(sample):,} "
                f"{'others' if self._num_seen else 'examples'}, by which the file may have been "
                f"made and chosen in any way; {size}."
            )
        else:
            sample = self.evidence.train
            name, of = "a: data-free", "the file"
            random = (
                f"Random: the {len(sample):,} examples, by which the file may have been trained, "
                f"compressed and chosen in any way; {size}."
            )
        return file_claim(
            name,
            of,
            f"{fixed}. {random}",
            num_errors=self.classifier.num_errors(self.decoded.params, sample),
            num_examples=len(sample),
            size_bits=self.decoded.size_bits,
            size_bytes=self.decoded.size_bytes,
        )

    def of_the_posterior(self, posterior: Posterior, num_draws: int, key: PRNGKey) -> Claim:
        """Return row (b)."""
        check_count("num_draws", num_draws)
        sample, centre = self.evidence.train, "0"
        if self.prior is not None:
            assert self.evidence.unseen is not None
            sample, centre = (
                self.evidence.unseen,
                f"the prior, which {self._num_seen:,} others made",
            )
        found = complexity_of(posterior, self.prior)
        self.classifier.check(posterior.mean, sample, "train")
        error = error_of_draws(self.classifier, posterior, sample, num_draws=num_draws, key=key)
        complexity = float(found.complexity_nats)
        return posterior_claim(
            f"For a random network, its weights drawn anew for every answer, not for the file. "
            f"Fixed before the data: predict_fn and a Gaussian prior around {centre}. Random: the "
            f"{len(sample):,} examples and {num_draws:,} draws that its error was measured by. "
            f"Charged are {complexity:,.1f} nats, {float(found.choice_nats):.1f} of them for the "
            f"scale of the prior, {float(found.prior_scale):.3g}.",
            error=error,
            complexity_nats=complexity,
            num_examples=len(sample),
            num_draws=num_draws,
        )

    def of_labels(self) -> list[Claim]:
        """Return rows (d): of the file, and of the prior for as many labels as it left."""
        claims = []
        if self.evidence.held_out is not None:
            number = len(self.evidence.held_out)
            claims.append(
                file_claim(
                    "d: held out",
                    "the file",
                    "Fixed: the network, which, as the user states, neither training nor any "
                    f"choice fitted to these labels. Random: the {number:,} examples held out. No "
                    "byte is charged.",
                    num_errors=self.classifier.num_errors(
                        self.decoded.params, self.evidence.held_out
                    ),
                    num_examples=number,
                )
            )
        if self.prior is not None:
            assert self.evidence.unseen is not None
            number = len(self.evidence.unseen)
            claims.append(
                file_claim(
                    "d: held out from the prior",
                    "the prior",
                    f"What the same {number:,} labels say of the prior itself, which has not seen "
                    "them. No byte is charged. A file that is worth its bytes has a lower bound.",
                    num_errors=self.classifier.num_errors(self.prior, self.evidence.unseen),
                    num_examples=number,
                )
            )
        return claims

    def of_the_original(self, original: Params, of_file: Claim) -> Claim:
        """Return row (e)."""
        inputs = self.evidence.unlabelled
        assert inputs is not None
        self.classifier.check(original, inputs, "unlabelled")
        apart = self.classifier.predictions(original, inputs) != self.classifier.predictions(
            self.decoded.params, inputs
        )
        number = int(np.sum(apart))
        return claim_through_file(
            f"The bound of the file ({of_file.name}) plus one of how often the original and the "
            f"file name different classes: {number:,} of {len(inputs):,} inputs without labels, "
            "which, as the user states, neither the training of the original nor the choice of "
            "the file has seen.",
            of_file,
            num_disagreements=number,
            num_unlabelled=len(inputs),
        )

    @property
    def _num_seen(self) -> int:
        unseen = self.evidence.unseen
        return len(self.evidence.train) - (0 if unseen is None else len(unseen))


def _classifier(predict_fn: PredictFn | None, params: Params, evidence: Evidence) -> Classifier:
    """Return the function as a classifier, if it takes the network and all samples."""
    predict_fn = dense_predict_fn(params) if predict_fn is None else predict_fn
    try:
        hash(predict_fn)
    except TypeError:  # an object with arrays in it
        predict_fn = partial(predict_fn)
    classifier = Classifier(predict_fn)
    for what in ("train", "held_out", "unlabelled", "test"):
        sample = getattr(evidence, what)
        if sample is not None:
            classifier.check(params, sample, what)
    return classifier


def _check_together(first: str, one: Any, second: str, other: Any) -> None:
    if (one is None) != (other is None):
        given, lacking = (first, second) if other is None else (second, first)
        raise ValueError(f"{given} was given without {lacking}; give both or none.")


def _evidence(
    train: Any, prior_indices: Any, held_out: Any, unlabelled: Any, test: Any
) -> Evidence:
    """Return the samples, without what stands in them twice."""
    notes: list[str] = []

    def distinct(sample: Sample, what: str, seen: tuple[bytes, ...] = ()) -> Sample:
        """Return a sample without repetitions, and without what another one has."""
        once = sample.distinct()
        if len(once) < len(sample):
            notes.append(
                f"{len(sample) - len(once):,} examples of {what} repeat others; each is counted "
                "once."
            )
        fresh = once.distinct(seen)
        if len(fresh) < len(once):
            notes.append(
                f"{len(once) - len(fresh):,} examples of {what} are in train too; they are left "
                "out."
            )
        if not len(fresh):
            raise ValueError(f"all examples of {what} are in train too; give others.")
        return fresh

    whole = labelled_sample(train, "train")
    once = distinct(whole, "train")
    unseen = None if prior_indices is None else _unseen(whole, once, prior_indices)
    fresh = inputs = None
    if held_out is not None:
        fresh = distinct(labelled_sample(held_out, "held_out"), "held_out", once.names)
    if unlabelled is not None:
        names = once.unlabelled().names
        inputs = distinct(unlabelled_sample(unlabelled, "unlabelled"), "unlabelled", names)
    told = None
    if test is not None:
        told = labelled_sample(test, "test")
        for other, what in ((once, "train"), (fresh, "held_out")):
            if other is not None and (number := len({*told.names} & {*other.names})):
                notes.append(f"{number:,} examples of test are in {what} too.")
        if inputs is not None and (number := len({*told.unlabelled().names} & {*inputs.names})):
            notes.append(f"The inputs of {number:,} examples of test are in unlabelled too.")
    return Evidence(once, unseen, fresh, inputs, told, tuple(notes))


def _unseen(whole: Sample, once: Sample, prior_indices: Any) -> Sample:
    """Return the distinct examples that are not, and equal none, at these places."""
    indices = np.asarray(prior_indices)
    if indices.size and (indices.ndim != 1 or indices.dtype.kind not in "iu"):
        raise ValueError(
            "prior_indices must be a list of whole numbers, the places in train of the examples "
            f"that the prior was trained on, got {indices.dtype} of shape {indices.shape}."
        )
    wrong = indices[(indices < 0) | (indices >= len(whole))]
    if wrong.size:
        raise ValueError(
            f"prior_indices must be places of train, 0 to {len(whole) - 1}, got {wrong[0]}."
        )
    names = {whole.names[place] for place in indices.astype(int)}
    places = [place for place, name in enumerate(once.names) if name not in names]
    if not places:
        raise ValueError(
            "the prior was trained on all examples of train, which says nothing of it; leave some "
            "out of its training."
        )
    return once.select(places)
