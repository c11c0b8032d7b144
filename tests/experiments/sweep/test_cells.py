"""The grid: which cells there are, and that their names are unique."""

import math

from jaxcomp.experiments.sweep import cells
from jaxcomp.experiments.sweep.config import preset


def _compressed(config):
    return cells.compressed_cells(
        weighting=config.weighting,
        penalty_form=config.penalty_form,
        diameter_penalty=config.diameter_penalty,
        num_clusters=config.num_clusters,
        baselines=config.baselines,
    )


def test_the_paper_grid_has_120_codebook_cells():
    grid = _compressed(preset("paper"))
    codebooks = [cell for cell in grid if cell.method in ("kmeans", "uniform")]
    # 8 K x {uniform, none, weighted} and 8 K x 6 penalties x 2 weightings.
    assert len(codebooks) == 8 * 3 + 8 * 6 * 2
    assert {cell.parameter for cell in grid if cell.method == "round_to_nearest"} == {8.0, 4.0}


def test_ids_are_unique_over_all_kinds():
    config = preset("quick", penalty_form=["monotone", "published", "linear"])
    everything = [
        cells.ORIGINAL,
        *_compressed(config),
        *cells.control_cells(
            num_clusters=config.num_clusters, has_early_stopping=True, has_last_layer=True
        ),
        *cells.sensitivity_cells(["a/kernel", "b/kernel"], num_clusters=[4, 8]),
    ]
    assert len({cell.id for cell in everything}) == len(everything)


def test_ids_tell_close_penalties_apart():
    config = preset("quick", diameter_penalty=[0.01, 0.01 + 1e-9])
    ids = [cell.id for cell in _compressed(config)]
    assert len(set(ids)) == len(ids)
    assert "kmeans/none/monotone-0.01/K8" in ids


def test_id_reads_as_the_cell():
    cell = cells.Cell("compressed", "kmeans", "fisher", "monotone", 0.05, 8)
    assert cell.id == "kmeans/fisher/monotone-0.05/K8"
    assert math.isnan(cell.parameter)


def test_unpenalised_kmeans_is_there_once_for_each_weighting():
    grid = _compressed(preset("quick", penalty_form=["monotone", "linear"], num_clusters=4))
    plain = [cell for cell in grid if cell.method == "kmeans" and cell.diameter_penalty == 0]
    assert [(cell.weighting, cell.penalty_form) for cell in plain] == [
        ("none", "none"),
        ("gauss_newton", "none"),
    ]


def test_controls_need_what_they_act_on():
    methods = {
        cell.method
        for cell in cells.control_cells(
            num_clusters=[4], has_early_stopping=False, has_last_layer=False
        )
    }
    assert methods == {"temperature", "weights_clipped", "gaussian_noise"}
