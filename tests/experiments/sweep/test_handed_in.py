"""Settings of a sweep of networks trained elsewhere: what they allow, what they refuse."""

import numpy as np
import pytest

from jaxcomp.experiments.sweep.handed_in import Data, Grid, Networks
from jaxcomp.quantizers import HessianRounding, KMeans, TrellisCoded


def test_own_methods_are_called_by_their_name_and_options():
    grid = Grid(
        method=["kmeans", TrellisCoded(), KMeans(8, scale="channel"), KMeans(scale="channel")]
    )
    assert grid.names == ("kmeans",)
    found = grid.own_methods()
    assert list(found) == ["trellis_coded", "kmeans (scale=channel)"]
    method, parameters = found["kmeans (scale=channel)"]
    assert method == KMeans(scale="channel")
    assert 8.0 in parameters
    assert list(parameters) == sorted(set(parameters))
    assert 8 <= len(parameters) <= 9
    assert len(found["trellis_coded"][1]) == 8


def test_settings_are_those_of_every_sweep():
    grid = Grid(num_clusters=4, diameter_penalty=0.05, seed=3)
    config = grid.config()
    assert (config.num_clusters, config.diameter_penalty, config.seed) == ((4,), (0.0, 0.05), 3)
    assert Grid(method=TrellisCoded()).names == ()
    assert Grid(sensitivity_clusters=()).sensitivity_clusters == ()
    assert Grid(sensitivity_clusters=8).sensitivity_clusters == (8,)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"method": "lloyd"}, ValueError, "unknown method 'lloyd': choose from kmeans"),
        ({"method": [3.5]}, TypeError, "method must be names, or objects"),
        ({"method": HessianRounding()}, ValueError, "needs the inputs of layers"),
        ({"method": KMeans(4)}, ValueError, "a method 'kmeans' of its own: ask for it by name"),
        ({"importance": "hessian"}, ValueError, "unknown importance 'hessian'"),
        ({"sensitivity_clusters": (0, 4)}, ValueError, "sensitivity_clusters must lie between 1"),
        ({"own_controls": {"../a": abs}}, ValueError, "the name of a control becomes part of"),
        ({"own_controls": {"temperature": abs}}, ValueError, "must not be 'temperature'"),
        ({"own_controls": {"params": abs}}, ValueError, "must not be 'params'"),
        ({"clusters": 4}, TypeError, "unexpected keyword argument 'clusters'"),
    ],
)
def test_settings_that_are_not_allowed_get_one_sentence(settings, error, message):
    with pytest.raises(error, match=message):
        Grid(**settings)


def test_networks_come_in_a_list_and_samples_in_pairs():
    with pytest.raises(TypeError, match=r"write \[params\] for one network, got dict"):
        Networks(abs, {"w": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="at least one network"):
        Networks(abs, [])
    with pytest.raises(ValueError, match=r"name becomes part of file names: .* got '\.\./a'"):
        Networks(abs, [{}], name="../a")
    pair = (np.zeros(2), np.zeros(2))
    with pytest.raises(TypeError, match=r"test must be a pair \(inputs, targets\), got ndarray"):
        Data(pair, pair, np.zeros(2))
    with pytest.raises(TypeError, match=r"validation must be a pair .* got tuple of 1"):
        Data(pair, (np.zeros(2),), pair)
