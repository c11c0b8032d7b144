"""The command `certify`: what reaches the library, and what it refuses."""

import json

import numpy as np
import pytest
from certificate_problems import problem
from command_line import assert_one_sentence, invoke

import jaxcomp

HOOK = """
import numpy as np
def predict_fn(params, inputs):
    hidden = inputs @ params["fc1.weight"].T + params["fc1.bias"]
    return hidden.clip(0) @ params["fc2.weight"].T + params["fc2.bias"]
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    found = problem(tmp_path_factory.mktemp("certify"))
    for name, (inputs, labels) in (("train", found.sample), ("fresh", found.fresh)):
        np.savez(found.file.with_name(f"{name}.npz"), inputs=inputs, labels=labels)
    found.file.with_name("hook.py").write_text(HOOK)
    return found


def test_table(case):
    train, fresh, hook = (
        case.file.with_name(name) for name in ("train.npz", "fresh.npz", "hook.py")
    )
    done = invoke(
        "certify", case.file, "--data", train, "--held-out", fresh, "--hook", hook,
        "--original", case.model, "--unlabelled", fresh, "--test", fresh, "--delta", "0.1",
        "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    report = jaxcomp.certify(
        case.file, None, case.sample, held_out=case.fresh, original=case.model,
        unlabelled=case.fresh[0], test=case.fresh, delta=0.1,
    )  # fmt: skip
    assert json.loads(done.stdout) == json.loads(report.to_json())
    done = invoke(
        "certify", case.differences, "--data", train, "--prior", case.prior, "--prior-indices",
        "0:20",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "c: data split" in done.stdout
    # The sample may come from the hook.
    inputs, labels = (part.tolist() for part in case.sample)
    batches = f"batches = [(np.array({inputs}, np.float32), np.array({labels}))]"
    hook.write_text(f"{HOOK}\n{batches}")
    done = invoke("certify", case.file, "--hook", hook, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"][0]["num_examples"] == 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no sample; name it by --data"),
        (["--data", "no.npz"], "there is no file no.npz"),
        (["--data", "digits:train"], "'digits:train' is no sample"),
        (["--data", "nothing"], "The data set 'nothing' is unknown"),
        (["--data", "digits"], "fails on train"),
        (["--data", "TRAIN", "--delta", "1"], "delta must be strictly between 0 and 1"),
        (["--data", "TRAIN", "--prior", "PRIOR", "--prior-indices", "no.txt"], "no file no.txt"),
        (["--data", "TRAIN", "--prior", "PRIOR", "--prior-indices", "0:60"], "on all examples"),
        (["--data", "TRAIN", "--hook", "no.py"], "there is no file no.py"),
    ],
)
def test_one_sentence(arguments, message, case):
    names = {"TRAIN": case.file.with_name("train.npz"), "PRIOR": case.prior}
    file = case.differences if "PRIOR" in arguments else case.file
    assert_one_sentence(
        invoke("certify", file, *(names.get(argument, argument) for argument in arguments)), message
    )
