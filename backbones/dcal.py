"""Dual Cross-Attention Learning: DeiT and ViT with global-local and pair-wise cross-attention

Paper: `Dual Cross-Attention Learning for Fine-Grained Visual Categorization and Object
    Re-Identification` - https://arxiv.org/abs/2205.02151 (CVPR 2022)
There is no code of the authors.

Three branches: self-attention (SA) is timm's VisionTransformer, unchanged; global-local
cross-attention (GLCA) is a block more, in which the patches that the class token attends to most,
by attention rollout, attend to all tokens; pair-wise cross-attention (PWCA), in training only, runs
the same blocks on keys and values of an image and a distractor.

Where the paper is silent:
* the mean of the heads is rolled out, without gradient; the rollout keeps the class token's row
  alone, which it multiplies by the maps from the last to the first
* GLCA takes what the last block of SA gives; the class token is always one of its queries; it has a
  norm and a classifier of its own
* distractors are the other images of the batch, shifted by a random number; keys and values are
  those of their own PWCA branch (`pwca_partner="pwca"`) or of SA
* weights of the losses start at 0

Checkpoints: those of DeiT and ViT load by `checkpoint_path=FILE`: the position embedding is
resized, and what they lack, all `glca_*` and `loss_weights`, keeps its initial values. So does
`pretrained=True`, which starts from DeiT as the paper does: weights of DCAL were not released.
"""

import copy
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_device_dtype
from timm.models import generate_default_cfgs, named_apply
from timm.models.vision_transformer import (
    Attention,
    Block,
    VisionTransformer,
    init_weights_vit_timm,
)
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter_fn
from torch import nn
from torch.utils.checkpoint import checkpoint

from ._builder import StateDict, build_model, keep_initial, unwrap
from ._pyramid import SizeChecked, check_size
from ._registry import register_model

__all__ = [
    "Branches",
    "DualCrossAttentionTransformer",
    "attention_map",
    "attention_rollout",
    "fuse_logits",
    "global_local_block",
    "pairwise_block",
]

_FUSIONS: dict[str, Callable[..., torch.Tensor]] = {
    "mean": torch.mean,
    "max": torch.amax,
    "min": torch.amin,
}


class Branches(NamedTuple):
    """One value of each branch: tokens, features or logits; None where a branch did not run.

    Attributes:
        sa: Of self-attention.
        glca: Of global-local cross-attention.
        pwca: Of pair-wise cross-attention.
        loss_weights: With logits or features of training, the three learnable weights w of the
            losses, in this order.
    """

    sa: torch.Tensor
    glca: torch.Tensor | None = None
    pwca: torch.Tensor | None = None
    loss_weights: torch.Tensor | None = None


