"""Processes of one run: who opens its directory, who is refused, who leads when one is lost."""

import json
import threading

import pytest

from jaxcomp.experiments.run import Rows, Run
from jaxcomp.experiments.team import Claims, Team

FIRST, SECOND = Team(0, 2), Team(1, 2)


def opened(path, team=FIRST, settings=None, **options):
    return Run(path, settings or {"seed": 0}, noun="trial", team=team, **options)


def nothing():
    raise AssertionError("nothing is to be forgotten")


def test_a_name_is_one_holders_among_threads_and_processes(tmp_path):
    here, elsewhere = Claims(tmp_path / "locks"), Claims(tmp_path / "locks")
    with here.claimed("part") as is_ours:
        assert is_ours
        for claims in (here, elsewhere):
            with claims.claimed("part") as is_ours:
                assert not is_ours
            with claims.claimed("other") as is_ours:
                assert is_ours
    order = []

    def wait():
        with elsewhere.waited_for("part"):
            order.append("waited")

    with here.waited_for("part"):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.05)
        order.append("held")
    thread.join()
    assert order == ["held", "waited"]
    assert not list((tmp_path / "locks").iterdir())


def test_the_first_process_opens_the_directory_and_the_others_meet_it_there(tmp_path):
    met = []
    with opened(tmp_path, Team(0, 2, lambda: met.append(0))) as first:
        assert first.is_lead
        assert first.take_lead()
        assert "versions" in first.manifest  # before the others are let in
        with opened(tmp_path, Team(1, 2, lambda: met.append(1))) as second:
            assert not second.is_lead
            assert not second.take_lead()
            assert second.manifest == first.manifest
            with pytest.raises(ValueError, match="is in use by another run"):
                opened(tmp_path, Team())
            with pytest.raises(ValueError, match="is in use by another run"):
                opened(tmp_path)
    assert met == [0, 1]
    with opened(tmp_path, Team()):
        for team in (FIRST, SECOND):
            with pytest.raises(ValueError, match="is in use by another run"):
                opened(tmp_path, team)


def test_what_is_not_alike_is_refused_at_the_start(tmp_path):
    with pytest.raises(ValueError, match=r"process 1 finds no trial in .*one directory that all"):
        opened(tmp_path / "elsewhere", SECOND)
    with pytest.raises(ValueError, match="name one by out"):
        opened(None)
    with pytest.raises(ValueError, match="got 2 of 2"):
        Team(2, 2)
    with opened(tmp_path / "run") as first:
        with pytest.raises(ValueError, match=r"other settings: seed \(0 there, 1 now\)"):
            opened(tmp_path / "run", SECOND, {"seed": 1})
        first.manifest["versions"]["jax"] = "0.0"
        first.manifest["device"] = "abacus"
        first.save_manifest()
        told = r"process 1 computes with jax [\d.]+ and process 0 with 0.0, device cpu and process "
        with pytest.raises(ValueError, match=told + "0 with abacus in .*: all processes of a run"):
            opened(tmp_path / "run", SECOND)
        first.make_from("digits", "abc", nothing)
        first.describe()
        with opened(tmp_path / "run", SECOND) as second:
            second.make_from("digits", "abc", nothing)
            with pytest.raises(ValueError, match="process 1 has other data of digits than the"):
                second.make_from("digits", "abd", nothing)


def test_parts_of_other_data_are_gone_before_the_others_look_for_them(tmp_path):
    like = Rows(["a"])
    with opened(tmp_path) as first:
        first.make_from("digits", "old", nothing)
        first.part("part", lambda: [{"variant": "a"}], like)
    found = []

    def look(second):
        second.make_from("digits", "new", nothing)
        found.append(second.find("part", like))

    with opened(tmp_path) as first, opened(tmp_path, SECOND) as second:
        thread = threading.Thread(target=look, args=(second,))
        thread.start()
        thread.join(0.05)
        first.make_from("digits", "new", first.discard)
        thread.join()
    assert found == [None]


def test_another_leads_when_the_first_is_lost(tmp_path):
    first, second, third = opened(tmp_path), opened(tmp_path, SECOND), opened(tmp_path, SECOND)
    first.manifest["times"]["training"] = 1.0
    first.save_manifest()
    first._release()  # as the system does
    second.make_from("digits", "abc", nothing)  # which only the one that leads writes down
    assert second.is_lead
    assert second.manifest["times"] == {"training": 1.0}
    third.make_from("digits", "abc", nothing)
    assert not third.take_lead()
    second.manifest["status"] = "finished"
    second.save_manifest()
    second._release()
    assert not third.take_lead()  # there is nothing left to lead
    third._release()
    assert json.loads((tmp_path / "manifest.json").read_text())["data"] == {"digits": "abc"}


def test_networks_lie_where_all_processes_see_them(tmp_path):
    own, shared = tmp_path / "cache", tmp_path / "run" / ".team" / "networks"
    with opened(tmp_path / "run", Team()) as alone:
        assert alone.cache(own) == own
    with opened(tmp_path / "run") as first:
        assert first.cache(own) == shared
    shared.mkdir()
    with opened(tmp_path / "run", Team()) as alone:  # goes on from what a team left
        assert alone.cache(own) == shared
    assert Run(None, {}).cache(own) == own
