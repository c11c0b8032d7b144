"""Claims on made-up tables whose truth is known."""

import numpy as np
import pandas as pd
import pytest

from jaxcomp.experiments.regularization.claims import Claim, claim_from_dict, evaluate_claims
from jaxcomp.experiments.regularization.config import Variant

STRENGTHS = (0.001, 0.01, 0.1)
NUM_EXAMPLES = 300


def made_up(*, num_models=6, fall=1.0, gain=0.1, spike=2.0, seed=0):
    """Bits that fall by `fall` for ten times the L2, a loss lower by `gain` at L2 0.01."""
    rng = np.random.default_rng(seed)
    variants = [Variant("none"), *(Variant("l2", s) for s in STRENGTHS), Variant("l1", 0.01)]
    variants += [Variant("dropout", 0.2), Variant("early stopping"), Variant("temperature")]
    networks = 0.02 * rng.standard_normal(num_models)
    examples = rng.exponential(0.3, NUM_EXAMPLES)
    rows, losses = [], {}
    for variant in variants:
        lower = gain if variant == Variant("l2", 0.01) else 0.0
        noise = 0.02 * rng.standard_normal((num_models, NUM_EXAMPLES))
        loss = 0.3 + networks[:, None] + examples - lower + noise
        losses[variant.id] = {"loss": loss, "loss_tempered": loss - 0.01}
        for number in range(num_models):
            bits = 6 + networks[number]
            if variant.kind == "l2":
                bits -= fall * (np.log10(variant.strength) + 3) + 0.01 * rng.standard_normal()
            rows.append(
                {
                    "variant": variant.id, "kind": variant.kind, "strength": variant.strength,
                    "model_seed": number, "num_weights": 100, "num_train": 100,
                    "bits_per_weight_gaussian": bits, "bits_per_weight_implied": bits + 3,
                    "bits_per_weight_laplace": bits + 0.1,
                    "bits_per_weight_spike": bits - (spike if variant.kind == "l1" else 0)
                    + 0.01 * rng.standard_normal(),
                    "description_bits": 100 * bits, "description_weight_bits": 60 * bits,
                    "description_label_bits": 40 * bits, "uniform_label_bits": 500.0,
                    "bytes_gaussian": 80.0, "bytes_laplace": 81.0, "bytes_spike": 79.0,
                    "bytes_smaller": 50 + rng.standard_normal() - 20 * (variant.kind == "l1"),
                    "zero_share": float(variant.kind == "l1"), "zero_cell_share": 0.5,
                    "validation_loss": loss.mean() + 0.001 * rng.standard_normal(),
                    "validation_loss_tempered": loss.mean() - 0.01,
                }
            )  # fmt: skip
    return pd.DataFrame(rows), losses


def by_name(claims):
    return {claim.name: claim for claim in claims}


def test_what_is_true_holds():
    table, losses = made_up()
    claims = by_name(evaluate_claims(table, losses))
    assert len(claims) == 16
    for name in (
        "fewer bits, fitted prior", "fewer bits, implied prior", "weights pay, L2",
        "test loss, L2", "tempered loss, L2", "L2 against temperature", "L2 against dropout",
        "L2 against early stopping", "L2 against L1", "zeros, L1", "stream, L1 against L2",
        "L2 against dropout, tempered", "L2 against early stopping, tempered",
    ):  # fmt: skip
        assert claims[name].verdict == "holds", claims[name].sentence
    for name, start in (
        (
            "fewer bits, fitted prior",
            "Under a fitted Gaussian code, more L2 means fewer bits: -1.00",
        ),
        ("weights pay, L2", "L2: describing the weights saves more than it costs: 4.00"),
        ("test loss, L2", "L2 lowers the test loss: 0."),
        ("tempered loss, L2", "With a temperature for both, L2 lowers the test loss: 0."),
        ("L2 against dropout", "L2 has a lower test loss than dropout 0.2: 0."),
        ("zeros, L1", "Zeros under L1 0.01 shorten the code: "),
        ("stream, L1 against L2", "The stream of L1 0.01 is shorter than that of L2 0.01: "),
    ):
        assert claims[name].sentence.startswith(start), claims[name].sentence
    assert claims["fewer bits, fitted prior"].effect == pytest.approx(-1.0, abs=0.02)
    assert claims["test loss, L2"].effect == pytest.approx(-0.1, abs=0.01)
    assert claims["test loss, L2"].variant == "l2-0.01"
    assert claims["zeros, L1"].effect == pytest.approx(-2.0, abs=0.02)
    assert claims["zeros, L2"].verdict == "no practical difference"
    # 400 bits at the strongest L2 and 600 under L1, against 500 of 100 labels alone.
    assert claims["weights pay, L2"].effect == pytest.approx(-1.0, abs=0.05)
    assert claims["weights pay, L2"].variant == "l2-0.1"
    assert claims["weights pay, L1"].effect == pytest.approx(1.0, abs=0.05)
    assert claims["weights pay, L1"].verdict == "opposite"
    assert claims["weights pay, L1"].sentence.startswith("L1: describing the weights costs more")
    assert claims["test loss, L1"].verdict in ("no practical difference", "not shown")


