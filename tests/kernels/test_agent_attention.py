"""Agent attention against its definition by loops, the authors' modules, and itself."""

from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from _checks import assert_as_exact_as_reference, assert_deterministic, gradients
from torch.library import opcheck

from visattn.kernels import AgentBias, _threads, agent_attention, use_impl
from visattn.kernels.agent_attention.reference import dense_bias

FUSED = ["cpu", "triton"]


class Geometry(NamedTuple):
    queries: tuple[int, int]
    keys: tuple[int, int]
    agents: int
    bias: str | None = "parts"
    batch: int = 2
    heads: int = 2
    dim: int = 8
    dim_v: int = 8
    prefix: int = 0
    block: tuple[int, int] = (7, 7)
    scale: float | tuple[float, float] | None = None


GEOMETRIES = {
    "no_bias": Geometry((3, 4), (3, 4), 4, bias=None, dim=16, dim_v=16),
    "dense": Geometry((5, 4), (5, 4), 6, bias="dense"),
    "parts": Geometry((5, 9), (5, 9), 9),
    "rows_and_columns": Geometry((4, 6), (4, 6), 5, bias="rows and columns"),
    "class_token": Geometry((5, 5), (5, 5), 4, prefix=1, dim=24, dim_v=24),
    "reduced_keys": Geometry((7, 6), (4, 3), 9, prefix=2, block=(3, 5)),
    "other_values": Geometry((3, 7), (3, 7), 4, dim=20, dim_v=40, scale=(0.3, 0.7)),
    "one_of_each": Geometry((1, 1), (1, 1), 1, batch=1, heads=1, dim=1, dim_v=3, block=(1, 1)),
    "many_agents": Geometry((5, 4), (5, 8), 70, batch=1, heads=1, dim=80),
}
CPU_GEOMETRIES = {
    **GEOMETRIES,
    "chunks": Geometry((24, 25), (31, 20), 9, batch=3, heads=1, prefix=1, dim=32, dim_v=16),
    "dense_chunks": Geometry((24, 25), (31, 20), 9, bias="dense", batch=3, heads=1),
    "groups": Geometry((6, 6), (6, 6), 17, batch=19, heads=1, prefix=1),
    "wide_block": Geometry((9, 21), (9, 21), 6, block=(4, 33)),
    "long_lines": Geometry((1, 300), (3, 150), 5, prefix=2),
    "crowd": Geometry((9, 9), (4, 4), 260, batch=1, heads=1),
}


def make(geometry, dtype=torch.float32):
    """Inputs as views of a fused projection where that can be, and the op as a function of them."""
    g = geometry
    n, m = (g.prefix + height * width for height, width in (g.queries, g.keys))

    def by_token(tokens, dim):
        return torch.randn(g.batch, tokens, g.heads, dim, dtype=dtype).transpose(1, 2)

    inputs = {"q": by_token(n, g.dim), "k": by_token(m, g.dim), "v": by_token(m, g.dim_v)}
    if n == m and g.dim == g.dim_v:
        qkv = torch.randn(g.batch, n, 3, g.heads, g.dim, dtype=dtype)
        inputs = dict(zip("qkv", qkv.permute(2, 0, 3, 1, 4), strict=True))
    inputs["agents"] = torch.randn(g.batch, g.heads, g.agents, g.dim, dtype=dtype)

    if g.bias == "dense":
        inputs["key_dense"] = torch.randn(g.heads, g.agents, m, dtype=dtype)
        inputs["query_dense"] = torch.randn(g.heads, n, g.agents, dtype=dtype)
    elif g.bias is not None:
        for name, (height, width) in (("key", g.keys), ("query", g.queries)):
            sizes = {"rows": (height,), "columns": (width,)}
            if g.bias == "parts":
                sizes |= {"block": g.block, "prefix": (g.prefix,)}
            for part, size in sizes.items():
                x = torch.randn(g.heads, g.agents, *size, dtype=dtype)
                inputs[f"{name}_{part}"] = x

    def op(impl, *, q, k, v, agents, **biases):
        return agent_attention(
            q,
            k,
            v,
            agents,
            key_bias=bias_of("key", biases),
            query_bias=bias_of("query", biases),
            scale=g.scale,
            impl=impl,
        )

    return op, inputs


