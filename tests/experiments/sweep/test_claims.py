import json
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from scipy import special

from jaxcomp.evaluation.statistics import crossed_mean, holm
from jaxcomp.experiments.sweep.claims import (
    VariantLosses,
    calibration_share,
    claim_from_dict,
    claims_table,
    evaluate_claims,
    smallest_from_dict,
    smallest_without_loss,
)

NUM_VALIDATION = 400

# variant: kind, method, importance, penalty_form, diameter_penalty, num_clusters, parameter, bits
ORIGINAL = {"original": ("original", "original", "original", "none", 0.0, 0, np.nan, 3200.0)}
PLAIN = {
    "plain-4": ("compressed", "kmeans", "none", "none", 0.0, 4, np.nan, 200.0),
    "plain-8": ("compressed", "kmeans", "none", "none", 0.0, 8, np.nan, 300.0),
    "plain-16": ("compressed", "kmeans", "none", "none", 0.0, 16, np.nan, 400.0),
}
PENALISED = {
    "penalised-8": ("compressed", "kmeans", "none", "monotone", 0.05, 8, np.nan, 275.0),
    "penalised-16": ("compressed", "kmeans", "none", "monotone", 0.05, 16, np.nan, 350.0),
}
OTHERS = {
    "uniform-8": ("compressed", "uniform", "uniform", "none", 0.0, 8, np.nan, 290.0),
    "int4": ("compressed", "round_to_nearest", "round_to_nearest", "none", 0.0, 0, 4.0, 410.0),
}
CONTROLS = {
    "T": ("control", "temperature", "control", "none", 0.0, 0, np.nan, 3200.0),
    "stop": ("control", "early_stopping", "control", "none", 0.0, 0, np.nan, 3200.0),
}


class Sweep:
    """A synthetic sweep whose true effects are known.

    `effects` are true differences from the original by variant and quantity; `spread` is the
    standard deviation over networks of what a network makes of a variant, on all examples alike.
    """

    def __init__(
        self, seed, variants, *, effects=None, num_models=5, num_examples=200, spread=0.0, noise=0.1
    ):
        rng = np.random.default_rng(seed)
        effects = effects or {}
        rows, self.losses = [], {}
        shape = (num_models, num_examples + NUM_VALIDATION)
        original = {
            quantity: level + 0.3 * rng.standard_normal(shape)
            for quantity, level in (("loss", 1.0), ("loss_tempered", 0.8))
        }
        for name, about in variants.items():
            columns = {}
            scale = 0.0 if name == "original" else 1.0
            shift = effects.get(name, {})
            for quantity, base in original.items():
                own = scale * spread * rng.standard_normal((num_models, 1))
                single = scale * noise * rng.standard_normal(shape)
                columns[quantity] = base + shift.get(quantity, 0.0) + own + single
            rate = 0.8 + shift.get("accuracy", 0.0) + spread * rng.uniform(-1, 1, (num_models, 1))
            columns["correct"] = rng.random(shape) < rate
            self.losses[name] = VariantLosses(
                **{field: values[:, NUM_VALIDATION:] for field, values in columns.items()}
            )
            selected = {k: values[:, :NUM_VALIDATION].mean(axis=1) for k, values in columns.items()}
            rows.extend(
                ("mnist", "mlp", 0.3, name, *about, seed, *(selected[k][seed] for k in columns))
                for seed in range(num_models)
            )
        self.table = pd.DataFrame(rows, columns=COLUMNS)

    def claims(self, **options):
        claims = evaluate_claims(self.table, self.losses.__getitem__, **options)
        return {claim.name: claim for claim in claims}


COLUMNS = (
    "dataset",
    "model",
    "label_noise",
    "variant",
    "kind",
    "method",
    "importance",
    "penalty_form",
    "diameter_penalty",
    "num_clusters",
    "parameter",
    "size_bits_estimated",
    "model_seed",
    "validation_loss",
    "validation_loss_tempered",
    "validation_accuracy",
)


