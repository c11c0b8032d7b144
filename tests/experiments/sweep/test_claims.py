"""What a sweep shows: claims find what was planted, at the error rate they promise."""

import json
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from planted_sweep import (
    CONTROLS,
    ORIGINAL,
    OTHERS,
    PENALISED,
    PLAIN,
    PlantedSweep,
)
from scipy import special
from slow_cases import some_slow

from jaxcomp.evaluation.statistics import crossed_mean, holm
from jaxcomp.experiments.sweep.calibration import calibration_share
from jaxcomp.experiments.sweep.claims import claim_from_dict, claims_table, evaluate_claims


@pytest.mark.parametrize("num_draws", some_slow([400, 1000], 1000))
def test_null_is_rejected_at_most_at_the_error_rate(num_draws):
    # The hard null: no variant differs on average, but every network has variants it likes, and
    # likes them on the validation set and on the test set alike. Any size of effect counts.
    num_found, num_found_naively = 0, 0
    for seed in range(num_draws):
        sweep = PlantedSweep(seed, ORIGINAL | PLAIN | PENALISED, spread=0.1)
        claims = sweep.claims(practical=0.0)
        assert len(claims) == 5
        num_found += any(claim.verdict in ("holds", "opposite") for claim in claims.values())
        # The crossed test of the chosen variant alone, which forgets that the networks that chose
        # are the networks that judge.
        statistics = [
            (c.effect / (c.high - c.effect), c.degrees_of_freedom) for c in claims.values()
        ]
        p_values = [
            2 * special.stdtr(df, -abs(ratio) * special.stdtrit(df, 0.975))
            for ratio, df in statistics
        ]
        num_found_naively += holm(p_values).min() < 0.05
    bound = 0.05 + 2 * np.sqrt(0.05 * 0.95 / num_draws)
    assert num_found / num_draws <= bound
    assert num_found_naively / num_draws > bound


def test_validation_set_does_not_bias_the_effect_on_the_test_set():
    chosen, test_effects, validation_effects = set(), [], []
    for seed in range(100):
        sweep = PlantedSweep(seed, ORIGINAL | PLAIN | OTHERS, noise=0.5)
        claim = sweep.claims()["raw loss"]
        means = sweep.table.groupby("variant")["validation_loss"].mean()
        chosen.add(claim.variant)
        test_effects.append(claim.effect)
        validation_effects.append(means[claim.variant] - means["original"])
    standard_error = np.std(test_effects) / np.sqrt(len(test_effects))
    assert len(chosen) == 5
    assert abs(np.mean(test_effects)) < 4 * standard_error
    # What looking at the validation set alone would have promised.
    assert np.mean(validation_effects) < -4 * standard_error


def test_planted_effects_are_found_with_sign_and_size():
    effects = {
        "plain-8": {"loss": -0.10},
        "uniform-8": {"loss_tempered": -0.08},
        "int4": {"accuracy": 0.06},
    }
    sweep = PlantedSweep(
        0, ORIGINAL | PLAIN | OTHERS | CONTROLS, effects=effects, spread=0.005, num_examples=2000
    )
    claims = sweep.claims()
    expected = {
        "raw loss": ("plain-8", -0.10, 1.0),
        "tempered loss": ("uniform-8", -0.08, 0.8),
        "accuracy": ("int4", 0.06, 0.2),
    }
    words = {
        "raw loss": "Compression lowers the test loss: from ",
        "tempered loss": "With a temperature for both networks, compression lowers the test loss: ",
        "accuracy": "Compression raises the test accuracy: from ",
    }
    assert list(claims) == list(expected)
    for name, (variant, effect, scale) in expected.items():
        claim = claims[name]
        assert claim.variant == variant
        assert claim.verdict == "holds"
        assert claim.holds
        assert claim.low < effect < claim.high
        # Three half-widths of an interval of two standard errors.
        assert abs(claim.effect - effect) < 1.5 * (claim.high - claim.low)
        assert claim.relative_effect == pytest.approx(claim.effect / scale, rel=0.1)
        assert claim.reference == ("original",)
        assert claim.reference_weights == (1.0,)
        assert claim.value - claim.reference_value == pytest.approx(claim.effect)
        assert claim.num_candidates == 5
        assert (claim.num_models, claim.num_examples) == (5, 2000)
        assert claim.setting == "mnist-mlp-noise0.3"
        assert words[name] in claim.sentence
        assert "5 networks" in claim.sentence
        assert "on the validation set" in claim.sentence
    expected_p = holm([claim.p_value for claim in claims.values()])
    np.testing.assert_allclose([claim.p_adjusted for claim in claims.values()], expected_p)


