"""Fixtures that several rooms share."""

import copy
import itertools
import json
import os
import re
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

# Triton kernels run on the CPU; read when triton and the kernels are imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

# mmengine keeps the state of a run under its name, which must not occur twice.
_run_numbers = itertools.count()

GOLDENS = Path(__file__).parent / "goldens"


# Of interpreted Triton kernels, which take long: repeats show little, as the interpreter has one
# thread; and registration and lower precision are those of code that other tests run.
_HEAVY_IF_INTERPRETED = re.compile(
    r"test_is_deterministic|test_operators_are_registered_rightly"
    r"|test_is_as_exact_as_the_reference.*(bfloat16|float16)"
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leaves tests of interpreted kernels that take long to ``make test-heavy``."""
    for item in items:
        if "triton" in item.name and _HEAVY_IF_INTERPRETED.match(item.name):
            item.add_marker(pytest.mark.heavy)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)


def rule_made_tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value that the recorded models had under an official key, from the key and its shape."""
    noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    *path, leaf = key.split(".")
    if leaf == "running_var":
        value = 1 + 0.1 * np.abs(noise)
    elif leaf.startswith("gamma"):
        value = 0.5 + 0.1 * noise
    elif leaf == "weight" and len(shape) >= 2:
        sharpened = {"qkv", "q", "k", "kv", "qk"} & set(path)
        value = (2.0 if sharpened else 0.5) * noise / np.sqrt(np.prod(shape[1:]))
    elif leaf == "weight":
        value = 1 + 0.1 * noise
    elif leaf in ("bias", "running_mean"):
        value = 0.1 * noise
    else:
        value = noise
    return torch.from_numpy(np.asarray(value, dtype=np.float32)).reshape(shape)


def rule_made_state_dict(keys: dict[str, list]) -> dict[str, torch.Tensor]:
    return {
        key: rule_made_tensor(key, tuple(shape)) if "float" in dtype else torch.zeros(shape).long()
        for key, (shape, dtype) in keys.items()
    }


@pytest.fixture(scope="session")
def golden():
    """Reads what an official model has and computes; see tests/goldens/README.md."""

    def read(name: str) -> SimpleNamespace:
        record = json.loads((GOLDENS / f"{name}.json").read_text())
        return SimpleNamespace(
            params=record["params"],
            keys=record["keys"],
            inputs={key: value["input"] for key, value in record["outputs"].items()},
            outputs=dict(np.load(GOLDENS / f"{name}.npz")),
            state_dict=rule_made_state_dict(record["keys"]),
        )

    return read


@pytest.fixture(scope="session")
def rule_made():
    """``rule_made_tensor``."""
    return rule_made_tensor


@pytest.fixture(scope="session")
def golden_image():
    """Standard-normal images of a shape, as the recorded outputs were computed from."""

    def image(shape: list[int]) -> torch.Tensor:
        return torch.from_numpy(np.random.RandomState(0).standard_normal(shape).astype(np.float32))

    return image


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Noisy images of three colours, 12 a class to train on and 4 to test, as an ImageFolder."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.RandomState(0)
    for split, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(("blue", "green", "red")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.randint(0, 120, (32, 32, 3), dtype=np.uint8)
                pixels[..., 2 - label] += 120
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture
def classification_config(image_folder, tmp_path):
    """Writes a configuration that trains a tiny model on ``image_folder``; gives its path."""
    runtime = Path(__file__).parents[1] / "configs" / "_base_" / "default_runtime.py"
    path = tmp_path / "tiny.py"
    path.write_text(
        f"""
_base_ = [{str(runtime)!r}]
default_scope = "visattn"
model = dict(
    type="ImageClassifier",
    backbone=dict(model_name="test_vit", num_classes=3, img_size=32, drop_path_rate=0.1),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        data_root="{image_folder}/train",
        pipeline=[dict(type="TimmTrainTransform", img_size=32, scale=(0.5, 1.0))],
    ),
)
val_dataloader = dict(
    batch_size=5,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        data_root="{image_folder}/val",
        pipeline=[dict(type="TimmEvalTransform", img_size=32, crop_pct=1.0)],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=2, val_interval=2)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="adamw", lr=1e-3, weight_decay=0.05),
)
param_scheduler = dict(
    type="WarmupCosineLR", T_max=2, warmup=1, min_lr=1e-5, convert_to_iter_based=True
)
visualizer = dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")])
log_level = "ERROR"
"""
    )
    return path


@pytest.fixture
def make_runner(classification_config, tmp_path):
    """Builds runners of the tiny configuration, each with overrides and its own folder."""
    from visattn.zoo.config import load_config
    from visattn.zoo.training.runner import build_runner

    torch.set_num_threads(1)

    def make(name: str = "run", resume: bool = False, mode: str = "train", **sections):
        overrides = sections.pop("overrides", {})
        cfg = load_config(classification_config, overrides)
        cfg.merge_from_dict(copy.deepcopy(sections))
        cfg.work_dir = str(tmp_path / name)
        cfg.experiment_name = f"{tmp_path.name}_{name}_{next(_run_numbers)}"
        cfg.resume = resume
        return build_runner(cfg, mode)

    return make


_PROBE = """
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
    """Writes a configuration of probes of a tiny model; gives its path."""
    path = tmp_path / f"probe_{next(_run_numbers)}.py"
    path.write_text(
        _PROBE.format(base=str(classification_config), cache=str(tmp_path / "features"))
    )
    return path


@pytest.fixture(scope="session")
def embedded_root(tmp_path_factory):
    """A folder with ``data/embedded``: digits, six scenes to train on, four to test, few people."""
    from visattn.zoo.data import cards, embedded, pedestrians

    root = tmp_path_factory.mktemp("embedded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "SCENES", {"train": 6, "val": 4})
        patch.setattr(embedded, "GLYPHS_PER_SCAN", 0)
        patch.setattr(cards, "CARDS", {"train": 24, "val": 6})
        patch.setattr(pedestrians, "PEOPLE", {"train": 4, "test": 2})
        embedded.make_embedded(root / "data/embedded")
    return root


@pytest.fixture(scope="session")
def scenes(embedded_root):
    """Folder of the embedded scenes, as COCO and as maps of classes."""
    return embedded_root / "data/embedded/scenes"


_DENSE_MODELS = {
    "detection": (
        "mmdet",
        "models/mask-rcnn_fpn_micro.py",
        "datasets/embedded_scenes_instance.py",
    ),
    "segmentation": ("mmseg", "models/upernet_micro.py", "datasets/embedded_scenes_semantic.py"),
}


@pytest.fixture
def dense_config(scenes, tmp_path):
    """Writes configurations of small models on ``scenes``, with a checkpoint of random weights.

    The function takes ``"detection"`` or ``"segmentation"`` and code to add; it gives the paths of
    the configuration and of the checkpoint.
    """
    from visattn.zoo.config import load_config
    from visattn.zoo.models import build_configured

    def write(task: str, more: str = "") -> tuple[Path, Path]:
        configs = Path(__file__).parents[1] / "configs"
        scope, *bases = _DENSE_MODELS[task]
        bases = [str(configs / task / "_base_" / base) for base in bases]
        annotations = scenes / "annotations" / "instances_val2017.json"
        evaluator = f"dict(ann_file={str(annotations)!r})" if task == "detection" else "dict()"
        # mmengine keeps the state of a run under the name of its configuration.
        path = tmp_path / f"{task}_{next(_run_numbers)}.py"
        path.write_text(f"""
_base_ = {[*bases, str(configs / "_base_" / "default_runtime.py")]!r}
default_scope = {scope!r}
model = dict(
    backbone=dict(
        model_name="nat_mini", depths=(1, 1, 1, 1), embed_dim=32, norm_outputs="layernorm2d"
    )
)
train_dataloader = dict(batch_size=2, dataset=dict(data_root="{scenes}/"))
val_dataloader = dict(batch_size=2, dataset=dict(data_root="{scenes}/"))
test_dataloader = val_dataloader
val_evaluator = {evaluator}
test_evaluator = {evaluator}
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=1)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01))
val_cfg = dict()
test_cfg = dict()
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
log_level = "ERROR"
{more}""")
        torch.manual_seed(0)
        model = build_configured(load_config(path))
        torch.save({"meta": {}, "state_dict": model.state_dict()}, path.with_suffix(".pth"))
        return path, path.with_suffix(".pth")

    return write


@pytest.fixture(scope="session")
def tiny_diffusion(tmp_path_factory):
    """Folder of a Stable Diffusion with random weights for pictures of 64 x 64; gated, GLIGEN's.

    The function takes whether the UNet is GLIGEN's.
    """
    import string
    from functools import cache

    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = string.ascii_lowercase + string.digits + ",."
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    vocabulary = {token: number for number, token in enumerate(tokens)}

    @cache
    def save(gated: bool = False) -> Path:
        torch.manual_seed(0)
        text = CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(
                block_out_channels=(8, 8, 8, 8),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                norm_num_groups=4,
                sample_size=64,
            ),
            text_encoder=CLIPTextModel(text),
            tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
            unet=UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(32, 64),
                layers_per_block=1,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                cross_attention_dim=32,
                attention_head_dim=8,
                norm_num_groups=8,
                attention_type="gated" if gated else "default",
            ),
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                steps_offset=1,
                set_alpha_to_one=False,
                clip_sample=False,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        folder = tmp_path_factory.mktemp("diffusion")
        pipeline.save_pretrained(folder)
        return folder

    return save
