"""A tiny pipeline, and runs that train it or ROICtrl in it on embedded cards."""

import itertools
from pathlib import Path

import pytest
import torch

import visattn

CONFIGS = Path(visattn.__file__).parent / "configs" / "diffusion"
_runs = itertools.count()

TINY = {
    "vae": {"factor": 4},
    "unet": {
        "sample_size": 8,
        "in_channels": 48,
        "out_channels": 48,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    },
    "text": {
        "words": ("a", "red", "seven"),
        "max_length": 8,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "scheduler": {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False, "steps_offset": 1},
    "sampling": {"num_inference_steps": 2, "guidance_scale": 3.0},
}


@pytest.fixture(scope="session")
def tiny():
    """Arguments of ``LatentDiffusion`` for a tiny model of random weights."""
    return TINY


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Folder of a tiny pipeline."""
    from visattn.zoo.diffusion.model import LatentDiffusion

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipeline")
    LatentDiffusion(**TINY).pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def make_run(embedded_root, tiny_folder, tmp_path):
    """Builds runners that train a tiny model, ``base`` or ``roictrl``, on cards.

    They are of the embedded recipes with another model, 4 iterations, and what is given.
    """
    from visattn.zoo.config import load_config
    from visattn.zoo.training.runner import build_runner

    torch.set_num_threads(1)

    def make(kind, name="run", resume=False, validate=False, **changes):
        cfg = load_config(CONFIGS / f"{kind}-micro_embedded.py")
        if kind == "base":
            cfg.model = {"type": "LatentDiffusion", **TINY}
        else:
            cfg.model.pretrained = str(tiny_folder)
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.update(batch_size=3)
            loader.dataset.data_root = str(embedded_root / "data/embedded/cards")
        if not validate:
            cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
        cfg.train_cfg.update(max_iters=4, val_interval=100)
        cfg.default_hooks.checkpoint.interval = 2
        cfg.default_hooks.logger.interval = 1
        cfg.merge_from_dict(changes)
        cfg.visualizer = {"type": "Visualizer", "vis_backends": []}
        cfg.work_dir, cfg.resume, cfg.log_level = str(tmp_path / name), resume, "ERROR"
        cfg.experiment_name = f"{tmp_path.name}_{name}_{next(_runs)}"
        return build_runner(cfg)

    return make