def test_effect_and_interval_are_those_of_the_loss_matrix():
    sweep = PlantedSweep(
        1, ORIGINAL | PLAIN | CONTROLS, effects={"plain-8": {"loss": -0.1}}, spread=0.02
    )
    claim = sweep.claims(confidence=0.9)["raw loss"]
    plain, original, losses = "plain-8", "original", sweep.losses
    interval = crossed_mean(losses[plain].loss - losses[original].loss, confidence=0.9)
    assert (claim.effect, claim.low, claim.high) == interval[:3]
    assert claim.p_value == interval.p_value  # both halves of the networks choose this variant
    best = (
        sweep.table.query("kind == 'control'").groupby("variant")["validation_loss"].mean().idxmin()
    )
    against = crossed_mean(losses[plain].loss - losses[best].loss, confidence=0.9)
    assert claim.control_variant == best
    assert claim.control == CONTROLS[best][1]
    assert (claim.control_effect, claim.control_low, claim.control_high) == against[:3]


@pytest.mark.parametrize(("seed", "agree"), [(30, True), (9, True), (5, False)])
def test_each_half_of_the_networks_is_tested_in_the_variant_of_the_other(seed, agree):
    sweep = PlantedSweep(seed, ORIGINAL | PLAIN, num_models=4, spread=0.05)
    claim = sweep.claims()["raw loss"]
    selected = sweep.table.pivot_table(
        index="model_seed", columns="variant", values="validation_loss"
    )
    advantage = selected.drop(columns="original").sub(selected["original"], axis=0)
    even, odd = advantage[::2].mean().idxmin(), advantage[1::2].mean().idxmin()
    assert even != odd
    exchanged = np.empty((4, 200))
    exchanged[::2] = (sweep.losses[odd].loss - sweep.losses["original"].loss)[::2]
    exchanged[1::2] = (sweep.losses[even].loss - sweep.losses["original"].loss)[1::2]
    other = crossed_mean(exchanged)
    plain = crossed_mean(sweep.losses[claim.variant].loss - sweep.losses["original"].loss)
    assert (plain.estimate * other.estimate > 0) == agree
    assert claim.p_value == (max(plain.p_value, other.p_value) if agree else 1.0)


@pytest.mark.parametrize(
    ("effect", "spread", "verdict", "start"),
    [
        (0.1, 0.005, "opposite", "Compression raises the test loss: from "),
        (-0.01, 0.001, "no practical difference", "Compression changes the test loss by less"),
        (-0.1, 0.3, "not shown", "Compression is not shown to lower the test loss: from "),
    ],
)
def test_failure_is_said_plainly(effect, spread, verdict, start):
    variants = ORIGINAL | {"plain-8": PLAIN["plain-8"]}
    sweep = PlantedSweep(
        3, variants, effects={"plain-8": {"loss": effect}}, spread=spread, num_examples=1000
    )
    claim = sweep.claims()["raw loss"]
    assert claim.verdict == verdict
    assert not claim.holds
    assert claim.sentence.startswith(start)
    assert "the only variant" in claim.sentence
    assert claim.control is None


@pytest.mark.parametrize(
    ("bits", "reference", "weights", "words"),
    [
        (275.0, ("plain-4", "plain-8"), (0.25, 0.75), "At equal bits, the diameter penalty lowers"),
        (300.0, ("plain-8",), (1.0,), "At equal bits"),
        (150.0, ("plain-4",), (1.0,), "the nearest stands in"),
        (500.0, ("plain-16",), (1.0,), "the nearest stands in"),
        (400.0, ("plain-16",), (1.0,), "At equal bits"),
        (200.0, ("plain-4",), (1.0,), "At equal bits"),
    ],
)
def test_penalty_is_compared_at_equal_bits(bits, reference, weights, words):
    penalised = {"penalised": ("compressed", "kmeans", "none", "monotone", 0.1, 8, np.nan, bits)}
    effects = {"penalised": {"loss": -0.2, "loss_tempered": 0.1}, "plain-4": {"loss": 0.3}}
    sweep = PlantedSweep(4, ORIGINAL | PLAIN | penalised, effects=effects, spread=0.01)
    claims = sweep.claims()
    claim = claims["penalty, raw loss"]
    assert claim.variant == "penalised"
    assert claim.reference == reference
    assert claim.reference_weights == pytest.approx(weights)
    mixed = sum(
        w * sweep.losses[variant].loss for w, variant in zip(weights, reference, strict=True)
    )
    interval = crossed_mean(sweep.losses["penalised"].loss - mixed)
    assert (claim.effect, claim.low, claim.high) == pytest.approx(interval[:3])
    assert claim.relative_effect == pytest.approx(
        claim.effect / sweep.losses["original"].loss.mean()
    )
    assert words in claim.sentence
    assert claims["penalty, tempered loss"].verdict == "opposite"


