import numpy as np
import pytest
import timm
import torch

import visattn  # noqa: F401
from visattn.zoo.attention import (
    attention_layers,
    attention_maps,
    describe_layer,
    draw_heat,
    draw_routing,
    last_of_stages,
    plot_attention,
)
from visattn.zoo.errors import UserError

SMALL = {"depths": (1, 2, 1, 1), "embed_dims": (16, 32, 48, 64), "head_dim": 16}
LAST = ["stages.0.blocks.0.attn", "stages.1.blocks.1.attn", "stages.2.blocks.0.attn"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    small = {**SMALL, "n_win": (4, 4, 2), "topks": (2, 3, 4)}
    return timm.create_model("biformer_tiny", num_classes=3, num_heads_last=4, **small).eval()


@pytest.fixture(scope="module")
def image():
    return torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def maps(model, image):
    return attention_maps(model, image)


def captured_input(model, name, image):
    """The input (1, H, W, C) of a layer and its output."""
    seen = {}

    def hook(_, args, output):
        seen.update(x=args[0], out=output)

    handle = model.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        model(image[None])
    handle.remove()
    return seen["x"], seen["out"]


def test_last_layer_of_each_routing_stage_by_default(maps):
    assert list(maps) == LAST


@pytest.mark.parametrize("name", LAST)
def test_indices_are_the_layers_own(model, image, maps, name):
    x, _ = captured_input(model, name, image)
    assert torch.equal(maps[name].indices, model.get_submodule(name).routing(x)[0])


@pytest.mark.parametrize(
    ("variant", "size"),
    [("biformer_tiny", (96, 72)), ("biformer_stl_nchw", (72, 96)), ("biformer_stl_nchw", (76, 64))],
)
def test_attention_gives_the_layers_output(variant, size):
    """The weighted mean of the values, with the local enhancement, is what the layer computes."""
    model = timm.create_model(variant, **SMALL, num_heads_last=4, n_win=3, topks=(2, 3, 4)).eval()
    image = torch.randn(3, *size)
    name, (row, column) = LAST[0], (5, 7)
    x, out = captured_input(model, name, image)
    layer = model.get_submodule(name)
    attention = attention_maps(model, image, [name])[name].attention(4 * row + 2, 4 * column + 2)
    with torch.no_grad():
        value = layer.project(x)[:, :, :, 2]  # (1, H, W, 1, dim)
        mean = torch.einsum("hw,hwd->d", attention, value[0, :, :, 0])
        expected = layer.proj(mean + layer.lepe(value.flatten(3))[0, row, column])
    torch.testing.assert_close(out[0, row, column], expected)


@pytest.mark.parametrize("name", LAST)
def test_attention_stays_in_the_attention_maps(maps, name):
    routing = maps[name]
    y, x = 30.0, 50.0
    attention = routing.attention(y, x)
    allowed = torch.zeros(routing.image_size, dtype=torch.bool)
    for region in routing.indices[routing.region_at(y, x)]:
        top, left, bottom, right = routing.box(region)
        allowed[top:bottom, left:right] = True
    scale = [i // m for i, m in zip(routing.image_size, routing.map_size, strict=True)]
    inside = allowed[:: scale[0], :: scale[1]]
    torch.testing.assert_close(attention[inside].sum(), torch.ones(()))
    assert not attention[~inside].any()


@pytest.mark.parametrize("name", LAST)
def test_boxes_tile_the_image(maps, name):
    routing = maps[name]
    count = np.zeros(routing.image_size, int)
    for region in range(routing.grid.rows * routing.grid.columns):
        top, left, bottom, right = routing.box(region)
        count[top:bottom, left:right] += 1
    assert (count == 1).all()


def test_region_at_a_pixel_is_the_one_whose_box_holds_it(maps):
    routing = maps[LAST[0]]
    for y, x in ((0, 0), (63, 95), (31, 40), (16, 24)):
        top, left, bottom, right = routing.box(routing.region_at(y, x))
        assert top <= y < bottom and left <= x < right


def test_model_is_left_as_it_was(image):
    model = timm.create_model("biformer_tiny", **SMALL, num_heads_last=4).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attention_maps(model, image)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_drawing_keeps_routed_pixels_and_fades_the_rest(maps):
    routing = maps[LAST[0]]
    pixels = np.zeros((*routing.image_size, 3), np.uint8)
    pixels[..., 0] = 200
    drawn = draw_routing(pixels, routing, (30, 50), show_attention=False)
    own = routing.region_at(30, 50)
    routed = set(routing.indices[own].tolist())
    for region in range(routing.grid.rows * routing.grid.columns):
        top, left, bottom, right = routing.box(region)
        centre = drawn[(top + bottom) // 2, (left + right) // 2]
        if region != own:
            assert (centre == (200, 0, 0)).all() == (region in routed)


def test_figure_has_a_panel_a_layer(maps):
    pixels = np.zeros((64, 96, 3), np.uint8)
    titles = [a.get_title(loc="left") for a in plot_attention(pixels, maps, (30, 50)).axes]
    assert titles[1:4] == [
        "Stage 1, block 1: 2 of 16 regions",
        "Stage 2, block 2: 3 of 16 regions",
        "Stage 3, block 1: 4 of 4 regions",
    ]


def test_unknown_layer_is_named(model, image):
    with pytest.raises(UserError, match=r"stages\.9\.attn.*stages\.0\.blocks\.0\.attn"):
        attention_maps(model, image, ["stages.9.attn"])


def test_model_without_routing_is_named(image):
    with pytest.raises(UserError, match="ResNet"):
        attention_maps(timm.create_model("resnet18"), image)


def test_query_outside_the_image_is_named(maps):
    with pytest.raises(UserError, match="x=96, y=3"):
        maps[LAST[0]].region_at(3, 96)


OTHERS = {
    "nat_mini": {"depths": (1, 1, 2, 1), "embed_dim": 32},
    "dinat_mini": {"depths": (1, 2, 2, 1), "embed_dim": 32},
    "vitrpb_small": {"depth": 2, "embed_dim": 64},
    "agent_deit_base": {"depth": 5, "embed_dim": 128},
    "agent_pvt_tiny": {"depths": (1, 1, 2, 1), "embed_dims": (64, 64, 128, 128)},
    "agent_swin_base": {"depths": (1, 1, 4, 1), "embed_dim": 32},
    "agent_cswin_tiny": {"depths": (1, 1, 2, 1), "embed_dim": 32},
    "dcal_deit_tiny_patch16": {"depth": 3, "embed_dim": 48, "num_heads": 3},
    "vit_tiny_patch16_224": {"depth": 2, "embed_dim": 48, "dynamic_img_size": True},
}


def create(name):
    torch.manual_seed(0)
    return timm.create_model(name, **OTHERS[name]).eval()


def map_layers(model):
    return [name for name in attention_layers(model) if name != "rollout"]


@pytest.mark.parametrize("name", OTHERS)
def test_every_layer_of_every_family_attends_to_no_more_than_all(name):
    """What is missing to 1 goes to padding and prefix tokens."""
    model, image = create(name), torch.randn(3, 96, 64)
    maps = attention_maps(model, image, map_layers(model))
    assert len(maps) == sum(OTHERS[name].get("depths", (OTHERS[name].get("depth", 0),)))
    for attention in maps.values():
        weights = attention.attention(40, 30)
        assert weights.shape == attention.key_size and weights.min() >= 0
        assert 0 < weights.sum() <= 1 + 1e-5


def test_attention_is_the_softmax_that_the_layer_computes():
    model, image = create("vit_tiny_patch16_224"), torch.randn(3, 96, 64)
    layer = model.blocks[1].attn
    attention = attention_maps(model, image, ["blocks.1.attn"])["blocks.1.attn"]
    with torch.no_grad():
        (x,) = attention.args
        q, k, _ = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
        expected = (q * layer.scale @ k.mT).softmax(-1)[0].mean(0)
    row, column = attention.token_at(50, 20)
    actual = attention.attention(50, 20).flatten()
    torch.testing.assert_close(actual, expected[1 + row * 4 + column, 1:])


def test_neighborhood_attention_stays_in_its_dilated_window():
    model = create("dinat_mini")
    attention = attention_maps(model, torch.randn(3, 224, 224), ["stages.1.blocks.1.attn"])
    weights = attention["stages.1.blocks.1.attn"].attention(116, 116)  # row 14 of 28, dilation 4
    seen = torch.zeros(28, 28, dtype=torch.bool)
    seen[2:27:4, 2:27:4] = True
    assert (weights > 0).equal(seen)


@pytest.mark.parametrize("name", ["agent_pvt_tiny", "agent_deit_base"])
def test_attention_goes_through_the_agents(name):
    """What a query gives to keys is what it gives to agents, times what these give to keys."""
    model = create(name)
    layer = map_layers(model)[0]
    attention = attention_maps(model, torch.randn(3, 96, 64), [layer])[layer]
    gathered, heard = model.get_submodule(layer).weights(*attention.args)
    row, column = attention.token_at(10, 40)
    query = attention.prefix_tokens + row * attention.map_size[1] + column
    expected = (heard[0, :, query, None] @ gathered[0]).mean((0, 1))[attention.prefix_tokens :]
    torch.testing.assert_close(attention.attention(10, 40).flatten(), expected)
    torch.testing.assert_close(attention.heard.sum(0), torch.ones(attention.map_size))
    assert list(attention.panels(10, 40))[0] == "attention through agents"


def test_gates_are_what_the_layer_multiplies_by():
    model = timm.create_model("elaresnet18_t", layers=(1, 1, 1, 1)).eval()
    maps = attention_maps(model, torch.randn(3, 64, 64))
    assert list(maps) == [f"layer{i}.0.se" for i in range(1, 5)]
    layer, x = model.get_submodule("layer1.0.se"), torch.randn(2, 64, 7, 9)
    rows, columns = layer.gates(x)
    torch.testing.assert_close(x * rows[..., None] * columns[:, :, None], layer(x))
    gate = maps["layer1.0.se"].gate
    assert gate.shape == (16, 16) and gate.min() > 0 and gate.max() < 1


def test_rollout_selects_what_dcal_asks_for():
    model = timm.create_model("dcal_deit_tiny_patch16", depth=3, glca_ratio=0.3).eval()
    rollout = attention_maps(model, torch.randn(3, 64, 96))["rollout"]
    assert rollout.rollout.shape == (4, 6) and rollout.rollout.sum() < 1
    assert rollout.selected.sum() == 7  # 30 % of 24, rounded down
    chosen = rollout.selected.bool()
    assert rollout.rollout[chosen].min() >= rollout.rollout[~chosen].max()


def test_heat_warms_the_warmest_place_and_fades_the_coldest():
    pixels = np.full((8, 8, 3), 100, np.uint8)
    heat = torch.zeros(2, 2)
    heat[0, 0] = 3.0
    drawn = draw_heat(pixels, heat).astype(int)
    red_over_blue = drawn[..., 0] - drawn[..., 2]
    assert (red_over_blue[:4, :4] > 100).all() and not red_over_blue[4:, 4:].any()


@pytest.mark.parametrize("name", ["agent_swin_base", "dcal_deit_tiny_patch16"])
def test_all_that_is_read_is_drawn(name):
    model = create(name)
    maps = attention_maps(model, torch.randn(3, 64, 64))
    figure = plot_attention(np.zeros((64, 64, 3), np.uint8), maps, (30, 50))
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    expected = sum(len(attention.panels(30, 50)) for attention in maps.values())
    assert sum(": " in title for title in titles) == expected


def test_last_layer_of_each_stage():
    names = ["stages.0.blocks.0.attn", "stages.0.blocks.1.attn", "stages.1.blocks.0.attn"]
    assert last_of_stages(names) == names[1:]


def test_of_many_stages_four_are_shown():
    names = [f"blocks.{i}.attn" for i in range(12)]
    assert last_of_stages(names) == [f"blocks.{i}.attn" for i in (2, 5, 8, 11)]


def test_layers_are_described():
    assert describe_layer("stages.2.blocks.7.attn") == "Stage 3, block 8"
    assert describe_layer("layers.0") == "layers.0"
