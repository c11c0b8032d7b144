"""The report of a compressed tree against naive counting, and its text."""

import json
import math

import jax
import numpy as np
import pytest
from slow_cases import some_slow
from tree_problems import METHODS, entropy, nested_dict

from jaxcomp import compress
from jaxcomp.coding.sizes import CodeSize
from jaxcomp.compressed.report import LayerReport, Measures, Report, layer_report
from jaxcomp.quantizers import KMeans, RoundToNearest


def one_layer(squared_error: float, energy: float, converged: bool = True) -> LayerReport:
    """The report of 1,000 float32 weights with 4 centroids, built by hand."""
    error = np.float32(squared_error)
    return layer_report(
        CodeSize(np.array(2000.0), np.array(1500.0), np.array(128.0), np.array(1700.0)),
        Measures(error, error, np.float32(energy), np.bool_(converged), *[np.int32(0)] * 3),
        paths=("kernel",),
        like=jax.ShapeDtypeStruct((50, 20), np.float32),
        method=KMeans(),
        parameter=4,
        num_used=4,
        is_weighted=False,
    )


class TestReport:
    def test_sizes_against_naive_counting(self):
        params = nested_dict()
        tree = compress(params, KMeans(5))
        size = 2 * 8 * 32  # the biases
        for path in tree.paths:
            size += 96 * entropy(tree.codes(path)) + 5 * 32
        assert tree.size_bits == pytest.approx(size)
        assert tree.original_bits == 32 * (2 * 96 + 2 * 8)
        assert tree.ratio == pytest.approx(tree.original_bits / size)

    @pytest.mark.parametrize("method", some_slow(METHODS, "optimal"))
    def test_layers_and_kept_leaves_sum_to_the_whole(self, method):
        params = nested_dict()
        tree = compress(params, METHODS[method])
        report = tree.report()
        assert report.size_bits == tree.size_bits
        assert report.size_bits == pytest.approx(
            sum(layer.size_bits for layer in report) + report.kept_bits
        )
        assert report.distortion == pytest.approx(sum(layer.distortion for layer in report))
        restored = tree.params()
        for layer, name in zip(report, ("hidden", "out"), strict=True):
            before = np.asarray(params[name]["kernel"], np.float64)
            after = np.asarray(restored[name]["kernel"], np.float64)
            error = np.sum((before - after) ** 2)
            assert layer.distortion == pytest.approx(error, rel=1e-5)
            decibel = 10 * np.log10(np.sum(before**2) / error)
            assert layer.signal_to_noise_db == pytest.approx(decibel, rel=1e-5)
            assert layer.size_bits == pytest.approx(
                layer.num_weights * layer.entropy_bits_per_weight + layer.codebook_bits
            )

    def test_text_is_an_aligned_table(self):
        lines = str(compress(nested_dict(), KMeans(5)).report()).splitlines()
        header, rule, hidden, out, _, total, kept, whole = lines[:8]
        assert header.split()[:5] == ["leaf", "shape", "dtype", "K", "used"]
        assert set(rule) == {"-"}
        assert hidden.split()[:5] == ["hidden/kernel", "12x8", "float32", "5", "5"]
        assert out.index("12x8") == hidden.index("12x8") == header.index("shape")
        assert len(rule) == len(header)
        assert total.startswith("total")
        assert kept == "2 leaves kept as they are, 64 B"
        assert whole.startswith("whole model 832 B -> ")

    def test_rows_by_index_and_slice(self):
        report = compress(nested_dict(), KMeans(5)).report()
        assert report[0].path == "hidden/kernel"
        assert [layer.path for layer in report[1:]] == ["out/kernel"]


class TestNumbersByHand:
    @pytest.mark.parametrize(
        ("squared_error", "energy", "decibel"),
        [(1.0, 100.0, 20.0), (0.0, 1.0, math.inf), (0.0, 0.0, math.inf), (1.0, 0.0, -math.inf)],
    )
    def test_signal_to_noise(self, squared_error, energy, decibel):
        assert one_layer(squared_error, energy).signal_to_noise_db == decibel

    def test_bits_by_weight_and_totals(self):
        layer = one_layer(1.0, 100.0)
        assert (layer.fixed_bits_per_weight, layer.entropy_bits_per_weight) == (2.0, 1.5)
        assert (layer.size_bits, layer.description_bits) == (1628.0, 1700.0)
        assert layer.ratio == 32_000 / 1628
        report = Report((layer, layer), num_kept=1, kept_bits=800)
        assert (report.original_bits, report.size_bits) == (64_800, 4056.0)
        assert report.ratio == 64_800 / 4056

    def test_layers_without_a_fixed_point_are_counted(self):
        layers = (one_layer(1.0, 2.0), one_layer(1.0, 2.0, converged=False))
        last = str(Report(layers, num_kept=0, kept_bits=0)).splitlines()[-1]
        assert last == "stopped by num_iterations before a fixed point: 1 layers"

    @pytest.mark.parametrize(
        ("num_bytes", "text"),
        [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1 kB"),
            (123_456, "123 kB"),
            (999_499, "999 kB"),
            (999_999, "1 MB"),
            (1_500_000, "1.5 MB"),
            (2 * 10**9, "2 GB"),
        ],
    )
    def test_bytes_have_three_digits(self, num_bytes, text):
        report = Report((), num_kept=1, kept_bits=8 * num_bytes)
        assert f"1 leaves kept as they are, {text}\n" in str(report)

    def test_as_a_frame_as_json_and_in_a_notebook(self):
        report = compress(nested_dict(), {"hid*": KMeans(5), "*": RoundToNearest(8)}).report()
        frame = report.to_frame()
        assert frame["path"].tolist() == ["hidden/kernel", "out/kernel"]
        assert frame["method"].tolist() == ["kmeans", "round_to_nearest"]
        plain = json.loads(report.to_json())
        assert plain["size_bits"] == report.size_bits
        assert [layer["parameter"] for layer in plain["layers"]] == [5.0, 8.0]
        html = report._repr_html_()
        assert html.count("<tr>") == 4
        assert "K-means, 5 clusters" in html

    def test_infinity_is_null_in_json(self):
        report = Report((one_layer(0.0, 1.0),), num_kept=0, kept_bits=0)
        assert json.loads(report.to_json())["layers"][0]["signal_to_noise_db"] is None