def test_null_is_rejected_at_most_at_the_error_rate():
    # The hard null: no variant differs on average, but every network has variants it likes, and
    # likes them on the validation set and on the test set alike. Any size of effect counts.
    num_draws, num_found, num_found_naively = 1000, 0, 0
    for seed in range(num_draws):
        sweep = Sweep(seed, ORIGINAL | PLAIN | PENALISED, spread=0.1)
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
    for seed in range(200):
        sweep = Sweep(seed, ORIGINAL | PLAIN | OTHERS, noise=0.5)
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
    sweep = Sweep(
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
    sweep = Sweep(1, ORIGINAL | PLAIN | CONTROLS, effects={"plain-8": {"loss": -0.1}}, spread=0.02)
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
    sweep = Sweep(seed, ORIGINAL | PLAIN, num_models=4, spread=0.05)
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
    sweep = Sweep(
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
    sweep = Sweep(4, ORIGINAL | PLAIN | penalised, effects=effects, spread=0.01)
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
    claim = Sweep(5, ORIGINAL | PLAIN | variants, effects=effects).claims()["penalty, raw loss"]
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
        sweep = Sweep(5, ORIGINAL | PLAIN | PENALISED | variants, effects={best: {"loss": -0.3}})
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
    assert list(Sweep(6, ORIGINAL | PLAIN).claims()) == ["raw loss", "tempered loss", "accuracy"]
    only_penalised = Sweep(6, ORIGINAL | PENALISED)
    assert list(only_penalised.claims()) == ["raw loss", "tempered loss", "accuracy"]
    nothing = Sweep(6, ORIGINAL | CONTROLS)
    assert nothing.claims() == {}
    assert calibration_share(nothing.table, nothing.losses.__getitem__) is None


def test_variants_that_are_not_finite_or_of_another_kind_are_passed_over():
    others = {"only": ("sensitivity", *PLAIN["plain-4"][1:])}
    effects = {"only": {"loss": -0.5}, "plain-4": {"loss": -0.4}, "plain-8": {"loss": -0.2}}
    sweep = Sweep(7, ORIGINAL | PLAIN | others, effects=effects)
    diverged = (sweep.table["variant"] == "plain-4") & (sweep.table["model_seed"] == 0)
    sweep.table.loc[diverged, "validation_loss"] = np.nan
    claims = sweep.claims()
    assert claims["raw loss"].variant == "plain-8"
    assert claims["raw loss"].num_candidates == 2
    assert claims["tempered loss"].num_candidates == 3


def test_one_network_is_a_claim_about_this_network():
    variants = ORIGINAL | PLAIN
    sweep = Sweep(8, variants, num_models=1, effects={"plain-8": {"loss": -0.1}}, num_examples=1000)
    claim = sweep.claims()["raw loss"]
    assert claim.verdict == "holds"
    assert claim.num_models == 1
    difference = sweep.losses["plain-8"].loss - sweep.losses["original"].loss
    assert claim.p_value == crossed_mean(difference).p_value
    assert "on this one network. Nothing is said about other networks." in claim.sentence


def test_original_without_errors_leaves_the_relative_effect_open():
    sweep = Sweep(9, ORIGINAL | PLAIN)
    flawless = np.ones((5, 200), bool)
    sweep.losses["original"] = sweep.losses["original"]._replace(correct=flawless)
    claim = sweep.claims()["accuracy"]
    assert claim.relative_effect is None
    assert claim.verdict == "opposite"


def test_unchanged_predictions_make_no_practical_difference():
    sweep = Sweep(10, ORIGINAL | {"plain-8": PLAIN["plain-8"]}, noise=0.0)
    claim = sweep.claims()["raw loss"]
    assert (claim.effect, claim.low, claim.high, claim.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert claim.verdict == "no practical difference"


@pytest.mark.parametrize(
    ("tempered", "spread", "share", "words"),
    [
        (0.05, 0.002, 1.25, "a temperature alone gives more"),
        (0.0, 0.002, 1.0, "no improvement beyond calibration is shown"),
        (-0.1, 0.002, 0.5, "about 51 % of the improvement is calibration"),
        (-0.25, 0.002, -0.25, "none of the improvement is calibration"),
    ],
)
def test_share_of_calibration(tempered, spread, share, words):
    effects = {"plain-8": {"loss": -0.2, "loss_tempered": tempered}}
    variants = ORIGINAL | {"plain-8": PLAIN["plain-8"]}
    sweep = Sweep(1, variants, effects=effects, spread=spread, noise=0.02, num_examples=1000)
    found = calibration_share(sweep.table, sweep.losses.__getitem__)
    assert found is not None
    assert found.variant == "plain-8"
    assert found.share == pytest.approx(share, abs=0.02)
    assert found.raw.low < -0.2 < found.raw.high
    assert found.tempered.low < tempered < found.tempered.high
    assert found.sentence.startswith("The raw test loss fell by 0.")
    assert words in found.sentence
    assert words in sweep.claims()["raw loss"].sentence


def test_no_share_of_calibration_without_an_improvement():
    effects = {"plain-8": {"loss": 0.2}}
    sweep = Sweep(1, ORIGINAL | {"plain-8": PLAIN["plain-8"]}, effects=effects)
    found = calibration_share(sweep.table, sweep.losses.__getitem__)
    assert found is not None
    assert found.share is None
    assert "no improvement to put down to calibration" in found.sentence
    assert "calibration" not in sweep.claims()["raw loss"].sentence


@pytest.mark.parametrize("controls", [CONTROLS, {}])
@pytest.mark.parametrize("form", ["json", "csv"])
def test_claims_survive_storage(controls, form):
    sweep = Sweep(11, ORIGINAL | PLAIN | PENALISED | controls)
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
    sweep = Sweep(12, ORIGINAL | PLAIN | CONTROLS, effects=effects, spread=0.002)
    claim = sweep.claims()["raw loss"]
    assert claim.control == "early_stopping"
    assert claim.control_low is not None
    assert claim.control_low > 0
    told = "The best control, which compresses nothing (early stopping), is better by 0."
    assert told in claim.sentence
    assert f"({claim.control_low:.4f} to {claim.control_high:.4f})" in claim.sentence
    effects["plain-8"]["loss"] = -0.3
    sweep = Sweep(12, ORIGINAL | PLAIN | CONTROLS, effects=effects, spread=0.002)
    claim = sweep.claims()["raw loss"]
    assert "The best control, which compresses nothing (early stopping), is worse" in claim.sentence
    assert f"({-claim.control_high:.4f} to {-claim.control_low:.4f})" in claim.sentence
    effects["plain-8"]["loss"] = -0.2
    sweep = Sweep(12, ORIGINAL | PLAIN | CONTROLS, effects=effects, spread=0.02)
    assert "cannot be told apart from it: difference " in sweep.claims()["raw loss"].sentence


def smallest(sweep):
    found = smallest_without_loss(sweep.table, sweep.losses.__getitem__)
    assert found is not None
    return found


def test_smallest_network_at_no_loss_is_the_smallest_that_keeps_its_loss():
    effects = {"plain-8": {"loss_tempered": 0.002}, "plain-4": {"loss_tempered": 0.1}}
    # Rounding costs nothing, but is larger; the uniform grid is smaller and costs too much.
    effects |= {"uniform-8": {"loss_tempered": 0.1}}
    sweep = Sweep(2, ORIGINAL | PLAIN | OTHERS, effects=effects, spread=0.001, noise=0.05)
    found = smallest(sweep)
    assert (found.variant, found.description, found.holds) == ("plain-8", "K-means, K = 8", True)
    assert found.num_candidates == 5
    assert found.ratio == pytest.approx(3200 / 300)
    tempered = {name: losses.loss_tempered for name, losses in sweep.losses.items()}
    change = (tempered["plain-8"] - tempered["original"]).mean(axis=0)
    interval = crossed_mean(change[None])
    assert (found.effect, found.low, found.high) == interval[:3]
    assert found.reference_value == pytest.approx(tempered["original"].mean())
    assert found.high < 0.03 * found.reference_value
    assert found.sentence.startswith("10.7x smaller (K-means, K = 8) at no loss, for these 5")
    assert smallest_from_dict(json.loads(json.dumps(found._asdict()))) == found


def test_a_loss_that_may_matter_is_not_called_none():
    variants = ORIGINAL | {"plain-8": PLAIN["plain-8"]}
    sweep = Sweep(3, variants, effects={"plain-8": {"loss_tempered": 0.2}}, spread=0.001)
    lost = smallest(sweep)
    assert not lost.holds
    assert "Not shown for any size. Tested: " in lost.sentence
    assert "a loss of more than 3 %" in lost.sentence
    noisy = smallest(Sweep(3, variants, noise=3.0))
    assert not noisy.holds
    assert "a loss of 3 % or more is not ruled out" in noisy.sentence
    nothing = Sweep(3, ORIGINAL)
    assert smallest_without_loss(nothing.table, nothing.losses.__getitem__) is None
    with pytest.raises(ValueError, match=r"lacks \['sentence'\]"):
        smallest_from_dict({k: v for k, v in noisy._asdict().items() if k != "sentence"})


def test_one_network_at_no_loss_is_this_network():
    sweep = Sweep(4, ORIGINAL | PLAIN, num_models=1, num_examples=2000, noise=0.05)
    found = smallest(sweep)
    assert found.variant == "plain-4"
    assert found.holds
    assert "for this network: " in found.sentence


def test_a_loss_as_large_as_the_margin_is_seldom_called_none():
    # Many variants, each of which costs these networks just the margin: the choice finds lucky
    # ones.
    rng = np.random.default_rng(0)
    names = [f"plain-{k}" for k in range(2, 22)]
    sizes = [100.0 + k for k in range(20)]
    variants = ORIGINAL | {
        name: ("compressed", "kmeans", "none", "none", 0.0, k, np.nan, size)
        for k, (name, size) in enumerate(zip(names, sizes, strict=True), start=2)
    }
    held = 0
    for seed in range(100):
        sweep = Sweep(seed, variants, num_models=2)
        original = sweep.losses["original"].loss_tempered
        for name in names:
            rise = 0.03 * original.mean() + 0.1 * rng.standard_normal(original.shape)
            losses = sweep.losses[name]
            sweep.losses[name] = losses._replace(loss_tempered=original + rise)
        held += smallest(sweep).holds
    # One end of a 95 % interval: 2.5 % expected.
    assert held <= 7


def test_column_setting_names_the_claims():
    sweep = Sweep(13, ORIGINAL | PLAIN)
    sweep.table = sweep.table.drop(columns=["dataset", "model"]).assign(setting="mine")
    assert {claim.setting for claim in sweep.claims().values()} == {"mine"}


class TestRefused:
    sweep = Sweep(14, ORIGINAL | PLAIN, num_models=2, num_examples=20)

    def refuse(self, match, table=None, losses=None):
        table = self.sweep.table if table is None else table
        losses = losses or self.sweep.losses.__getitem__
        for evaluate in (evaluate_claims, calibration_share):
            with pytest.raises(ValueError, match=match):
                evaluate(table, losses)

    def test_missing_column(self):
        self.refuse(r"lacks the columns \['variant'\]", self.sweep.table.drop(columns="variant"))

    def test_several_settings(self):
        table = pd.concat([self.sweep.table, self.sweep.table.assign(label_noise=0.0)])
        self.refuse("one data set, model and label noise at a time", table)

    @pytest.mark.parametrize("kind", ["original", "compressed"])
    def test_no_single_original(self, kind):
        swapped = {"original": "original"} if kind == "compressed" else {"original": "control"}
        table = self.sweep.table.replace({"kind": swapped})
        if kind == "compressed":
            table = table.assign(kind="original")
        self.refuse("exactly one variant of kind 'original'", table)

    def test_variants_of_different_networks(self):
        self.refuse("must list the networks of the original", self.sweep.table.iloc[:-1])

    def test_losses_of_another_shape(self):
        def losses(variant):
            found = self.sweep.losses[variant]
            return (
                found if variant == "original" else VariantLosses(*(part[:, 1:] for part in found))
            )

        self.refuse(r"one row per network .* \(2, 20\), got \(2, 19\)", losses=losses)

    def test_losses_that_are_not_finite(self):
        def losses(variant):
            found = self.sweep.losses[variant]
            return found._replace(loss=found.loss * (1 if variant == "original" else np.inf))

        self.refuse("values that are not finite", losses=losses)

    def test_stored_claim(self):
        row = claims_table(evaluate_claims(self.sweep.table, self.sweep.losses.__getitem__))[0]
        with pytest.raises(ValueError, match=r"\['effect'\] are missing"):
            claim_from_dict({name: value for name, value in row.items() if name != "effect"})
        with pytest.raises(ValueError, match="verdict of a stored claim must be one of"):
            claim_from_dict(row | {"verdict": "perhaps"})
