"""The main job end to end on a small scale: table, resume, networks back, own models."""

import json
import math
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits
from slow_cases import some_slow

import jaxcomp
from jaxcomp import storage
from jaxcomp.experiments import sweep
from jaxcomp.experiments.sweep import engine, evaluator, experiment, limits, pictures, scoring
from jaxcomp.experiments.sweep.claims import evaluate_claims
from jaxcomp.experiments.sweep.config import SweepConfig
from jaxcomp.experiments.sweep.report import report_markdown
from jaxcomp.quantizers import solve_kmeans

CONFIG = SweepConfig(
    width=0.125,
    num_models=2,
    train_size=200,
    validation_size=100,
    epochs=4,
    importance=("none", "hutchinson"),
    num_probes=4,
    curvature_examples=100,
    diameter_penalty=(0.0, 0.05),
    num_clusters=(4, 16),
    num_bins=512,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


SEEN = ("original", "temperature", "kmeans/none/K4", "early_stopping", "gaussian_noise/K4")


@pytest.fixture(autouse=True, scope="module")
def simplified():
    """Drawing and fine limits take longer than these sweeps; an interruption can hit small chunks.

    One size of chunks in all sweeps: what scores them is compiled once.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "save_figures", lambda *_, **__: [])
        patch.setattr(limits, "_NUM_SLOPES", 5)
        patch.setattr(limits, "_GAP_BITS", 0.2)
        patch.setattr(evaluator, "MAX_CHUNK_VARIANTS", 4)
        yield


@pytest.fixture(scope="module")
def first_run(simplified, tmp_path_factory, cache):
    """A run, its result, and what its claims and pictures got to see.

    Pictures are drawn by the test of the command, `tests/cli/test_experiments.py`.
    """
    out = tmp_path_factory.mktemp("runs") / "first"
    seen = {}

    def peek(table, losses, **words):
        seen.update({variant: losses(variant) for variant in SEEN})
        return evaluate_claims(table, losses, **words)

    def draw(table, directory, **options):
        seen["pictures"] = table, directory, options
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "save_figures", draw)
        patch.setattr(scoring, "evaluate_claims", peek)
        result = sweep.run(CONFIG, out=out, cache_dir=cache, quiet=True)
    return out, result, seen


@pytest.fixture(scope="module")
def finished(first_run):
    return first_run[:2]


def test_every_variant_of_every_network_has_a_row(finished):
    _, result = finished
    table = result.table
    assert not table.duplicated(["variant", "model_seed"]).any()
    assert table.groupby("variant")["model_seed"].nunique().eq(2).all()
    assert set(table["kind"]) == {"original", "compressed", "control"}
    kmeans = table[table["method"] == "kmeans"]
    assert len(kmeans) == 2 * 2 * 2 * 2  # networks, K, importances, penalties


def test_numbers_are_finite_and_consistent(finished):
    _, result = finished
    table = result.table
    limits = [f"{name}_bits_per_weight" for name in ("limit", "shannon", "excess")]
    numbers = table.select_dtypes("number").drop(
        columns=["parameter", "predicted_rise_nats", "num_used", "num_empty", *limits]
    )
    assert np.isfinite(numbers.to_numpy()).all()
    np.testing.assert_allclose(
        table["generalization_gap"], table["test_loss"] - table["train_loss"], atol=1e-12
    )
    original = table[table["kind"] == "original"]
    assert (original["importance"] == "original").all()
    assert (original["ratio_estimated"] == 1).all()
    assert (original["measured_rise_nats"] == 0).all()
    assert (table[table["kind"] == "control"]["ratio_estimated"] == 1).all()
    compressed = table[table["kind"] == "compressed"]
    assert (compressed["ratio_estimated"] > 1).all()
    assert (
        compressed["entropy_bits_per_weight"] <= compressed["fixed_bits_per_weight"] + 1e-9
    ).all()


def test_every_compressed_network_is_a_file_of_the_size_in_the_table(finished):
    out, result = finished
    table = result.table
    originals = table.loc[table["kind"] != "compressed", "size_bytes"]
    params = next(iter(result._networks.values())).subject.params
    assert (originals == sum(leaf.nbytes for leaf in jax.tree.leaves(params))).all()
    compressed = table[table["kind"] == "compressed"]
    np.testing.assert_array_equal(compressed["ratio"], originals.iloc[0] / compressed["size_bytes"])
    files = sorted((out / "compressed").iterdir())
    assert len(files) == len(compressed)
    assert sum(file.stat().st_size for file in files) == compressed["size_bytes"].sum()
    # Codes take what the estimate says; it leaves out names, checks, tables of codes, and biases.
    coded = compressed[compressed["method"] != "magnitude_pruning"]
    extra = coded["size_bytes"] - coded["size_bits_estimated"] / 8
    assert extra.between(-300, 1500).all()


@pytest.mark.parametrize("variant", ["kmeans/none/K4", "round_to_nearest/4"])
def test_files_hold_the_networks_of_the_table(finished, variant):
    out, result = finished
    name = f"digits-mlp-noise0-001-{variant.replace('/', '_')}.jxc"
    loaded = jaxcomp.load(out / "compressed" / name).params()
    expected = result.params(variant, model_seed=1)
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_quantizer_is_above_the_limit(finished):
    table = finished[1].table
    compressed = table[table["kind"] == "compressed"]
    assert table.loc[table["kind"] != "compressed", "limit_bits_per_weight"].isna().all()
    np.testing.assert_allclose(
        compressed["excess_bits_per_weight"],
        compressed["entropy_bits_per_weight"] - compressed["limit_bits_per_weight"],
    )
    # Rounding has scales for every channel, which the limit does not know.
    own = compressed[compressed["method"] != "round_to_nearest"]
    assert (own["excess_bits_per_weight"] > 0).all()
    # One limit for one distortion, whatever the quantizer.
    for _, rows in compressed.groupby("model_seed"):
        limits = rows.sort_values("predicted_rise_nats")["limit_bits_per_weight"].to_numpy()
        assert (np.diff(limits) <= 1e-9).all()
        assert 0 <= limits[-1] < limits[0]


def test_finer_codebooks_approach_the_original(finished):
    _, result = finished
    plain = result.table[
        (result.table["importance"] == "none") & (result.table["diameter_penalty"] == 0)
    ]
    rise = plain.groupby("num_clusters")["measured_rise_nats"].mean().abs()
    assert rise[16] < rise[4]
    predicted = plain.groupby("num_clusters")["predicted_rise_nats"].mean()
    assert predicted[4] > predicted[16] > 0


def test_temperature_row_is_the_tempered_original(finished):
    _, result = finished
    table = result.table.set_index(["variant", "model_seed"])
    original, tempered = table.loc["original"], table.loc["temperature"]
    assert (tempered["test_loss"] == original["test_loss_tempered"]).all()
    assert (tempered["temperature"] == original["temperature"]).all()
    assert (tempered["accuracy"] == original["accuracy"]).all()


def test_the_winning_network_comes_back_with_the_numbers_of_the_table(finished):
    out, result = finished
    best = result.best("validation_loss")
    params = result.params(best, model_seed=1)
    row = result.table[
        (result.table["variant"] == best["variant"]) & (result.table["model_seed"] == 1)
    ]
    network = next(iter(result._networks.values())).subject
    losses = _test_losses(network.predict_fn, params)
    assert losses.mean() == pytest.approx(row["test_loss"].item(), rel=1e-5)
    for path in network.layers:
        values = engine.leaves_by_path(params)[path]
        assert len(np.unique(values)) <= best["num_clusters"] or best["method"] != "kmeans"
    loaded = sweep.SweepResult.load(out)
    again = loaded.params(best["variant"], model_seed=1)
    for path, leaf in engine.leaves_by_path(params).items():
        np.testing.assert_array_equal(engine.leaves_by_path(again)[path], leaf)


def _test_losses(predict_fn, params):
    from jaxcomp.evaluation import metrics
    from jaxcomp.experiments import data

    dataset = data.load("digits")
    scale = data.standardization(dataset.pool_images, dataset.max_value)
    inputs = data.to_inputs(dataset.test_images, dataset.max_value, scale)

    @jax.jit
    def losses(params):
        return metrics.cross_entropy(predict_fn(params, inputs), dataset.test_labels)

    return np.asarray(losses(params))


@pytest.mark.parametrize("variant", SEEN)
def test_claims_see_the_losses_of_the_table(first_run, variant):
    _, result, losses = first_run
    seen = losses[variant]
    rows = result.table[result.table["variant"] == variant]
    for column, matrix in (
        ("test_loss", seen.loss),
        ("test_loss_tempered", seen.loss_tempered),
        ("accuracy", seen.score),
    ):
        np.testing.assert_allclose(rows[column], matrix.mean(axis=1), rtol=2e-5)


def test_best_looks_at_the_validation_set_only(finished):
    _, result = finished
    compressed = result.table[result.table["kind"] == "compressed"]
    means = compressed.groupby("variant")["validation_loss"].mean()
    assert result.best("validation_loss")["variant"] == means.idxmin()
    assert result.best("validation_loss", min_ratio=5)["ratio"] >= 5
    with pytest.raises(ValueError, match="criterion must be one of validation_loss"):
        result.best("test_loss")
    with pytest.raises(ValueError, match="no variant reaches a ratio of 1000"):
        result.best(min_ratio=1000)


def test_unknown_variants_networks_and_settings_are_named(finished):
    _, result = finished
    with pytest.raises(ValueError, match="no variant 'kmeans/K99'"):
        result.params("kmeans/K99")
    with pytest.raises(ValueError, match=r"no network with model_seed 7: there are \[0, 1\]"):
        result.params("original", model_seed=7)
    with pytest.raises(ValueError, match="choose a setting of digits-mlp-noise0"):
        result.plot("mnist")


def test_files_are_all_there_and_agree(first_run):
    out, result, seen = first_run
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["settings"] == CONFIG.to_dict()
    csv = pd.read_csv(out / "table.csv")
    pd.testing.assert_frame_equal(pd.read_parquet(out / "table.parquet"), result.table)
    np.testing.assert_allclose(csv["test_loss"], result.table["test_loss"], rtol=1e-12)
    assert (out / "report.md").exists()
    table, directory, options = seen["pictures"]
    pd.testing.assert_frame_equal(table, result.table)
    assert directory == out
    assert options["claims"] == result.claims
    assert len(json.loads((out / "claims.json").read_text())["claims"]) == len(result.claims) == 5


def test_a_finished_run_is_read_back(finished, cache, monkeypatch):
    out, result = finished
    monkeypatch.setattr(experiment, "trained_subjects", None)  # nothing is trained or scored again
    again = sweep.run(CONFIG, out=out, cache_dir=cache, quiet=True)
    pd.testing.assert_frame_equal(again.table, result.table)
    assert again.claims == result.claims


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_the_default_implementation_of_keys_shapes_nothing(finished, implementation):
    out, result = finished
    noise = next(variant for variant in result.table["variant"] if "noise" in variant)
    told = json.loads((out / "manifest.json").read_text())
    assert "implementation" in storage.load_arrays(min((out / "networks").iterdir()))[1]["key"]
    with jax.default_prng_impl(implementation), jax.transfer_guard("disallow"):
        read = sweep.SweepResult.load(out).params(noise)
    for was, now in zip(jax.tree.leaves(result.params(noise)), jax.tree.leaves(read), strict=True):
        np.testing.assert_array_equal(was, now)
    assert told["options"]["jax_enable_x64"] is False


def test_an_interrupted_run_continues_to_the_same_table(finished, tmp_path, cache, monkeypatch):
    out, whole = finished
    score, calls, interruptions = engine.Scorer.score, [], 0

    def dies_in_the_second_network(self, variants, *keep):
        if self.subject.model_seed == 1:
            calls.append(len(variants))
            if len(calls) % 2 == 0 and interruptions < 2:
                raise KeyboardInterrupt
        return score(self, variants, *keep)

    monkeypatch.setattr(engine.Scorer, "score", dies_in_the_second_network)
    while True:
        try:
            resumed = sweep.run(CONFIG, out=tmp_path / "cut", cache_dir=cache, quiet=True)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions == 2
    pd.testing.assert_frame_equal(resumed.table, whole.table, check_exact=True)
    assert resumed.claims == whole.claims
    assert (tmp_path / "cut/table.csv").read_bytes() == (out / "table.csv").read_bytes()


@pytest.mark.parametrize(
    ("status", "damaged"),
    [
        ("running", ["variants", "codebooks"]),
        ("finished", ["table.parquet"]),
        ("finished", ["claims.json"]),
        pytest.param("finished", ["networks"], marks=pytest.mark.slow),
    ],
)
def test_what_is_damaged_is_made_again(tmp_path, finished, cache, status, damaged):
    out, result = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    manifest = json.loads((out / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "status": status}))
    for name in damaged:
        file = copy / name
        if file.is_dir():
            file = min(file.iterdir())
        file.write_bytes(file.read_bytes()[:-40])
    (copy / "variants" / ".half.json.1-00000000.tmp").write_text("left by a killed run")
    if status == "finished":
        with pytest.raises(ValueError, match=r"run .*again"):
            sweep.SweepResult.load(copy)
    again = sweep.run(CONFIG, out=copy, cache_dir=cache, quiet=True)
    pd.testing.assert_frame_equal(again.table, result.table, check_exact=True)
    loaded = sweep.SweepResult.load(copy)
    assert loaded.claims == result.claims
    assert set(loaded._networks) == set(result._networks)
    assert not (copy / "variants" / ".half.json.1-00000000.tmp").exists()


@pytest.mark.parametrize("change", some_slow(["network", "versions", "data"], "versions", "data"))
def test_parts_of_another_network_or_version_are_not_mixed_in(finished, tmp_path, cache, change):
    out, whole = finished
    shutil.copytree(out, tmp_path / "run")
    # Chunks that would be seen in the table, if they were used.
    for chunk in (tmp_path / "run" / "variants").iterdir():
        told = json.loads(chunk.read_text())
        chunk.write_text(json.dumps({"rows": [row | {"test_loss": -1} for row in told["rows"]]}))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["status"] = "running"
    if change == "versions":
        manifest["versions"]["jax"] = "0.0"
    if change == "data":
        manifest["data"] = dict.fromkeys(manifest["data"], "another")
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    if change == "network":
        for file in (tmp_path / "run" / "networks").iterdir():
            arrays, metadata = storage.load_arrays(file)
            arrays["params/params/output/bias"] += 1e-6
            storage.save_arrays(file, arrays, metadata)
    again = sweep.run(CONFIG, out=tmp_path / "run", cache_dir=cache, quiet=True)
    pd.testing.assert_frame_equal(again.table, whole.table, check_exact=True)


def test_a_result_without_one_of_its_networks_is_refused(tmp_path, finished):
    out, _ = finished
    shutil.copytree(out, tmp_path / "copy")
    min((tmp_path / "copy" / "networks").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"networks of the table are missing\): run the sweep"):
        sweep.SweepResult.load(tmp_path / "copy")


def test_directories_that_cannot_be_used(tmp_path, finished, cache):
    out, _ = finished
    with pytest.raises(ValueError, match=r"belongs to other settings: seed \(0 there, 3 now\)"):
        sweep.run(SweepConfig(**{**CONFIG.to_dict(), "seed": 3}), out=out, quiet=True)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mother.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files and no manifest"):
        sweep.run(CONFIG, out=tmp_path / "letters", quiet=True)
    with pytest.raises(ValueError, match="is a file"):
        sweep.run(CONFIG, out=tmp_path / "letters" / "mother.txt", quiet=True)
    with pytest.raises(ValueError, match="holds no sweep"):
        sweep.SweepResult.load(tmp_path / "letters")


@pytest.mark.slow
def test_a_sweep_compiles_a_quantizer_once(cache):
    # Two networks, four layers, many K and penalties: one program per penalty form.
    before = solve_kmeans._cache_size()
    config = SweepConfig(**{**CONFIG.to_dict(), "num_clusters": (3, 5, 16), "seed": 0})
    sweep.run(config, cache_dir=cache, quiet=True)
    assert solve_kmeans._cache_size() - before <= 1


# A network trained elsewhere


def predict(params, inputs):
    hidden = jax.nn.relu(inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["output"]["kernel"] + params["output"]["bias"]


predicted = jax.jit(predict)


@pytest.fixture(scope="module")
def own_network():
    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
    hidden = np.random.default_rng(0).normal(size=(64, 32)) / 8
    params = {
        "hidden": {"kernel": hidden, "bias": np.zeros(32)},
        "output": {"kernel": np.zeros((32, 10)), "bias": np.zeros(10)},
    }
    params = jax.tree.map(np.float32, params)
    # As many as of the networks above: the same programs score them.
    train, validation, test = slice(200), slice(200, 300), slice(1200, None)

    def loss(params):
        logits = jax.nn.log_softmax(predict(params, images[train]))
        return -jnp.mean(jnp.take_along_axis(logits, labels[train][:, None], axis=1))

    @jax.jit
    def descend(params):
        def step(params, _):
            return jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss)(params)), None

        return jax.lax.scan(step, params, None, length=200)[0]

    return descend(params), [(images[part], labels[part]) for part in (train, validation, test)]


def _evaluate(own_network, out=None, **overrides):
    params, parts = own_network
    settings = {
        "num_clusters": CONFIG.num_clusters,
        "diameter_penalty": (0.05,),
        "sensitivity_clusters": (4,),
        "num_probes": 4,
        "curvature_examples": 100,
        "num_bins": CONFIG.num_bins,
        **overrides,
    }
    names = ("select", "last_layer", "refresh_fn")
    options = {name: settings.pop(name) for name in names if name in settings}
    networks = sweep.Networks(predict, [params], **options)
    return sweep.evaluate(
        networks, sweep.Data(*parts), grid=sweep.Grid(**settings), out=out, quiet=True
    )


@pytest.fixture(scope="module")
def evaluated(own_network):
    return _evaluate(own_network)


def test_a_network_trained_elsewhere(own_network, evaluated):
    result = evaluated
    original = result.table[result.table["kind"] == "original"].iloc[0]
    params, parts = own_network
    logits = np.asarray(predicted(params, parts[2][0]))
    assert original["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == parts[2][1]))
    assert {claim.num_models for claim in result.claims} == {1}
    returned = result.params("kmeans/none/K16")
    assert jax.tree.structure(returned) == jax.tree.structure(params)
    assert len(np.unique(returned["hidden"]["kernel"])) <= 16
    np.testing.assert_array_equal(returned["hidden"]["bias"], params["hidden"]["bias"])


def bracketed(params, inputs):
    return inputs @ params["w[0]"]


@pytest.mark.slow
def test_names_of_weights_are_no_patterns():
    rng = np.random.default_rng(0)
    params = {"w[0]": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
    part = rng.normal(size=(20, 4)).astype(np.float32), rng.integers(0, 3, 20)
    grid = sweep.Grid(
        num_clusters=2,
        importance="gauss_newton",
        diameter_penalty=0.0,
        baselines=False,
        controls=False,
    )
    networks, data = sweep.Networks(bracketed, [params]), sweep.Data(part, part, part)
    result = sweep.evaluate(networks, data, grid=grid, quiet=True)
    assert len(np.unique(result.params("kmeans/gauss_newton/K2")["w[0]"])) == 2


def test_sensitivity_changes_one_layer_at_a_time(own_network, evaluated):
    result = evaluated
    assert set(result.sensitivity["layer"]) == {"hidden/kernel", "output/kernel"}
    assert "layer" not in result.table.columns
    params, _ = own_network
    only = result.params(result.sensitivity.iloc[0]["variant"])
    changed = [
        path
        for path, leaf in engine.leaves_by_path(only).items()
        if not np.array_equal(leaf, engine.leaves_by_path(params)[path])
    ]
    assert changed == [result.sensitivity.iloc[0]["layer"]]


def test_batch_statistics_can_be_re_estimated(own_network, evaluated):
    calls = []

    def centre_the_logits(params, inputs):
        calls.append(len(inputs))
        shift = np.mean(predicted(params, inputs), axis=0)
        bias = np.asarray(params["output"]["bias"]) - shift
        return {**params, "output": {**params["output"], "bias": bias}}

    refreshed = _evaluate(own_network, refresh_fn=centre_the_logits)
    assert set(calls) == {200}
    same, other = evaluated.table.set_index("variant"), refreshed.table.set_index("variant")
    assert same.loc["original", "test_loss"] == other.loc["original", "test_loss"]
    assert same.loc["uniform/K4", "test_loss"] != other.loc["uniform/K4", "test_loss"]


def test_results_of_an_own_network_resume_and_keep_its_structure(own_network, tmp_path):
    first = _evaluate(own_network, out=tmp_path / "own")
    again = _evaluate(own_network, out=tmp_path / "own")
    pd.testing.assert_frame_equal(first.table, again.table, check_exact=True)
    params, _ = own_network
    assert jax.tree.structure(again.params("original")) == jax.tree.structure(params)
    with pytest.raises(ValueError, match="belongs to other settings: seed"):
        _evaluate(own_network, out=tmp_path / "own", seed=5)
    with pytest.raises(ValueError, match=r"belongs to other settings: .*layers"):
        _evaluate(own_network, out=tmp_path / "own", select="hidden/kernel")
    with pytest.raises(ValueError, match="belongs to other settings: last_layer"):
        _evaluate(own_network, out=tmp_path / "own", last_layer="hidden/kernel")


def test_axes_take_one_value_or_several(own_network, monkeypatch):
    seen = []

    def score(setting, subjects, parts_of, variants, *others, **options):
        seen.append(variants)
        return SimpleNamespace(outcome=lambda: None)

    monkeypatch.setattr(experiment, "score_setting", score)
    monkeypatch.setattr(experiment, "_result", lambda *_: None)
    one = {"importance": "none", "num_clusters": 4, "diameter_penalty": 0.05}
    _evaluate(own_network, **one, penalty_form="linear", sensitivity_clusters=2)
    several = {name: [value] for name, value in one.items()}
    _evaluate(own_network, **several, penalty_form=["linear"], sensitivity_clusters=[2])
    assert [variant.id for variant in seen[0]] == [variant.id for variant in seen[1]]
    assert "kmeans/none/linear-0.05/K4" in {variant.id for variant in seen[0]}
    assert sum(variant.kind == "sensitivity" for variant in seen[0]) == 2


def test_bad_networks_and_parts_get_one_sentence(own_network):
    params, (train, validation, test) = own_network
    inputs, labels = test

    def check(error, message, predict_fn=predict, params=params, parts=None, **options):
        networks = sweep.Networks(predict_fn, [params], **options)
        with pytest.raises(error, match=message):
            sweep.evaluate(networks, sweep.Data(*(parts or (train, validation, test))))

    broken = jax.tree.map(np.array, params)
    broken["hidden"]["kernel"][0] = np.nan
    check(ValueError, "hidden/kernel holds 32 weights that are NaN or infinite", params=broken)
    check(ValueError, "nothing to compress", params={"bias": np.zeros(3, np.float32)})
    check(
        ValueError,
        "test must hold as many inputs as targets",
        parts=(train, validation, (inputs, labels[1:])),
    )
    check(ValueError, "and at least one", parts=(train, validation, (inputs[:0], labels[:0])))
    check(
        TypeError,
        "test labels must be a vector of integers",
        parts=(train, validation, (inputs, labels / 2)),
    )
    check(
        ValueError,
        "the network has 10 classes: labels must be 0 to 9",
        parts=(train, validation, (inputs, labels + 5)),
    )
    check(ValueError, "same shape", parts=(train, validation, (inputs[:, :5], labels)))
    check(ValueError, "predict_fn must return logits", predict_fn=lambda p, x: predict(p, x).sum())
    check(ValueError, "must return one array, got tuple", predict_fn=lambda p, x: (x, x))
    check(ValueError, "floating numbers, got int32", predict_fn=lambda p, x: jnp.ones((1, 1), int))
    bad_inputs = np.where(np.arange(len(inputs))[:, None] == 7, np.inf, inputs)
    check(
        ValueError,
        f"loss of network 0 is not finite: .* 1 of the {len(inputs)} test examples",
        parts=(train, validation, (bad_inputs, labels)),
    )
    check(ValueError, "last_layer 'head' is not compressed", last_layer="head")
    check(ValueError, "matches no leaf", select="conv*")


@pytest.mark.slow
def test_a_network_with_more_clusters_than_weights_uses_fewer(own_network):
    plain_ones = {"importance": "none", "diameter_penalty": 0.0, "sensitivity_clusters": ()}
    plain_ones |= {"controls": False, "baselines": False}
    result = _evaluate(own_network, num_clusters=(4, 1024), **plain_ones)
    (plain,) = (row for _, row in result.table.iterrows() if row["num_clusters"] == 1024)
    # 320 distinct weights in the last layer.
    assert plain["num_used"] < 1024
    assert plain["num_empty"] >= 1024 - 320
    assert f"{plain['num_used']:,.1f} of K = 1,024" in report_markdown(result.table, None)
    assert math.isfinite(plain["test_loss"])


@pytest.mark.slow
def test_half_precision_weights_are_swept_stored_and_given_back(own_network, tmp_path):
    params, parts = own_network
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    grid = sweep.Grid(
        num_clusters=(4,),
        diameter_penalty=(0.0,),
        importance=("none",),
        sensitivity_clusters=(),
        num_probes=2,
        curvature_examples=50,
        num_bins=512,
    )
    networks = sweep.Networks(predict, [half])
    result = sweep.evaluate(
        networks, sweep.Data(*parts), grid=grid, out=tmp_path / "half", quiet=True
    )
    given = result.params("kmeans/none/K4")["hidden"]["kernel"]
    assert given.dtype == jnp.bfloat16
    # Assigned to the nearest of the centres as they are stored, in bfloat16.
    weights, values = (np.asarray(a, np.float32) for a in (half["hidden"]["kernel"], given))
    centres = np.unique(values)
    assert len(centres) <= 4
    nearest = np.abs(weights[..., None] - centres).min(-1)
    np.testing.assert_array_equal(np.abs(weights - values), nearest)
    loaded = sweep.SweepResult.load(tmp_path / "half").params("kmeans/none/K4")
    np.testing.assert_array_equal(loaded["hidden"]["kernel"], given)


def tanh_of(x, gain):
    return jnp.tanh(x) * gain


def odd(params, inputs):
    first = params["mlp/~/linear_0"]
    hidden = params["act"](inputs @ first["w"] + first["b"], params["gain"])

    def layer(hidden, weights):
        return hidden + jnp.tanh(hidden @ weights["w"] + weights["b"]) * weights["scale"], None

    hidden, _ = jax.lax.scan(layer, hidden, params["layers"][0])
    return hidden @ params["out"][0] + params["out"][1]


@pytest.mark.filterwarnings("ignore:1 leaves are float64")
def test_odd_trees_are_swept_stored_and_given_back(tmp_path):
    """Slashes in names, whole numbers as keys, a stack, float64, functions and numbers."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    arrays = {
        "layers": ({"w": draw(3, 6, 6), "b": draw(3, 6), "scale": 1 + 0.1 * draw(3, 6)}, None),
        "out": {0: draw(6, 12)[:, :10], 1: draw(10)},
    }
    params = jax.device_put(arrays) | {
        "mlp/~/linear_0": {"w": rng.normal(size=(4, 6)), "b": draw(6)},  # float64
        "gain": 0.5,
        "act": tanh_of,
    }
    # Sizes of the sweeps above, whose programs solve and score this one.
    parts = [
        (rng.normal(size=(size, 4)).astype(np.float32), rng.integers(0, 10, size))
        for size in (200, 100, 597)
    ]
    grid = sweep.Grid(
        num_clusters=(2, 16),
        importance="gauss_newton",
        diameter_penalty=0.0,
        sensitivity_clusters=2,
        baselines=False,
        num_bins=CONFIG.num_bins,
    )

    def evaluate():
        networks, data = sweep.Networks(odd, [params]), sweep.Data(*parts)
        return sweep.evaluate(networks, data, grid=grid, out=tmp_path / "odd", quiet=True)

    result = evaluate()
    stack = [f"layers/0/w[{number}]" for number in range(3)]
    assert set(result.sensitivity["layer"]) == {*stack, "mlp/~/linear_0/w", "out/0"}
    assert "last_layer_scaled" in set(result.table["method"])
    assert np.isfinite(result.table["test_loss"]).all()

    def check(after):
        assert jax.tree.structure(after) == jax.tree.structure(params)
        assert (after["act"], after["gain"]) == (tanh_of, 0.5)
        np.testing.assert_array_equal(after["layers"][0]["scale"], params["layers"][0]["scale"])
        layers = [*after["layers"][0]["w"], after["mlp/~/linear_0"]["w"], after["out"][0]]
        assert [len(np.unique(layer)) for layer in layers] == [2] * 5
        assert len(np.unique(after["layers"][0]["w"])) == 6
        assert jax.eval_shape(lambda x: odd(after, x), parts[0][0]).shape == (200, 10)

    variant = "kmeans/gauss_newton/K2"
    live = result.params(variant)
    check(live)
    assert live["mlp/~/linear_0"]["w"].dtype == np.float64
    one = result.params(result.sensitivity.set_index("layer").loc[stack[1], "variant"])
    changed = [
        number
        for number in range(3)
        if not np.array_equal(*(np.asarray(p["layers"][0]["w"])[number] for p in (one, params)))
    ]
    assert changed == [1]

    loaded = sweep.SweepResult.load(tmp_path / "odd")
    with pytest.raises(ValueError, match="no file holds the leaves act"):
        loaded.params(variant)
    again = loaded.params(variant, like=params)
    check(again)
    jax.tree.map(np.testing.assert_array_equal, again["out"], live["out"])
    resumed = evaluate()
    check(resumed.params(variant))
