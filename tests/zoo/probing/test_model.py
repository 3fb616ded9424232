"""Heads side by side on a network that stays as it is."""

import pytest
import torch
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS

from visattn.zoo.errors import ConfigError
from visattn.zoo.probing.metrics import ProbeAccuracy
from visattn.zoo.registry import register_all
from visattn.zoo.training.runner import build_runner

register_all()

VIT = {"model_name": "test_vit", "img_size": 32}


def build(heads, **kwargs):
    cfg = {"type": "Probe", "backbone": VIT, "num_classes": 3, "heads": heads, **kwargs}
    return MODELS.build(cfg)


def batch(count=8):
    return {
        "inputs": torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8),
        "labels": torch.arange(count) % 3,
    }


def optimizer_of(model, **optimizer):
    cfg = {"type": "ProbeOptimWrapperConstructor", "optim_wrapper_cfg": {"optimizer": optimizer}}
    return OPTIM_WRAPPER_CONSTRUCTORS.build(cfg)(model)


LARS = {"type": "lars", "lr": 1.0, "momentum": 0.9, "trust_coeff": 0.001, "eps": 0.0}


def test_only_heads_move(load):
    runner = build_runner(load())
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.train()
    assert not runner.model.backbone.training
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("reader."), name


def test_the_network_is_trained_where_it_is_not_frozen(load):
    runner = build_runner(load(model__frozen=False))
    before = runner.model.backbone.blocks[0].mlp.fc1.weight.clone()
    runner.train()
    assert not torch.equal(runner.model.backbone.blocks[0].mlp.fc1.weight, before)


def test_heads_side_by_side_are_trained_as_each_alone():
    data = batch()
    trained = []
    for names in (("ep", "cls"), ("ep",), ("cls",)):
        options = {"ep": {"num_queries": 4}, "cls": {}}
        torch.manual_seed(0)
        model = build({name: options[name] for name in names})
        for name in names:
            torch.manual_seed(1)
            for parameter in model.head(name).parameters():
                torch.nn.init.normal_(parameter, std=0.1)
        wrapper = optimizer_of(model, **LARS)
        for _ in range(3):
            model.train_step(data, wrapper)
        trained.append({name: list(model.head(name).parameters()) for name in names})
    for alone in trained[1:]:
        for name, parameters in alone.items():
            for a, b in zip(parameters, trained[0][name], strict=True):
                torch.testing.assert_close(a, b)


def test_every_head_at_every_layer_with_every_rate():
    model = build({"ep": {"num_queries": 4}, "cls": {"lr": 0.3}}, layers=(2, -1), lrs=(0.1, 0.25))
    names = [
        *("ep-layer2@0.1", "ep-layer2@0.25", "ep-layer-1@0.1", "ep-layer-1@0.25"),
        *("cls-layer2", "cls-layer-1"),
    ]
    assert list(model.specs) == names
    assert [model.layer_of[name] for name in names] == [2, 2, 5, 5, 2, 5]
    groups = optimizer_of(model, **LARS).optimizer.param_groups
    # Matrices of EP (queries, values, classifier) and its bias; matrix and bias of linear probing.
    assert [group["lr"] for group in groups] == [0.1, 0.1, 0.25, 0.25] * 2 + [0.3] * 4
    losses = model(**model.data_preprocessor(batch()), mode="loss")
    assert list(losses) == [f"loss_{name}" for name in names]


def test_lars_takes_steps_of_the_weights_length():
    """A matrix moves by lr * trust * its norm, whatever the gradient; a vector by lr * gradient."""
    model = build({"ep": {"num_queries": 4}})
    wrapper = optimizer_of(model, **LARS)
    before = {name: p.detach().clone() for name, p in model.head("ep").named_parameters()}
    for parameter in model.head("ep").parameters():
        parameter.grad = 7 * torch.randn_like(parameter)
    wrapper.step()
    for name, parameter in model.head("ep").named_parameters():
        moved = (parameter - before[name]).norm()
        wanted = parameter.grad.norm() if parameter.ndim == 1 else 0.001 * before[name].norm()
        torch.testing.assert_close(moved, wanted, rtol=1e-4, atol=0)