def project(attn: Attention, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values (B, heads, N, dim) of normalised tokens (B, N, C)."""
    qkv = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    return attn.q_norm(q), attn.k_norm(k), v


def attend(
    block: Block, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """A block on tokens (B, N, C), given queries (B, heads, N, dim) and any keys and values."""
    attn = block.attn
    dropout = attn.attn_drop.p if attn.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    out = attn.proj_drop(attn.proj(attn.norm(out.transpose(1, 2).flatten(2))))
    x = x + block.drop_path1(block.ls1(out))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def global_local_block(block: Block, local: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Global-local cross-attention: some tokens attend to all (DCAL, equation 3).

    Args:
        block: Transformer block.
        local: Tokens that ask, (B, n, C).
        tokens: Tokens that are attended to, (B, N, C).

    Returns:
        What the block makes of the tokens that ask, (B, n, C).
    """
    q, _, _ = project(block.attn, block.norm1(local))
    _, k, v = project(block.attn, block.norm1(tokens))
    return attend(block, local, q, k, v)


def pairwise_block(
    block: Block, x: torch.Tensor, partner: torch.Tensor, others: torch.Tensor | None = None
) -> torch.Tensor:
    """Pair-wise cross-attention: each image attends to itself and to another (DCAL, equation 4).

    Args:
        block: Transformer block, the one of self-attention.
        x: Tokens, (B, N, C).
        partner: Index of the other image of each, (B,).
        others: Tokens of the images that are indexed, (B, N, C); ``x`` by default.

    Returns:
        Tokens, (B, N, C).
    """
    q, k, v = project(block.attn, block.norm1(x))
    k2, v2 = (k, v) if others is None else project(block.attn, block.norm1(others))[1:]
    k, v = torch.cat((k, k2[partner]), 2), torch.cat((v, v2[partner]), 2)  # (B, heads, 2N, dim)
    return attend(block, x, q, k, v)


def attention_map(block: Block, x: torch.Tensor, head_fusion: str = "mean") -> torch.Tensor:
    """What tokens (B, N, C) attend to in a block, heads fused: (B, N, N), whose rows sum to 1.

    Args:
        block: Transformer block.
        x: Its input, (B, N, C).
        head_fusion: ``"mean"``, ``"max"`` or ``"min"`` of the heads.
    """
    q, k, _ = project(block.attn, block.norm1(x))
    attention = (block.attn.scale * q @ k.mT).softmax(-1)  # (B, heads, N, N)
    attention = _FUSIONS[head_fusion](attention, 1)
    return attention if head_fusion == "mean" else attention / attention.sum(-1, keepdim=True)


def _roll(rows: torch.Tensor, attention: torch.Tensor, residual: float) -> torch.Tensor:
    """Rows (B, n, N) of a rollout, with one more map (B, N, N) multiplied from the right."""
    with torch.autocast("cpu" if rows.is_meta else rows.device.type, enabled=False):
        return (1 - residual) * (rows @ attention.to(rows.dtype)) + residual * rows


def attention_rollout(maps: Sequence[torch.Tensor], residual: float = 0.5) -> torch.Tensor:
    """Attention rollout (DCAL, equation 2): the product of maps, the first on the right.

    Args:
        maps: Maps (B, N, N) of the blocks, heads fused, the first block's first.
        residual: Share of the identity that stands for the residual connection.

    Returns:
        (B, N, N).
    """
    start = torch.eye(maps[0].shape[-1], device=maps[0].device, dtype=maps[0].dtype)
    return reduce(partial(_roll, residual=residual), reversed(maps), start.expand_as(maps[0]))


def fuse_logits(sa: torch.Tensor, glca: torch.Tensor) -> torch.Tensor:
    """Log of the mean of two classifiers' probabilities (DCAL, section 3.4), given their logits.

    Its softmax is that mean, half the sum that the paper takes.
    """
    return torch.stack((sa, glca)).log_softmax(-1).logsumexp(0) - math.log(2)


class DualCrossAttentionTransformer(SizeChecked, VisionTransformer):
    """timm's VisionTransformer with global-local and pair-wise cross-attention (DCAL).

    In eval mode it gives fused logits (B, classes); in training mode the logits of all branches, as
    ``Branches``. Without a classifier (``num_classes=0``) it gives features instead of logits: in
    eval mode those of SA and GLCA together, (B, 2C).

    Args:
        img_size: Size of images that the position embedding is for; others are taken, too.
        glca_ratio: Share of the patches that ask in GLCA. They ask for themselves alone: logits,
            which are of the class token, do not depend on it, and 0 saves the rollout.
        glca_depth: Blocks of GLCA; 0 for none. After the first they refine the same tokens, and
            attend to what SA gives, as the first does.
        pwca_depth: Leading blocks in which PWCA sees another image, after which it goes on as SA;
            None for all, 0 for no PWCA.
        pwca_partner: Where the other image's keys and values are from: ``"pwca"`` or ``"sa"``.
        head_fusion: How heads are fused for the rollout: ``"mean"``, ``"max"`` or ``"min"``.
        rollout_residual: Share of the identity in each map of the rollout.
        share_head: Whether GLCA has the classifier of SA.
        global_pool: ``"token"``; or ``""``, for the tokens of SA.
        **kwargs: Of timm's ``VisionTransformer``.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 448,
        glca_ratio: float = 0.1,
        glca_depth: int = 1,
        pwca_depth: int | None = None,
        pwca_partner: str = "pwca",
        head_fusion: str = "mean",
        rollout_residual: float = 0.5,
        share_head: bool = False,
        global_pool: str = "token",
        **kwargs: Any,
    ):
        if not 0 <= glca_ratio <= 1:
            raise ValueError(f"glca_ratio must be between 0 and 1; got {glca_ratio}")
        if not 0 <= rollout_residual <= 1:
            raise ValueError(f"rollout_residual must be between 0 and 1; got {rollout_residual}")
        if pwca_partner not in ("pwca", "sa"):
            raise ValueError(f"pwca_partner must be 'pwca' or 'sa'; got {pwca_partner!r}")
        if head_fusion not in _FUSIONS:
            raise ValueError(f"head_fusion must be one of {', '.join(_FUSIONS)}; got {head_fusion}")
        _check_pool(global_pool)
        kwargs = {"dynamic_img_size": True, "dynamic_img_pad": True, **kwargs}
        super().__init__(img_size=img_size, global_pool=global_pool, **kwargs)
        if not all(type(b) is Block and type(b.attn) is Attention for b in self.blocks):
            raise ValueError("DCAL needs timm's plain blocks: give no block_fn and no attn_layer")
        if self.num_prefix_tokens != 1 or not isinstance(self.fc_norm, nn.Identity):
            raise ValueError("DCAL needs a class token, no registers and no fc_norm")
        if pwca_depth is not None and not 0 <= pwca_depth <= len(self.blocks):
            raise ValueError(
                f"pwca_depth must be between 0 and the depth, {len(self.blocks)}; got {pwca_depth}"
            )
        self.glca_share = Fraction(glca_ratio).limit_denominator(1000)
        self.pwca_depth = len(self.blocks) if pwca_depth is None else pwca_depth
        self.pwca_partner = pwca_partner
        self.head_fusion = head_fusion
        self.rollout_residual = rollout_residual
        self.share_head = share_head

        dd = get_device_dtype(self)
        last = self.blocks[-1]
        self.glca_blocks = nn.ModuleList(copy.deepcopy(last) for _ in range(glca_depth))
        named_apply(init_weights_vit_timm, self.glca_blocks)
        self.glca_norm = copy.deepcopy(self.norm) if glca_depth else nn.Identity()
        self.glca_head = self._make_glca_head()
        named_apply(init_weights_vit_timm, self.glca_head)
        self.loss_weights = nn.Parameter(torch.zeros(3, **dd))
        if glca_depth:
            self.head_hidden_size = 2 * self.embed_dim

    def _make_glca_head(self) -> nn.Module:
        if not self.num_classes or self.share_head or not len(self.glca_blocks):
            return nn.Identity()
        return nn.Linear(self.embed_dim, self.num_classes, **get_device_dtype(self))

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, beyond biases and norms."""
        return super().no_weight_decay() | {"loss_weights"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order parameters by depth, for layer-wise decay."""
        stem, blocks = super().group_matcher(coarse).values()
        return {"stem": stem, "blocks": [*blocks, (r"^glca_(?:blocks|norm)", (99999,))]}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifiers, and the pooling where ``global_pool`` is given."""
        if global_pool is not None:
            _check_pool(global_pool)
        super().reset_classifier(num_classes, global_pool)
        self.glca_head = self._make_glca_head().train(self.training)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what the given intermediates do not need; returns their indices."""
        depth = len(self.blocks)
        take_indices = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head or len(self.blocks) < depth:
            self.glca_blocks = nn.ModuleList()
            self.glca_norm = self.glca_head = nn.Identity()
            self.loss_weights = None
            self.pwca_depth = 0
            self.head_hidden_size = self.embed_dim
        return take_indices

    def _run(self, block: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def draw_partners(self, x: torch.Tensor) -> torch.Tensor:
        """For each of the images (B, ...) the index of another: those of a random shift.

        Raises:
            ValueError: If there is one image alone.
        """
        batch = len(x)
        if batch < 2:
            raise ValueError(
                "pair-wise cross-attention needs two images a batch to train; got one: drop the "
                "last batch (drop_last=True), or set pwca_depth=0"
            )
        shift = torch.randint(1, batch, (), device=x.device)
        return (torch.arange(batch, device=x.device) + shift) % batch

    @torch.no_grad()
    def rollout_scores(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """How much the class token attends to each token, (B, N), through all blocks.

        Args:
            inputs: Inputs (B, N, C) of the blocks, the first block's first.
        """
        batch, tokens, _ = inputs[0].shape
        dtype = torch.promote_types(inputs[0].dtype, torch.float32)
        row = inputs[0].new_zeros((batch, 1, tokens), dtype=dtype)
        row[..., 0] = 1  # the class token's of the identity
        for block, x in zip(reversed(self.blocks), reversed(inputs), strict=True):
            row = _roll(row, attention_map(block, x, self.head_fusion), self.rollout_residual)
        return row[:, 0]

    def select(self, scores: torch.Tensor) -> torch.Tensor:
        """Indices (B, k + 1) of the tokens that ask in GLCA: the class token and k patches.

        k is the share ``glca_ratio`` of the patches, rounded down; they are those of the highest
        scores.

        Args:
            scores: Scores of all tokens, (B, N).
        """
        share = self.glca_share
        k = (scores.shape[1] - 1) * share.numerator // share.denominator
        return F.pad(scores[:, 1:].topk(k).indices + 1, (1, 0))

    def forward_features(self, x: torch.Tensor) -> Branches:
        """Images (B, C, H, W) to normalised tokens of each branch.

        Those of SA and PWCA are (B, 1 + patches, C); those of GLCA (B, 1 + k, C); the class token
        is the first.
        """
        check_size(self, x)
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        pair = x if self.training and self.pwca_depth else None
        partner = None if pair is None else self.draw_partners(x)
        rolls_out = len(self.glca_blocks) > 0 and self.glca_share > 0
        inputs = []
        for i, block in enumerate(self.blocks):
            if pair is not None and i < self.pwca_depth:
                others = x if self.pwca_partner == "sa" else None
                pair = self._run(partial(pairwise_block, block), pair, partner, others)
            elif pair is not None:
                pair = self._run(block, pair)
            if rolls_out:
                inputs.append(x)
            x = self._run(block, x)
        local = None
        if len(self.glca_blocks):
            index = self.select(self.rollout_scores(inputs) if rolls_out else x[..., 0])
            local = x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
            for block in self.glca_blocks:
                local = self._run(partial(global_local_block, block), local, x)
            local = self.glca_norm(local)
        return Branches(self.norm(x), local, None if pair is None else self.norm(pair))

    def forward_head(self, x: Branches, pre_logits: bool = False) -> torch.Tensor | Branches:
        """Tokens of the branches to logits, or to features where ``pre_logits``.

        In eval mode logits are fused, and features are those of SA and GLCA side by side, (B, 2C).
        """
        if not self.global_pool:
            tokens = self.head_drop(x.sa)
            return tokens if pre_logits else self.head(tokens)
        glca_head = self.head if self.share_head else self.glca_head
        x = [None if tokens is None else self.head_drop(self.pool(tokens)) for tokens in x[:3]]
        if with_logits := bool(self.num_classes) and not pre_logits:
            heads = (self.head, glca_head, self.head)
            x = [None if f is None else head(f) for head, f in zip(heads, x, strict=True)]
        if self.training:
            return Branches(*x, self.loss_weights)
        sa, glca, _ = x
        if glca is None:
            return sa
        return fuse_logits(sa, glca) if with_logits else torch.cat((sa, glca), -1)

    def forward(self, x: torch.Tensor) -> torch.Tensor | Branches:
        return self.forward_head(self.forward_features(x))


def _check_pool(global_pool: str) -> None:
    if global_pool not in ("token", ""):
        raise ValueError(
            f"DCAL classifies class tokens: global_pool must be 'token' or ''; got {global_pool!r}"
        )


def _cfg(url: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 448, 448),
        "pool_size": (28, 28),
        "crop_pct": 448 / 550,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2205.02151",
        "paper_name": "Dual Cross-Attention Learning for Fine-Grained Visual Categorization and "
        "Object Re-Identification",
        "origin_url": "https://arxiv.org/abs/2205.02151",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        **{
            f"dcal_deit_{size}_patch16.deit_in1k": _cfg(
                hf_hub_id=f"timm/deit_{size}_patch16_224.fb_in1k"
            )
            for size in ("tiny", "small", "base")
        },
        "dcal_vit_base_patch16.untrained": _cfg(),
    }
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps a state dict of DeiT or ViT to ours; keeps the names of ours.

    The position embedding is resized to the model's. What only DCAL has keeps its initial values if
    the state dict has nothing of it.
    """
    state_dict = vit_filter_fn(unwrap(state_dict), model)
    return keep_initial(state_dict, model, r"^(glca_|loss_weights$)")


def _create_dcal(
    variant: str, pretrained: bool = False, **kwargs: Any
) -> DualCrossAttentionTransformer:
    out_indices = kwargs.pop("out_indices", tuple(range(kwargs["depth"])))
    return build_model(
        DualCrossAttentionTransformer,
        variant,
        pretrained,
        checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices},
        **kwargs,
    )


_TINY = {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3}
_SMALL = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
_BASE = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}


