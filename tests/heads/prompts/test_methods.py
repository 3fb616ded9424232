"""What holds for all that the registry puts into a model."""

import copy
import pickle

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from visattn.heads.prompts import (
    apply,
    is_prompted,
    list_prompts,
    load_trainable,
    pool_loss,
    remove,
    set_epoch,
    trainable_state_dict,
)

POOLS = {"pool_size": 6, "topk": 2, "length": 2}
METHODS = [
    *((name, {}) for name in list_prompts() if name not in ("tcpa", "vp")),
    ("vp", {"padding": 3}),
    ("tcpa", POOLS),
    ("tcpa", {**POOLS, "host": "vfpt", "mask_mode": "pre_softmax"}),
    ("tcpa", {**POOLS, "host": "vp", "padding": 3, "iprompt": True, "advp": True, "simam": True}),
    ("tcpa", {"token_level": False, "mask_mode": "renormalise"}),
]
every_method = pytest.mark.parametrize(
    ("name", "kwargs"), METHODS, ids=[f"{n}-{'-'.join(map(str, k.values()))}" for n, k in METHODS]
)
MODELS = [
    ("vit_tiny_patch16_224", {}),
    ("deit_tiny_distilled_patch16_224", {}),
    ("vit_small_patch14_reg4_dinov2", {}),
    ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    ("vit_tiny_patch16_224", {"dynamic_img_size": True, "qk_norm": True, "init_values": 0.1}),
    ("vit_tiny_patch16_224", {"depth": 1, "qkv_bias": False, "drop_path_rate": 0.2}),
]


def loss_of(model, images):
    loss = F.cross_entropy(model(images), torch.tensor([1, 3]))
    distance = pool_loss(model)
    return loss if distance is None else loss + 0.01 * distance


@every_method
def test_only_the_head_and_what_is_added_learns(name, kwargs, small_vit, images):
    model = small_vit()
    before = {key: p.clone() for key, p in model.named_parameters()}
    apply(model, name, **kwargs).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):  # Of two factors of which one is zero, it alone has a gradient at first.
        optimizer.zero_grad()
        loss_of(model, images).backward()
        optimizer.step()
    trained = trainable_state_dict(model)
    assert {"head.weight", "head.bias"} <= trained.keys()
    for key, parameter in model.named_parameters():
        if key in trained:
            assert parameter.grad is not None, key
            # Nobody sees the image's prompts of the last block before a softmax of their own.
            unseen = (
                kwargs.get("mask_mode") == "renormalise" and key == "blocks.2.prompts.image.prompts"
            )
            assert unseen or parameter.grad.abs().sum() > 0, key
        else:
            assert parameter.grad is None
            assert torch.equal(parameter, before[key]), key


@every_method
def test_removal_restores_the_model_to_the_bit(name, kwargs, small_vit, images):
    model = small_vit()
    model.pos_embed.requires_grad_(False)
    kind, flags = type(model), {k: p.requires_grad for k, p in model.named_parameters()}
    expected, state = model(images), copy.deepcopy(model.state_dict())
    apply(model, name, **kwargs).train()
    loss_of(model, images).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.grad if parameter.grad is not None else 0)
    assert not torch.equal(model.eval()(images), expected)
    remove(model)
    assert type(model) is kind and not model.training and not is_prompted(model)
    assert {k: p.requires_grad for k, p in model.named_parameters()} == flags
    assert list(model.state_dict()) == list(state)
    assert torch.equal(model(images), expected)


