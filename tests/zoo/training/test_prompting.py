"""Training of prompts in a frozen backbone."""

import json

import pytest
import torch
from mmengine.hooks import Hook

from visattn.heads.prompts import is_prompted
from visattn.zoo.checkpoint import CheckpointError, load_checkpoint, read_state_dict
from visattn.zoo.config import load_config
from visattn.zoo.errors import ConfigError
from visattn.zoo.models import build_configured
from visattn.zoo.training.classifier import ImageClassifier
from visattn.zoo.training.prompting import DIGEST

TCPA = {"type": "tcpa", "pool_size": 4, "topk": 2, "random_epoch": 1}
BACKBONE = {"model_name": "test_vit", "num_classes": 3, "img_size": 32}


@pytest.fixture
def backbone_file(tmp_path):
    """Weights of a backbone to be frozen."""
    torch.manual_seed(7)
    path = tmp_path / "backbone.pth"
    torch.save(ImageClassifier(BACKBONE).backbone.state_dict(), path)
    return str(path)


@pytest.fixture
def overrides(backbone_file):
    return {
        "model.checkpoint": backbone_file,
        "model.prompts": TCPA,
        "optim_wrapper.optimizer.lr": 0.02,
        "default_hooks.checkpoint.by_epoch": False,
        "default_hooks.checkpoint.max_keep_ckpts": -1,
    }