@register_model
def dcal_deit_tiny_patch16(
    pretrained: bool = False, **kwargs: Any
) -> DualCrossAttentionTransformer:
    """DCAL on DeiT-Tiny: 84.6 % top-1 on CUB-200-2011 in the paper."""
    model_args = _TINY
    return _create_dcal("dcal_deit_tiny_patch16", pretrained, **dict(model_args, **kwargs))


@register_model
def dcal_deit_small_patch16(
    pretrained: bool = False, **kwargs: Any
) -> DualCrossAttentionTransformer:
    """DCAL on DeiT-Small: 87.6 % top-1 on CUB-200-2011 in the paper."""
    model_args = _SMALL
    return _create_dcal("dcal_deit_small_patch16", pretrained, **dict(model_args, **kwargs))


@register_model
def dcal_deit_base_patch16(
    pretrained: bool = False, **kwargs: Any
) -> DualCrossAttentionTransformer:
    """DCAL on DeiT-Base: 88.8 % top-1 on CUB-200-2011 in the paper."""
    model_args = _BASE
    return _create_dcal("dcal_deit_base_patch16", pretrained, **dict(model_args, **kwargs))


@register_model
def dcal_vit_base_patch16(pretrained: bool = False, **kwargs: Any) -> DualCrossAttentionTransformer:
    """DCAL on ViT-Base: 91.4 % top-1 on CUB-200-2011 in the paper, from ImageNet-21k."""
    model_args = _BASE
    return _create_dcal("dcal_vit_base_patch16", pretrained, **dict(model_args, **kwargs))
