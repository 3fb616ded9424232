"""Configurations: keys that nothing reads raise, with the nearest spelling."""

from pathlib import Path

import pytest

import visattn
from visattn.zoo.config import load_config
from visattn.zoo.errors import ConfigError
from visattn.zoo.signatures import accepted_arguments

CONFIGS = Path(visattn.__file__).parent / "configs"
MICRO = CONFIGS / "classification" / "biformer" / "biformer-micro_embedded.py"
TINY = MICRO.with_name("biformer-tiny_8xb128_in1k.py")


@pytest.fixture
def variant(tmp_path):
    """Writes a configuration that inherits from the embedded one, with further lines."""

    def write(lines: str) -> Path:
        path = tmp_path / "variant.py"
        path.write_text(f"_base_ = [{str(MICRO)!r}]\n{lines}\n")
        return path

    return write


@pytest.mark.parametrize("path", sorted((CONFIGS / "classification").glob("*/[!_]*.py")))
def test_shipped_configurations_are_valid(path):
    cfg = load_config(path)
    assert cfg.default_scope == "visattn"
    assert cfg.model.type == "ImageClassifier"
    command = path.read_text().split("_base_")[0].replace("\\\n#", "")
    assert f"tools/train.py {path.relative_to(CONFIGS.parent)}" in " ".join(command.split())


def test_bases_and_overrides_merge():
    cfg = load_config(MICRO, {"train_dataloader.dataset.pipeline.0.img_size": 48, "compile": True})
    assert cfg.train_dataloader.dataset.pipeline[0].img_size == 48
    assert cfg.train_dataloader.dataset.pipeline[0].type == "TimmTrainTransform"
    assert cfg.compile is True
    assert cfg.default_hooks.checkpoint.type == "AtomicCheckpointHook"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("train_dataloder = dict()", "'train_dataloder' .* did you mean 'train_dataloader'"),
        ("model = dict(backbon=1)", "'backbon' of ImageClassifier .*'backbone'"),
        (
            "model = dict(backbone=dict(drop_pth_rate=0.1))",
            "'drop_pth_rate' of biformer_tiny .*'drop_path_rate'",
        ),
        (
            "model = dict(backbone=dict(model_name='biformer_tinny'))",
            "unknown model 'biformer_tinny' .*'biformer_tiny'",
        ),
        (
            "optim_wrapper = dict(_delete_=True, optimizer=dict(type='AdamW8bit', lr=1.0))",
            "AdamW8bit .*pip install bitsandbytes",
        ),
        ("train_cfg = dict(max_epoch=3)", "'max_epoch' of ResumableEpochTrainLoop .*'max_epochs'"),
        ("val_cfg = dict(fp61=True)", "'fp61' of val_cfg.*'fp16'"),
        ("randomness = dict(sed=1)", "'sed' of randomness.*'seed'"),
        ("train_dataloader = dict(batchsize=1)", "'batchsize' of train_dataloader.*'batch_size'"),
        (
            "default_hooks = dict(checkpoint=dict(intervall=2))",
            "'intervall' of AtomicCheckpointHook .*'interval'",
        ),
        (
            "model = dict(type='ImageClasifier')",
            "unknown type 'ImageClasifier' .*'ImageClassifier'",
        ),
        (
            "optim_wrapper = dict(optimizer=dict(type='adamv'))",
            "unknown optimizer 'adamv' .*'adam'",
        ),
        (
            "optim_wrapper = dict(optimizer=dict(weight_decai=1))",
            "'weight_decai' of adamw .*'weight_decay'",
        ),
        ("param_scheduler = dict(warm_up=2)", "'warm_up' of WarmupCosineLR .*'warmup'"),
        (
            "model = dict(data_preprocessor=dict(standard=1))",
            "'standard' of model.data_preprocessor",
        ),
    ],
)
def test_misspelt_keys_raise(variant, lines, message):
    with pytest.raises(ConfigError, match=message):
        load_config(variant(lines))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train_cfg.max_epoch", "'max_epoch' there: did you mean 'max_epochs'"),
        ("trian_cfg.max_epochs", "no 'trian_cfg': did you mean 'train_cfg'"),
        ("model.backbone.depth", "unknown key 'depth' of biformer_tiny .*'depths'"),
        ("train_dataloader.dataset.pipeline.7.img_size", "no '7' in .*pipeline"),
        ("lr", "nothing reads 'lr' there"),
    ],
)
def test_overrides_of_nothing_raise(key, message):
    with pytest.raises(ConfigError, match=message):
        load_config(MICRO, {key: 1})


