"""Training runs: they learn, resume exactly, and do what their switches say."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn


def weights(runner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in runner.bare_model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], **tolerance) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name
        )


def test_training_learns_and_reports_accuracy(make_runner):
    runner = make_runner(overrides={"train_cfg.max_epochs": 5, "param_scheduler.T_max": 5})
    runner.train()
    assert runner.message_hub.get_scalar("val/accuracy/top1").current() >= 90
    losses = runner.message_hub.get_scalar("train/loss").data[0]
    assert losses[-5:].mean() < 0.5 * losses[:5].mean()


RICH = {
    "model": {
        "mixup": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0},
        "data_preprocessor": {"random_erasing": {"probability": 0.5, "mode": "pixel"}},
    },
    "custom_hooks": [{"type": "ModelEmaHook", "decay": 0.9}],
    "default_hooks": {"checkpoint": {"by_epoch": False, "interval": 4, "max_keep_ckpts": -1}},
}


LOOPS = {
    "epochs": {},
    "iterations": {
        "train_cfg": {
            "_delete_": True,
            "type": "ResumableIterTrainLoop",
            "max_iters": 18,
            "val_interval": 9,
        }
    },
    "endless sampler": {
        "train_cfg": {"_delete_": True, "type": "ResumableIterTrainLoop", "max_iters": 18},
        "train_dataloader": {"sampler": {"type": "InfiniteSampler"}},
    },
}


@pytest.mark.parametrize(
    ("loop", "interrupted_at"),
    [
        ("epochs", 9),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("epochs", 4), ("epochs", 12), ("iterations", 12), ("endless sampler", 4)]
        ),
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(make_runner, tmp_path, loop, interrupted_at):
    """Within an epoch (9 iterations), at its end and in the next one; even with other workers."""
    sections = {**RICH, **LOOPS[loop]}
    sections["default_hooks"] = {"checkpoint": {"by_epoch": False, "interval": 1}}
    sections["default_hooks"]["checkpoint"]["max_keep_ckpts"] = -1
    whole = make_runner("whole", **sections)
    whole.train()
    checkpoint = tmp_path / "part" / f"iter_{interrupted_at}.pth"
    checkpoint.parent.mkdir()
    shutil.copy(tmp_path / "whole" / checkpoint.name, checkpoint)
    (checkpoint.parent / "last_checkpoint").write_text(str(checkpoint))

    resumed = make_runner(
        "part", resume=True, overrides={"train_dataloader.num_workers": 2}, **sections
    )
    resumed.train()

    assert resumed.iter == whole.iter == 18
    assert_same(weights(resumed), weights(whole))
    a, b = (
        torch.load(tmp_path / name / "iter_18.pth", weights_only=True) for name in ("part", "whole")
    )
    assert_same(a["ema_state_dict"], b["ema_state_dict"])
    for key, state in a["optimizer"]["state"].items():
        assert_same(state, b["optimizer"]["state"][key])
    loss = [c["message_hub"]["log_scalars"]["train/loss"]["log"] for c in (a, b)]
    assert torch.equal(*loss) and len(loss[0]) == 18


@pytest.mark.parametrize("loop", ["epochs", "iterations"])
def test_resuming_with_another_epoch_length_is_refused(make_runner, loop):
    make_runner(**LOOPS[loop]).train()
    runner = make_runner(resume=True, overrides={"train_dataloader.batch_size": 6}, **LOOPS[loop])
    with pytest.raises(ValueError, match="9 iterations an epoch, this one has 6"):
        runner.train()


def test_synchronised_batch_norm_runs_in_one_process(make_runner):
    runner = make_runner()
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4))
    model[1].running_mean.fill_(2.0)
    wrapped = runner.wrap_model(None, model).train()
    assert wrapped(torch.randn(2, 3, 5, 5)).shape == (2, 4, 5, 5)
    assert wrapped.state_dict().keys() == model.state_dict().keys()


def test_resume_without_a_checkpoint_starts(make_runner):
    runner = make_runner("nothing_yet", resume=True)
    runner.train()
    assert runner.iter == 18


def test_resume_finds_a_moved_folder(make_runner, tmp_path):
    make_runner("old", overrides={"train_cfg.max_epochs": 1}).train()
    (tmp_path / "old").rename(tmp_path / "new")
    runner = make_runner("new", resume=True)
    runner.train()
    assert runner.iter == 18
    assert Path(runner._load_from).parent.name == "new"


DETERMINISTIC = {
    "optim_wrapper.optimizer": {"type": "sgd", "lr": 0.05},
    "param_scheduler": None,
    "model.backbone.drop_path_rate": 0.0,
    "train_dataloader.dataset.pipeline": [{"type": "TimmEvalTransform", "img_size": 32}],
}


def test_accumulated_steps_equal_one_large_step(make_runner):
    large = make_runner("large", overrides={**DETERMINISTIC, "train_dataloader.batch_size": 12})
    small = make_runner(
        "small", overrides={**DETERMINISTIC, "optim_wrapper.accumulative_counts": 3}
    )
    start = weights(small)
    large.bare_model.load_state_dict(start)
    for runner in (large, small):
        runner.train()
    assert (large.iter, small.iter) == (6, 18)
    assert_same(weights(small), weights(large), rtol=1e-3, atol=1e-6)
    assert not torch.equal(weights(small)["backbone.head.weight"], start["backbone.head.weight"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision(make_runner, dtype):
    runner = make_runner(
        overrides={"optim_wrapper.type": "AutocastOptimWrapper", "optim_wrapper.dtype": dtype}
    )
    seen = set()
    linear = runner.bare_model.backbone.blocks[0].mlp.fc1
    linear.register_forward_hook(
        lambda module, args, out: seen.add(out.dtype) if module.training else None
    )
    runner.train()
    assert seen == {getattr(torch, dtype)}
    assert {p.dtype for p in runner.bare_model.parameters()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in runner.bare_model.parameters())


def test_compile_switch_compiles_the_backbone(make_runner):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    make_runner(compile={"backend": "eager"}).train()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


def test_activation_checkpointing_gives_the_same_weights(make_runner):
    runners = [
        make_runner(f"{on}", overrides={"model.grad_checkpointing": on}) for on in (False, True)
    ]
    for runner in runners:
        runner.train()
    assert runners[1].bare_model.backbone.grad_checkpointing
    assert_same(*map(weights, runners), rtol=1e-4, atol=1e-6)


def test_learning_rate_scales_with_the_batch_of_a_step(make_runner):
    runner = make_runner(
        auto_scale_lr={"enable": True, "base_batch_size": 16},
        overrides={"optim_wrapper.accumulative_counts": 2, "train_cfg.max_epochs": 1},
    )
    runner.train()
    groups = runner.optim_wrapper.param_groups
    assert {group["initial_lr"] for group in groups} == {1e-3 * 4 * 2 / 16}


@pytest.mark.parametrize("evaluate", ["ema", "raw"])
def test_ema_follows_its_definition(make_runner, tmp_path, evaluate):
    runner = make_runner(
        custom_hooks=[{"type": "ModelEmaHook", "decay": 0.75, "evaluate": evaluate}],
        overrides={"train_cfg.max_epochs": 1},
        default_hooks={"checkpoint": {"by_epoch": False, "interval": 1, "max_keep_ckpts": -1}},
    )
    runner.train()
    files = [
        torch.load(tmp_path / "run" / f"iter_{i}.pth", weights_only=True) for i in range(1, 10)
    ]
    name = "backbone.head.weight"
    parts = [(f["state_dict"][name], f["ema_state_dict"][f"module.{name}"]) for f in files]
    raw, average = zip(*(part[:: -1 if evaluate == "ema" else 1] for part in parts), strict=True)
    expected = raw[0]
    for step in range(1, 9):
        expected = 0.75 * expected + 0.25 * raw[step]
        torch.testing.assert_close(average[step], expected)
    torch.testing.assert_close(runner.bare_model.state_dict()[name], raw[-1])


def test_ema_averages_once_per_optimiser_step(make_runner):
    runner = make_runner(
        custom_hooks=[{"type": "ModelEmaHook", "decay": 0.9}],
        overrides={"optim_wrapper.accumulative_counts": 3, "train_cfg.max_epochs": 1},
    )
    runner.train()
    hook = next(h for h in runner.hooks if type(h).__name__ == "ModelEmaHook")
    assert hook.ema_model.steps == 3


def test_bad_loss_does_not_go_unnoticed(make_runner):
    with pytest.raises(ValueError, match="soft targets"):
        make_runner(
            overrides={"model.mixup": {"mixup_alpha": 0.8}},
            model={"loss": {"type": "LabelSmoothingCrossEntropy"}},
        )


def test_odd_batch_with_mixup_names_the_remedy(make_runner):
    runner = make_runner(
        overrides={"train_dataloader.batch_size": 3, "model.mixup": {"mixup_alpha": 0.8}}
    )
    with pytest.raises(ValueError, match="even train_dataloader.batch_size"):
        runner.train()


def test_more_classes_than_outputs_are_refused_before_training(make_runner):
    runner = make_runner(overrides={"model.backbone.num_classes": 2})
    with pytest.raises(ValueError, match="set model.backbone.num_classes=3"):
        runner.train()


def test_images_smaller_than_the_stride_are_refused(make_runner):
    pipeline = [{"type": "TimmTrainTransform", "img_size": 16}]
    runner = make_runner(
        overrides={"train_dataloader.dataset.pipeline": pipeline},
        model={"backbone": {"_delete_": True, "model_name": "test_resnet", "num_classes": 3}},
    )
    with pytest.raises(ValueError, match="16x16 are smaller than the stride 32"):
        runner.train()


def test_batch_larger_than_the_data_is_refused(make_runner):
    runner = make_runner(overrides={"train_dataloader.batch_size": 64})
    with pytest.raises(ValueError, match="36 images make no batch of 64"):
        runner.train()


def test_missing_data_folder_is_refused(make_runner):
    root = "data/nowhere/embedded/digits/train"
    with pytest.raises(ValueError, match="python -m visattn.zoo.data.embedded data/nowhere/emb"):
        make_runner(overrides={"train_dataloader.dataset.data_root": root})


def test_normalisation_is_that_of_the_model(make_runner):
    runner = make_runner()
    cfg = runner.bare_model.backbone.pretrained_cfg
    image = torch.full((1, 3, 32, 32), 51, dtype=torch.uint8)
    out = runner.bare_model.data_preprocessor({"inputs": image})["inputs"]
    expected = (0.2 - torch.tensor(cfg["mean"])) / torch.tensor(cfg["std"])
    torch.testing.assert_close(out[0, :, 0, 0], expected)
    assert isinstance(runner.bare_model.loss, nn.CrossEntropyLoss)


def test_weights_loaded_at_construction_survive_the_start_of_training(make_runner, tmp_path):
    source = make_runner("source")
    torch.save(source.bare_model.backbone.state_dict(), tmp_path / "weights.pth")
    runner = make_runner(
        "target",
        overrides={"model.checkpoint": str(tmp_path / "weights.pth"), **DETERMINISTIC},
        randomness={"seed": 1},
        optim_wrapper={"optimizer": {"lr": 0.0}},
    )
    runner.train()
    assert_same(weights(runner), weights(source))
