"""AgentSD: agent attention in Stable Diffusion, without training (arXiv 2312.08874, section 4.5).

with agent_sd(pipeline):
    image = pipeline("a photo of an astronaut riding a horse").images[0]

In the blocks of the largest maps, similar tokens are merged before self-attention and copied back
after it, and in the first steps the rest attend by way of few agents, which are the same tokens
merged further. Both are chosen by the input of the block. What deviates from the authors' code:

* Targets of merging are drawn from ``seed``, the timestep and the block instead of a running
  generator, for equal calls to give equal images, and gradient checkpointing equal activations.
* Stages are given in shares of the noise schedule, for any number of steps and image to image.
* ``ratio=0`` merges nothing and keeps the agents; leaving the context restores everything.
* Merging before cross-attention and the MLP, which the authors advise against, is not offered.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ...kernels import agent_attention
from .merging import Matching, draw_targets, match_tokens

__all__ = ["AgentAttnProcessor", "AgentSD", "Stage", "Tokens", "agent_sd", "published_stages"]


@dataclass(frozen=True)
class Stage:
    """How tokens are merged from some share of the noise schedule on.

    Attributes:
        begin: Share of the noise schedule that is over when the stage begins.
        ratio: Share of the tokens that merging removes before self-attention.
        agent_ratio: Share that merging to agents removes. Agents are used only if they are less
            than half as many as the merged tokens.
        sx: Width of the cells with one target each, in tokens.
        sy: Height of the cells.
    """

    begin: float = 0.0
    ratio: float = 0.4
    agent_ratio: float = 0.95
    sx: int = 4
    sy: int = 4

    def __post_init__(self):
        for name in ("begin", "ratio", "agent_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1); got {getattr(self, name)}")
        if self.sx < 1 or self.sy < 1:
            raise ValueError(f"sx and sy must be at least 1; got {self.sx} and {self.sy}")

    def counts(self, tokens: int, sources: int) -> tuple[int, int | None]:
        """Lengths of the merged sequence and of the agents; None if there are no agents.

        Args:
            tokens: Length of the sequence.
            sources: How many of them are no targets, and may be merged.
        """
        merged = tokens - min(int(tokens * self.ratio), sources)
        agents = tokens - min(int(tokens * self.agent_ratio), sources)
        return merged, agents if 2 * agents < merged else None


def published_stages(ratio: float = 0.4) -> tuple[Stage, ...]:
    """The authors' schedule: agents in the first 20 of 50 steps, then only merging.

    Args:
        ratio: Share of the tokens that merging removes; the authors report 0.1 to 0.5.
    """
    return Stage(0.0, ratio, 0.95, 4, 4), Stage(0.4, ratio, 0.5, 2, 2)


class Tokens(NamedTuple):
    """Lengths of a sequence in a block: whole, merged, and of agents (None without agents)."""

    tokens: int
    merged: int
    agents: int | None


class AgentAttnProcessor:
    """A processor of diffusers' ``Attention``: self-attention among merged tokens, by agents.

    By itself it takes square maps and compares the tokens that it is given; ``agent_sd`` has it
    compare the input of the block, as the authors do, and work in the largest maps alone.

    Args:
        stage: How tokens are merged.
        inner: Processor for attention without agents; torch's fused attention by default.
        k_scale2: Second exponent: queries and agents have the scale ``dim ** (-0.5 * k_scale2)``.
        k_shortcut: Share of the values that is added to the output.
        attn_precision: ``"fp32"`` computes attention with agents in single precision, as attention
            modules with ``upcast_attention`` (Stable Diffusion 2.1) do anyway.
        impl: Implementation of ``visattn.kernels.agent_attention``.
    """

    def __init__(
        self,
        stage: Stage | None = None,
        inner: Any = None,
        *,
        k_scale2: float = 0.3,
        k_shortcut: float = 0.075,
        attn_precision: str | None = None,
        impl: str | None = None,
    ):
        if attn_precision not in (None, "fp32"):
            raise ValueError(f"attn_precision must be None or 'fp32'; got {attn_precision!r}")
        if inner is None:
            from diffusers.models.attention_processor import AttnProcessor2_0

            inner = AttnProcessor2_0()
        self.stage = stage or Stage()
        self.inner = inner
        self.k_scale2 = k_scale2
        self.k_shortcut = k_shortcut
        self.attn_precision = attn_precision
        self.impl = impl

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attends among tokens (B, N, C); whatever else there is to attend to, ``inner`` does.

        Raises:
            ValueError: If there is a mask, or the tokens are no square map.
        """
        if encoder_hidden_states is not None:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        side = math.isqrt(hidden_states.shape[1])
        if side**2 != hidden_states.shape[1]:
            raise ValueError(
                f"{hidden_states.shape[1]} tokens are no square map: use agent_sd(unet), which "
                "knows the height and width"
            )
        targets = draw_targets((side, side), (self.stage.sy, self.stage.sx))
        matching = match_tokens(hidden_states, targets)
        return self.attend(attn, hidden_states, matching, self.stage, attention_mask, temb)[0]

    def attend(
        self,
        attn: nn.Module,
        x: torch.Tensor,
        matching: Matching,
        stage: Stage,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Tokens]:
        """Self-attention of tokens (B, N, C) that are merged by a matching; the lengths, too."""
        if attention_mask is not None:
            raise ValueError(
                "there is a mask of self-attention, and masked tokens cannot be merged: leave the "
                "context of agent_sd for this call"
            )
        tokens = x.shape[1]
        count, agent_count = stage.counts(tokens, matching.sources.shape[1])
        merging = matching.merging(tokens - count) if count < tokens else None
        merged = x if merging is None else merging.merge(x)
        if agent_count is None:
            out = self.inner(attn, merged, None, None, temb)
        else:
            agents = matching.merging(tokens - agent_count).merge(x)
            out = self._attend_by_agents(attn, merged, agents)
        out = out if merging is None else merging.unmerge(out)
        return out, Tokens(tokens, count, agent_count)

    def _attend_by_agents(
        self, attn: nn.Module, x: torch.Tensor, agents: torch.Tensor
    ) -> torch.Tensor:
        q, k, v, agents = (
            y.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, N, dim)
            for y in (attn.to_q(x), attn.to_k(x), attn.to_v(x), attn.to_q(agents))
        )
        if attn.norm_q is not None:
            q, agents = attn.norm_q(q), attn.norm_q(agents)
        if attn.norm_k is not None:
            k = attn.norm_k(k)
        dtype = v.dtype
        if self.attn_precision == "fp32" or attn.upcast_attention:
            q, k, v, agents = (y.float() for y in (q, k, v, agents))
        scales = attn.scale, attn.scale**self.k_scale2
        with torch.autocast(q.device.type, enabled=False):
            out = agent_attention(q, k, v, agents, scale=scales, impl=self.impl)
        out = torch.add(out, v, alpha=self.k_shortcut)
        out = out.transpose(1, 2).flatten(2).to(dtype)
        return attn.to_out[1](attn.to_out[0](out))


