"""The installation is looked after: right answers here, and what is said where one is wrong."""

import json

import pytest
from command_line import invoke

from jaxcomp import doctor


@pytest.fixture(params=["matrix product in float32", pytest.param("all", marks=pytest.mark.slow)])
def found(request, monkeypatch):
    """What is found by the quickest check, or by all of them, which compile for ten seconds."""
    if request.param != "all":
        monkeypatch.setattr(doctor, "_CHECKS", {request.param: doctor._CHECKS[request.param]})
    return doctor.examine()


def test_this_installation_is_sound(found):
    assert found.is_sound, str(found)
    assert all(check.error <= check.limit for check in found.checks)
    assert found.versions["jax"]
    assert "cpu" in found.devices[0]
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [check["name"] for check in told["checks"]] == [check.name for check in found.checks]


def fail():
    raise ValueError("the compiler\ngave up")


@pytest.mark.parametrize(
    ("run", "told"),
    [(lambda: 0.5, "off by 0.5, where 0.1 is allowed"), (fail, "the compiler gave up")],
)
def test_a_wrong_answer_is_said_and_ends_with_code_1(run, told, monkeypatch):
    monkeypatch.setattr(doctor, "_CHECKS", {"half": (run, 0.1)})
    result = invoke("doctor", "--quiet")
    assert result.exit_code == 1
    assert told in result.stdout
    assert "not to be trusted" in result.stdout
    result = invoke("doctor", "--json", "--quiet")
    assert (result.exit_code, json.loads(result.stdout)["is_sound"]) == (1, False)


def test_what_is_missing_or_does_not_fit_comes_with_a_remedy(monkeypatch):
    complete = {"jax": "0.12.0", "jaxlib": "0.12.1"}
    complete |= dict.fromkeys([name for names in doctor._EXTRAS.values() for name in names], "1")
    assert doctor._of_versions(complete) == []
    (problem,) = doctor._of_versions(complete | {"constriction": None})
    assert "constriction" in problem.what
    assert "jaxcomp[coding]" in problem.remedy
    (problem,) = doctor._of_versions(complete | {"jaxlib": "0.11.2"})
    assert "not of one release" in problem.what
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert "XLA_FLAGS" in " ".join(
        problem.what for problem in doctor._of_settings(doctor._look_at_host())
    )


def test_a_cache_that_cannot_be_written_is_found(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXCOMP_CACHE_DIR", str(tmp_path / "file"))
    assert "JAXCOMP_CACHE_DIR" in " ".join(
        p.remedy for p in doctor._of_settings(doctor._look_at_host())
    )
