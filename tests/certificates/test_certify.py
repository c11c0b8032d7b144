"""The table: every row is its bound on the examples that may be counted, and what is refused."""

import json
import math

import jax
import numpy as np
import pytest
from certificate_problems import Problem, logits, problem, weights

import jaxcomp
from jaxcomp.bounds import gaussian_complexity, occam, self_delimiting_bits
from jaxcomp.certificates.claims import bound_of_draws, bound_through_file, file_bound

SEEN = np.arange(20)


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Problem:
    return problem(tmp_path_factory.mktemp("certificates"))


def num_errors(params, examples):
    inputs, labels = examples
    return int(np.sum(logits(params, inputs).argmax(axis=1) != labels))


def test_rows_of_the_file(case):
    report = jaxcomp.certify(
        case.file, None, case.sample, held_out=case.fresh, original=case.model,
        unlabelled=case.fresh[0], test=case.fresh,
    )  # fmt: skip
    params = jaxcomp.load(case.file).params()
    size = case.file.stat().st_size
    bits = 8 * size + float(self_delimiting_bits(size))
    errors, fresh = num_errors(params, case.sample), num_errors(params, case.fresh)
    assert 0 < errors < 30
    data_free, held_out, through = report.rows
    assert data_free.bound == float(occam(errors / 60, bits, num_examples=60, delta=0.05))
    assert (data_free.size_bytes, data_free.size_bits) == (size, bits)
    assert held_out.bound == float(occam(fresh / 30, 0, num_examples=30, delta=0.05))
    apart = logits(params, case.fresh[0]).argmax(1) != logits(weights(0), case.fresh[0]).argmax(1)
    together = bound_through_file(errors, 60, bits, apart.sum(), 30, 0.05 / 3)
    assert through.bound_together == float(together)
    assert through.deltas == pytest.approx({"bound of the file": 0.005, "disagreement": 0.045})
    assert report.best is held_out
    assert report.test_error == fresh / 30
    # That the test labels are those held out is said.
    assert "30 examples of test are in held_out too." in report.notes
    told = json.loads(report.to_json())
    assert told["rows"][0]["bound"] == data_free.bound
    assert told["best"]["bound"] == held_out.bound_together
    assert list(report.to_frame()["name"]) == [row.name for row in report.rows]


def test_repeated_examples_count_once(case):
    inputs, labels = case.sample
    twice = np.concatenate([inputs, inputs]), np.concatenate([labels, labels])
    report = jaxcomp.certify(case.file, None, twice, held_out=twice_and(twice, case.fresh))
    once = jaxcomp.certify(case.file, None, case.sample, held_out=case.fresh)
    assert report.rows == once.rows
    assert report.notes == (
        "60 examples of train repeat others; each is counted once.",
        "60 examples of held_out repeat others; each is counted once.",
        "60 examples of held_out are in train too; they are left out.",
    )
    assert not once.notes


def twice_and(one, other):
    return tuple(np.concatenate(parts) for parts in zip(one, other, strict=True))


def test_differences_to_a_prior(case):
    # The first 20 stand in the sample twice, once where the indices do not name them.
    sample = twice_and(case.sample, [part[:20] for part in case.sample])
    report = jaxcomp.certify(case.differences, None, sample, prior=case.prior, prior_indices=SEEN)
    split, of_prior = report.rows
    size = case.differences.stat().st_size
    bits = 8 * size + float(self_delimiting_bits(size))
    rest = [part[20:] for part in case.sample]
    assert split.name == "c: data split"
    assert split.bound == float(occam(split.error, bits, num_examples=40, delta=0.05))
    prior = {name: values + 0.1 * weights(1)[name] for name, values in weights(0).items()}
    assert of_prior.bound == float(file_bound(num_errors(prior, rest), 40, 0.0, 0.05))
    assert (split.num_examples, of_prior.num_examples) == (40, 40)


def test_no_byte_is_the_held_out_bound(case, tmp_path):
    empty = tmp_path / "empty.jxc"
    empty.touch()
    for file in (b"", empty):
        report = jaxcomp.certify(file, None, case.sample, prior=case.prior, prior_indices=SEEN)
        split, of_prior = report.rows
        assert split.size_bits == 0
        assert split[3:9] == of_prior[3:9]