class _BlockProcessor(AgentAttnProcessor):
    """The processor of one block of a UNet under ``agent_sd``."""

    def __init__(self, patch: "AgentSD", index: int, name: str, inner: Any, **options: Any):
        super().__init__(patch.stages[0], inner, **options)
        self.patch, self.index, self.name = patch, index, name
        self.tokens: torch.Tensor | None = None
        """What the block was given, from its norm1 until attention."""

    def keep_tokens(self, norm: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        """A hook on norm1."""
        self.tokens = args[0]

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        metric, self.tokens = self.tokens, None
        matching = None
        if encoder_hidden_states is None and metric is not None:
            matching = self.patch.match(metric, self.index)
        if matching is None:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        out, tokens = self.attend(
            attn, hidden_states, matching, self.patch.stage, attention_mask, temb
        )
        self.patch.used[self.name] = tokens
        return out


class AgentSD:
    """What is changed in a UNet, and how it is undone; ``agent_sd`` makes and undoes it.

    Attributes:
        stages: The stages.
        stage: The stage of the last call of the UNet.
        used: Lengths of sequences in the blocks that merged in that call, by the block's name.
    """

    def __init__(
        self,
        unet: nn.Module,
        stages: Sequence[Stage],
        max_downsample: int,
        use_rand: bool,
        seed: int,
        num_train_timesteps: int,
        **options: Any,
    ):
        from diffusers.models.attention import BasicTransformerBlock

        self.stages = sorted(stages, key=lambda stage: stage.begin)
        if not self.stages or self.stages[0].begin > 0:
            raise ValueError("stages must have one that begins at 0")
        self.stage = self.stages[0]
        self.used: dict[str, Tokens] = {}
        self.max_downsample = max_downsample
        self.use_rand, self.seed = use_rand, seed
        self.num_train_timesteps = num_train_timesteps
        self._size, self._timestep = (0, 0), 0.0
        blocks = [
            (name, block)
            for name, block in unet.named_modules()
            if isinstance(block, BasicTransformerBlock) and not block.only_cross_attention
        ]
        if not blocks:
            raise ValueError(
                f"a {type(unet).__name__} has no BasicTransformerBlock with self-attention: "
                "AgentSD goes into UNets of Stable Diffusion 1.x, 2.x and XL"
            )
        for _, block in blocks:
            if isinstance(block.attn1.processor, AgentAttnProcessor):
                raise ValueError("AgentSD is in this UNet already: leave its context first")
        self._blocks = []
        self._hooks = [
            unet.register_forward_pre_hook(self._begin, with_kwargs=True),
            unet.register_forward_hook(self._check_used),
        ]
        for index, (name, block) in enumerate(blocks):
            inner = block.attn1.processor
            processor = _BlockProcessor(self, index, name, inner, **options)
            self._hooks.append(block.norm1.register_forward_pre_hook(processor.keep_tokens))
            block.attn1.set_processor(processor)
            self._blocks.append((block.attn1, processor))

    def undo(self) -> None:
        """Makes the UNet what it was; processors that were set meanwhile stay."""
        for hook in self._hooks:
            hook.remove()
        for attn, processor in self._blocks:
            if isinstance(attn.processor, AgentAttnProcessor):
                attn.set_processor(processor.inner)

    def match(self, metric: torch.Tensor, block: int) -> Matching | None:
        """The matching of a block's input (B, N, C); None where the block stays as it is.

        Raises:
            ValueError: If the tokens are not those of the map.
        """
        height, width = self._size
        tokens = metric.shape[1]
        downsample = math.ceil(math.sqrt(height * width // tokens))
        if downsample > self.max_downsample:
            return None
        size = math.ceil(height / downsample), math.ceil(width / downsample)
        if size[0] * size[1] != tokens:
            raise ValueError(
                f"{tokens} tokens are not a map of {size[0]} x {size[1]}: AgentSD cannot be "
                "combined with what adds or removes tokens"
            )
        generator = None
        if self.use_rand and len(metric) % 2 == 0:
            number = (self.seed * 1_000_003 + round(self._timestep * 1000)) * 1009 + block
            generator = torch.Generator().manual_seed(number % 2**63)
        targets = draw_targets(size, (self.stage.sy, self.stage.sx), generator)
        return match_tokens(metric, targets)

    def _begin(self, unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        for attn, processor in self._blocks:
            if attn.processor is not processor:
                raise RuntimeError(
                    "attention processors were replaced while agent_sd was on: load IP-Adapters "
                    "and set processors before it"
                )
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        self._size = tuple(sample.shape[-2:])
        self._timestep = float(torch.as_tensor(timestep).flatten()[0])
        over = self.num_train_timesteps - 1 - self._timestep
        begun = [s for s in self.stages if over >= s.begin * self.num_train_timesteps]
        self.stage = begun[-1] if begun else self.stages[0]
        self.used = {}

    def _check_used(self, unet: nn.Module, args: tuple, output: Any) -> None:
        if not self.used:
            raise ValueError(
                f"no block has a map within max_downsample={self.max_downsample} of the latents, "
                f"{self._size[0]} x {self._size[1]}: AgentSD would do nothing; raise "
                "max_downsample (2 for Stable Diffusion XL)"
            )


@contextmanager
def agent_sd(
    model: Any,
    stages: Sequence[Stage] | None = None,
    *,
    ratio: float = 0.4,
    max_downsample: int = 1,
    k_scale2: float = 0.3,
    k_shortcut: float = 0.075,
    attn_precision: str | None = None,
    use_rand: bool = True,
    seed: int = 0,
    num_train_timesteps: int | None = None,
    impl: str | None = None,
) -> Iterator[AgentSD]:
    """Has a pipeline of diffusers, or its UNet, run with AgentSD while the context lasts.

    What else is in the UNet keeps working: LoRA, IP-Adapters, ROICtrl, other processors.

    Args:
        model: Pipeline with a ``unet``, or a UNet, of Stable Diffusion 1.x, 2.x or XL.
        stages: What is done from which share of the noise schedule on; ``published_stages(ratio)``
            by default.
        ratio: Share of the tokens that is merged, if no ``stages`` are given.
        max_downsample: Blocks whose maps are at most this many times smaller than the latents are
            changed. Stable Diffusion XL has no attention at 1, and needs 2.
        k_scale2: See ``AgentAttnProcessor``.
        k_shortcut: See ``AgentAttnProcessor``.
        attn_precision: See ``AgentAttnProcessor``.
        use_rand: Draws the target of each cell at random; otherwise, and in batches of odd size,
            it is the first.
        seed: Of these draws; equal calls draw the same.
        num_train_timesteps: Length of the noise schedule; the pipeline's scheduler's, or 1000.
        impl: See ``AgentAttnProcessor``.

    Yields:
        The ``AgentSD``, whose ``used`` says what was merged in the last call.

    Raises:
        ValueError: If the model has no such blocks, or AgentSD in it already. Calls of the UNet
            raise it if no block is within ``max_downsample``.
    """
    unet = getattr(model, "unet", model)
    if num_train_timesteps is None:
        config = getattr(getattr(model, "scheduler", None), "config", {})
        num_train_timesteps = config.get("num_train_timesteps", 1000)
    patch = AgentSD(
        unet,
        published_stages(ratio) if stages is None else stages,
        max_downsample,
        use_rand,
        seed,
        num_train_timesteps,
        k_scale2=k_scale2,
        k_shortcut=k_shortcut,
        attn_precision=attn_precision,
        impl=impl,
    )
    try:
        yield patch
    finally:
        patch.undo()
