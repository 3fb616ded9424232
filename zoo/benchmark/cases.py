"""The shapes at which the zoo's models call the kernels, op by op."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from ...kernels import (
    agent_attention,
    bilevel_routing_attention,
    window_attention,
)
from ...kernels.agent_attention import AgentBias
from ..errors import UserError
from . import peers
from .peers import Peer


class Products(NamedTuple):
    """The least that an op can cost: ``pairs`` of two batched products, (m, k) by (k, n) by (n, k).

    With its gradients it costs three times as much: each product has two more.
    """

    groups: int
    m: int
    n: int
    k: int
    pairs: int = 1


class Copy(NamedTuple):
    """The least that an op can cost: a copy of the elements that it must read and write.

    Attributes:
        forward: Elements read and written by the forward pass.
        both: Elements read and written by the forward and backward pass.
    """

    forward: int
    both: int


@dataclass(frozen=True)
class Case(ABC):
    """An op at a shape.

    Attributes:
        name: Model and where in it.
    """

    op: ClassVar[str]
    implementations: ClassVar[tuple[str, ...]] = ("cpu", "triton", "reference")
    peers: ClassVar[Mapping[str, Peer]]

    name: str

    @abstractmethod
    def inputs(self, batch: int, **factory: Any) -> dict[str, torch.Tensor]:
        """Random inputs by name, as the model would give them; ``factory``: device and dtype."""

    @abstractmethod
    def run(self, impl: str | None = None, **inputs: torch.Tensor) -> torch.Tensor:
        """The op."""

    @abstractmethod
    def floor(self, batch: int) -> Products | Copy:
        """The least that the op can cost."""


@dataclass(frozen=True)
class WindowAttention(Case):
    op = "window_attention"
    peers = {
        "sdpa": peers.window_sdpa,
        "sdpa compiled": peers.compiled(peers.window_sdpa),
        "eager": peers.window_eager,
        "flex": peers.window_flex,
        "flex compiled": peers.compiled(peers.window_flex),
    }

    side: int
    heads: int
    shift: int = 0
    window: int = 7
    dim: int = 32

    def inputs(self, batch, **factory):
        area = self.window**2
        return {
            "qkv": torch.randn(batch, self.side, self.side, 3, self.heads, self.dim, **factory),
            "bias": torch.randn(self.heads, area, area, **factory),
        }

    def run(self, impl=None, *, qkv, bias):
        q, k, v = qkv.unbind(3)
        return window_attention(q, k, v, self.window, self.shift, bias, impl=impl)

    def floor(self, batch):
        groups = batch * self.heads * (self.side // self.window) ** 2
        return Products(groups, self.window**2, self.window**2, self.dim)


@dataclass(frozen=True)
class BilevelRoutingAttention(Case):
    op = "bilevel_routing_attention"
    peers = {
        "gather": peers.bilevel_gather,
        "sdpa gathered": peers.bilevel_sdpa,
        "flex": peers.bilevel_flex,
        "flex compiled": peers.bilevel_flex_compiled,
    }

    side: int
    heads: int
    topk: int
    regions: int = 7
    dim: int = 32

    @property
    def scale(self) -> float:
        return (self.heads * self.dim) ** -0.5

    def inputs(self, batch, **factory):
        shape = batch, self.side, self.side, 3, self.heads, self.dim
        return {"qkv": torch.randn(shape, **factory)}

    def run(self, impl=None, *, qkv):
        q, k, v = qkv.unbind(3)
        return bilevel_routing_attention(q, k, v, self.regions, self.topk, impl=impl)

    def floor(self, batch):
        area = (self.side // self.regions) ** 2
        groups = batch * self.heads * self.regions**2
        return Products(groups, area, self.topk * area, self.dim)


@dataclass(frozen=True)
class AgentAttention(Case):
    op = "agent_attention"
    peers = {"sdpa": peers.agent_sdpa, "eager": peers.agent_eager}

    side: int
    heads: int
    agents: int
    dim: int = 32
    prefix: int = 0

    def inputs(self, batch, **factory):
        tokens = self.prefix + self.side**2
        inputs = {
            "qkv": torch.randn(batch, tokens, 3, self.heads, self.dim, **factory),
            "agents": torch.randn(batch, self.heads, self.agents, self.dim, **factory),
        }
        parts = {"rows": (self.side,), "columns": (self.side,), "block": (7, 7)}
        if self.prefix:
            parts["prefix"] = (self.prefix,)
        for name in ("key", "query"):
            for part, shape in parts.items():
                shape = self.heads, self.agents, *shape
                inputs[f"{name}_{part}"] = torch.randn(shape, **factory)
        return inputs

    def run(self, impl=None, *, qkv, agents, **parts):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        biases = (
            AgentBias(*(parts.get(f"{name}_{part}") for part in AgentBias._fields))
            for name in ("key", "query")
        )
        key_bias, query_bias = biases
        return agent_attention(q, k, v, agents, key_bias=key_bias, query_bias=query_bias, impl=impl)

    def floor(self, batch):
        tokens = self.prefix + self.side**2
        return Products(batch * self.heads, tokens, self.agents, self.dim, pairs=2)


CASES: tuple[Case, ...] = (
    WindowAttention("swin_tiny stage 1", 56, 3),
    WindowAttention("swin_tiny stage 1, shifted", 56, 3, 3),
    WindowAttention("swin_tiny stage 2", 28, 6),
    WindowAttention("swin_tiny stage 2, shifted", 28, 6, 3),
    WindowAttention("swin_tiny stage 3", 14, 12),
    WindowAttention("swin_tiny stage 3, shifted", 14, 12, 3),
    WindowAttention("swin_tiny stage 4", 7, 24),
    WindowAttention("agent_swin_small_288 stage 3, shifted", 18, 12, 4, window=9),
    WindowAttention("agent_swin_base_384 stage 3, shifted", 24, 16, 6, window=12),
    BilevelRoutingAttention("biformer_tiny stage 1", 56, 2, 1),
    BilevelRoutingAttention("biformer_tiny stage 2", 28, 4, 4),
    BilevelRoutingAttention("biformer_tiny stage 3", 14, 8, 16),
    BilevelRoutingAttention("biformer_base stage 1", 56, 3, 1),
    BilevelRoutingAttention("biformer_tiny at 512, stage 1", 128, 2, 1, regions=8),
    BilevelRoutingAttention("biformer_tiny at 512, stage 2", 64, 4, 4, regions=8),
    BilevelRoutingAttention("biformer_tiny at 512, stage 3", 32, 8, 16, regions=8),
    AgentAttention("agent_swin_tiny stage 1", 56, 3, 9),
    AgentAttention("agent_swin_tiny stage 2", 28, 6, 16),
    AgentAttention("agent_swin_tiny stage 3", 14, 12, 49),
    AgentAttention("agent_pvt_tiny stage 1", 56, 1, 9, dim=64),
    AgentAttention("agent_pvt_tiny stage 2", 28, 2, 16, dim=64),
    AgentAttention("agent_pvt_tiny stage 3", 14, 5, 49, dim=64),
    AgentAttention("agent_pvt_tiny stage 4", 7, 8, 49, dim=64),
    AgentAttention("agent_deit_tiny", 14, 3, 49, dim=64, prefix=1),
    AgentAttention("agent_deit_small_448", 28, 6, 49, dim=64, prefix=1),
    AgentAttention("agent_deit_base", 14, 12, 81, dim=64, prefix=1),
    AgentAttention("agent_cswin_base stage 1", 56, 4, 9, dim=24),
    AgentAttention("agent_swin_base_384 stage 1", 96, 4, 9),
)
OPS = tuple(dict.fromkeys(case.op for case in CASES))


def select_cases(ops: Collection[str] = OPS, text: str = "") -> list[Case]:
    """The cases of ops whose names contain a text; all without either.

    Raises:
        UserError: If there is no such op or case.
    """
    for op in ops:
        if op not in OPS:
            raise UserError(f"no such op: {op}; there are {', '.join(OPS)}")
    cases = [case for case in CASES if case.op in (ops or OPS) and text in case.name]
    if not cases:
        raise UserError(f"no case is named like {text!r}")
    return cases
