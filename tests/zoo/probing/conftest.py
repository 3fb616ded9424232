"""Runs of a tiny configuration of probes."""

import itertools

import pytest

_numbers = itertools.count()


@pytest.fixture
def load(probe_config, tmp_path):
    """Reads it with changes, for a run of its own."""
    from visattn.zoo.config import load_config

    def read(**overrides):
        cfg = load_config(
            probe_config, {key.replace("__", "."): value for key, value in overrides.items()}
        )
        cfg.work_dir = str(tmp_path / "run")
        cfg.experiment_name = f"{tmp_path.name}_{next(_numbers)}"
        return cfg

    return read
