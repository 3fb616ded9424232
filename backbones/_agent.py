"""What the hosts of agent attention share: the attention, its biases and their conversion

Paper: `Agent Attention: On the Integration of Softmax and Linear Attention`
    - https://arxiv.org/abs/2312.08874 (ECCV 2024)

A module has parameters for the map of the size that it was trained at. On a map of another size,
and with other agents, it does what the authors' modules for dense prediction do, which is the same
where sizes agree: biases are resized linearly over the map and bilinearly over the grid of agents.
Biases stay in their factors all along: resizing the sum of a row's and a column's bias is resizing
each.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple, trunc_normal_
from torch import nn

from ..kernels import AgentBias, agent_attention, unpack
from ..kernels.agent_attention.reference import dense_bias
from ._builder import StateDict
from .biformer import LocalEnhancement
from .nat import NATBlock

__all__ = [
    "AgentAttention",
    "AgentBiasTables",
    "SpatialReductionAttention",
    "hybrid_blocks",
    "pool_agents",
]

Size = tuple[int, int]

_BLOCK = 7
"""Side of the small block of bias that is resized to the map, whatever the map's size."""


class AgentBiasTables(nn.Module):
    """Learned logit biases between agents and the tokens of a map (equation 5 of the paper).

    Args:
        num_heads: Heads.
        agent_grid: Rows and columns of agents that the biases are for.
        map_size: Rows and columns of tokens that the biases are for.
        prefix_tokens: Tokens before those of the map, such as a class token.
    """

    def __init__(
        self, num_heads: int, agent_grid: Size, map_size: Size, prefix_tokens: int = 0, **dd: Any
    ):
        super().__init__()
        self.agent_grid = agent_grid
        count = agent_grid[0] * agent_grid[1]

        def table(*shape: int) -> nn.Parameter:
            return nn.Parameter(
                trunc_normal_(torch.empty(num_heads, count, *shape, **dd), std=0.02)
            )

        self.rows = table(map_size[0])
        self.columns = table(map_size[1])
        self.block = table(_BLOCK, _BLOCK)
        self.prefix = table(prefix_tokens) if prefix_tokens else None
        self._resized: tuple[Any, AgentBias] | None = None

    @property
    def map_size(self) -> Size:
        """Rows and columns of tokens that the biases are for."""
        return self.rows.shape[2], self.columns.shape[2]

    def forward(self, size: Sequence[int], agent_grid: Size) -> AgentBias:
        """The biases for a map of a size and a grid of agents.

        At evaluation without gradients what had to be resized is kept for the next map of that
        size, until a parameter changes or the mode is set.
        """
        height, width = size
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._resize(height, width, agent_grid)
        parameters = tuple(self.parameters())
        as_they_are = (height, width) == self.map_size and agent_grid == self.agent_grid
        if as_they_are or torch.jit.is_tracing() or any(p.is_inference() for p in parameters):
            return self._resize(height, width, agent_grid)
        key = height, width, agent_grid, *((p.data_ptr(), p._version, p.dtype) for p in parameters)
        if self._resized is None or self._resized[0] != key:
            self._resized = key, self._resize(height, width, agent_grid)
        return self._resized[1]

    def train(self, mode: bool = True) -> "AgentBiasTables":
        """Sets the mode and forgets resized biases."""
        self._resized = None
        return super().train(mode)

    def _resize(self, height: int, width: int, agent_grid: Size) -> AgentBias:
        tables = self.rows, self.columns, self.block, self.prefix
        if agent_grid != self.agent_grid:
            tables = (
                x if x is None else resize_grid(x, self.agent_grid, agent_grid) for x in tables
            )
        rows, columns, block, prefix = tables
        return AgentBias(resize_line(rows, height), resize_line(columns, width), block, prefix)

    @torch.no_grad()
    def set_map_size(self, size: Size) -> None:
        """Makes the biases parameters of another map size."""
        rows, columns = resize_line(self.rows, size[0]), resize_line(self.columns, size[1])
        self.rows, self.columns = nn.Parameter(rows.clone()), nn.Parameter(columns.clone())

    def extra_repr(self) -> str:
        return f"agent_grid={self.agent_grid}, map_size={self.map_size}"


