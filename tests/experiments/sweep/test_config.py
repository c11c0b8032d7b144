"""Settings: presets, axes, and every bad value in one sentence."""

import json

import pytest

from jaxcomp.experiments.sweep.config import SweepConfig, preset


def test_single_values_become_axes_and_zero_penalty_is_always_there():
    config = SweepConfig(dataset="digits", num_clusters=8, diameter_penalty=0.05)
    assert config.dataset == ("digits",)
    assert config.num_clusters == (8,)
    assert config.diameter_penalty == (0.0, 0.05)


def test_axes_are_sorted_and_without_repeats():
    config = SweepConfig(num_clusters=(8, 2, 8), importance=("fisher", "none", "fisher"))
    assert config.num_clusters == (2, 8)
    assert config.importance == ("fisher", "none")


def test_settings_are_the_product_of_data_model_and_noise():
    config = SweepConfig(dataset=("mnist", "digits"), label_noise=(0.0, 0.3))
    assert [s.name for s in config.settings()] == [
        "mnist-mlp-noise0",
        "mnist-mlp-noise0.3",
        "digits-mlp-noise0",
        "digits-mlp-noise0.3",
    ]


@pytest.mark.parametrize("name", ["quick", "paper", "phase"])
def test_manifest_round_trip(name):
    config = preset(name)
    assert SweepConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_phase_preset_goes_over_sizes_and_noise():
    names = [setting.name for setting in preset("phase").settings()]
    assert len(names) == len(set(names)) == 4 * 5
    assert names[1] == "digits-mlp-n100-noise0.1"
    larger = preset("phase", dataset="mnist")
    assert (larger.train_size[-1], larger.validation_size) == (20_000, 5000)
    # One size is no axis of the map, and not in names.
    assert preset("phase", train_size=300).settings()[0].name == "digits-mlp-noise0"


@pytest.mark.parametrize("size", [0, 2.5])
def test_sizes_of_training_samples_are_positive_integers(size):
    with pytest.raises(ValueError, match="train_size must be"):
        SweepConfig(train_size=(100, size))


def test_the_paper_preset_is_the_published_experiment():
    config = preset("paper")
    assert config.dataset == ("mnist",)
    assert (config.train_size, config.replacement, config.standardize) == ((6000,), True, True)
    assert (config.num_models, config.epochs, config.batch_size) == (20, 25, 10)
    assert (config.learning_rate, config.momentum, config.weight_decay) == (0.01, 0.9, 1e-4)
    assert len(config.num_clusters) == 8
    assert len(config.diameter_penalty) == 1 + 6


def test_label_noise_brings_its_own_regime_unless_something_is_given():
    noisy = preset("paper", label_noise=[0.3])
    assert (noisy.train_size, noisy.dropout, noisy.epochs) == ((3000,), 0.0, 60)
    assert preset("paper", label_noise=0.3, epochs=5).epochs == 5


def test_another_data_set_brings_sizes_that_fit_it():
    assert preset("quick", dataset="mnist").train_size == (6000,)
    assert preset("paper", dataset="cifar10").train_size == (1500,)
    assert preset("quick", dataset=["mnist"], train_size=100).train_size == (100,)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dataset": "imagenet"}, "unknown dataset 'imagenet': choose from digits, mnist"),
        ({"model": "resnet"}, "unknown model 'resnet'"),
        ({"importance": "hessian"}, "unknown importance 'hessian'"),
        ({"penalty_form": "cubic"}, "unknown penalty_form 'cubic'"),
        ({"num_clusters": 0}, "num_clusters must lie between 1 and 65,536"),
        ({"num_clusters": 2.5}, "num_clusters must be an integer"),
        ({"num_clusters": ()}, "num_clusters must be a value or a non-empty sequence"),
        ({"diameter_penalty": -1.0}, r"diameter_penalty must lie in \[0, inf\)"),
        ({"diameter_penalty": float("nan")}, "diameter_penalty must lie in"),
        ({"label_noise": 1.0}, r"label_noise must lie in \[0, 1\)"),
        ({"dropout": 1.5}, "dropout must lie in"),
        ({"num_models": 0}, "num_models must be at least 1"),
        ({"num_probes": 1}, "num_probes must be at least 2"),
        ({"num_bins": 8}, "num_bins must be at least 16"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"epoch": 3}, "unknown sweep settings"),
    ],
)
def test_bad_values_get_one_sentence(overrides, message):
    with pytest.raises(ValueError, match=message):
        preset("quick", **overrides)


def test_unknown_preset_and_manifest_field():
    with pytest.raises(ValueError, match="unknown preset 'slow': choose one of quick, paper"):
        preset("slow")
    with pytest.raises(ValueError, match="unknown sweep settings"):
        SweepConfig.from_dict({"colour": 1})
