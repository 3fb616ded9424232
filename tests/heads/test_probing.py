"""Heads of probes, and tokens read from networks."""

import pytest
import timm
import torch
from torch import nn

import visattn  # noqa: F401
from visattn.heads.probing import ProbeHead, TokenReader, ep_options, select_tokens


def test_layout_is_the_released_one():
    head = ProbeHead("ep", 24, 5, num_queries=4, d_out=2)
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
        "0.cls_token": (1, 4, 24),
        "0.v.weight": (12, 24),
        "1.running_mean": (12,),
        "1.running_var": (12,),
        "1.num_batches_tracked": (),
        "2.weight": (5, 12),
        "2.bias": (5,),
    }
    assert head[1].eps == 1e-6


@pytest.mark.parametrize("name", ["gap", "cls", "pos"])
def test_linear_probing_has_no_pooling(name):
    head = ProbeHead(name, 24, 5).eval()
    assert [type(layer) for layer in head] == [nn.BatchNorm1d, nn.Linear]
    x = torch.randn(3, 7, 24)
    pooled = x[:, 0] if name == "cls" else x.mean(1)
    torch.testing.assert_close(head(x), head[1](pooled), atol=1e-5, rtol=1e-5)


def test_batch_norm_standardises_in_training():
    head = ProbeHead("ep", 24, 5, num_queries=4)
    seen = []
    head[2].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    head(3 + torch.randn(50, 7, 24))
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(24), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].var(0, correction=0), torch.ones(24), atol=1e-3, rtol=0)


def test_fresh_batch_norm_changes_nothing_in_eval():
    head, x = ProbeHead("ep", 24, 5, num_queries=4).eval(), torch.randn(3, 7, 24)
    torch.testing.assert_close(head(x), head[2](head[0](x)), atol=1e-5, rtol=1e-5)


def test_options_are_read_off_a_saved_head():
    head = ProbeHead("ep", 24, 5, num_queries=3, d_out=4)
    saved = {f"head.{name}": value for name, value in head.state_dict().items()}
    ProbeHead("ep", **ep_options(saved)).load_state_dict(head.state_dict())
    with pytest.raises(ValueError, match=r"no head of efficient probing.*head.0.cls_token"):
        ep_options({})


def test_goes_on_with_the_classifier_of_the_network():
    own = nn.Linear(24, 5)
    assert ProbeHead("aim", 24, 5, classifier=own, num_heads=4)[2] is own
    with pytest.raises(ValueError, match="12 features to 5 classes; got 24 to 5"):
        ProbeHead("ep", 24, 5, classifier=own, num_queries=4, d_out=2)


def test_the_pooling_is_drawn_before_the_classifier():
    torch.manual_seed(3)
    values, queries = nn.Linear(24, 24, bias=False), torch.randn(1, 4, 24) * 0.02
    classifier = nn.Linear(24, 5)
    torch.manual_seed(3)
    head = ProbeHead("ep", 24, 5, num_queries=4)
    for found, wanted in (
        (head[0].v.weight, values.weight),
        (head[0].cls_token, queries),
        (head[2].weight, classifier.weight),
    ):
        torch.testing.assert_close(found.data, wanted.data, rtol=0, atol=0)


def test_fifty_steps_learn_separable_means():
    """Cross entropy below that of a guess."""
    labels = torch.arange(60) % 3
    x = torch.randn(60, 10, 24) + 2 * torch.randn(3, 1, 24)[labels]
    head = ProbeHead("ep", 24, 3, num_queries=4)
    optimizer = torch.optim.SGD(head.parameters(), 0.1, momentum=0.9)
    for _ in range(50):
        loss = nn.functional.cross_entropy(head(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5


NETWORKS = {
    "vit": ("test_vit", {"img_size": 64}, True),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 3, "img_size": 64, "depth": 2}, True),
    "registers alone": (
        "vit_tiny_patch16_224",
        {"reg_tokens": 3, "class_token": False, "global_pool": "avg", "img_size": 64, "depth": 2},
        False,
    ),
    "distilled": ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 2}, True),
    "eva": ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 2}, True),
    "convolutions": ("test_resnet", {}, False),
    "pyramid": (
        "nat_mini",
        {"depths": (1, 1, 1, 1), "embed_dim": 32},
        False,
    ),
    "channels last": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "depths": (1, 1, 1, 1)},
        False,
    ),
    "dcal": ("dcal_deit_tiny_patch16", {"img_size": 64, "depth": 2}, True),
}