def _exact(x: torch.Tensor) -> torch.Tensor:
    """In single precision at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def resize_line(table: torch.Tensor, length: int) -> torch.Tensor:
    """Biases (heads, agents, L) of a side of another length."""
    if isinstance(length, int) and length == table.shape[2]:
        return table
    resized = F.interpolate(_exact(table), length, mode="linear", align_corners=False)
    return resized.to(table.dtype)


def resize_grid(table: torch.Tensor, before: Size, after: Size) -> torch.Tensor:
    """Biases (heads, agents, ...) of another grid of agents."""
    x = table.flatten(2).transpose(1, 2).unflatten(2, before)  # (heads, ..., rows, columns)
    x = F.interpolate(_exact(x), after, mode="bilinear", align_corners=False)
    x = x.flatten(2).transpose(1, 2).unflatten(2, table.shape[2:])
    return x.to(table.dtype)


def agent_grid(num_agents: int) -> Size:
    """The square grid of a number of agents.

    Raises:
        ValueError: If it is no square.
    """
    side = round(max(num_agents, 0) ** 0.5)
    if side * side != num_agents or side == 0:
        raise ValueError(
            f"num_agents must be a square number, such as 9, 16 or 49; got {num_agents}: give a "
            "grid that is not square as agent_shape"
        )
    return side, side


def pool_agents(x: torch.Tensor, grid: Size) -> torch.Tensor:
    """Agents (B, n, C): averages of a map (B, H, W, C) over a grid of bins, which may overlap."""
    if not torch.compiler.is_exporting():
        pooled = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), grid)
        return pooled.flatten(2).transpose(1, 2)
    # As products, which formats for exchange have at dynamic sizes.
    rows, columns = (_bins(size, count, x) for size, count in zip(x.shape[1:3], grid, strict=True))
    return (rows @ (columns @ x.contiguous()).flatten(2)).unflatten(2, (grid[1], -1)).flatten(1, 2)


def _bins(size: int, count: int, like: torch.Tensor) -> torch.Tensor:
    """Weights (count, size) that average over the bins of adaptive pooling."""
    i = torch.arange(count, device=like.device)[:, None]
    y = torch.arange(size, device=like.device)
    first, end = i * size // count, ((i + 1) * size + count - 1) // count
    return ((y >= first) & (y < end)).to(like.dtype) / (end - first).to(like.dtype)


class SpatialReduction(nn.Module):
    """Strided convolution and norm that keys and values are taken from (PVT's)."""

    def __init__(self, dim: int, ratio: int, **dd: Any):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, ratio, stride=ratio, **dd)
        self.norm = nn.LayerNorm(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, H, W, C)
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class SpatialReductionAttention(nn.Module):
    """Attention of a map to itself or, as in PVT (arXiv 2102.12122), to a reduced map.

    Takes and returns channels-last maps (B, H, W, C).

    Args:
        dim: Channels.
        num_heads: Heads, a divisor of ``dim``.
        sr_ratio: Tokens a side that a key and a value stand for.
        proj_drop: Dropout after the projection.
    """

    _used_twice: ClassVar[tuple[int, ...]] = ()
    """Which of queries, keys and values, from the last one back, ``attend`` has a second use of."""

    def __init__(
        self, dim: int, num_heads: int, sr_ratio: int = 1, proj_drop: float = 0.0, **dd: Any
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} must be divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        if sr_ratio == 1:
            self.qkv = nn.Linear(dim, 3 * dim, **dd)
        else:
            self.q = nn.Linear(dim, dim, **dd)
            self.reduction = SpatialReduction(dim, sr_ratio, **dd)
            self.kv = nn.Linear(dim, 2 * dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, dim)

    def _unpack(self, x: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
        """The last ``count`` of queries, keys and values, and once more what has a second use."""
        again = tuple(i for i in self._used_twice if -i <= count)
        return unpack(x.unflatten(-1, (count, -1)), 2, again)

    def project(self, x: torch.Tensor) -> tuple[Any, ...]:
        """What ``attend`` takes, from a map (B, H, W, C)."""
        size = x.shape[1:3]
        if self.sr_ratio == 1:
            q, k, v, *again = self._unpack(self.qkv(x.flatten(1, 2)), 3)
            return q, k, v, size, size, *again
        reduced = self.reduction(x)
        q = self.q(x.flatten(1, 2))
        k, v, *again = self._unpack(self.kv(reduced.flatten(1, 2)), 2)
        return q, k, v, size, reduced.shape[1:3], *again

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        size: Sequence[int],
        key_size: Sequence[int],
    ) -> torch.Tensor:
        """Attends from queries (B, H * W, C) to keys (B, h * w, C) of maps of the sizes given."""
        out = F.scaled_dot_product_attention(*(self._split(x) for x in (q, k, v)))
        return out.transpose(1, 2).flatten(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.attend(*self.project(x))
        return self.proj_drop(self.proj(out.unflatten(1, x.shape[1:3])))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, sr_ratio={self.sr_ratio}"


class AgentAttention(SpatialReductionAttention):
    """Agent attention with projections, biases and a depthwise convolution of the values.

    Takes and returns channels-last maps (B, H, W, C) of any size.

    Args:
        dim: Channels.
        num_heads: Heads, a divisor of ``dim``.
        map_size: Tokens a side that the biases are for.
        num_agents: Agents that the biases are for, a square number.
        agent_shape: Rows and columns of the agents that are pooled; the square of ``num_agents`` by
            default. Models for dense prediction have more than they were pretrained with.
        sr_ratio: Tokens a side that a key and a value stand for.
        prefix_tokens: Tokens before those of the map that ``attend`` gets.
        proj_drop: Dropout after the projection.
    """

    _used_twice = (-1, -3)  # values are convolved, queries pooled

    def __init__(
        self,
        dim: int,
        num_heads: int,
        map_size: int | Size,
        num_agents: int = 49,
        agent_shape: int | Size | None = None,
        sr_ratio: int = 1,
        prefix_tokens: int = 0,
        proj_drop: float = 0.0,
        **dd: Any,
    ):
        super().__init__(dim, num_heads, sr_ratio, proj_drop, **dd)
        self.prefix_tokens = prefix_tokens
        grid, map_size = agent_grid(num_agents), to_2tuple(map_size)
        self.agent_shape = grid if agent_shape is None else tuple(to_2tuple(agent_shape))
        biases = {"num_heads": num_heads, "agent_grid": grid, "prefix_tokens": prefix_tokens, **dd}
        self.key_bias = AgentBiasTables(map_size=self._key_size(map_size), **biases)
        self.query_bias = AgentBiasTables(map_size=map_size, **biases)
        self.dwc = LocalEnhancement(dim, 3, **dd)

    def _key_size(self, size: Size) -> Size:
        return tuple(max(side // self.sr_ratio, 1) for side in size)

    def set_map_size(self, size: Size) -> None:
        """Makes the biases parameters of another map size."""
        self.key_bias.set_map_size(self._key_size(size))
        self.query_bias.set_map_size(size)

    def pool(self, q: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Agents (B, n, C): the queries (B, P + H * W, C) of a map of a size, pooled."""
        return pool_agents(q[:, self.prefix_tokens :].unflatten(1, size), self.agent_shape)

    def weights(self, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """What both softmaxes of ``forward(*args)`` give, which it does not store.

        Returns:
            Attention of agents to keys, (B, heads, n, P + h * w), and of queries to agents,
            (B, heads, P + H * W, n).
        """
        q, k, _, size, key_size, *_ = self.project(*args)
        agents, q, k = (self._split(x) for x in (self.pool(q, size), q, k))
        scaled = agents * q.shape[-1] ** -0.5
        key_bias = dense_bias(self.key_bias(key_size, self.agent_shape))
        query_bias = dense_bias(self.query_bias(size, self.agent_shape)).transpose(1, 2)
        return (scaled @ k.mT + key_bias).softmax(-1), (q @ scaled.mT + query_bias).softmax(-1)

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        size: Sequence[int],
        key_size: Sequence[int],
        convolved: torch.Tensor | None = None,
        pooled: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attends from queries to keys by way of agents, and adds the convolved values.

        Args:
            q: Queries, (B, P + H * W, C), where P is ``prefix_tokens``.
            k: Keys, (B, P + h * w, C).
            v: Values, as ``k``.
            size: H and W.
            key_size: h and w.
            convolved: The values once more, to have the gradients of both uses apart.
            pooled: The queries once more, likewise.

        Returns:
            (B, P + H * W, C). Prefix tokens take no part in agents and convolution.
        """
        prefix = self.prefix_tokens
        agents = self.pool(q if pooled is None else pooled, size)
        out = agent_attention(
            *(self._split(x) for x in (q, k, v, agents)),
            key_bias=self.key_bias(key_size, self.agent_shape),
            query_bias=self.query_bias(size, self.agent_shape),
        )
        out = out.transpose(1, 2).flatten(2)
        values = (v if convolved is None else convolved)[:, prefix:].unflatten(1, key_size)
        if self.sr_ratio > 1:
            values = F.interpolate(values.permute(0, 3, 1, 2), size, mode="bilinear")
            values = values.permute(0, 2, 3, 1)
        local = self.dwc(values, out[:, prefix:].unflatten(1, size)).flatten(1, 2)
        return torch.cat([out[:, :prefix], local], 1) if prefix else local

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, agent_shape={self.agent_shape}"


def hybrid_blocks(
    dim: int,
    agent_depth: int,
    drop_paths: Sequence[float],
    agents: Callable[[], nn.Module],
    others: Sequence[Callable[[], nn.Module]],
    **kwargs: Any,
) -> list[nn.Module]:
    """The blocks of a stage, the first of which have agents.

    Args:
        dim: Channels.
        agent_depth: Blocks with agents.
        drop_paths: Stochastic depth of each block.
        agents: Makes the attention of a block with agents.
        others: Make that of another block: even and odd ones, and so on, take them in turn.
        **kwargs: For ``NATBlock``.
    """
    return [
        NATBlock(
            dim,
            agents() if j < agent_depth else others[j % len(others)](),
            drop_path=drop_path,
            **kwargs,
        )
        for j, drop_path in enumerate(drop_paths)
    ]


def set_map_size(module: nn.Module, size: Size) -> None:
    """Makes the biases of all agent attention in a module parameters of another map size."""
    for attention in module.modules():
        if isinstance(attention, AgentAttention):
            attention.set_map_size(size)


def check_stages(count: int, **options: Sequence[Any]) -> None:
    """Checks that options have one entry for each stage.

    Raises:
        ValueError: If one has not.
    """
    for name, value in options.items():
        if len(value) != count:
            raise ValueError(f"{name} must have one entry for each of {count} stages; got {value}")


def agent_cfg(file_id: str, **kwargs: Any) -> dict[str, Any]:
    """A pretrained configuration with what all hosts have in common.

    The authors' evaluation resizes images to a square, whatever their ratio, and crops its centre.
    They state no licence of their weights. Their files are in a share whose addresses have no file
    names, from which timm cannot download: the address is the origin that errors point to.
    """
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "crop_mode": "squash",
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv",
        "classifier": "head.fc",
        "license": "none stated",
        "paper_ids": "arXiv:2312.08874",
        "paper_name": "Agent Attention: On the Integration of Softmax and Linear Attention",
        "origin_url": f"https://cloud.tsinghua.edu.cn/f/{file_id}/?dl=1",
        **kwargs,
    }


_OFFICIAL: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "an": ("key_bias.block", lambda x: x),
    "ah": ("key_bias.rows", lambda x: x[0, ..., 0]),
    "aw": ("key_bias.columns", lambda x: x[0, :, :, 0]),
    "ac": ("key_bias.prefix", lambda x: x[0]),
    "na": ("query_bias.block", lambda x: x),
    "ha": ("query_bias.rows", lambda x: x[0, :, :, 0].transpose(1, 2)),
    "wa": ("query_bias.columns", lambda x: x[0, :, 0].transpose(1, 2)),
    "ca": ("query_bias.prefix", lambda x: x[0].transpose(1, 2)),
}
"""Official biases of agents (a) for keys or of queries for agents, by block (n), row (h), column
(w) and class token (c). Among the latter, the block alone leads with the agents."""


def convert_biases(state_dict: StateDict) -> StateDict:
    """Renames official biases, and lays them out as ours."""
    converted = {}
    for key, value in state_dict.items():
        path, _, leaf = key.rpartition(".")
        match = re.fullmatch(r"(an|na|ah|aw|ha|wa|ac|ca)_bias", leaf)
        if match:
            name, lay_out = _OFFICIAL[match[1]]
            key, value = f"{path}.{name}", lay_out(value).contiguous()
        converted[key] = value
    return converted


def fit_biases(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Resizes biases to the map and to the agents of the model (in our names)."""
    own = dict(model.named_parameters())
    return {key: _fit_bias(key, value, own.get(key)) for key, value in state_dict.items()}


def _fit_bias(key: str, value: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
    match = re.search(r"\.(?:key|query)_bias\.(\w+)$", key)
    if match is None or own is None or value.ndim != own.ndim or len(value) != len(own):
        return value
    if value.shape[1] != own.shape[1]:
        value = resize_grid(value, agent_grid(value.shape[1]), agent_grid(own.shape[1]))
    if match[1] in ("rows", "columns"):
        value = resize_line(value, own.shape[2])
    return value


def resize_positions(positions: torch.Tensor, size: Sequence[int], mode: str) -> torch.Tensor:
    """Learned positions (1, H, W, C) of another map size."""
    same = zip(size, positions.shape[1:3], strict=True)
    if all(isinstance(a, int) and a == b for a, b in same):
        return positions
    resized = F.interpolate(
        _exact(positions).permute(0, 3, 1, 2), tuple(size), mode=mode, align_corners=False
    )
    return resized.permute(0, 2, 3, 1).to(positions.dtype)


def fit_positions(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Learned positions of maps in the size of the model's own: of official ones, (1, N, C), too.

    Those that are not of a map of the model's shape are taken to be of a square one, and resized
    bicubically. Positions of class tokens are not among them.
    """
    own = dict(model.named_parameters())
    return {key: _fit_positions(key, value, own.get(key)) for key, value in state_dict.items()}


def _fit_positions(key: str, value: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
    if not key.endswith(".pos_embed") or own is None or value.shape[-1] != own.shape[-1]:
        return value
    if value.ndim == 3:
        count, size = value.shape[1], own.shape[1:3]
        if count != size[0] * size[1]:
            size = (round(count**0.5),) * 2
        if count != size[0] * size[1]:
            return value
        value = value.unflatten(1, size)
    return resize_positions(value, own.shape[1:3], "bicubic")
