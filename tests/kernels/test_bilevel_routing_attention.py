"""Bi-level routing attention against loops, against full attention and against its own rules."""

import math

import pytest
import torch
import torch.nn.functional as F

from visattn.kernels import bilevel_routing_attention, route_regions

GEOMETRIES = [
    # height, width, regions, topk
    (4, 4, 2, 2),
    (6, 10, 2, 3),
    (5, 6, 2, 2),
    (16, 18, 7, 4),
    (5, 5, 7, 4),
    (3, 8, (2, 3), 5),
    (7, 7, 7, 49),
]


def qkv(height, width, batch=2, heads=2, dim=4, dtype=torch.float64):
    return torch.randn(3, batch, height, width, heads, dim, dtype=dtype).unbind(0)


def cells(size, count, pad_mode):
    """Positions of each region along one side, padding (positions >= size) included."""
    length = math.ceil(size / count) if pad_mode == "mask" else max(size // count, 1)
    number = count if pad_mode == "mask" else max(math.ceil(size / length), count)
    return [range(i * length, (i + 1) * length) for i in range(number)]


def loops(q, k, v, regions, topk, pad_mode, scale):
    """The definition, token by token."""
    batch, height, width, heads, _ = q.shape
    rows, columns = (regions, regions) if isinstance(regions, int) else regions
    grid = [
        [(y, x) for y in ys for x in xs]
        for ys in cells(height, rows, pad_mode)
        for xs in cells(width, columns, pad_mode)
    ]
    real = [[(y, x) for y, x in cell if y < height and x < width] for cell in grid]
    out = torch.zeros_like(v)
    for b in range(batch):
        means = [
            [torch.stack([t[b, y, x].flatten() for y, x in cell]).mean(0) if cell else None
             for cell in real]
            for t in (q, k)
        ]  # fmt: skip
        for mean, cell in zip(means[0], real, strict=True):
            if not cell:
                continue
            affinity = [-math.inf if m is None else float(mean @ m) for m in means[1]]
            chosen = sorted(range(len(grid)), key=lambda i: -affinity[i])[:topk]
            chosen = [i for i in chosen if real[i]]
            keys = [token for i in chosen for token in (real[i] if pad_mode == "mask" else grid[i])]
            for y, x in cell:
                for h in range(heads):
                    inside = [(j, i) if j < height and i < width else None for j, i in keys]
                    zero = q.new_zeros(())
                    logits = torch.stack(
                        [scale * q[b, y, x, h] @ k[b, t[0], t[1], h] if t else zero for t in inside]
                    )
                    weights = logits.softmax(0)
                    for weight, t in zip(weights, inside, strict=True):
                        if t is not None:
                            out[b, y, x, h] += weight * v[b, t[0], t[1], h]
    return out


@pytest.mark.parametrize("pad_mode", ["mask", "zero"])
@pytest.mark.parametrize(("height", "width", "regions", "topk"), GEOMETRIES)
def test_equals_the_loops(height, width, regions, topk, pad_mode):
    q, k, v = qkv(height, width)
    expected = loops(q, k, v, regions, topk, pad_mode, scale=0.3)
    actual = bilevel_routing_attention(q, k, v, regions, topk, scale=0.3, pad_mode=pad_mode)
    torch.testing.assert_close(actual, expected)


def test_all_regions_is_full_attention_scaled_by_the_full_width():
    q, k, v = qkv(6, 10)
    full = F.scaled_dot_product_attention(
        *(t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)), scale=8**-0.5
    )
    expected = full.transpose(1, 2).unflatten(1, (6, 10))
    torch.testing.assert_close(bilevel_routing_attention(q, k, v, 2, 4), expected)


def test_topk_is_clamped_to_the_number_of_regions():
    q, k, v = qkv(4, 4)
    expected = bilevel_routing_attention(q, k, v, 2, 4)
    torch.testing.assert_close(bilevel_routing_attention(q, k, v, 2, 99), expected)


def test_padding_is_not_seen_in_mask_mode():
    q, k, v = qkv(5, 5)
    whole = bilevel_routing_attention(q, k, v, 2, 4)
    expected = F.scaled_dot_product_attention(
        *(t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)), scale=8**-0.5
    )
    torch.testing.assert_close(whole, expected.transpose(1, 2).unflatten(1, (5, 5)))


