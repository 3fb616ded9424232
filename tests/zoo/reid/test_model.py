"""Re-identification models: heads, losses and descriptors."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from visattn.heads.dcal import combine_losses
from visattn.heads.reid import BNNeck
from visattn.kernels import use_impl
from visattn.zoo.checkpoint import CheckpointError
from visattn.zoo.errors import ConfigError, DataError
from visattn.zoo.registry import register_all
from visattn.zoo.reid.losses import ArcFaceLoss, BatchHardTripletLoss, CircleLoss
from visattn.zoo.reid.model import ReIdentifier

DCAL = {
    "model_name": "dcal_deit_tiny_patch16",
    "img_size": (64, 32),
    "depth": 3,
    "embed_dim": 48,
    "glca_ratio": 0.3,
}
PLAIN = {
    "model_name": "deit_tiny_patch16_224",
    "img_size": (64, 32),
    "depth": 3,
    "embed_dim": 48,
}
IDENTITIES = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
# By name and size: parameters of the backbone without heads, and of GLCA's block and norm.
COUNTS = {
    ("deit_tiny", (256, 128)): (5_511_360, 445_248, 192),
    ("deit_tiny", (256, 256)): (5_535_936, 445_248, 192),
    ("deit_small", (256, 128)): (21_639_552, 1_775_232, 384),
    ("deit_small", (256, 256)): (21_688_704, 1_775_232, 384),
    ("deit_base", (256, 128)): (85_746_432, 7_089_408, 768),
    ("vit_base", (256, 256)): (85_844_736, 7_089_408, 768),
}


@pytest.fixture(scope="module", autouse=True)
def _registered():
    register_all()


def model(backbone=DCAL, **kwargs):
    return ReIdentifier(backbone, num_classes=4, **kwargs)


def images(count=8):
    return torch.randn(count, 3, 64, 32)


def triplet_by_loops(features, identities, margin=None):
    losses = []
    for i, x in enumerate(features):
        distances = [(x - y).norm() for y in features]
        same = [d for j, d in enumerate(distances) if identities[j] == identities[i] and j != i]
        other = [d for j, d in enumerate(distances) if identities[j] != identities[i]]
        violation = max(same) - min(other)
        losses.append(F.softplus(violation) if margin is None else F.relu(violation + margin))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("margin", [None, 0.3])
def test_triplets_are_of_the_farthest_right_and_the_nearest_wrong(margin):
    features = torch.randn(8, 5, requires_grad=True)
    loss = BatchHardTripletLoss(margin)(features, IDENTITIES)
    expected = triplet_by_loops(features, IDENTITIES, margin)
    torch.testing.assert_close(loss, expected)
    actual = torch.autograd.grad(loss, features)[0]
    torch.testing.assert_close(actual, torch.autograd.grad(expected, features)[0])


def test_losses_of_distance_stay_in_full_precision():
    features = 100 * torch.randn(8, 5)
    loss = BatchHardTripletLoss()
    with torch.autocast("cpu", torch.bfloat16):
        low = loss(features, IDENTITIES)
    torch.testing.assert_close(low, loss(features, IDENTITIES), rtol=0, atol=0)


def test_circle_loss_is_its_definition():
    features = F.normalize(torch.randn(8, 5))
    cosines = features @ features.T
    expected = []
    for i in range(8):
        same = [cosines[i, j] for j in range(8) if IDENTITIES[i] == IDENTITIES[j] and i != j]
        other = [cosines[i, j] for j in range(8) if IDENTITIES[i] != IDENTITIES[j]]
        a = torch.stack([-64 * F.relu(1.25 - s) * (s - 0.75) for s in same]).logsumexp(0)
        b = torch.stack([64 * F.relu(s + 0.25) * (s - 0.25) for s in other]).logsumexp(0)
        expected.append(F.softplus(a + b))
    loss = CircleLoss(m=0.25, gamma=64, loss_weight=2.0)(features, IDENTITIES)
    torch.testing.assert_close(loss, 2 * torch.stack(expected).mean())


def test_arc_face_adds_a_margin_to_the_angle():
    loss = ArcFaceLoss(4, 5, margin=28.6, scale=16)
    proxies = F.normalize(loss.loss.W.t())
    features = proxies[IDENTITIES] + 0.3 * torch.randn(8, 5)  # angles that leave room for it
    cosines = F.normalize(features) @ proxies.T
    angles = cosines.clamp(-1 + 1e-6, 1 - 1e-6).acos()
    right = F.one_hot(IDENTITIES, 4).bool()
    logits = 16 * torch.where(right, (angles + torch.tensor(28.6).deg2rad()).cos(), cosines)
    torch.testing.assert_close(
        loss(features, IDENTITIES), F.cross_entropy(logits, IDENTITIES), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(("name", "size"), COUNTS)
@pytest.mark.parametrize("with_dcal", [False, True])
def test_parameter_counts(name, size, with_dcal):
    backbone, glca, width = COUNTS[name, size]
    model_name = f"dcal_{name}_patch16" if with_dcal else f"{name}_patch16_224"
    with torch.device("meta"):
        found = ReIdentifier({"model_name": model_name, "img_size": size}, num_classes=751)
    head = 2 * width + 751 * width  # weight and frozen bias of the neck, and the classifier
    expected = backbone + head + with_dcal * (glca + head + 3)
    assert sum(p.numel() for p in found.parameters()) == expected


def test_keys_of_the_state_dict():
    keys = set(model().state_dict()) - {
        f"backbone.{k}" for k in timm.create_model(**DCAL, num_classes=0).state_dict()
    }
    head = {"classifier.weight", *(f"bnneck.{key}" for key in BNNeck(2).state_dict())}
    assert keys == {f"{prefix}head.{key}" for prefix in ("", "glca_") for key in head}
    without_pwca = model({**DCAL, "pwca_depth": 0})
    assert set(without_pwca.state_dict()) == set(model().state_dict())


def test_a_plain_network_has_an_identity_and_a_triplet_loss():
    net = model(PLAIN).train()
    nn.init.normal_(net.head.classifier.weight)
    x = images()
    losses = net(x, IDENTITIES, mode="loss")
    features = net.backbone(x)
    assert set(losses) == {"id_loss", "triplet_loss"}
    torch.testing.assert_close(losses["triplet_loss"], triplet_by_loops(features, IDENTITIES))
    expected = F.cross_entropy(net.head.classifier(net.head(features)), IDENTITIES)
    torch.testing.assert_close(losses["id_loss"], expected)


@pytest.mark.parametrize("off", [{}, {"glca_depth": 0}, {"pwca_depth": 0}])
def test_branches_are_weighed_by_what_they_leave_uncertain(off):
    net = model({**DCAL, **off}).train()
    with torch.no_grad():
        net.backbone.loss_weights.copy_(torch.tensor([0.5, -0.3, 0.2]))
    features = net.features(images())
    losses = net.losses(features, IDENTITIES)
    heads = (net.head, net.glca_head, net.head)
    each = [
        None if x is None else sum(head.losses(x, IDENTITIES).values())
        for head, x in zip(heads, features, strict=False)
    ]
    expected = combine_losses(each, net.backbone.loss_weights)
    torch.testing.assert_close(losses["loss"], expected)
    total, _ = net.parse_losses(losses)
    torch.testing.assert_close(total, expected)
    assert ("pwca_triplet" in losses) == ("pwca_depth" not in off)
    assert ("glca_triplet" in losses) == ("glca_depth" not in off)


def test_one_training_step_reaches_everything():
    net = model().train()
    total, _ = net.parse_losses(net(images(), IDENTITIES, mode="loss"))
    total.backward()
    for name, parameter in net.named_parameters():
        assert name.endswith("bnneck.bias") or parameter.grad.any(), name


def test_descriptors_are_normalised_and_of_both_branches():
    net, x = model().eval(), images()
    tokens = net.backbone.forward_features(x)
    sa, glca = tokens.sa[:, 0], tokens.glca[:, 0]
    torch.testing.assert_close(net(x), F.normalize(torch.cat((sa, glca), 1)))
    assert net(x).shape == (8, 96)
    alone = model(use_glca=False).eval()
    alone.load_state_dict(net.state_dict())
    torch.testing.assert_close(alone(x), F.normalize(sa))


def test_descriptors_may_be_those_behind_the_neck():
    net, x = model(neck_feat="after").eval(), images()
    for head in (net.head, net.glca_head):
        head.bnneck.running_mean.normal_()
        head.bnneck.running_var.uniform_(1, 2)
    sa, glca = net.features(x)[:2]
    expected = torch.cat((net.head.bnneck(sa), net.glca_head.bnneck(glca)), 1)
    torch.testing.assert_close(net(x), F.normalize(expected))


def test_mirrored_images_have_the_same_descriptor_where_both_are_taken():
    net, x = model(flip_test=True).eval(), images()
    torch.testing.assert_close(net(x), net(x.flip(-1)))
    assert (model().eval()(x) - model().eval()(x.flip(-1))).abs().max() > 1e-3


def test_evaluation_knows_nothing_of_pwca_and_of_the_batch():
    net, x = model().eval(), images()
    without = model({**DCAL, "pwca_depth": 0}).eval()
    without.load_state_dict(net.state_dict())
    torch.testing.assert_close(without(x), net(x), rtol=0, atol=0)
    torch.testing.assert_close(net(x[:1]), net(x)[:1])


def test_predictions_carry_what_the_metric_needs():
    x = images(2)
    cameras, queries = torch.tensor([3, 1]), torch.tensor([True, False])
    net = model().eval()
    found = net(x, torch.tensor([7, 9]), cameras, queries, ["a.jpg", "b.jpg"], mode="predict")
    torch.testing.assert_close(torch.stack([f.pop("descriptor") for f in found]), net(x))
    assert found == [
        {"identity": 7, "camera": 3, "is_query": True, "path": "a.jpg"},
        {"identity": 9, "camera": 1, "is_query": False, "path": "b.jpg"},
    ]


@pytest.mark.parametrize(
    "backbone",
    [
        {"model_name": "resnet18"},
        {"model_name": "mobilenetv3_small_050"},
        {"model_name": "nat_mini", "depths": (1, 1, 1, 1), "embed_dim": 32},
        {"model_name": "elaresnet18_t"},
        {"model_name": "agent_pvt_tiny", "img_size": 64},
    ],
    ids=lambda backbone: backbone["model_name"],
)
def test_any_backbone_identifies(backbone):
    net = model(backbone).train()
    x = torch.randn(8, 3, 64, 64)
    with use_impl("reference"):
        total, _ = net.parse_losses(net(x, IDENTITIES, mode="loss"))
        total.backward()
        descriptors = net.eval()(x)
    assert descriptors.shape == (8, net.head.bnneck.num_features)
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(8))


@pytest.mark.parametrize(
    "losses",
    [
        {"id_loss": {"type": "CrossEntropyLoss", "label_smoothing": 0.1}},
        {"id_loss": {"type": "ArcFaceLoss", "scale": 16}, "metric_losses": []},
        {"metric_losses": [{"type": "CircleLoss", "gamma": 64}]},
        {
            "metric_losses": [
                {"type": "BatchHardTripletLoss", "margin": 0.3},
                {"type": "CenterLoss"},
            ]
        },
    ],
    ids=["smoothing", "arcface", "circle", "centers"],
)
@pytest.mark.parametrize("backbone", [PLAIN, DCAL], ids=["plain", "dcal"])
def test_losses_can_be_chosen(backbone, losses):
    net = model(backbone, **losses).train()
    total, log = net.parse_losses(net(images(), IDENTITIES, mode="loss"))
    total.backward()
    for name, parameter in net.named_parameters():
        assert name.endswith("bnneck.bias") or parameter.grad is not None, name
    assert torch.isfinite(total)


@pytest.mark.parametrize("backbone", [PLAIN, DCAL], ids=["plain", "dcal"])
def test_training_starts_from_weights_of_imagenet(backbone, tmp_path):
    """Position embeddings are resized, and the classifier is not needed."""
    source = timm.create_model("deit_tiny_patch16_224", depth=3, embed_dim=48, num_classes=7)
    torch.save({"model": source.state_dict()}, tmp_path / "deit.pth")
    net = model(backbone, checkpoint=str(tmp_path / "deit.pth"))
    assert net.backbone.pos_embed.shape == (1, 9, 48)
    torch.testing.assert_close(
        net.backbone.blocks[2].mlp.fc1.weight, source.blocks[2].mlp.fc1.weight
    )
    state_dict = source.state_dict()
    del state_dict["blocks.1.attn.qkv.weight"]
    torch.save(state_dict, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"missing: blocks\.1\.attn\.qkv\.weight"):
        model(backbone, checkpoint=str(tmp_path / "part.pth"))


def test_data_are_checked_against_the_model():
    class Data:
        metainfo = {"classes": tuple("abcde")}
        image_size = (64, 32)

    with pytest.raises(DataError, match="5 identities but the model 4: set model.num_classes=5"):
        model().check_dataset(Data())
    Data.metainfo, Data.image_size = {"classes": ()}, (8, 64)
    with pytest.raises(DataError, match="smaller than the stride 16"):
        model().check_dataset(Data())


def test_the_neck_must_be_named():
    with pytest.raises(ConfigError, match="neck_feat must be"):
        model(neck_feat="behind")
