"""The questions that every registered model answers, in timm's manner and beyond."""

import copy
import sys
from functools import cache

import pytest
import timm
import torch
from timm.models import is_model_in_modules

import visattn  # noqa: F401
from visattn.heads.dcal import DualCrossAttentionLoss
from visattn.zoo.export import MIN_SIZE, export_onnx, trace

MODELS = sorted(
    name
    for name in timm.list_models()
    if sys.modules[timm.model_entrypoint(name).__module__].__name__.startswith("visattn.")
)
# Reduced depth and width keep the sweep fast; what is asked does not depend on them.
SHALLOW = {
    "nat_isotropic": {"depth": 4, "embed_dim": 64},
    "dinat_isotropic": {"depth": 4, "embed_dim": 64},
    "vitrpb": {"depth": 4, "embed_dim": 64},
    "biformer": {"depths": (1, 1, 2, 1)},
    "nat": {"depths": (1, 1, 2, 1), "embed_dim": 32},
    "dinat": {"depths": (1, 2, 2, 1), "embed_dim": 32},
    "agent_deit": {"depth": 5, "embed_dim": 128},
    "agent_pvt": {"depths": (1, 1, 2, 1), "embed_dims": (64, 64, 128, 128)},
    "agent_swin": {"depths": (1, 1, 4, 1), "embed_dim": 32},
    "agent_cswin": {"depths": (1, 1, 2, 1), "embed_dim": 32},
    "dcal": {"depth": 4, "embed_dim": 48, "num_heads": 3},
    "elaresnet": {"layers": (1, 1, 1, 1), "zero_init_last": False},
    "elamobilenetv2": {"depth_multiplier": 0.4},
}
# What is compiled takes seconds a block: one of each kind a model has, on large maps and on small.
FEWEST = {
    **SHALLOW,
    "nat_isotropic": {"depth": 1, "embed_dim": 64},
    "dinat_isotropic": {"depth": 2, "embed_dim": 64},
    "vitrpb": {"depth": 1, "embed_dim": 64},
    "biformer": {"depths": (0, 1, 0, 1)},
    "nat": {"depths": (1, 0, 0, 1), "embed_dim": 32},
    "dinat": {"depths": (0, 2, 0, 1), "embed_dim": 32},
    "agent_deit": {"depth": 2, "agent_depth": 1, "embed_dim": 128},
    "agent_pvt": {"depths": (1, 0, 0, 1), "embed_dims": (64, 64, 128, 128)},
    "agent_swin": {"depths": (1, 0, 2, 0), "embed_dim": 32},
    "agent_cswin": {"depths": (1, 0, 1, 1), "embed_dim": 32},
    "dcal": {"depth": 2, "embed_dim": 48, "num_heads": 3},
}
# Models that differ in more than depth and width.
KINDS = (
    "biformer_tiny",
    "biformer_stl",
    "biformer_stl_nchw",
    "nat_small",
    "dinat_mini",
    "dinat_s_tiny",
    "dinat_isotropic_small",
    "vitrpb_small",
    "agent_deit_base",
    "agent_pvt_tiny",
    "agent_swin_base",
    "agent_swin_small",
    "agent_cswin_tiny",
    "dcal_deit_tiny_patch16",
    "elaresnet18_t",
    "elaresnet50_s",
    "elamobilenetv2_100_b",
)
ONE_A_FAMILY = {
    "biformer_tiny",
    "dinat_mini",
    "dinat_isotropic_small",
    "agent_deit_base",
    "agent_pvt_tiny",
    "agent_swin_small",
    "agent_cswin_tiny",
    "dcal_deit_tiny_patch16",
    "elaresnet18_t",
    "elamobilenetv2_100_b",
}


def create(name, reduced=SHALLOW, **kwargs):
    family = next(family for family in reduced if name.startswith(family))
    return timm.create_model(name, **{**reduced[family], **kwargs})


def stride(model):
    return model.feature_info[-1]["reduction"]


def images(batch=2, height=64, width=64, channels=3):
    return torch.randn(batch, channels, height, width)


def first(output):
    """An output, or that of the first branch of a model which gives one of each."""
    return output[0] if isinstance(output, tuple) else output


def as_map(model, features, height=64, width=64):
    """Features (B, C, H, W), also of a model whose features are tokens, some before those of it."""
    features = first(features)
    prefix = getattr(model, "num_prefix_tokens", 0)
    if not prefix:
        return features
    size = (height // stride(model), width // stride(model))
    return features[:, prefix:].transpose(1, 2).unflatten(2, size)


def logits(model, x):
    """Logits that all features count in, where the model's own are of one token."""
    if not getattr(model, "num_prefix_tokens", 0):
        return model(x)
    return model.get_classifier()(model.forward_features(x)).mean(1)


def loss(model, x, targets):
    """A loss that all parameters count in."""
    out = model(x)
    if isinstance(out, tuple):
        return DualCrossAttentionLoss()(out, targets)
    return torch.nn.functional.cross_entropy(logits(model, x), targets)


def energy(output):
    """Sum of squares of an output, or of all branches' outputs."""
    outputs = output if isinstance(output, tuple) else (output,)
    return sum(out.square().sum() for out in outputs if out is not None)


def relative(actual, expected):
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())