def test_momentum_of_lars_is_that_of_adapted_gradients():
    model = build({"cls": {}})
    wrapper = optimizer_of(model, **{**LARS, "lr": 0.5})
    classifier = model.head("cls")[1]
    weight, velocity = classifier.weight.detach().clone(), 0
    for _ in range(3):
        gradient = torch.randn_like(weight)
        classifier.weight.grad = gradient.clone()
        velocity = 0.9 * velocity + gradient * 0.001 * weight.norm() / gradient.norm()
        weight = weight - 0.5 * velocity
        wrapper.step()
        torch.testing.assert_close(classifier.weight.data, weight)


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_any_optimiser_of_timm_decays_matrices_alone(optimizer):
    groups = optimizer_of(build({"cls": {}}), type=optimizer, lr=0.1, weight_decay=0.05)
    assert [group["weight_decay"] for group in groups.optimizer.param_groups] == [0.05, 0.0]


@pytest.mark.parametrize(
    ("poolings", "keep"),
    [
        (["cls"], "cls"),
        (["gap", "pos"], "mean"),
        (["ep", "gap"], "patch"),
        (["ep", "cls"], "all"),
        (["ep_all"], "all"),
    ],
)
def test_reads_no_more_than_heads_need(poolings, keep):
    options = {"ep": {"num_queries": 4}, "ep_all": {"num_queries": 4}}
    model = build({name: options.get(name, {}) for name in poolings})
    assert model.reader.keep == keep
    assert set(model(**model.data_preprocessor(batch()))) == set(poolings)


def test_predictions_are_of_every_head():
    model = build({"cls": {}, "gap": {}}).eval()
    data = model.data_preprocessor(batch(4))
    predictions = model(**data, paths=list("abcd"), mode="predict")
    logits = model(inputs=data["inputs"])
    assert [p["label"] for p in predictions] == [0, 1, 2, 0]
    assert predictions[1]["path"] == "b"
    for name in ("cls", "gap"):
        torch.testing.assert_close(predictions[2]["heads"][name], logits[name][2].softmax(-1))
    torch.testing.assert_close(predictions[2]["scores"], predictions[2]["heads"]["cls"])


def test_accuracy_is_of_every_head_and_the_best():
    metric = ProbeAccuracy()
    right, wrong = torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9])
    tie = torch.tensor([0.5, 0.5])
    metric.process(None, [{"label": 0, "heads": {"a": right, "b": wrong, "c": tie}}])
    metric.process(None, [{"label": 1, "heads": {"a": right, "b": wrong, "c": tie}}])
    metric.process(None, [{"label": 1, "heads": {"a": wrong, "b": wrong, "c": tie}}])
    scores = metric.evaluate(3)
    assert scores["probe/a/top1"] == pytest.approx(200 / 3)
    assert scores["probe/b/top1"] == pytest.approx(200 / 3)
    assert scores["probe/c/top1"] == 0
    assert scores["probe/best/top1"] == pytest.approx(200 / 3)


def test_starts_from_a_run_of_a_classifier(make_runner, tmp_path):
    runner = make_runner(overrides={"train_cfg.max_epochs": 1})
    runner.train()
    checkpoint = next((tmp_path / "run").glob("epoch_1.pth"))
    model = build({"cls": {}}, checkpoint=str(checkpoint))
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, runner.bare_model.backbone.state_dict()[name]), name


def test_starts_from_weights_of_the_network_alone(tmp_path):
    import timm

    network = timm.create_model("test_vit", img_size=32)
    torch.save({"model": network.state_dict()}, tmp_path / "own.pth")
    model = build({"cls": {}}, checkpoint=str(tmp_path / "own.pth"))
    assert torch.equal(model.backbone.pos_embed, network.pos_embed)
    network.norm.weight.data[3] = float("nan")
    torch.save({"model": network.state_dict()}, tmp_path / "nan.pth")
    with pytest.raises(ConfigError, match="norm.weight that are not finite"):
        build({"cls": {}}, checkpoint=str(tmp_path / "nan.pth"))


@pytest.mark.parametrize(
    ("heads", "kwargs", "message"),
    [
        ({}, {}, "model.heads is empty"),
        ({"simpol": {}}, {}, "did you mean 'simpool'"),
        ({"ep": {"num_queries": 5}}, {}, "5 x 1"),
        ({"ep": {"queries": 4}}, {}, "unexpected keyword argument 'queries'"),
        ({"cls": {}}, {"layers": (7,)}, r"layers 0 to 5; got \[7\]"),
        ({"cls": {}}, {"backbone": {"model_name": "test_resnet"}}, "gives no class token"),
    ],
)
def test_mistakes_in_the_configuration(heads, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        build(heads, **kwargs)
