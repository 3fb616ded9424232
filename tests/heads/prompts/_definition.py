"""A block of TCPA by its definition: nothing fused, prompts as queries too, a mask in full."""

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block


def selected(tokens: torch.Tensor, keys: torch.Tensor, topk: int, length: int) -> torch.Tensor:
    """Ones (B, N, S * length) where a token has chosen the prompt, by loops."""
    ones = torch.zeros(len(tokens), tokens.shape[1], len(keys) * length)
    for b, sample in enumerate(tokens):
        for n, token in enumerate(sample):
            cosine = torch.stack([F.cosine_similarity(token, key, 0) for key in keys])
            for entry in cosine.argsort(descending=True)[:topk]:
                ones[b, n, entry * length : (entry + 1) * length] = 1
    return ones


def mask_of(chosen_cls: torch.Tensor, chosen_image: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, heads, 1 + n, 1 + P_c + P_i + n) over [class | its prompts | image's prompts | image].

    Args:
        chosen_cls: (B, 1, P_c).
        chosen_image: (B, n, P_i).
        heads: Heads.
    """
    batch, n, image_prompts = chosen_image.shape
    cls_prompts = chosen_cls.shape[2]
    mask = torch.ones(batch, heads, 1 + n, 1 + cls_prompts + image_prompts + n)
    first = slice(1, 1 + cls_prompts)
    second = slice(1 + cls_prompts, 1 + cls_prompts + image_prompts)
    mask[:, :, :1, first] = chosen_cls[:, None]
    mask[:, :, :1, second] = 0
    mask[:, :, 1:, first] = 0
    mask[:, :, 1:, second] = chosen_image[:, None]
    return mask


def masked_attention(
    block: Block, x: torch.Tensor, prompts: torch.Tensor, mask: torch.Tensor, mode: str
) -> torch.Tensor:
    """Weights (B, heads, 1 + n, keys) of a block for tokens and prompts (P, D), and the values."""
    batch, count = len(x), len(prompts)
    y = torch.cat((x[:, :1], prompts.expand(batch, -1, -1), x[:, 1:]), 1)
    qkv = block.attn.qkv(block.norm1(y)).unflatten(-1, (3, block.attn.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    scores = torch.cat((scores[:, :, :1], scores[:, :, 1 + count :]), 2)
    if mode == "pre_softmax":
        return scores.masked_fill(mask == 0, -torch.inf).softmax(-1), v
    weights = scores.softmax(-1) * mask
    if mode == "renormalise":
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, v


def block_output(
    block: Block, x: torch.Tensor, prompts: torch.Tensor, mask: torch.Tensor, mode: str
) -> torch.Tensor:
    """What a block gives for tokens (B, 1 + n, D)."""
    weights, v = masked_attention(block, x, prompts, mask, mode)
    out = (weights @ v).transpose(1, 2).flatten(2)
    x = x + block.ls1(block.attn.proj(out))
    return x + block.ls2(block.mlp(block.norm2(x)))