CHEAP = ("test_default_cfg", "test_too_small", "test_pretrained")
EXPORTED = ("test_exports", "test_runs_in_onnx")
COMPILED = ("test_compiles", *EXPORTED)
QUICKLY_EXPORTED = ("biformer_tiny", "elaresnet18_t")


@cache
def built_differently():
    """One of each group of models that are the same once depth and width are reduced."""
    groups = {}
    for name in (*KINDS, *MODELS):
        model = create(name, device="meta")
        shapes = [(key, *p.shape) for key, p in model.named_parameters()]
        groups.setdefault(f"{model} {shapes}", name)
    return set(groups.values())


@cache
def compiled_differently():
    """One of each group of models whose programs have the same steps, with other numbers."""
    groups = {}
    for name in (*KINDS, *MODELS):
        model = create(name, FEWEST, device="meta")
        steps = [(key, type(module).__name__) for key, module in model.named_modules()]
        groups.setdefault(f"{steps} {list(model.state_dict())}", name)
    return set(groups.values())


def pytest_generate_tests(metafunc):
    """Puts cheap questions to all models, others to one of each kind; the rest is heavy.

    Exports take long: most of those of one of each kind are slow.

    All questions are put to one model after the other, so that they can share what is traced.
    """
    test = metafunc.function.__name__
    models, light = MODELS, MODELS
    if test == "test_pretrained_without_weights_raises":
        models = [name for name in MODELS if not timm.get_pretrained_cfg(name).has_weights]
    elif test.startswith(COMPILED):
        models, light = compiled_differently(), ONE_A_FAMILY
    elif not test.startswith(CHEAP):
        few = test == "test_gradients_of_samples_add_up"
        models, light = built_differently(), ONE_A_FAMILY if few else KINDS
    quick = QUICKLY_EXPORTED if test.startswith(EXPORTED) else light

    def marks(name):
        return pytest.mark.heavy if name not in light else () if name in quick else pytest.mark.slow

    names = [pytest.param(name, marks=marks(name)) for name in sorted(models)]
    metafunc.parametrize("name", names, scope="module")


@pytest.fixture(scope="module")
def exported(name):
    """A model and its program for batches of images of any size."""
    torch.manual_seed(0)
    model = create(name, FEWEST, num_classes=5).eval()
    return model, trace(model, (2, 3, 256, 288))


def test_default_cfg_states_the_model(name):
    model = create(name)
    cfg = model.pretrained_cfg
    assert not is_model_in_modules(name, {"vision_transformer"})
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert model.get_submodule(cfg["first_conv"]).in_channels == 3
    assert model.num_classes == cfg["num_classes"]
    assert cfg["license"] and cfg["origin_url"] and cfg["paper_ids"]
    with torch.inference_mode():
        size = cfg["input_size"][1:]
        features = as_map(model, create(name).eval().forward_features(images(1, *size)), *size)
    assert features.shape[1:] == (model.num_features, *cfg["pool_size"])


def test_backward_gives_every_parameter_a_gradient(name):
    model = create(name, num_classes=5, drop_path_rate=0.1)
    x = images(4)
    assert first(model(x)).shape == (4, 5)
    loss(model, x, torch.arange(4)).backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_checkpointing_changes_no_gradient(name):
    model = create(name, num_classes=5)
    again = copy.deepcopy(model)
    again.set_grad_checkpointing()
    x = images()
    for m in (model, again):
        energy(m(x)).backward()
    for (key, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, key=key: f"{key}: {text}")


def test_gradients_of_samples_add_up(name):
    model = create(name, num_classes=5).eval()
    x = images()
    parameters = {key: p.detach() for key, p in model.named_parameters()}

    def loss(parameters, image):
        return energy(torch.func.functional_call(model, parameters, image[None]))

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    energy(model(x)).backward()
    for key, p in model.named_parameters():
        wanted = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(
            found[key].sum(0),
            wanted,
            rtol=1e-3,
            atol=1e-4 * float(wanted.abs().max()) + 1e-6,
            msg=lambda text, key=key: f"{key}: {text}",
        )


def test_forward_is_features_then_head(name):
    model = create(name, num_classes=5).eval()
    x = images()
    features = model.forward_features(x)
    side = 64 // stride(model)
    assert as_map(model, features).shape == (2, model.num_features, side, side)
    torch.testing.assert_close(model.forward_head(features), model(x))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)