def test_modes_agree_where_regions_divide_the_map():
    q, k, v = qkv(6, 9)
    masked, zero = (
        bilevel_routing_attention(q, k, v, 3, 2, pad_mode=mode) for mode in ("mask", "zero")
    )
    torch.testing.assert_close(masked, zero)


def test_given_routing_is_used():
    q, k, v = qkv(4, 4)
    itself = torch.arange(4)[None, :, None].expand(2, 4, 1)
    actual = bilevel_routing_attention(q, k, v, 2, 1, routing=itself)
    corner = bilevel_routing_attention(*(t[:, :2, :2] for t in (q, k, v)), 1, 1)
    torch.testing.assert_close(actual[:, :2, :2], corner)


def test_pooled_keys_keep_the_grid():
    q, k, v = qkv(8, 8)
    pooled_k, pooled_v = (
        F.avg_pool2d(t.flatten(3).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1).unflatten(3, (2, 4))
        for t in (k, v)
    )
    out = bilevel_routing_attention(q, pooled_k, pooled_v, 2, 4)
    expected = F.scaled_dot_product_attention(
        *(t.flatten(1, 2).transpose(1, 2) for t in (q, pooled_k, pooled_v)), scale=8**-0.5
    )
    torch.testing.assert_close(out, expected.transpose(1, 2).unflatten(1, (8, 8)))


def test_routing_carries_no_gradient():
    q, k, v = (t.requires_grad_() for t in qkv(6, 6, batch=1))
    frozen = route_regions(q, k, 3, 2)
    free = torch.autograd.grad(bilevel_routing_attention(q, k, v, 3, 2).square().sum(), (q, k, v))
    given = torch.autograd.grad(
        bilevel_routing_attention(q, k, v, 3, 2, routing=frozen).square().sum(), (q, k, v)
    )
    torch.testing.assert_close(free, given)


@pytest.mark.parametrize("pad_mode", ["mask", "zero"])
def test_first_and_second_derivatives(pad_mode):
    q, k, v = (t.requires_grad_() for t in qkv(3, 5, batch=1, heads=1, dim=2))
    routing = route_regions(q, k, 2, 2, pad_mode=pad_mode)

    def op(q, k, v):
        return bilevel_routing_attention(q, k, v, 2, 2, pad_mode=pad_mode, routing=routing)

    assert torch.autograd.gradcheck(op, (q, k, v))
    assert torch.autograd.gradgradcheck(op, (q, k, v))


def test_routing_is_the_same_under_autocast():
    q, k, _ = qkv(14, 14, dtype=torch.float32)
    expected = route_regions(q, k, 7, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(route_regions(q, k, 7, 8), expected)


def test_strides_of_the_inputs_do_not_matter():
    q, k, v = qkv(6, 6)
    expected = bilevel_routing_attention(q, k, v, 3, 2)
    strided = [t.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0) for t in (q, k, v)]
    torch.testing.assert_close(bilevel_routing_attention(*strided, 3, 2), expected)


def test_an_empty_batch_gives_an_empty_result():
    q, k, v = qkv(6, 6, batch=0)
    assert bilevel_routing_attention(q, k, v, 3, 2).shape == q.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topk": 0}, "topk must be at least 1"),
        ({"regions": 0}, "regions must be at least 1"),
        ({"pad_mode": "wrap"}, "pad_mode must be one of"),
        ({"k": torch.zeros(2, 4, 4, 3, 4)}, "agree in B, heads and dim"),
        ({"v": torch.zeros(2, 4, 5, 2, 4)}, "v must be"),
        ({"k": torch.zeros(2, 3, 3, 2, 4), "v": torch.zeros(2, 3, 3, 2, 4)}, "pooled keys"),
    ],
)
def test_impossible_arguments_are_named(change, message):
    q, k, v = qkv(4, 4, dtype=torch.float32)
    arguments = {"q": q, "k": k, "v": v, "regions": 2, "topk": 2} | change
    with pytest.raises(ValueError, match=message):
        bilevel_routing_attention(**arguments)
