"""A tiny configuration of probes."""

import itertools

import pytest

_numbers = itertools.count()

PROBE = """
_base_ = [{base!r}]
model = dict(
    _delete_=True,
    type="Probe",
    backbone=dict(model_name="test_vit", img_size=32),
    num_classes=3,
    heads=dict(
        ep=dict(num_queries=4),
        whole=dict(pooling="aim_all", num_heads=4),
        linear=dict(pooling="cls"),
    ),
)
val_evaluator = dict(_delete_=True, type="ProbeAccuracy")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=2, val_interval=1)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="ProbeOptimWrapperConstructor",
    optimizer=dict(type="lars", lr=5.0, momentum=0.9, trust_coeff=0.001, eps=0.0),
)
param_scheduler = dict(T_max=1, warmup=1, warmup_prefix=True, min_lr=0.0)
probing = dict(cache_dir={cache!r})
"""


@pytest.fixture
def probe_config(classification_config, tmp_path):
    """Its path."""
    path = tmp_path / f"probe_{next(_numbers)}.py"
    path.write_text(PROBE.format(base=str(classification_config), cache=str(tmp_path / "features")))
    return path


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