def test_reset_classifier(name):
    model = create(name).eval()
    model.reset_classifier(7)
    assert model(images()).shape == (2, 7)
    model.reset_classifier(0)
    assert model(images()).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model(images()).shape == first(model.forward_features(images())).shape


@pytest.mark.parametrize("size", [(64, 64), (50, 97)])
def test_features_only_gives_pyramids(name, size):
    model = create(name, features_only=True).eval()
    features = model(images(1, *size))
    info = model.feature_info
    assert [f.shape[1] for f in features] == info.channels()
    if size[0] % 32 == 0:
        assert [size[0] // f.shape[2] for f in features] == info.reduction()


def test_features_only_takes_some(name):
    everything = create(name, features_only=True).eval()
    some = create(name, features_only=True, out_indices=(0, 2)).eval()
    some.load_state_dict(everything.state_dict(), strict=False)
    x = images(1)
    expected = [everything(x)[i] for i in (0, 2)]
    torch.testing.assert_close(some(x), expected)
    assert sum(p.numel() for p in some.parameters()) < sum(
        p.numel() for p in everything.parameters()
    )


def test_forward_intermediates(name):
    model = create(name).eval()
    x = images(1)
    last, every = model.forward_intermediates(x, norm=True)
    torch.testing.assert_close(last, first(model.forward_features(x)))
    if model.num_features == model.feature_info[-1]["num_chs"]:
        torch.testing.assert_close(every[-1], as_map(model, last))
    early = model.forward_intermediates(
        x, indices=[1], norm=True, stop_early=True, intermediates_only=True
    )
    torch.testing.assert_close(early, every[1:2])


def test_pruning_keeps_what_is_asked_for(name):
    model = create(name).eval()
    x = images(1)
    expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    model.prune_intermediate_layers([1], prune_norm=True)
    actual = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (224, 160), (61, 127)])
def test_takes_any_size(name, size):
    model = create(name, num_classes=5).eval()
    with torch.inference_mode():
        out = model(images(1, *size))
    assert out.shape == (1, 5) and out.isfinite().all()


def test_too_small_an_image_is_named(name):
    model = create(name)
    least = stride(model)
    with pytest.raises(ValueError, match=f"at least {least} x {least} pixels"):
        model(images(1, least - 1, 64))


def test_other_channels_device_and_dtype(name):
    model = create(name, in_chans=4, num_classes=5, dtype=torch.float64).eval()
    assert model(images(1, channels=4).double()).dtype == torch.float64
    assert all(p.is_meta for p in create(name, device="meta").parameters())


def test_channels_last_agrees(name):
    model = create(name, num_classes=5).eval()
    x = images()
    expected = model(x)
    actual = model.to(memory_format=torch.channels_last)(
        x.contiguous(memory_format=torch.channels_last)
    )
    assert relative(actual, expected) < 1e-5


def test_bf16_autocast_agrees(name):
    """The error is that of rounding every activation to 8 bits of mantissa, a few times over."""
    model = create(name, num_classes=5).eval()
    x = images()
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = model(x)
    assert relative(actual.float(), expected) < 16 * torch.finfo(torch.bfloat16).eps


def test_state_dict_round_trip(name, tmp_path):
    model = create(name, num_classes=5).eval()
    torch.save(model.state_dict(), tmp_path / "ours.pth")
    again = create(name, num_classes=5, checkpoint_path=tmp_path / "ours.pth").eval()
    x = images(1)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_compiles_in_one_graph(name):
    model = create(name, FEWEST, num_classes=5).eval()
    x = images()
    torch.compiler.reset()  # all models share code, which is compiled a few times at most
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_exports_with_dynamic_batch_height_and_width(exported):
    model, program = exported
    run = program.module()
    for shape in [(3, 64, 128), (1, 70, 97), (1, MIN_SIZE, 230)]:
        x = images(*shape)
        assert relative(run(x), model(x)) < 1e-5


def test_runs_in_onnx_runtime_at_other_sizes(exported, tmp_path):
    model, program = exported
    assert export_onnx(program, tmp_path / "model.onnx", model, (1, 3, 70, 97), 1e-4) < 1e-4


def test_parameters_fall_into_ordered_groups(name):
    from timm.models import group_parameters

    model = create(name)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == {key for key, _ in model.named_parameters()}
    cfg = model.pretrained_cfg

    def layers(*prefixes):
        return [groups[key] for key in groups if key.startswith(prefixes)]

    assert not any(layers("stem.", f"{cfg['first_conv']}."))
    assert set(layers("head.", f"{cfg['classifier']}.")) == {max(groups.values())}
    levels = [layers(f"{info['module']}.") for info in model.feature_info]
    levels = [level for level in levels if level]
    assert len(levels) > 1
    for level, following in zip(levels, levels[1:], strict=False):
        assert max(level) < min(following)


def test_pretrained_without_weights_raises(name):
    with pytest.raises(ValueError, match="checkpoint_path=FILE"):
        timm.create_model(name, pretrained=True)