@every_method
def test_trained_weights_alone_make_a_fresh_model_the_same(name, kwargs, small_vit, images):
    model = small_vit()
    fresh = copy.deepcopy(model)
    apply(model, name, **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    torch.manual_seed(1)
    apply(fresh, name, **kwargs)
    load_trainable(fresh, trainable_state_dict(model))
    assert torch.equal(fresh(images), model(images))


@pytest.mark.parametrize(("timm_name", "settings"), MODELS)
@every_method
def test_goes_into_every_vision_transformer(name, kwargs, timm_name, settings, small_vit, images):
    model = small_vit(timm_name, **settings)
    expected = model(images)
    apply(model, name, **kwargs).train()
    loss = loss_of(model, images)
    loss.backward()
    assert loss.isfinite()
    missing = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert torch.equal(remove(model).eval()(images), expected)


@every_method
def test_checkpointing_changes_no_gradient(name, kwargs, small_vit, images):
    model = apply(small_vit(), name, **kwargs).train()
    set_epoch(model, 0)
    gradients = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        torch.manual_seed(0)
        loss_of(model, images).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_nothing_is_kept_of_what_checkpointing_recomputes(small_vit, images):
    model = apply(small_vit(), "tcpa", **POOLS).train()
    model.set_grad_checkpointing(True)
    loss_of(model, images).backward()
    assert all(block.prompts.distance is None for block in model.blocks)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [pytest.param(*m, marks=[pytest.mark.heavy] * (m != METHODS[-4])) for m in METHODS],
)
def test_compiles_as_one_graph(name, kwargs, small_vit, images):
    model = apply(small_vit(depth=1), name, **kwargs)
    expected = loss_of(model, images)
    expected_gradients = torch.autograd.grad(expected, [*trained(model)])
    torch.compiler.reset()
    model.compile(backend="aot_eager", fullgraph=True)
    loss = loss_of(model, images)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(
        torch.autograd.grad(loss, [*trained(model)]), expected_gradients, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def trained(model):
    return (p for p in model.parameters() if p.requires_grad)


@every_method
def test_autocast_is_near_full_precision(name, kwargs, small_vit, images):
    model = apply(small_vit(), name, **kwargs)
    expected = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images)
        loss = loss_of(model, images)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained(model))
    # Features that a token's choice hangs on are rounded, too.
    torch.testing.assert_close(out.float(), expected, rtol=0.2, atol=0.2)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class WithLoss(torch.nn.Module):
    """A model that gives its loss, as trainers wrap them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return loss_of(self.model, images)


@every_method
def test_distributed_training_finds_every_parameter_used(
    name, kwargs, small_vit, images, process_group
):
    model = apply(small_vit(), name, **kwargs).train()
    wrapped = DistributedDataParallel(WithLoss(model))
    for _ in range(2):  # The second pass fails if the first has left a parameter without gradient.
        wrapped(images).backward()


@every_method
def test_copies_are_apart(name, kwargs, small_vit, images):
    model = apply(small_vit(), name, **kwargs)
    expected = model(images)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    remove(twin)
    assert torch.equal(model(images), expected)
    assert is_prompted(model) and not is_prompted(twin)


@every_method
def test_backbone_stays_in_eval_mode(name, kwargs, small_vit):
    model = apply(small_vit(drop_path_rate=0.2, attn_drop_rate=0.1), name, **kwargs)
    model.train()
    added = {id(m) for child in model.attachment.modules() for m in child.modules()}
    training = {id(m) for m in model.modules() if m.training and m is not model}
    assert training == added | {id(model.head), id(model.head_drop)}
    assert not any(m.training for m in model.eval().modules())


@pytest.mark.parametrize("name", [n for n in list_prompts() if n != "vpt_shallow"])
def test_intermediate_features_keep_their_shape(name, small_vit, images):
    kwargs = dict(METHODS[: len(list_prompts())])[name]
    model = apply(small_vit(), name, **kwargs)
    final, maps = model.forward_intermediates(images)
    assert [m.shape for m in maps] == [(2, 48, 4, 4)] * 3
    torch.testing.assert_close(final, model.forward_features(images))


def test_shallow_prompts_give_no_intermediate_maps(small_vit, images):
    with pytest.raises(ValueError, match="use vpt_deep"):
        apply(small_vit(), "vpt_shallow").forward_intermediates(images)


def test_new_classifier_is_trained(small_vit, images):
    model = apply(small_vit(), "vpt_deep")
    model.reset_classifier(7)
    assert trainable_state_dict(model)["head.weight"].shape == (7, 48)
    assert remove(model)(images).shape == (2, 7)


BAD = [
    ("nothing", {}, "there is no 'nothing': there are adaptformer"),
    ("tcpa", {"topk": 19}, "topk must be between 1 and pool_size=18; got 19"),
    ("tcpa", {"mask_mode": "half"}, "mask_mode must be one of 'post_softmax'"),
    ("tcpa", {"host": "damvp"}, "host must be one of"),
    ("tcpa", {"registers": "drop"}, "registers must be one of"),
    ("tcpa", {"pool_size": (1, 2, 3)}, "pool_size is a number, or two"),
    ("tcpa", {"pool_size": 0}, "pool_size must be at least 1"),
    ("vpt_deep", {"length": -1}, "length must be at least 0"),
    ("vfpt", {"fourier_share": 2}, "fourier_share must be between 0 and 1"),
    ("vp", {"padding": 17}, "padding must be between 1 and 16"),
    ("lora", {"targets": "qx"}, "targets must be letters of 'qkv'"),
    ("lora", {"rank": 0}, "rank must be at least 1"),
    ("adaptformer", {"bottleneck": 0}, "bottleneck must be at least 1"),
]


@pytest.mark.parametrize(("name", "kwargs", "message"), BAD)
def test_impossible_settings_are_refused_and_change_nothing(
    name, kwargs, message, small_vit, images
):
    model = small_vit()
    expected, names = model(images), list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        apply(model, name, **kwargs)
    assert list(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize("model_name", ["resnet18", "eva02_tiny_patch14_224", "nat_mini"])
def test_other_networks_are_refused(model_name):
    import visattn  # noqa: F401  registers nat_mini

    with torch.device("meta"):
        model = timm.create_model(model_name)
    with pytest.raises(ValueError, match=f"a {type(model).__name__} is another network"):
        apply(model, "tcpa")


@pytest.mark.parametrize("name", ["tcpa", "vpt_deep", "vpt_shallow", "adaptformer", "lora"])
def test_other_blocks_are_refused(name, small_vit):
    from timm.models.vision_transformer import ParallelScalingBlock

    model = small_vit(block_fn=ParallelScalingBlock)
    with pytest.raises(ValueError, match="ParallelScalingBlock"):
        apply(model, name)
    apply(model, "linear")


def test_only_one_at_a_time(small_vit):
    model = apply(small_vit(), "linear")
    with pytest.raises(ValueError, match=r"has 'linear' in it already: remove\(model\)"):
        apply(model, "bias")
    remove(model)
    with pytest.raises(ValueError, match="no prompts in this VisionTransformer"):
        remove(model)


def test_frame_is_for_one_size_of_image(small_vit):
    model = apply(small_vit(dynamic_img_size=True), "vp", padding=3)
    with pytest.raises(ValueError, match=r"images of \(32, 32\), not \(64, 64\)"):
        model(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.bias"), r"1 missing \(head.bias\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 unexpected \(extra\)"),
        (lambda s: s.update({"head.bias": torch.zeros(3)}), r"head.bias: \(3,\) given, \(5,\)"),
        (lambda s: s.update({"norm.bias": torch.ones(48)}), "trained on another backbone: norm"),
    ],
)
def test_wrong_weights_are_refused_and_change_nothing(change, message, small_vit):
    model = apply(small_vit(), "tcpa", **POOLS)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: torch.randn_like(v) for k, v in trainable_state_dict(model).items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        load_trainable(model, state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
