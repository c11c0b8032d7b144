"""The grid: which variants there are, and that their names are unique."""

import math

from jaxcomp.experiments.sweep import variants
from jaxcomp.experiments.sweep.config import preset


def _compressed(config):
    return variants.compressed_variants(
        importance=config.importance,
        penalty_form=config.penalty_form,
        diameter_penalty=config.diameter_penalty,
        num_clusters=config.num_clusters,
        baselines=config.baselines,
    )


def test_the_paper_grid_has_120_codebook_variants():
    grid = _compressed(preset("paper"))
    codebooks = [variant for variant in grid if variant.method in ("kmeans", "uniform")]
    # 8 K x {uniform, none, weighted} and 8 K x 6 penalties x 2 importances.
    assert len(codebooks) == 8 * 3 + 8 * 6 * 2
    assert {variant.parameter for variant in grid if variant.method == "round_to_nearest"} == {
        8.0,
        4.0,
    }


def test_ids_are_unique_over_all_kinds():
    config = preset("quick", penalty_form=["monotone", "published", "linear"])
    everything = [
        variants.ORIGINAL,
        *_compressed(config),
        *variants.control_variants(
            num_clusters=config.num_clusters,
            trained_otherwise=("early_stopping",),
            has_last_layer=True,
        ),
        *variants.sensitivity_variants(["a/kernel", "b/kernel"], num_clusters=[4, 8]),
    ]
    assert len({variant.id for variant in everything}) == len(everything)


def test_ids_tell_close_penalties_apart():
    config = preset("quick", diameter_penalty=[0.01, 0.01 + 1e-9])
    ids = [variant.id for variant in _compressed(config)]
    assert len(set(ids)) == len(ids)
    assert "kmeans/none/monotone-0.01/K8" in ids


def test_id_reads_as_the_variant():
    variant = variants.Variant("compressed", "kmeans", "fisher", "monotone", 0.05, 8)
    assert variant.id == "kmeans/fisher/monotone-0.05/K8"
    assert math.isnan(variant.parameter)


def test_unpenalised_kmeans_is_there_once_for_each_importance():
    grid = _compressed(preset("quick", penalty_form=["monotone", "linear"], num_clusters=4))
    plain = [
        variant for variant in grid if variant.method == "kmeans" and variant.diameter_penalty == 0
    ]
    assert [(variant.importance, variant.penalty_form) for variant in plain] == [
        ("none", "none"),
        ("gauss_newton", "none"),
    ]


def test_controls_need_what_they_act_on():
    methods = {
        variant.method
        for variant in variants.control_variants(
            num_clusters=[4], trained_otherwise=(), has_last_layer=False
        )
    }
    assert methods == {"temperature", "weights_clipped", "gaussian_noise"}
