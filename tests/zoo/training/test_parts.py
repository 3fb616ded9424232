"""Parts of training on their own: parameter groups, schedule, preprocessing, accuracy."""

import math

import pytest
import timm
import torch
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from timm.scheduler import CosineLRScheduler

from visattn.zoo.errors import ConfigError
from visattn.zoo.registry import register_all
from visattn.zoo.training.classifier import ImageClassifier, ImagePreprocessor
from visattn.zoo.training.metrics import Accuracy
from visattn.zoo.training.optim import parameter_groups
from visattn.zoo.training.schedulers import WarmupCosineLR, YOLOXWarmCosineLR


def test_weight_decay_spares_vectors_and_what_the_model_names():
    model = timm.create_model("test_vit", num_classes=3)
    groups = parameter_groups(model, 1.0, 0.05)
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    for name, parameter in model.named_parameters():
        spared = parameter.ndim <= 1 or name in model.no_weight_decay()
        assert (id(parameter) in decayed) is not spared, name


def test_layer_decay_follows_the_layers_of_the_model():
    model = ImageClassifier({"model_name": "test_vit", "num_classes": 3})
    groups = parameter_groups(model, 1.0, 0.0, layer_decay=0.5)
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    rates = {name: rate[id(p)] for name, p in model.named_parameters()}
    blocks = [rates[f"backbone.blocks.{i}.attn.qkv.weight"] for i in range(6)]
    assert rates["backbone.head.weight"] == 1.0
    assert blocks == sorted(blocks) and blocks[0] == 0.5 * blocks[1]
    assert rates["backbone.patch_embed.proj.weight"] == 0.5 * blocks[0]
    assert len(rate) == len(rates)


def test_schedule_is_timms():
    ours, theirs = (torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5) for _ in "ab")
    scheduler = WarmupCosineLR(ours, T_max=20, warmup=4, warmup_lr=0.01, min_lr=0.02)
    reference = CosineLRScheduler(
        theirs, t_initial=20, warmup_t=4, warmup_lr_init=0.01, lr_min=0.02
    )
    for step in range(25):
        reference.step(step)
        mine, expected = (optimizer.param_groups[0]["lr"] for optimizer in (ours, theirs))
        assert math.isclose(mine, expected, rel_tol=1e-9), step
        ours.step()
        scheduler.step()


def test_schedule_of_yolox():
    """Rates of the sheet: quadratic from a tenth, half a cosine, a hundredth at the end."""
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    scheduler = YOLOXWarmCosineLR(optimizer, T_max=72, warmup=3, constant=3.6)
    rates = []
    for _ in range(72):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:4] == pytest.approx([0.2, 0.4, 1.0, 2.0])
    middle = 3 + (72 - 3 - 3.6) / 2
    expected = 2 * (0.01 + 0.495 * (1 + math.cos(math.pi * (35 - 3) / (2 * (middle - 3)))))
    assert rates[35] == pytest.approx(expected)
    assert rates[69:] == pytest.approx([0.02] * 3)
    assert all(a > b for a, b in zip(rates[3:69], rates[4:70], strict=True))


def test_gradients_are_clipped(make_runner):
    class StepSize(Hook):
        steps = []

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            self.before = torch.cat([p.flatten() for p in runner.bare_model.parameters()]).detach()

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            after = torch.cat([p.flatten() for p in runner.bare_model.parameters()])
            self.steps.append((after - self.before).norm().item())

    hook = StepSize()
    runner = make_runner(
        overrides={
            "optim_wrapper.clip_grad": {"max_norm": 1e-3},
            "optim_wrapper.optimizer.type": "momentum",
            "optim_wrapper.optimizer.lr": 1.0,
            "optim_wrapper.optimizer.weight_decay": 0.0,
            "optim_wrapper.optimizer.momentum": 0.0,
            "param_scheduler": None,
            "train_cfg.max_epochs": 1,
        }
    )
    runner.register_hook(hook)
    runner.train()
    assert hook.steps == pytest.approx([1e-3] * 9, rel=1e-2)


def test_only_training_erases():
    preprocessor = ImagePreprocessor(random_erasing={"probability": 1.0, "mode": "const"})
    data = {"inputs": torch.full((2, 3, 16, 16), 255, dtype=torch.uint8)}
    assert (preprocessor(data, training=True)["inputs"] == 0).any()
    assert (preprocessor(data)["inputs"] != 0).all()


def test_accuracy_counts_ties_and_nan_as_wrong():
    metric = Accuracy(topk=(1, 2, 5))
    scores = [[0.6, 0.3, 0.1], [0.3, 0.5, 0.2], [1 / 3, 1 / 3, 1 / 3], [math.nan] * 3]
    metric.process(None, [{"scores": torch.tensor(s), "label": 0} for s in scores])
    assert metric.evaluate(4) == {"accuracy/top1": 25.0, "accuracy/top2": 50.0}


@pytest.fixture
def branches():
    """A backbone that gives several branches' outputs in training."""
    return {
        "model_name": "dcal_deit_tiny_patch16",
        "num_classes": 3,
        "depth": 2,
        "embed_dim": 48,
        "img_size": 32,
    }


@pytest.mark.parametrize("mixup", [None, {"mixup_alpha": 0.8, "label_smoothing": 0.0}])
def test_losses_of_branches_are_combined(branches, mixup):
    model = ImageClassifier(branches, loss={"type": "DualCrossAttentionLoss"}, mixup=mixup)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    model.train()(images, labels, mode="loss")["loss"].backward()
    assert model.backbone.loss_weights.grad.all()
    scores = [sample["scores"] for sample in model.eval()(images, labels, mode="predict")]
    torch.testing.assert_close(torch.stack(scores).sum(-1), torch.ones(4))


def test_loss_of_one_output_names_the_remedy(branches):
    model = ImageClassifier(branches).train()
    with pytest.raises(ConfigError, match="type='DualCrossAttentionLoss'"):
        model(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), mode="loss")


@pytest.mark.parametrize("scope", ["visattn", "mmdet", "mmseg"])
def test_loss_is_of_classification_in_any_scope(scope):
    register_all(scope)
    with DefaultScope.overwrite_default_scope(scope):
        model = ImageClassifier({"model_name": "resnet18", "num_classes": 3})
    assert type(model.loss) is torch.nn.CrossEntropyLoss


def test_a_cosine_after_the_warm_up():
    """The schedule of linear probing: 90 epochs, 10 of them warm-up, at a batch of 4096."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1 * 4096 / 256)
    schedule = WarmupCosineLR(optimizer, T_max=80, warmup=10, warmup_prefix=True)
    rates = []
    for _ in range(91):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    wanted = {0: 0.0, 5: 0.8, 10: 1.6, 50: 0.8, 90: 0.0}
    assert {epoch: rates[epoch] for epoch in wanted} == pytest.approx(wanted, abs=1e-9)