def test_what_is_false_fails_as_plainly():
    table, losses = made_up(fall=-1.0, gain=-0.2, spike=-2.0)
    # Only the strength that hurts is there to choose.
    table = table.loc[~table["variant"].isin(["l2-0.001"])]
    table.loc[table["variant"] == "l2-0.1", "validation_loss"] = 9.0
    table.loc[table["variant"] == "l2-0.1", "validation_loss_tempered"] = 9.0
    claims = by_name(evaluate_claims(table, losses))
    for name, start in (
        ("fewer bits, fitted prior", "Under a fitted Gaussian code, more L2 means more bits: +"),
        ("test loss, L2", "L2 raises the test loss: "),
        ("L2 against dropout", "L2 has a higher test loss than dropout 0.2: "),
        ("zeros, L1", "Zeros under L1 0.01 lengthen the code: "),
    ):
        assert claims[name].verdict == "opposite", claims[name].sentence
        assert claims[name].sentence.startswith(start), claims[name].sentence


def test_a_rival_with_a_temperature_may_be_better():
    table, losses = made_up()
    losses["dropout-0.2"]["loss_tempered"] = losses["l2-0.01"]["loss"] - 0.1
    claims = by_name(evaluate_claims(table, losses))
    assert claims["L2 against dropout"].verdict == "holds"
    assert claims["L2 against dropout, tempered"].verdict == "opposite"


def test_no_effect_is_seldom_found():
    found = 0
    for seed in range(20):
        table, losses = made_up(gain=0.0, fall=0.0, spike=0.0, seed=seed)
        claims = by_name(evaluate_claims(table, losses))
        found += any(
            claim.verdict in ("holds", "opposite")
            for name, claim in claims.items()
            if name not in ("stream, L1 against L2", "weights pay, L2", "weights pay, L1")
        )
    # 5 % by construction, and an effect must be 3 % large as well.
    assert found <= 3


def test_one_network_and_fewer_variants():
    table, losses = made_up(num_models=1)
    claims = by_name(evaluate_claims(table, losses))
    assert claims["fewer bits, fitted prior"].verdict == "not shown"
    assert "one network gives no interval" in claims["fewer bits, fitted prior"].sentence
    only = table.loc[table["kind"].isin(["none", "l1"])]
    claims = evaluate_claims(only, losses)
    assert [claim.name for claim in claims] == ["weights pay, L1", "test loss, L1", "zeros, L1"]


def test_claims_survive_files():
    table, losses = made_up()
    claim = evaluate_claims(table, losses)[0]
    assert claim_from_dict(claim._asdict()) == claim
    with pytest.raises(ValueError, match=r"lacks \['sentence'\]"):
        claim_from_dict({k: v for k, v in claim._asdict().items() if k != "sentence"})
    assert set(Claim._fields) >= {"verdict", "p_adjusted", "sentence"}