def test_penalty_is_compared_with_the_same_importance_only():
    variants = {
        "zero-8": ("compressed", "kmeans", "none", "monotone", 0.0, 8, np.nan, 300.0),
        "fisher-8": ("compressed", "kmeans", "fisher", "none", 0.0, 8, np.nan, 280.0),
        "fisher-penalised-8": ("compressed", "kmeans", "fisher", "linear", 0.1, 8, np.nan, 270.0),
        "hutchinson-8": ("compressed", "kmeans", "hutchinson", "monotone", 0.1, 8, np.nan, 1.0),
    }
    effects = {name: {"loss": -0.3} for name in ("fisher-penalised-8", "hutchinson-8")}
    claim = PlantedSweep(5, ORIGINAL | PLAIN | variants, effects=effects).claims()[
        "penalty, raw loss"
    ]
    assert claim.variant == "fisher-penalised-8"
    assert claim.reference == ("fisher-8",)
    assert claim.num_candidates == 1  # nothing without penalty is weighted by Hutchinson


def test_other_methods_are_candidates_against_the_original_only():
    variants = {
        "optimal-8": ("compressed", "optimal", "fisher", "monotone", 0.1, 8, np.nan, 280.0),
        "coded": ("compressed", "entropy_constrained", "fisher", "none", 0.0, 0, 0.1, 250.0),
        "shared-8": ("compressed", "kmeans", "none", "none", 0.0, 8, np.nan, 275.0),
        "pairs-8": ("compressed", "vector", "none", "none", 0.0, 8, 2.0, 150.0),
    }
    words = {
        "optimal-8": "globally optimal Fisher-weighted K-means, K = 8, monotone diameter penalty",
        "coded": "entropy-constrained Fisher-weighted K-means, multiplier 0.1",
        "shared-8": "K-means, K = 8, bits shared between layers",
        "pairs-8": "vector K-means of pairs of weights, K = 8",
    }
    for best, told in words.items():
        sweep = PlantedSweep(
            5, ORIGINAL | PLAIN | PENALISED | variants, effects={best: {"loss": -0.3}}
        )
        sweep.table["allocation"] = np.where(
            sweep.table["variant"] == "shared-8", "optimal", "equal"
        )
        claims = sweep.claims()
        assert claims["raw loss"].variant == best
        assert claims["raw loss"].num_candidates == len(PLAIN | PENALISED | variants)
        assert told in claims["raw loss"].sentence
        assert claims["penalty, raw loss"].num_candidates == len(PENALISED)
        assert set(claims["penalty, raw loss"].reference) <= set(PLAIN)


def test_claims_without_candidates_are_not_made():
    assert list(PlantedSweep(6, ORIGINAL | PLAIN).claims()) == [
        "raw loss",
        "tempered loss",
        "accuracy",
    ]
    only_penalised = PlantedSweep(6, ORIGINAL | PENALISED)
    assert list(only_penalised.claims()) == ["raw loss", "tempered loss", "accuracy"]
    nothing = PlantedSweep(6, ORIGINAL | CONTROLS)
    assert nothing.claims() == {}
    assert calibration_share(nothing.table, nothing.losses.__getitem__) is None


def test_variants_that_are_not_finite_or_of_another_kind_are_passed_over():
    others = {"only": ("sensitivity", *PLAIN["plain-4"][1:])}
    effects = {"only": {"loss": -0.5}, "plain-4": {"loss": -0.4}, "plain-8": {"loss": -0.2}}
    sweep = PlantedSweep(7, ORIGINAL | PLAIN | others, effects=effects)
    diverged = (sweep.table["variant"] == "plain-4") & (sweep.table["model_seed"] == 0)
    sweep.table.loc[diverged, "validation_loss"] = np.nan
    claims = sweep.claims()
    assert claims["raw loss"].variant == "plain-8"
    assert claims["raw loss"].num_candidates == 2
    assert claims["tempered loss"].num_candidates == 3


