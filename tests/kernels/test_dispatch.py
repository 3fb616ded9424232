"""Choosing an implementation: what is asked for by name runs or raises."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from visattn.kernels import dispatch, use_impl


def can(ok, reason=""):
    return lambda: (ok, reason)


def test_auto_takes_the_first_that_can_run():
    candidates = {"natten": can(False, "no"), "cpu": can(True)}
    assert dispatch.choose("op", "auto", candidates) == "cpu"
    assert dispatch.choose("op", None, candidates) == "cpu"
    assert dispatch.choose("op", "auto", {"cpu": can(False, "no")}) == "reference"


def test_auto_leaves_interpreted_triton_alone():
    assert dispatch.choose("op", "auto", {"triton": can(True), "cpu": can(True)}) == "cpu"
    assert dispatch.choose("op", "triton", {"triton": can(True)}) == "triton"


def test_auto_says_once_what_it_takes(caplog):
    with caplog.at_level(logging.INFO, "visattn.kernels"):
        for _ in range(2):
            dispatch.choose("an_op", "auto", {"natten": can(False, "it is away"), "cpu": can(True)})
    assert len(caplog.messages) == 1
    assert "an_op runs with impl='cpu'" in caplog.text and "natten: it is away" in caplog.text


def test_a_named_implementation_never_falls_back():
    with pytest.raises(RuntimeError, match="op cannot run with impl='cpu': it is away"):
        dispatch.choose("op", "cpu", {"cpu": can(False, "it is away")})
    with pytest.raises(RuntimeError, match="no implementation 'natten', only 'reference', 'cpu'"):
        dispatch.choose("op", "natten", {"cpu": can(True)})
    with pytest.raises(ValueError, match="impl must be one of auto, reference"):
        dispatch.choose("op", "gpu", {})


def test_use_impl_holds_within_its_block():
    candidates = {"cpu": can(True)}
    with use_impl("reference"):
        assert dispatch.choose("op", None, candidates) == "reference"
        assert dispatch.choose("op", "cpu", candidates) == "cpu"
        with use_impl("cpu"):
            assert dispatch.choose("op", None, candidates) == "cpu"
        assert dispatch.choose("op", None, candidates) == "reference"
    assert dispatch.choose("op", None, candidates) == "cpu"
    with pytest.raises(ValueError, match="use_impl must be one of"), use_impl("gpu"):
        pass


@pytest.mark.parametrize(
    "value, printed", [("reference", "reference"), ("gpu", "VISATTN_IMPL must")]
)
def test_the_environment_sets_the_default(value, printed):
    code = (
        "from visattn.kernels.dispatch import choose\n"
        "print(choose('op', None, {'cpu': lambda: (True, '')}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "VISATTN_IMPL": value},
        capture_output=True,
        text=True,
    )
    assert printed in run.stdout + run.stderr


def test_reasons_name_what_is_wrong():
    double, half = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float16)
    assert dispatch.cpu_can_run(half, None) == (True, "")
    assert "float64" in dispatch.cpu_can_run(half, double)[1]
    assert "on meta" in dispatch.cpu_can_run(half.to("meta"))[1]
