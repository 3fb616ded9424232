import numpy as np
import pytest
import timm
import torch

import visattn  # noqa: F401
from visattn.zoo.attention import (
    describe_layer,
    draw_routing,
    last_of_stages,
    plot_routing,
    routed_regions,
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
    return routed_regions(model, image)


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
    attention = routed_regions(model, image, [name])[name].attention(4 * row + 2, 4 * column + 2)
    with torch.no_grad():
        value = layer.project(x)[:, :, :, 2]  # (1, H, W, 1, dim)
        mean = torch.einsum("hw,hwd->d", attention, value[0, :, :, 0])
        expected = layer.proj(mean + layer.lepe(value.flatten(3))[0, row, column])
    torch.testing.assert_close(out[0, row, column], expected)


@pytest.mark.parametrize("name", LAST)
def test_attention_stays_in_the_routed_regions(maps, name):
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
    routed_regions(model, image)
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
    titles = [a.get_title(loc="left") for a in plot_routing(pixels, maps, (30, 50)).axes]
    assert titles[1:4] == [
        "Stage 1, block 1: 2 of 16 regions",
        "Stage 2, block 2: 3 of 16 regions",
        "Stage 3, block 1: 4 of 4 regions",
    ]


def test_unknown_layer_is_named(model, image):
    with pytest.raises(UserError, match=r"stages\.9\.attn.*stages\.0\.blocks\.0\.attn"):
        routed_regions(model, image, ["stages.9.attn"])


def test_model_without_routing_is_named(image):
    with pytest.raises(UserError, match="ResNet"):
        routed_regions(timm.create_model("resnet18"), image)


def test_query_outside_the_image_is_named(maps):
    with pytest.raises(UserError, match="x=96, y=3"):
        maps[LAST[0]].region_at(3, 96)


def test_last_layer_of_each_stage():
    names = ["stages.0.blocks.0.attn", "stages.0.blocks.1.attn", "stages.1.blocks.0.attn"]
    assert last_of_stages(names) == names[1:]


def test_layers_are_described():
    assert describe_layer("stages.2.blocks.7.attn") == "Stage 3, block 8"
    assert describe_layer("layers.0") == "layers.0"
