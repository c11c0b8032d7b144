"""Parts over workers: each computed once, from the place that is the worker's own."""

import threading
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from jaxcomp.experiments import parts
from jaxcomp.experiments.parts import Part, complete, worker_devices
from jaxcomp.experiments.run import Rows, Run
from jaxcomp.experiments.team import Team

NAMES = [f"net-{net}{chunk}" for net in range(3) for chunk in ("", "-0", "-1", "-2", "-3")]


def told(found, is_waiting):
    """Hear nothing."""


def rows(name):
    return [{"variant": name, "value": 1.0}]


def parts_of(computed, compute=rows):
    def work(name, desk, needed):
        assert (needed is None) == (name.count("-") == 1)
        computed.append((name, desk))
        return compute(name)

    return [
        Part(
            name,
            Rows([name]),
            lambda desk, needed, name=name: work(name, desk, needed),
            needs=name.rpartition("-")[0] if name.count("-") == 2 else None,
        )
        for name in NAMES
    ]


@pytest.mark.parametrize("is_stored", [True, False])
@pytest.mark.parametrize("num_devices", [0, 5])
def test_every_part_is_computed_once(tmp_path, is_stored, num_devices):
    computed, desks = [], []
    path = tmp_path / "run" if is_stored else None
    devices = jax.local_devices()[:1] * num_devices
    with Run(path, {}) as run:
        found = complete(
            run,
            parts_of(computed),
            lambda: desks.append(threading.get_ident()) or len(desks),
            told,
            devices=devices,
        )
    assert found == {name: rows(name) for name in NAMES}
    assert Counter(name for name, _ in computed) == Counter(NAMES)
    assert len(desks) == max(num_devices, 1)
    if not num_devices:  # in order, in this thread
        assert [name for name, _ in computed] == NAMES
        assert desks == [threading.get_ident()]


def test_workers_begin_at_networks_of_their_own_then_at_chunks(tmp_path):
    orders = [[part.name for part in parts._order(parts_of([]), place, 6)] for place in range(6)]
    assert [order[0] for order in orders] == ["net-0", "net-1", "net-2"] * 2
    assert [order[1] for order in orders] == [
        "net-0-0", "net-1-0", "net-2-0", "net-0-2", "net-1-2", "net-2-2",
    ]  # fmt: skip
    assert all(sorted(order) == sorted(NAMES) for order in orders)
    fewer = [[part.name for part in parts._order(parts_of([]), place, 2)] for place in range(2)]
    assert [name for name in fewer[0] if name.count("-") == 1] == ["net-0", "net-2", "net-1"]
    assert [name for name in fewer[1] if name.count("-") == 1] == ["net-1", "net-2", "net-0"]
    assert [part.name for part in parts._order(parts_of([]), 0, 1)] == NAMES
    assert parts._order([], 0, 1) == []


def test_processes_share_parts_and_take_over_what_one_leaves(tmp_path):
    computed, waits = [], []
    with (
        Run(tmp_path, {}, team=Team(0, 2)) as first,
        Run(tmp_path, {}, team=Team(1, 2)) as second,
        first.claims.claimed("net-1-2") as is_ours,
    ):
        assert is_ours

        def release(found, is_waiting):
            if is_waiting and not waits:
                waits.append(set(NAMES) - set(found))
                first.claims._taken.pop("net-1-2").release()  # as the system does
                first.claims._taken["net-1-2"] = None

        found = complete(second, parts_of(computed), lambda: 0, release)
        again = complete(first, parts_of(computed), lambda: 0, told)
    assert waits == [{"net-1-2"}]
    assert found == again
    assert Counter(name for name, _ in computed) == Counter(NAMES)
    assert computed[0][0] == "net-1"


def test_an_error_of_one_worker_ends_all(tmp_path):
    def compute(name):
        if name == "net-2":
            raise ValueError("no")
        return rows(name)

    with Run(tmp_path, {}) as run:
        with pytest.raises(ValueError, match="no"):
            complete(run, parts_of([], compute), lambda: 0, told, devices=jax.local_devices() * 3)
        with run.claims.claimed("net-2") as is_ours:
            assert is_ours


def test_threads_compute_under_the_options_of_the_caller():
    def compute(name):
        return [{"variant": name, "dtype": str(jnp.zeros(()).dtype)}]

    with jax.enable_x64(True), Run(None, {}) as run:
        devices = jax.local_devices() * 3
        found = complete(run, parts_of([], compute), lambda: 0, told, devices=devices)
    assert {part[0]["dtype"] for part in found.values()} == {"float64"}


def test_a_cpu_alone_has_two_workers_and_several_devices_one_each(monkeypatch):
    device, *_ = jax.local_devices()
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert list(worker_devices()) == [None, None]
    assert list(worker_devices(cpu_workers=1)) == [None]
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert list(worker_devices()) == [None]
    monkeypatch.setattr(jax, "local_devices", lambda: [device, device])
    assert list(worker_devices()) == [device, device]
    with jax.default_device(device):
        assert not worker_devices()
    accelerator = type("Accelerator", (), {"platform": "gpu"})()
    monkeypatch.setattr(jax, "local_devices", lambda: [accelerator])
    assert list(worker_devices()) == [accelerator]