def test_one_network_is_a_claim_about_this_network():
    variants = ORIGINAL | PLAIN
    sweep = PlantedSweep(
        8, variants, num_models=1, effects={"plain-8": {"loss": -0.1}}, num_examples=1000
    )
    claim = sweep.claims()["raw loss"]
    assert claim.verdict == "holds"
    assert claim.num_models == 1
    difference = sweep.losses["plain-8"].loss - sweep.losses["original"].loss
    assert claim.p_value == crossed_mean(difference).p_value
    assert "on this one network. Nothing is said about other networks." in claim.sentence


def test_original_without_errors_leaves_the_relative_effect_open():
    sweep = PlantedSweep(9, ORIGINAL | PLAIN)
    flawless = np.ones((5, 200), bool)
    sweep.losses["original"] = sweep.losses["original"]._replace(score=flawless)
    claim = sweep.claims()["accuracy"]
    assert claim.relative_effect is None
    assert claim.verdict == "opposite"


def test_unchanged_predictions_make_no_practical_difference():
    sweep = PlantedSweep(10, ORIGINAL | {"plain-8": PLAIN["plain-8"]}, noise=0.0)
    claim = sweep.claims()["raw loss"]
    assert (claim.effect, claim.low, claim.high, claim.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert claim.verdict == "no practical difference"


@pytest.mark.parametrize("controls", [CONTROLS, {}])
@pytest.mark.parametrize("form", ["json", "csv"])
def test_claims_survive_storage(controls, form):
    sweep = PlantedSweep(11, ORIGINAL | PLAIN | PENALISED | controls)
    claims = evaluate_claims(sweep.table, sweep.losses.__getitem__)
    rows = claims_table(claims)
    if form == "json":
        rows = json.loads(json.dumps(rows, allow_nan=False))
    else:
        text = pd.DataFrame(rows).to_csv(index=False)
        rows = pd.read_csv(StringIO(text)).to_dict("records")
    for row, claim in zip(rows, claims, strict=True):
        loaded = claim_from_dict(row)
        for found, stored in zip(loaded, claim, strict=True):
            # A CSV reader may lose the last bit.
            assert found == (pytest.approx(stored) if isinstance(stored, float) else stored)
    assert form == "csv" or [claim_from_dict(row) for row in rows] == claims


def test_control_that_does_better_is_named():
    effects = {"plain-8": {"loss": -0.1}, "stop": {"loss": -0.2}}
    sweep = PlantedSweep(12, ORIGINAL | PLAIN | CONTROLS, effects=effects, spread=0.002)
    claim = sweep.claims()["raw loss"]
    assert claim.control == "early_stopping"
    assert claim.control_low is not None
    assert claim.control_low > 0
    told = "The best control, which compresses nothing (early stopping), is better by 0."
    assert told in claim.sentence
    assert f"({claim.control_low:.4f} to {claim.control_high:.4f})" in claim.sentence
    effects["plain-8"]["loss"] = -0.3
    sweep = PlantedSweep(12, ORIGINAL | PLAIN | CONTROLS, effects=effects, spread=0.002)
    claim = sweep.claims()["raw loss"]
    assert "The best control, which compresses nothing (early stopping), is worse" in claim.sentence
    assert f"({-claim.control_high:.4f} to {-claim.control_low:.4f})" in claim.sentence
    effects["plain-8"]["loss"] = -0.2
    sweep = PlantedSweep(12, ORIGINAL | PLAIN | CONTROLS, effects=effects, spread=0.02)
    assert "cannot be told apart from it: difference " in sweep.claims()["raw loss"].sentence


def test_column_setting_names_the_claims():
    sweep = PlantedSweep(13, ORIGINAL | PLAIN)
    sweep.table = sweep.table.drop(columns=["dataset", "model"]).assign(setting="mine")
    assert {claim.setting for claim in sweep.claims().values()} == {"mine"}


def test_a_stored_claim_that_is_not_whole_is_refused():
    sweep = PlantedSweep(14, ORIGINAL | PLAIN, num_models=2, num_examples=20)
    row = claims_table(evaluate_claims(sweep.table, sweep.losses.__getitem__))[0]
    with pytest.raises(ValueError, match=r"\['effect'\] are missing"):
        claim_from_dict({name: value for name, value in row.items() if name != "effect"})
    with pytest.raises(ValueError, match="verdict of a stored claim must be one of"):
        claim_from_dict(row | {"verdict": "perhaps"})