def trained(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def last_checkpoint(folder):
    return (folder / "last_checkpoint").read_text()


def test_loss_has_the_pool_loss_by_its_weight():
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    losses = {}
    for weight in (0.01, 0.5):
        torch.manual_seed(0)
        model = ImageClassifier(BACKBONE, prompts=TCPA, pool_loss_weight=weight).eval()
        losses[weight] = model(images, labels, mode="loss")
    assert losses[0.01]["loss"] == losses[0.5]["loss"]
    torch.testing.assert_close(50 * losses[0.01]["pool_loss"], losses[0.5]["pool_loss"])
    # Six blocks, in which tokens are nearly orthogonal to random keys.
    assert 2 * 3 < losses[0.5]["pool_loss"] / 0.5 < 2 * 6
    assert "pool_loss" not in ImageClassifier(BACKBONE)(images, labels, mode="loss")
    total, logged = model.parse_losses(losses[0.5])
    torch.testing.assert_close(total, losses[0.5]["loss"] + losses[0.5]["pool_loss"])


def test_backbone_stays_as_it_was(train, overrides, backbone_file):
    runner = train("run", {**overrides, "train_cfg.max_epochs": 1})
    model = runner.bare_model
    before = torch.load(backbone_file, weights_only=True)
    for name, value in model.backbone.state_dict().items():
        if name in before and not name.startswith("head."):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(model.backbone.head.weight, before["head.weight"])
    states = runner.optim_wrapper.optimizer.state
    assert len(states) == len(trained(model))


def test_checkpoints_hold_only_what_is_trained(train, overrides, tmp_path):
    runner = train("run", {**overrides, "train_cfg.max_epochs": 1})
    saved = torch.load(last_checkpoint(tmp_path / "run"), weights_only=True)["state_dict"]
    assert saved.keys() == trained(runner.bare_model).keys() | {DIGEST}


def test_resumed_training_ends_in_the_same_weights(train, overrides, tmp_path):
    # The first epoch chooses at random; the interruption is within the second.
    expected = trained(train("whole", overrides).bare_model)
    train("parts", overrides, stop_before=11)
    resumed = train("parts", overrides, resume=True)
    for name, value in trained(resumed.bare_model).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.slow
def test_resumed_training_keeps_its_average(train, overrides, tmp_path):
    hooks = {"custom_hooks": [{"type": "ModelEmaHook", "decay": 0.9}]}
    ends = []
    for name, resume in (("whole", False), ("parts", True)):
        if resume:
            train(name, {**overrides, **hooks}, stop_before=11)
        runner = train(name, {**overrides, **hooks}, resume=resume)
        ema = next(h for h in runner.hooks if type(h).__name__ == "ModelEmaHook").ema_model
        ends.append(trained(ema.module))
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_epochs_reach_the_pools(train, overrides):
    class Phases(Hook):
        seen = []

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            pools = runner.bare_model.backbone.blocks[0].prompts
            self.seen.append((runner.epoch, pools.image.random))

    train("run", overrides, hooks=[Phases()])
    assert set(Phases.seen) == {(0, True), (1, False)}


def test_checkpoint_predicts_in_a_fresh_model(train, overrides, classification_config, tmp_path):
    model = train("run", {**overrides, "train_cfg.max_epochs": 1}).bare_model.eval()
    keys = ("model.checkpoint", "model.prompts")
    cfg = load_config(classification_config, {k: overrides[k] for k in keys})
    fresh = build_configured(cfg)
    load_checkpoint(fresh, last_checkpoint(tmp_path / "run"))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(fresh(images), model(images))


def test_checkpoint_is_tested_by_the_runner(train, make_runner, overrides, tmp_path):
    runner = train("run", overrides)
    expected = runner.val_loop.run()
    last = last_checkpoint(tmp_path / "run")
    tester = make_runner("test", mode="test", overrides={**overrides, "load_from": last})
    assert tester.test() == expected


def test_a_run_of_a_classifier_is_what_to_start_from(train, tmp_path):
    trained = train("run", {"train_cfg.max_epochs": 1}).bare_model.backbone
    model = ImageClassifier(BACKBONE, checkpoint=last_checkpoint(tmp_path / "run"))
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name


@pytest.mark.parametrize("resume", [False, True])
def test_other_frozen_weights_are_refused(resume, train, overrides, backbone_file, tmp_path):
    train("run", {**overrides, "train_cfg.max_epochs": 1})
    state = torch.load(backbone_file, weights_only=True)
    state["blocks.0.norm1.bias"] += 1
    torch.save(state, backbone_file)
    where = {} if resume else {"load_from": last_checkpoint(tmp_path / "run")}
    with pytest.raises(CheckpointError, match="another frozen backbone: set model.checkpoint"):
        train("run" if resume else "other", {**overrides, **where}, resume=resume)


def test_last_and_best_on_validation_are_tested(train, overrides, tmp_path):
    runner = train(
        "run",
        {
            **overrides,
            "custom_hooks": [{"type": "FinalTestHook"}],
            "default_hooks.checkpoint.save_best": "accuracy/top1",
            "train_cfg.val_interval": 1,
        },
    )
    results = json.loads((tmp_path / "run" / "test_results.json").read_text())
    assert results.keys() == {"last", "best_on_val"}
    top1 = [r["accuracy/top1"] for r in results.values()]
    # Here the test set is the validation set.
    assert top1[1] == runner.message_hub.get_info("best_score") >= top1[0]
    saved = read_state_dict(last_checkpoint(tmp_path / "run"))
    assert all(torch.equal(saved[n], v) for n, v in trained(runner.bare_model).items())


def test_final_test_is_not_of_averages(make_runner):
    hooks = [{"type": "FinalTestHook"}, {"type": "ModelEmaHook"}]
    with pytest.raises(ConfigError, match="not their average"):
        make_runner(custom_hooks=hooks).train()


@pytest.mark.parametrize(
    ("batch_size", "options", "message"),
    [
        (5, {"drop_odd": True}, "one has size 1: set an even"),
        (7, {}, "one has size 7.*or model.drop_odd=True"),
        (1, {"drop_odd": True}, "one has size 1"),
    ],
)
def test_batches_that_cannot_be_mixed_are_refused_before_training(
    batch_size, options, message, make_runner
):
    runner = make_runner(
        overrides={
            "train_dataloader.batch_size": batch_size,
            "train_dataloader.drop_last": False,
            "model.mixup": {"mixup_alpha": 0.8},
            **{f"model.{key}": value for key, value in options.items()},
        }
    )
    with pytest.raises(ValueError, match=message):
        runner.train_loop  # noqa: B018  builds it


def test_last_image_of_an_odd_batch_is_dropped():
    mixup = {"mixup_alpha": 0.8, "prob": 0.5, "label_smoothing": 0.1}
    model = ImageClassifier(BACKBONE, mixup=mixup, drop_odd=True)
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    for size in (5, 4):
        labels = torch.zeros(size, dtype=torch.long)
        assert model(torch.randn(size, 3, 32, 32), labels, mode="loss")["loss"].isfinite()
    assert seen == [4, 4]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"type": "tcpa", "topkk": 3}, "'topkk' of tcpa .*did you mean 'topk'"),
        ({"type": "tcap"}, r"unknown type 'tcap' \(model.prompts\): did you mean 'tcpa'"),
    ],
)
def test_wrong_keys_are_refused_with_the_nearest(prompts, message, classification_config):
    with pytest.raises(ConfigError, match=message):
        load_config(classification_config, {"model.prompts": prompts})


def test_impossible_values_are_refused():
    with pytest.raises(ConfigError, match="model.prompts: topk must be between 1 and"):
        ImageClassifier(BACKBONE, prompts={"type": "tcpa", "topk": 99})
    with pytest.raises(ConfigError, match="a ResNet is another network"):
        ImageClassifier({"model_name": "test_resnet"}, prompts={"type": "linear"})


def test_models_without_prompts_need_no_hooks():
    model = ImageClassifier(BACKBONE)
    assert model.training_hooks() == [] and not is_prompted(model.backbone)