def test_models_that_cannot_be_built_are_refused(variant):
    path = variant("model = dict(backbone=dict(num_heads_last=3))")
    with pytest.raises(ConfigError, match="cannot build model.backbone.*divisible by num_heads 3"):
        load_config(path)


def test_override_of_a_type_brings_its_own_keys():
    cfg = load_config(
        MICRO, {"optim_wrapper.dtype": "bfloat16", "optim_wrapper.type": "AutocastOptimWrapper"}
    )
    assert cfg.optim_wrapper.dtype == "bfloat16"


def test_variables_that_are_used_are_no_unknown_keys(variant):
    assert load_config(variant("epochs = 7\ntrain_cfg = dict(max_epochs=epochs)")).epochs == 7


def test_albumentations_are_checked(variant):
    lines = """
train_dataloader = dict(dataset=dict(pipeline=[dict(
    type="AlbumentationsTransform",
    transforms=[dict(type="OneOf", transforms=[dict(type="GaussianBlur", {}=(3, 5))])],
)]))
"""
    load_config(variant(lines.format("blur_limit")))
    with pytest.raises(ConfigError, match="'blur_limt' of GaussianBlur .*'blur_limit'"):
        load_config(variant(lines.format("blur_limt")))


def test_missing_files_are_named(variant):
    with pytest.raises(ConfigError, match="no configuration at .*did you mean 'biformer-micro_emb"):
        load_config(MICRO.with_name("biformer-mikro_embedded.py"))
    path = variant("x = (")
    with pytest.raises(ConfigError, match="cannot read configuration .*variant.py"):
        load_config(path)
    path.write_text("_base_ = ['nowhere.py']")
    with pytest.raises(ConfigError, match="nowhere.py"):
        load_config(path)


def test_unknown_scope_is_refused(variant):
    with pytest.raises(ConfigError, match="default_scope 'mmrotate' is unknown"):
        load_config(variant("default_scope = 'mmrotate'"))


def test_recipe_is_that_of_the_paper():
    cfg = load_config(TINY)
    assert cfg.optim_wrapper.optimizer == {
        "type": "adamw",
        "lr": 5e-4,
        "weight_decay": 0.05,
        "eps": 1e-8,
    }
    assert cfg.auto_scale_lr == {"enable": True, "base_batch_size": 512}
    assert cfg.train_dataloader.batch_size == 128
    scheduler = {k: v for k, v in cfg.param_scheduler.items() if k != "type"}
    assert scheduler == {"T_max": 300, "warmup": 5, "warmup_lr": 1e-6, "min_lr": 1e-5}
    assert cfg.train_dataloader.sampler == {"type": "RepeatAugSampler", "num_repeats": 3}
    (transform,) = cfg.train_dataloader.dataset.pipeline
    assert transform.auto_augment == "rand-m9-mstd0.5-inc1"
    rates = {
        name: load_config(TINY.with_name(f"biformer-{name}_8xb128_in1k.py")).model.backbone
        for name in ("tiny", "small", "base", "stl")
    }
    assert {name: b.drop_path_rate for name, b in rates.items()} == {
        "tiny": 0.1,
        "small": 0.15,
        "base": 0.4,
        "stl": 0.1,
    }
    assert {b.model_name for b in rates.values()} == {f"biformer_{name}" for name in rates}


class Parent:
    def __init__(self, a, b=1):
        self.a, self.b = a, b


class Passing(Parent):
    def __init__(self, c, **kwargs):
        super().__init__(**kwargs)
        self.c = c


class Hoarding(Parent):
    def __init__(self, c, **kwargs):
        super().__init__(1)
        self.rest = kwargs


def to_parent(d, **options):
    return Parent(**options), d


class Elsewhere:
    def __init__(self, e, **kwargs):
        self.made = to_parent(**kwargs)
        self.e = e


@pytest.mark.parametrize(
    ("target", "names"),
    [
        (Parent, {"a", "b"}),
        (Passing, {"a", "b", "c"}),
        (Hoarding, None),
        (to_parent, {"a", "b", "d"}),
        (Elsewhere, {"a", "b", "d", "e"}),
    ],
)
def test_keyword_arguments_are_followed(target, names):
    assert accepted_arguments(target) == names