def bias_of(name, parts):
    if f"{name}_dense" in parts:
        return parts[f"{name}_dense"]
    if f"{name}_rows" not in parts:
        return None
    return AgentBias(*(parts.get(f"{name}_{part}") for part in AgentBias._fields))


def by_loops(q, k, v, agents, key_bias, query_bias, scales):
    """Agent by agent and query by query; biases are functions of head, agent and token."""
    batch, heads, tokens, _ = q.shape
    out = torch.empty(batch, heads, tokens, v.shape[-1], dtype=v.dtype)
    for b in range(batch):
        for h in range(heads):
            gathered = []
            for a, agent in enumerate(agents[b, h]):
                logits = [
                    scales[0] * (agent @ key) + key_bias(h, a, t) for t, key in enumerate(k[b, h])
                ]
                gathered.append(torch.stack(logits).softmax(0) @ v[b, h])
            for t, query in enumerate(q[b, h]):
                logits = [
                    scales[1] * (query @ agent) + query_bias(h, a, t)
                    for a, agent in enumerate(agents[b, h])
                ]
                out[b, h, t] = torch.stack(logits).softmax(0) @ torch.stack(gathered)
    return out


def bias_by_loops(bias, transposed):
    """A bias as a function of head, agent and token: interpolation written out."""

    def tap(position, before, after):
        """The two samples next to a position, and the weight of the second."""
        source = max((position + 0.5) * before / after - 0.5, 0.0)
        low = min(int(source), before - 1)
        return low, min(low + 1, before - 1), source - low

    def value(h, a, t):
        if bias is None:
            return 0.0
        if not isinstance(bias, AgentBias):
            return bias[h, t, a] if transposed else bias[h, a, t]
        before = 0 if bias.prefix is None else bias.prefix.shape[2]
        if t < before:
            return bias.prefix[h, a, t]
        height, width = bias.rows.shape[2], bias.columns.shape[2]
        y, x = divmod(t - before, width)
        total = bias.rows[h, a, y] + bias.columns[h, a, x]
        if bias.block is not None:
            block = bias.block[h, a]
            top, bottom, down = tap(y, block.shape[0], height)
            left, right, across = tap(x, block.shape[1], width)
            upper = block[top, left] * (1 - across) + block[top, right] * across
            lower = block[bottom, left] * (1 - across) + block[bottom, right] * across
            total = total + upper * (1 - down) + lower * down
        return total

    return value


@pytest.mark.parametrize("name", GEOMETRIES)
def test_reference_is_the_definition(name):
    geometry = GEOMETRIES[name]._replace(batch=1)
    op, inputs = make(geometry, torch.float64)
    scale = geometry.dim**-0.5 if geometry.scale is None else geometry.scale
    wanted = by_loops(
        *(inputs[n] for n in ("q", "k", "v", "agents")),
        bias_by_loops(bias_of("key", inputs), transposed=False),
        bias_by_loops(bias_of("query", inputs), transposed=True),
        scale if isinstance(scale, tuple) else (scale, scale),
    )
    torch.testing.assert_close(op("reference", **inputs), wanted)


def test_first_and_second_derivatives_of_the_reference():
    op, inputs = make(Geometry((2, 3), (2, 2), 2, batch=1, heads=1, dim=2, dim_v=2), torch.float64)
    names = list(inputs)
    leaves = tuple(x.detach().requires_grad_() for x in inputs.values())

    def function(*tensors):
        return op("reference", **dict(zip(names, tensors, strict=True)))

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def fill(*shape):
    """The rule that the authors' modules were filled by, and what it makes of weights."""
    j = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    u = ((1103 * j * j + 7919 * j + 12345) % 65537).double() / 65537 - 0.5
    return u.reshape(shape)


