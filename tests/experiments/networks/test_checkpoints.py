"""Groups in files: an interrupted one goes on to the same bits, a finished one is taken."""

import os

import jax
import pytest
from slow_cases import some_slow
from small_training import NUM_EXAMPLES, PLAIN, STEPS, arrays, assert_same_bits, train

from jaxcomp.experiments import networks
from jaxcomp.experiments.networks import training
from jaxcomp.storage import load_arrays


def interrupted_after(num_reports):
    """A progress callback in the place of a user who presses Ctrl-C."""
    seen = []

    def progress(done, total, message):
        seen.append((done, total, message))
        if len(seen) == num_reports:
            raise KeyboardInterrupt

    return progress, seen


@pytest.mark.parametrize("num_reports", some_slow([2, 4, 7], 2))
def test_interrupted_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, num_reports):
    """Within an epoch, at its end (before the evaluation), and in a later one."""
    undisturbed = train()
    monkeypatch.setattr(training, "_FIRST_SEGMENT_STEPS", 1)
    monkeypatch.setattr(training, "SEGMENT_SECONDS", 0.0)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    progress, _ = interrupted_after(num_reports)
    with pytest.raises(KeyboardInterrupt):
        train(cache_dir=tmp_path, progress=progress)
    assert [path.name.endswith(".checkpoint.npz") for path in tmp_path.iterdir()] == [True]
    monkeypatch.setattr(training, "_FIRST_SEGMENT_STEPS", 3)
    progress, seen = interrupted_after(10**9)
    resumed = train(cache_dir=tmp_path, progress=progress)
    assert num_reports < seen[0][0] <= num_reports + 3
    assert_same_bits(resumed, undisturbed)
    files = [path.name for path in tmp_path.iterdir()]
    assert len(files) == 1
    assert "checkpoint" not in files[0]


def test_only_old_rests_of_killed_writers_are_cleared(tmp_path):
    old, fresh = (tmp_path / f".group.npz.{number}-00000000.tmp" for number in (1, 2))
    for path in (old, fresh):
        path.write_bytes(b"half a checkpoint")
    os.utime(old, (0, 0))
    train(cache_dir=tmp_path)
    assert not old.exists()
    assert fresh.exists()  # somebody may still be writing it


def test_checkpoints_wait_for_their_time(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 1e9)
    progress, _ = interrupted_after(2)
    with pytest.raises(KeyboardInterrupt):
        train(cache_dir=tmp_path, progress=progress)
    assert list(tmp_path.iterdir()) == []


def test_more_models_begin_with_the_cached_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "MODELS_PER_GROUP", 2)
    two = train(cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    reports = []
    three = train(num_models=3, cache_dir=tmp_path, progress=lambda *report: reports.append(report))
    assert reports[0] == (STEPS, 2 * STEPS, "models 0, 1: from the cache")
    assert path.stat().st_mtime_ns == written
    assert len(list(tmp_path.iterdir())) == 2
    assert_same_bits(jax.tree.map(lambda leaf: leaf[:2], three.variables), two.variables)
    assert_same_bits(jax.tree.map(lambda leaf: leaf[:2], three.early_stopped), two.early_stopped)
    assert_same_bits({k: v[:, :2] for k, v in three.history.items()}, two.history)
    again = train(num_models=3, cache_dir=tmp_path)
    assert_same_bits(again, three)
    assert load_arrays(path)[1]["model_ids"] == [0, 1]


def test_the_cache_sees_everything_that_shapes_a_network(tmp_path):
    one_step = networks.TrainingConfig(epochs=1, batch_size=NUM_EXAMPLES)
    task = arrays()
    other_labels = task["train_labels"].copy()
    other_labels[1, 3] = (other_labels[1, 3] + 1) % 3
    changes = [
        {},
        {"network": PLAIN},
        {"config": networks.TrainingConfig(epochs=1, batch_size=NUM_EXAMPLES, momentum=0.5)},
        {"seed": 8},
        {"model_ids": [1, 0]},
        {"train_labels": other_labels},
        {"train_indices": task["train_indices"][:, ::-1]},
        {"inputs": task["inputs"] + 1},
        {"validation_inputs": task["validation_inputs"] + 1},
        {"validation_labels": task["validation_labels"][::-1]},
        {"fingerprint_extra": {"data": "other"}},
    ]
    for number, change in enumerate(changes, start=1):
        for _ in range(2):
            train(**({"config": one_step, "cache_dir": tmp_path} | change))
            assert len(list(tmp_path.iterdir())) == number


def test_a_second_cache_gives_what_it_has_and_gets_what_is_finished(tmp_path):
    own, second, other = (tmp_path / name for name in ("own", "second", "other"))
    first = train(cache_dir=own, second_cache_dir=second)
    assert [path.name for path in own.iterdir()] == [path.name for path in second.iterdir()]
    reports = []
    again = train(
        cache_dir=other,
        second_cache_dir=second,
        progress=lambda *report: reports.append(report),
    )
    assert reports == [(STEPS, STEPS, "models 0, 1: from the cache")]
    assert_same_bits(again, first)
    assert [path.name for path in own.iterdir()] == [path.name for path in other.iterdir()]


@pytest.mark.parametrize("damage", ["cut", "renamed"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    first = train(cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        train(seed=8, cache_dir=tmp_path)
        (other,) = set(tmp_path.iterdir()) - {path}
        other.replace(path)
    reports = []
    again = train(cache_dir=tmp_path, progress=lambda *report: reports.append(report))
    message = "is damaged or not one of this cache, so models 0, 1 will be trained again."
    assert message in reports[0][2]
    assert_same_bits(again, first)
    assert_same_bits(train(cache_dir=tmp_path), first)


def test_a_damaged_checkpoint_starts_again(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    progress, _ = interrupted_after(2)
    with pytest.raises(KeyboardInterrupt):
        train(cache_dir=tmp_path, progress=progress)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"not an archive")
    with pytest.warns(RuntimeWarning, match="so models 0, 1 will be trained from the beginning"):
        again = train(cache_dir=tmp_path)
    assert_same_bits(again, train())
    assert not path.exists()


def test_a_left_checkpoint_of_a_finished_group_is_removed(tmp_path):
    train(cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    left = path.with_name(f"{path.stem}.checkpoint.npz")
    left.write_bytes(b"whatever")
    train(cache_dir=tmp_path)
    assert not left.exists()
