"""A run on scikit-learn's digits: stopped, continued, written, read back, certified."""

import jax
import numpy as np
import pytest
from command_line import assert_one_sentence, invoke
from pictures import assert_nothing_is_cut

import jaxcomp
from jaxcomp import bounds
from jaxcomp.decoder import read_random_codes
from jaxcomp.experiments import data
from jaxcomp.experiments.certificate_picture import trained_series
from jaxcomp.experiments.train_small import (
    TrainSmallResult,
    networks,
    predict_fn,
    preset,
    run,
    training,
)
from jaxcomp.experiments.train_small.experiment import split

CONFIG = preset(
    models=2, pretraining_epochs=6, epochs=6, penalties=(0.05, 0.5), sizes=(500,), block_bits=8
)


@pytest.fixture(autouse=True, scope="module")
def one_hidden_layer():
    """What trains a network has a part for every layer, and compiles for as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks._HIDDEN, "digits", (32,))
        yield


@pytest.fixture(scope="module")
def digits():
    return split(data.load("digits"))


@pytest.fixture(scope="module")
def done(one_hidden_layer, tmp_path_factory):
    return run(CONFIG, out=tmp_path_factory.mktemp("small") / "run", quiet=True)


def test_a_stopped_training_goes_on_to_the_same_bits(done, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)

    def stop(after):
        def report(done, total, text):
            if done >= after:
                raise KeyboardInterrupt

        return report

    def trainer():
        return training.Trainer(CONFIG, digits[0], 10, tmp_path)

    with pytest.raises(KeyboardInterrupt):
        trainer().pretrained(stop(7))
    params = trainer().pretrained(lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        trainer().priced(params, 1, stop(30))
    latents = trainer().priced(params, 1, lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        trainer().random_coded(params, 0, stop(50))  # some blocks are coded then
    _, coded = trainer().random_coded(params, 0, lambda *_: None)
    expected = training.Trainer(CONFIG, digits[0], 10, done.directory / "networks")
    again = (
        expected.priced(expected.pretrained(lambda *_: None), 1, lambda *_: None),
        expected.random_coded(params, 0, lambda *_: None)[1],
    )
    found = jax.tree.leaves((latents, coded))
    for one, other in zip(found, jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_files_are_what_the_table_says(done, digits):
    assert len(done.table) == 6
    folder = done.directory / "compressed"
    priced, random = (
        folder / own for own in ("price-0.5-model1.jxc", "random-codes-500-model1.jxr")
    )
    rows = done.table.loc[done.table["model"] == 1].iloc[1:]
    networks = jaxcomp.load(priced).params(), read_random_codes(random).tree()
    for file, params, (_, row) in zip((priced, random), networks, rows.iterrows(), strict=True):
        check_row(file, params, row, digits)
    cheap, dear = (done.table.loc[done.table["setting"] == own] for own in CONFIG.penalties)
    assert dear["bytes"].mean() < cheap["bytes"].mean()
    size = done.table.loc[done.table["coder"] == "random-codes", "bytes"]
    assert np.all((size <= 500) & (size > 497))


predicted = jax.jit(predict_fn("digits"))


def check_row(file, params, row, digits):
    assert file.stat().st_size == row["bytes"]
    for name, own in zip(("validation", "test"), digits[1:], strict=True):
        logits = predicted(params, own.pixels.astype(np.float32) / 16)
        assert np.mean(np.argmax(logits, axis=1) != own.labels) == pytest.approx(
            row[f"{name}_error"]
        )
    bits = 8 * row["bytes"] + float(bounds.self_delimiting_bits(row["bytes"]))
    expected = bounds.occam(
        row["train_error"], bits, num_examples=row["num_examples"], delta=CONFIG.delta
    )
    assert row["bound"] == pytest.approx(float(expected), rel=1e-9)


def test_a_run_is_read_back_and_drawn(done):
    again = run(CONFIG, out=done.directory, quiet=True)
    assert again.table.equals(done.table)
    assert TrainSmallResult.load(done.directory).report() == done.report()
    assert "Smallest" in done.report()
    assert_nothing_is_cut(done.plot())
    priced, random = trained_series(done)
    assert (len(priced.bound), len(random.bound)) == (4, 2)
    assert np.all(random.size_bytes <= 500)


def test_a_loss_that_does_not_fall_is_said_after_an_epoch(digits, monkeypatch):
    monkeypatch.setattr(training, "_PRETRAINING_RATE", 0.0)
    with pytest.raises(ValueError, match="did not fall in the first epoch"):
        training.Trainer(CONFIG, digits[0], 10, None).pretrained(lambda *_: None)


def test_command_refuses_in_one_sentence():
    refused = invoke("train-small", "--penalty", "0.1", "--penalty", "0.1")
    assert_one_sentence(refused, "penalties must be different")
    assert_one_sentence(invoke("train-small", "--batch-size", "5000"), "batch_size is 5,000")
    assert_one_sentence(invoke("train-small", "--network", "lenet-5"), "28 x 28")
    assert_one_sentence(invoke("train-small", "--coder", "morse"), "choose from entropy, random")
    assert_one_sentence(invoke("train-small", "--block-bits", "0"), "block_bits must lie in")


@pytest.mark.slow  # rounding with feedback compiles for long; its files have tests of their own
def test_rounding_again_is_chosen_only_where_it_costs_less(done, digits):
    from jaxcomp.experiments.train_small.descent import evaluate, own_params
    from jaxcomp.experiments.train_small.files import best_file

    trainer = training.Trainer(CONFIG, digits[0], 10, done.directory / "networks")
    latents = own_params(trainer.priced(trainer.pretrained(lambda *_: None), 0, lambda *_: None), 0)
    price = trainer.nats_per_bit(0)
    costs = []
    for again in (False, True):
        file = best_file(latents, "digits", *digits[:2], nats_per_bit=price, rounds_again=again)
        loss, _ = evaluate(file.params, digits[1], "digits")
        costs.append(loss + price * 8 * len(file.content))
    assert costs[1] <= costs[0]