def test_posterior(case):
    mean = weights(0)
    spread = {name: np.full_like(values, -12) for name, values in mean.items()}
    report = jaxcomp.certify(case.file, None, case.sample, posterior=(mean, spread), num_draws=50)
    row = report.rows[1]
    error = num_errors(mean, case.sample) / 60
    flat = np.concatenate([mean[name].ravel() for name in sorted(mean)]).astype(np.float64)
    complexity = float(gaussian_complexity(flat, math.exp(-12)).complexity_nats)
    assert row.error == error
    assert row.bound == pytest.approx(float(bound_of_draws(error, complexity, 60, 50, 0.05)))
    # Around a prior that has not seen them, fewer examples and less to pay.
    split = jaxcomp.certify(
        case.file, None, case.sample, posterior=(mean, spread), num_draws=50,
        prior=case.prior, prior_indices=SEEN,
    )  # fmt: skip
    assert [row.name[0] for row in split.rows] == ["a", "b", "d"]
    assert split.rows[1].size_bits < row.size_bits
    assert split.rows[1].num_examples == 40
    # Weights that vary as much as they are large err more.
    wide = {name: np.zeros_like(values) for name, values in mean.items()}
    report = jaxcomp.certify(case.file, None, case.sample, posterior=(mean, wide), num_draws=50)
    assert report.rows[1].error > error + 0.1


def give(**changes):
    return lambda case: changes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (give(delta=0), "delta must be strictly between 0 and 1, got 0"),
        (give(delta=math.nan), "delta must be strictly between 0 and 1"),
        (give(file=b"no"), "the file is no compressed model"),
        (give(file="no.jxc"), "there is no file no.jxc"),
        (lambda case: {"file": case.model}, "m.safetensors is no compressed model"),
        (lambda case: {"train": (case.sample[0][:, :3], case.sample[1])}, "fails on train"),
        (lambda case: {"train": (case.sample[0], case.sample[1][:3])}, "one label for each"),
        (lambda case: {"train": (case.sample[0], case.sample[1] + 1)}, "train has the label 3"),
        (lambda case: {"train": (case.sample[0][:0], case.sample[1][:0])}, "no example"),
        (lambda case: {"held_out": case.sample}, "all examples of held_out are in train too"),
        (lambda case: {"unlabelled": case.fresh[0]}, "unlabelled was given without original"),
        (lambda case: {"prior": case.prior}, "prior was given without prior_indices"),
        (lambda case: {"prior": case.prior, "prior_indices": SEEN}, "no differences to the prior"),
        (give(predict_fn=lambda params, inputs: inputs[0]), "must return logits of shape"),
        (give(posterior={"mean": weights(0)}), "no log_std, without which it has no variance"),
        (
            give(posterior=(weights(0), {n: v - np.inf for n, v in weights(0).items()})),
            "a mean or log_std that is not finite",
        ),
        (give(fixed_architecture="no.json"), "there is no file no.json"),
    ],
)  # fmt: skip
def test_what_is_refused(changed, message, case):
    given = {"file": case.file, "predict_fn": None, "train": case.sample} | changed(case)
    with pytest.raises(ValueError, match=message):
        jaxcomp.certify(given.pop("file"), given.pop("predict_fn"), given.pop("train"), **given)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.arange(60), "trained on all examples of train"),
        ([0, 60], "must be places of train, 0 to 59, got 60"),
        ([-1], "must be places of train, 0 to 59, got -1"),
        (np.ones(60, bool), "list of whole numbers"),
    ],
)
def test_prior_that_has_seen_all_or_what_is_not_there(indices, message, case):
    with pytest.raises(ValueError, match=message):
        jaxcomp.certify(
            case.differences, None, case.sample, prior=case.prior, prior_indices=indices
        )


class Unhashable:
    """As modules are that have arrays in them."""

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __call__(self, params, inputs):
        hidden = jax.nn.relu(inputs @ params["fc1.weight"].T + params["fc1.bias"])
        return hidden @ params["fc2.weight"].T + params["fc2.bias"]


def test_function_that_cannot_be_hashed(case):
    own = jaxcomp.certify(case.file, Unhashable(), case.sample)
    assert own.rows == jaxcomp.certify(case.file, None, case.sample).rows


def test_labels_are_classes(case):
    inputs, labels = case.sample
    with pytest.raises(TypeError, match="whole numbers, the classes, got float64"):
        jaxcomp.certify(case.file, None, (inputs, labels.astype(float)))
    with pytest.raises(TypeError, match="must be a pair"):
        jaxcomp.certify(case.file, None, inputs)