def weight(*shape):
    fan_in = torch.Size(shape).numel() // shape[0]
    depthwise = len(shape) == 4 and shape[1] == 1
    return fill(*shape) * (12 / fan_in) ** 0.5 * (0.25 if depthwise else 1)


class Module:
    """The authors' module of 8 channels and 2 heads over a 6 x 6 map, by its parts."""

    side, heads, channels = 6, 2, 8

    def __init__(self, agents, impl, dtype, reduction=1, prefix=0):
        self.impl, self.dtype, self.prefix, self.reduction = impl, dtype, prefix, reduction
        self.pool = round(agents**0.5)
        sizes = {"a": self.side // reduction, "q": self.side}

        def bias(block, rows, columns, prefix):
            parts = [rows[0, ..., 0], columns[0, ..., 0, :], block, prefix[0]]
            if not self.prefix:
                parts[3] = None
            return AgentBias(*(x if x is None else x.to(dtype) for x in parts))

        half, h, n = 0.5, self.heads, agents
        self.key_bias = bias(
            half * fill(h, n, 7, 7),
            half * fill(1, h, n, sizes["a"], 1),
            half * fill(1, h, n, 1, sizes["a"]),
            half * fill(1, h, n, 1),
        )
        # Rows, columns and prefix of queries come with agents last.
        rows, columns = half * fill(1, h, sizes["q"], 1, n), half * fill(1, h, 1, sizes["q"], n)
        self.query_bias = bias(
            half * fill(h, n, 7, 7),
            rows.permute(0, 1, 4, 2, 3),
            columns.permute(0, 1, 4, 2, 3),
            half * fill(1, h, 1, n).transpose(2, 3),
        )

    def linear(self, x, rows):
        return F.linear(x, weight(rows, self.channels).to(x), (0.5 * fill(rows)).to(x))

    def map_of(self, x, side=side):
        return x[:, self.prefix :].transpose(1, 2).unflatten(2, (side, side))

    def split(self, x):
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def __call__(self, separate=False):
        tokens, channels = self.prefix + self.side**2, self.channels
        x = (12**0.5 * fill(1, tokens, channels)).to(self.dtype)
        side = self.side // self.reduction
        if separate:
            q, source = self.linear(x, channels), x
            if self.reduction > 1:
                kernel = weight(channels, channels, self.reduction, self.reduction).to(x)
                bias = (0.5 * fill(channels)).to(x)
                source = F.conv2d(self.map_of(x), kernel, bias, self.reduction)
                norm = (1 + 0.2 * fill(channels)).to(x), (0.5 * fill(channels)).to(x)
                source = F.layer_norm(source.flatten(2).transpose(1, 2), (channels,), *norm)
            k, v = self.linear(source, 2 * channels).chunk(2, -1)
        else:
            q, k, v = self.linear(x, 3 * channels).chunk(3, -1)
        agents = F.adaptive_avg_pool2d(self.map_of(q), self.pool).flatten(2).transpose(1, 2)
        out = agent_attention(
            *(self.split(t) for t in (q, k, v, agents)),
            key_bias=self.key_bias,
            query_bias=self.query_bias,
            impl=self.impl,
        )
        out = out.transpose(1, 2).flatten(2)
        values = F.interpolate(self.map_of(v, side), size=self.side, mode="bilinear")
        kernel = weight(channels, 1, 3, 3).to(x), (0.5 * fill(channels)).to(x)
        local = F.conv2d(values, *kernel, padding=1, groups=channels).flatten(2).transpose(1, 2)
        out = torch.cat([out[:, : self.prefix], out[:, self.prefix :] + local], 1)
        return self.linear(out, channels)


def diffusion_attention(impl, dtype):
    """Self-attention of Stable Diffusion by way of agents, with the authors' second scale."""
    x = (12**0.5 * fill(1, 32, 8)).to(dtype)

    def split(x):
        return F.linear(x, weight(8, 8).to(x)).unflatten(2, (2, 4)).transpose(1, 2)

    v = split(x)
    out = agent_attention(split(x), split(x), v, split(x[:, ::4]), scale=(0.5, 4**-0.15), impl=impl)
    out = (out + 0.075 * v).transpose(1, 2).flatten(2)
    return F.linear(out, weight(8, 8).to(x), (0.5 * fill(8)).to(x))


AUTHORS = {
    # The module, and the first four of its outputs, the last, their sum and their norm.
    "swin": (
        lambda *args: Module(9, *args)(),
        [0.59096230, 0.35115142, 0.63273968, -0.59678064, 0.48223174, 6.427132, 9.611799],
    ),
    "swin_overlapping": (
        lambda *args: Module(16, *args)(),
        [0.78874900, 0.27808061, 0.52743042, -0.57447193, 0.49450668, 2.628470, 9.654415],
    ),
    "pvt": (
        lambda *args: Module(9, *args)(separate=True),
        [0.48159377, 1.22722656, 0.25587139, -0.85634152, -0.21220703, 6.549545, 9.100231],
    ),
    "pvt_reduced": (
        lambda *args: Module(9, *args, reduction=2)(separate=True),
        [0.12008827, 1.40751065, 0.10313588, -1.03147732, 0.43638077, -0.101703, 12.789274],
    ),
    "deit": (
        lambda *args: Module(9, *args, prefix=1)(),
        [0.22082952, -0.00069858, 0.64205964, -0.08932974, -0.03308787, 5.723763, 9.705482],
    ),
    "diffusion": (
        diffusion_attention,
        [-1.24388213, -1.92498140, 1.44884837, 0.47683913, 1.48692267, 14.403276, 13.867422],
    ),
}


@pytest.mark.parametrize("name", AUTHORS)
@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_equals_the_authors_modules(impl, name):
    module, wanted = AUTHORS[name]
    exact = impl == "reference"
    out = module(impl, torch.float64 if exact else torch.float32).flatten().double()
    actual = torch.stack([*out[:4], out[-1], out.sum(), out.norm()])
    wanted = torch.tensor(wanted, dtype=torch.float64)
    tolerance = 1e-6 if exact else 2e-5
    torch.testing.assert_close(actual, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CPU_GEOMETRIES)
def test_is_as_exact_as_the_reference_on_the_cpu(name, dtype):
    assert_as_exact_as_reference(*make(CPU_GEOMETRIES[name], dtype), "cpu")


@pytest.mark.parametrize("name", GEOMETRIES)
def test_is_as_exact_as_the_reference_in_triton(name):
    assert_as_exact_as_reference(*make(GEOMETRIES[name]), "triton")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_is_as_exact_as_the_reference_in_triton_in_low_precision(dtype):
    assert_as_exact_as_reference(*make(GEOMETRIES["class_token"], dtype), "triton")


def test_splits_long_sequences_in_triton(monkeypatch):
    from visattn.kernels.agent_attention import triton

    monkeypatch.setattr(triton, "CHUNK", 64)
    assert_as_exact_as_reference(*make(Geometry((9, 15), (7, 20), 4, batch=1, heads=1)), "triton")


@pytest.mark.parametrize("impl", FUSED)
def test_parts_are_the_dense_bias(impl):
    op, inputs = make(GEOMETRIES["class_token"])
    key_bias, query_bias = (bias_of(name, inputs) for name in ("key", "query"))
    plain = {name: inputs[name] for name in ("q", "k", "v", "agents")}
    dense = agent_attention(
        **plain,
        key_bias=dense_bias(key_bias),
        query_bias=dense_bias(query_bias).transpose(1, 2),
        impl=impl,
    )
    torch.testing.assert_close(op(impl, **inputs), dense)


@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_rows_of_weights_add_up_to_one(impl):
    op, inputs = make(GEOMETRIES["class_token"])
    inputs["v"] = torch.full_like(inputs["v"], 3.0)
    torch.testing.assert_close(op(impl, **inputs), torch.full_like(inputs["q"], 3.0))


@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_a_hidden_class_token_is_not_seen(impl):
    op, inputs = make(GEOMETRIES["class_token"])
    inputs["key_prefix"].fill_(-1e9)
    other = {**inputs, "k": inputs["k"].clone(), "v": inputs["v"].clone()}
    other["k"][:, :, 0], other["v"][:, :, 0] = 7.0, -5.0
    assert torch.equal(op(impl, **inputs), op(impl, **other))


@pytest.mark.parametrize("impl", FUSED)
def test_infinite_biases_hide_tokens(impl):
    """Among them all tokens of a chunk."""
    tokens = 80 if impl == "triton" else 600
    geometry = Geometry((1, tokens), (1, tokens), 3, bias="dense", batch=1, heads=1)
    op, inputs = make(geometry)
    inputs["key_dense"][0, 0, : tokens // 2 + 20] = float("-inf")
    inputs["query_dense"][0, 5, :2] = float("-inf")
    wanted = gradients(lambda **leaves: op("reference", **leaves), inputs)
    for name, value in gradients(lambda **leaves: op(impl, **leaves), inputs).items():
        torch.testing.assert_close(value, wanted[name], msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("impl", FUSED)
def test_any_strides(impl):
    op, inputs = make(GEOMETRIES["class_token"])
    turned = {
        name: x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
        for name, x in inputs.items()
    }
    spread = {name: torch.stack([x, x], -1)[..., 0] for name, x in inputs.items()}
    wanted = gradients(lambda **leaves: op("reference", **leaves), inputs)
    for strided in (turned, spread):
        torch.testing.assert_close(op(impl, **strided), wanted["out"])
        leaves = {name: x.detach().requires_grad_() for name, x in strided.items()}
        generator = torch.Generator().manual_seed(1)
        cotangent = torch.randn(wanted["out"].shape, generator=generator, dtype=torch.float64)
        grads = torch.autograd.grad(op(impl, **leaves), list(leaves.values()), cotangent.float())
        for name, grad in zip(leaves, grads, strict=True):
            torch.testing.assert_close(grad, wanted[name], msg=lambda m, name=name: f"{name}: {m}")


def test_rows_that_crowd_the_cache():
    """Rows that are a multiple of 2 KiB apart are copied before they are read."""
    inputs = {name: torch.randn(2, 30, 8, 64) for name in ("q", "k", "v")}
    inputs["agents"] = torch.randn(2, 8, 9, 64)

    def op(impl, q, k, v, agents):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        assert q.stride(2) * q.element_size() % 2048 == 0
        return agent_attention(q, k, v, agents, impl=impl)

    fused, plain = (gradients(partial(op, impl), inputs) for impl in ("cpu", "reference"))
    torch.testing.assert_close(fused, plain)


@pytest.mark.parametrize("impl", FUSED)
def test_expanded_inputs_and_gradients(impl):
    op, inputs = make(GEOMETRIES["parts"])
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    leaves["agents"] = inputs["agents"][:1].requires_grad_()

    def slopes(impl):
        out = op(impl, **{**leaves, "agents": leaves["agents"].expand(2, -1, -1, -1)})
        return torch.autograd.grad(out.sum(), list(leaves.values()))

    for name, fused, plain in zip(leaves, slopes(impl), slopes("reference"), strict=True):
        torch.testing.assert_close(fused, plain, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("kind", ["parts", "dense", None])
@pytest.mark.parametrize("impl", FUSED)
def test_empty_batch(impl, kind):
    op, inputs = make(GEOMETRIES["parts"]._replace(bias=kind))
    for name in ("q", "k", "v", "agents"):
        inputs[name] = inputs[name][:0]
    results = gradients(lambda **leaves: op(impl, **leaves), inputs)
    assert results["out"].shape == (0, 2, 45, 8)
    for name, value in results.items():
        assert not value.any(), name


@pytest.mark.parametrize("impl", FUSED)
def test_no_queries(impl):
    op, inputs = make(GEOMETRIES["no_bias"])
    inputs["q"] = inputs["q"][:, :, :0]
    results = gradients(lambda **leaves: op(impl, **leaves), inputs)
    assert results["out"].shape == (2, 2, 0, 16)
    for name, value in results.items():
        assert not value.any(), name


@pytest.mark.parametrize(
    "impl, name",
    [("cpu", "chunks"), ("cpu", "dense_chunks"), ("cpu", "groups"), ("triton", "parts")],
)
def test_is_deterministic_for_any_number_of_threads(impl, name):
    op, inputs = make(CPU_GEOMETRIES[name])
    assert_deterministic(lambda **leaves: op(impl, **leaves), inputs)


def test_large_offsets():
    """Rows further apart than 32 bits count, in memory that is mapped but hardly touched."""
    row = 2**29 + 16
    x = torch.empty(5 * row + 16).as_strided((1, 1, 6, 16), (0, 0, row, 1))
    small, agents = torch.randn(1, 1, 6, 16), torch.randn(1, 1, 2, 16)
    x.copy_(small)
    torch.testing.assert_close(
        agent_attention(x, x, x, agents, impl="cpu"),
        agent_attention(small, small, small, agents, impl="reference"),
    )


def test_stores_no_matrix_of_tokens_by_agents(monkeypatch):
    """Results are far smaller than one, and scratch memory grows with rows and columns at most."""

    def largest(side):
        sizes = {"result": [0], "scratch": [0]}
        op, inputs = make(Geometry((side, side), (side, side), 64, batch=4))

        def watch(function):
            def watched(*args, **kwargs):
                x = function(*args, **kwargs)
                sizes["scratch" if x.dtype == torch.uint8 else "result"].append(x.numel())
                return x

            return watched

        with monkeypatch.context() as patch:
            patch.setattr(_threads, "_memory", [])
            patch.setattr(torch, "empty", watch(torch.empty))
            patch.setattr(torch.Tensor, "new_empty", watch(torch.Tensor.new_empty))
            gradients(lambda **leaves: op("cpu", **leaves), inputs)
        q, agents = inputs["q"], inputs["agents"]
        assert max(sizes["result"]) * 4 < q[..., 0].numel() * agents.shape[2]
        return max(sizes["scratch"])

    small, large = largest(32), largest(64)
    assert 0 < large < 2 * small  # four times the tokens


@pytest.mark.parametrize("impl", FUSED)
def test_operators_are_registered_rightly(impl):
    for name in ("class_token", "dense", "no_bias"):
        geometry = GEOMETRIES[name]
        _, inputs = make(geometry)
        inputs = {key: x.detach().requires_grad_() for key, x in inputs.items()}
        parts = []
        for side in ("key", "query"):
            bias = bias_of(side, inputs)
            if bias is None:
                parts += [None] * 4
            elif isinstance(bias, AgentBias):
                parts += bias
            else:
                bias = bias.detach() if side == "key" else bias.detach().transpose(1, 2)
                parts += [None, None, bias.requires_grad_(), None]
        tensors = *(inputs[key] for key in ("q", "k", "v", "agents")), *parts
        opcheck(torch.ops.visattn.agent_attention.default, (*tensors, 0.3, 0.4, impl))


def test_compiles_whole_for_any_size():
    def twice(q, k, v, agents, **biases):
        bias = {"key_bias": bias_of("key", biases), "query_bias": bias_of("query", biases)}
        x = agent_attention(q, k, v, agents, **bias, impl="cpu")
        return agent_attention(x, k, x, agents, **bias, impl="cpu")

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager", dynamic=True)
    for queries in ((6, 7), (8, 5)):
        _, inputs = make(Geometry(queries, queries, 9, prefix=1))
        wanted = gradients(twice, inputs)
        for name, value in gradients(compiled, inputs).items():
            torch.testing.assert_close(value, wanted[name], msg=lambda m, name=name: f"{name}: {m}")


def test_exports_plain_torch_unless_told():
    op, inputs = make(GEOMETRIES["class_token"])
    biases = {name: x for name, x in inputs.items() if "_" in name}

    class Model(torch.nn.Module):
        def forward(self, q, k, v, agents):
            return op(None, q=q, k=k, v=v, agents=agents, **biases)

    def operators(program):
        return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}

    arguments = tuple(inputs[name] for name in ("q", "k", "v", "agents"))
    dynamic = {0: torch.export.Dim("batch", min=2)}
    plain = torch.export.export(Model(), arguments, dynamic_shapes=(dynamic,) * 4)
    assert not any("visattn" in name for name in operators(plain))
    with use_impl("cpu"):
        fused = torch.export.export(Model(), arguments, dynamic_shapes=(dynamic,) * 4)
    assert any("visattn" in name for name in operators(fused))
    more = tuple(torch.cat([x, x.flip(0), x]) for x in arguments)
    torch.testing.assert_close(plain.module()(*more), fused.module()(*more))


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_autocast_computes_in_low_precision(impl):
    op, inputs = make(GEOMETRIES["class_token"])
    with torch.autocast("cpu", torch.bfloat16):
        out = op(impl, **inputs)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), op(impl, **inputs), atol=0.05, rtol=0.05)


def test_heads_merge_without_a_copy():
    op, inputs = make(GEOMETRIES["parts"])
    out = op("cpu", **inputs)
    assert out.transpose(1, 2).flatten(2).data_ptr() == out.data_ptr()


def test_second_derivatives_need_the_reference():
    op, inputs = make(GEOMETRIES["no_bias"])
    q = inputs["q"].detach().requires_grad_()

    def slope(impl):
        out = op(impl, **{**inputs, "q": q}).square().sum()
        return torch.autograd.grad(out, q, create_graph=True)[0]

    assert torch.autograd.grad(slope("reference").sum(), q)[0].isfinite().all()
    with pytest.raises(RuntimeError, match='impl="reference"'):
        torch.autograd.grad(slope("cpu").sum(), q)


X = torch.randn(1, 2, 6, 8)
ROWS, COLUMNS = torch.randn(2, 4, 2), torch.randn(2, 4, 3)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"agents": X[0]}, "q, k and agents must be"),
        ({"k": torch.randn(1, 2, 6, 4)}, "agree in B, heads and dim"),
        ({"v": torch.randn(1, 2, 5, 8)}, r"v must be .* got k \(1, 2, 6, 8\), v \(1, 2, 5, 8\)"),
        ({"agents": X[:, :, :0]}, "at least one key and one agent"),
        ({"key_bias": torch.randn(2, 6, 4)}, r"key_bias must be \(2, 4, 6\) or an AgentBias"),
        ({"query_bias": torch.randn(2, 4, 6)}, r"query_bias must be \(2, 6, 4\)"),
        ({"key_bias": AgentBias(ROWS, COLUMNS[:, :3])}, "key_bias.columns must have 3 dimensions"),
        ({"key_bias": AgentBias(ROWS, COLUMNS, ROWS)}, "key_bias.block must have 4 dimensions"),
        ({"query_bias": AgentBias(ROWS, COLUMNS, prefix=ROWS)}, "2 tokens and a map of 2 x 3"),
        ({"impl": "cuda"}, "impl must be one of"),
    ],
)
def test_bad_input(change, message):
    arguments = {"q": X, "k": X, "v": X, "agents": X[:, :, :4]}
    with pytest.raises(ValueError, match=message):
        agent_attention(**{**arguments, **change})


def test_an_implementation_that_cannot_run_says_why():
    arguments = {"q": X, "k": X, "v": X, "agents": X[:, :, :4]}
    with pytest.raises(RuntimeError, match="no implementation 'natten'"):
        agent_attention(**arguments, impl="natten")
    with pytest.raises(RuntimeError, match="one is torch.float64"):
        agent_attention(**{name: x.double() for name, x in arguments.items()}, impl="cpu")
    bias = torch.randn(2, 4, 6, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="one is torch.float64"):
        agent_attention(**arguments, key_bias=bias, impl="cpu")