def network(name):
    model, kwargs, has_class = NETWORKS[name]
    size = kwargs.get("img_size", 64)
    return timm.create_model(model, **kwargs).eval(), torch.randn(2, 3, size, size), has_class


@pytest.mark.parametrize("name", NETWORKS)
def test_reads_tokens_of_all_kinds_of_networks(name):
    model, images, has_class = network(name)
    reader = TokenReader(model, layers=(0, -1))
    assert reader.has_class_token == has_class
    maps = model.forward_intermediates(images, intermediates_only=True)
    for layer, tokens in reader(images).items():
        assert tokens.shape[2] == reader.dims[layer]
        patches = select_tokens(tokens, "patch", has_class)
        torch.testing.assert_close(patches, maps[layer].flatten(2).mT)
        assert tokens.shape[1] == patches.shape[1] + has_class


def test_the_class_token_is_the_networks():
    model, images, _ = network("registers")
    reader = TokenReader(model, final_norm=True)
    (tokens,) = reader(images).values()
    wanted = model.forward_features(images)
    torch.testing.assert_close(select_tokens(tokens, "cls", True)[:, 0], wanted[:, 0])
    torch.testing.assert_close(select_tokens(tokens, "all", True)[:, 1:], wanted[:, 4:])


def test_the_final_norm_is_a_choice():
    model, images, _ = network("vit")
    nn.init.normal_(model.norm.weight)
    (raw,) = TokenReader(model)(images).values()
    (normed,) = TokenReader(model, final_norm=True)(images).values()
    torch.testing.assert_close(model.norm(raw), normed)


def test_keeps_what_is_asked_for():
    model, images, _ = network("vit")
    whole = TokenReader(model)(images)[5]
    wanted = {
        "cls": whole[:, :1],
        "patch": whole[:, 1:],
        "mean": whole[:, 1:].mean(1, keepdim=True),
    }
    for keep, tokens in wanted.items():
        reader = TokenReader(model, keep=keep)
        torch.testing.assert_close(reader(images)[5], tokens)
        assert reader.has_class_token == (keep == "cls")


def test_a_frozen_network_stays_as_it_is():
    model = timm.create_model("test_vit", img_size=64, proj_drop_rate=0.5)
    reader = TokenReader(model).train()
    images = torch.randn(2, 3, 64, 64)
    (tokens,) = reader(images).values()
    assert not tokens.requires_grad and not model.training
    torch.testing.assert_close(tokens, *reader(images).values())
    free = TokenReader(timm.create_model("test_vit", img_size=64), frozen=False).train()
    (tokens,) = free(images).values()
    assert tokens.requires_grad and free.backbone.training


def test_no_gradient_of_the_network_is_needed_for_the_heads():
    model, images, _ = network("vit")
    head = ProbeHead("ep", 64, 5, num_queries=4)
    grads = []
    for frozen in (True, False):
        reader = TokenReader(model.requires_grad_(True), frozen=frozen).eval()
        (tokens,) = reader(images).values()
        head.zero_grad()
        head(select_tokens(tokens, "patch", True)).square().sum().backward()
        grads.append([p.grad.clone() for p in head.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TokenReader(nn.Linear(2, 2)), "Linear of timm has no forward_intermediates"),
        (lambda: TokenReader(network("vit")[0], layers=(9,)), r"layers 0 to 5; got \[9\]"),
        (
            lambda: TokenReader(network("convolutions")[0], keep="cls"),
            "ResNet gives no class token",
        ),
        (lambda: TokenReader(network("vit")[0], keep="gap"), "keep must be"),
        (
            lambda: TokenReader(timm.create_model("hiera_tiny_224"), final_norm=True)(
                torch.randn(1, 3, 224, 224)
            ),
            "normalization of features not supported; set final_norm=False",
        ),
        (lambda: select_tokens(torch.randn(1, 4, 8), "all", False), "gives no class token"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
