"""The registry: what can be put into a Vision Transformer, by name."""

import math
from collections.abc import Callable
from typing import Any

from timm.models.vision_transformer import Attention
from torch import nn

from .attention import MASK_MODES
from .blocks import (
    AdaptedBlock,
    Bottleneck,
    LowRank,
    LowRankLinear,
    PromptedBlock,
    ShallowBlock,
)
from .layers import PromptPools, TokenPrompts, ValueAffine
from .model import Attachment, Prompted, check_blocks, check_transformer, prompted_class
from .pixels import ConvPrompter, FramePrompter, SimAM

__all__ = ["HOSTS", "apply", "list_prompts", "method", "remove"]

HOSTS = ("vpt_deep", "vfpt", "vp")

_METHODS: dict[str, Callable[..., None]] = {}


def _register(function: Callable[..., None]) -> Callable[..., None]:
    _METHODS[function.__name__] = function
    return function


def list_prompts() -> list[str]:
    """Names that ``apply`` takes."""
    return sorted(_METHODS)


def method(name: str) -> Callable[..., None]:
    """What puts something into a model: its signature has the keywords, its docstring says what.

    Raises:
        ValueError: If there is none of this name.
    """
    if name not in _METHODS:
        raise ValueError(f"there is no {name!r}: there are {', '.join(list_prompts())}")
    return _METHODS[name]


def apply(model: nn.Module, name: str, **kwargs: Any) -> nn.Module:
    """Puts prompts, an adapter, or nothing but a trainable head into a timm ViT, in place.

    All but the head and what is added is frozen, and stays in eval mode when the model is trained.

    Args:
        model: ``VisionTransformer`` or ``VisionTransformerDistilled`` of timm.
        name: One of ``list_prompts()``.
        **kwargs: Of that function of ``visattn.heads.prompts.methods``.

    Returns:
        The same model.

    Raises:
        ValueError: If there is no such name, the model is another network or has prompts already,
            or a value is impossible.
        TypeError: If a keyword is unknown.
    """
    attach = method(name)
    check_transformer(model)
    attachment = Attachment(model, name)
    try:
        attach(attachment, **kwargs)
    except Exception:
        attachment.undo()
        raise
    attachment.become(model, prompted_class(model))
    model.attachment = attachment
    return model.train(model.training)


def remove(model: nn.Module) -> nn.Module:
    """Takes out what ``apply`` put in: the model is what it was, to the bit, its head included.

    Raises:
        ValueError: If nothing is in it.
    """
    if not isinstance(model, Prompted):
        raise ValueError(f"there are no prompts in this {type(model).__name__} to remove")
    attachment = model.attachment
    del model.attachment
    attachment.undo()
    return model


@_register
def linear(attachment: Attachment) -> None:
    """The head alone."""


@_register
def bias(attachment: Attachment) -> None:
    """All biases (BitFit), and the head."""
    names = [key for key, _ in attachment.model.named_parameters()]
    attachment.unfreeze({key for key in names if key.endswith("bias")})


@_register
def vp(attachment: Attachment, padding: int = 10) -> None:
    """A frame on the image (VP, arXiv 2203.17274).

    Args:
        attachment: Of the model.
        padding: Width of the frame in pixels.
    """
    _on_image(attachment, frame=padding)


@_register
def iprompt(attachment: Attachment, kernel_size: int = 11) -> None:
    """A convolutional prompter on the image, by itself (IPrompt of TCPA).

    Args:
        attachment: Of the model.
        kernel_size: Of its convolutions.
    """
    _on_image(attachment, kernel_size=kernel_size)


def _on_image(
    attachment: Attachment,
    simam: bool = False,
    frame: int | None = None,
    kernel_size: int | None = None,
) -> None:
    embed, chans = attachment.model.patch_embed, _channels(attachment.model)
    parts: dict[str, nn.Module] = {}
    if simam:
        parts["simam"] = SimAM()
    if frame is not None:
        parts["frame"] = FramePrompter(tuple(embed.img_size), frame, chans, **attachment.dd)
    if kernel_size is not None:
        parts["conv"] = ConvPrompter(chans, kernel_size, **attachment.dd)
    if parts:
        prompter = nn.Sequential()
        for name, part in parts.items():
            prompter.add_module(name, part)
        attachment.add(attachment.model, "prompter", prompter)


def _channels(model: nn.Module) -> int:
    """Channels of the images; models of older timm do not say."""
    return getattr(model, "in_chans", 3)


def _vpt_bound(model: nn.Module) -> float:
    """Bound of VPT's initial values, of patches and width."""
    height, width = model.patch_embed.patch_size
    return math.sqrt(6 / (_channels(model) * height * width + model.embed_dim))


@_register
def vpt_shallow(attachment: Attachment, length: int = 10, dropout: float = 0.1) -> None:
    """Prompts beside the tokens from the first block on (VPT-shallow, arXiv 2203.12119).

    Args:
        attachment: Of the model.
        length: Number of prompts.
        dropout: Dropout of prompts.
    """
    model = attachment.model
    _at_least("length", length, 0)
    check_blocks(model, "vpt_shallow")
    for number, block in enumerate(model.blocks):
        attachment.become(block, ShallowBlock)
        attachment.set(block, "position", model.num_prefix_tokens)
        attachment.set(block, "leave", length if number == len(model.blocks) - 1 else 0)
    prompts = TokenPrompts(
        model.embed_dim, length, _vpt_bound(model), dropout=dropout, **attachment.dd
    )
    attachment.add(model.blocks[0], "prompts", prompts)


@_register
def vpt_deep(attachment: Attachment, length: int = 10, dropout: float = 0.1) -> None:
    """Prompts of its own in every block (VPT-deep, arXiv 2203.12119).

    Args:
        attachment: Of the model.
        length: Number of prompts of a block.
        dropout: Dropout of prompts.
    """
    _deep(attachment, length, bound=_vpt_bound(attachment.model), dropout=dropout)


@_register
def vfpt(
    attachment: Attachment, length: int = 10, dropout: float = 0.1, fourier_share: float = 1.0
) -> None:
    """Deep prompts through a Fourier transform (VFPT, arXiv 2411.01327), as TCPA's code has them.

    Args:
        attachment: Of the model.
        length: Number of prompts of a block.
        dropout: Dropout of prompts, before the transform.
        fourier_share: Share of the prompts that are transformed.
    """
    _share("fourier_share", fourier_share)
    _deep(attachment, length, dropout=dropout, fourier_share=fourier_share)


def _deep(attachment: Attachment, length: int, **kwargs: Any) -> None:
    model = attachment.model
    _at_least("length", length, 0)
    check_blocks(model, attachment.name)
    for block in model.blocks:
        attachment.become(block, PromptedBlock)
        prompts = TokenPrompts(model.embed_dim, length, **kwargs, **attachment.dd)
        attachment.add(block, "prompts", prompts)


@_register
def tcpa(
    attachment: Attachment,
    host: str = "vpt_deep",
    pool_size: int | tuple[int, int] = 18,
    length: int | tuple[int, int] = 1,
    topk: int | tuple[int, int] = 10,
    mask_mode: str = "post_softmax",
    token_level: bool = True,
    random_epoch: int = 10,
    dropout: float = 0.1,
    registers: str = "cls",
    padding: int = 10,
    advp: bool = False,
    iprompt: bool = False,
    simam: bool = False,
) -> None:
    """Prompts that class and image tokens choose from pools (TCPA, arXiv 2505.02406).

    Pairs are for the class's and the image's pool.

    Args:
        attachment: Of the model.
        host: What it is put over: ``"vpt_deep"``, whose prompts the pools replace; ``"vfpt"``,
            likewise, with the Fourier transform; or ``"vp"``, whose frame on the image stays.
        pool_size: Entries of a pool.
        length: Prompts of an entry.
        topk: Entries that a token chooses.
        mask_mode: How prompts are hidden from tokens: ``"post_softmax"`` as in the authors' code,
            ``"pre_softmax"`` as in their equations, or ``"renormalise"``.
        token_level: Whether tokens choose; otherwise those of a role see all its prompts (R-TCPA).
        random_epoch: Epochs at the start of training in which tokens choose at random; see
            ``set_epoch``.
        dropout: Dropout of prompts.
        registers: Whether register tokens are of the class's role (``"cls"``) or see no prompts
            (``"exclude"``).
        padding: Width of the frame of ``host="vp"``.
        advp: Whether the values of prompts go through an affine map.
        iprompt: Whether a convolutional prompter is put on the image.
        simam: Whether SimAM gates the image.
    """
    model = attachment.model
    check_blocks(model, "tcpa")
    _one_of("host", host, HOSTS)
    _one_of("mask_mode", mask_mode, MASK_MODES)
    _one_of("registers", registers, ("cls", "exclude"))
    sizes, lengths, counts = (
        _pair("pool_size", pool_size),
        _pair("length", length),
        _pair("topk", topk),
    )
    for size, entry, count in zip(sizes, lengths, counts, strict=True):
        _at_least("pool_size", size, 1)
        _at_least("length", entry, 0)
        if token_level and not 1 <= count <= size:
            raise ValueError(f"topk must be between 1 and pool_size={size}; got {count}")
    prefix = model.num_prefix_tokens
    excluded = getattr(model, "num_reg_tokens", 0) if registers == "exclude" else 0
    affine = None
    if advp:
        of_class, of_image = (size * entry for size, entry in zip(sizes, lengths, strict=True))
        total = of_image + (of_class if prefix > excluded else 0)
        affine = ValueAffine(total, model.blocks[0].attn.qkv.out_features // 3, **attachment.dd)
    attachment.random_epoch = random_epoch if token_level else 0
    for block in model.blocks:
        attachment.become(block, PromptedBlock)
        pools = PromptPools(
            model.embed_dim,
            num_prefix=prefix,
            num_class=prefix - excluded,
            pool_size=sizes,
            length=lengths,
            topk=counts,
            token_level=token_level,
            mask_mode=mask_mode,
            dropout=dropout,
            fourier_share=1.0 if host == "vfpt" else 0.0,
            affine=affine,
            **attachment.dd,
        )
        attachment.add(block, "prompts", pools)
    _on_image(
        attachment,
        simam=simam,
        frame=padding if host == "vp" else None,
        kernel_size=11 if iprompt else None,
    )


@_register
def lora(
    attachment: Attachment,
    rank: int = 4,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: str = "qv",
) -> None:
    """Low-rank changes of queries, keys or values (LoRA, arXiv 2106.09685).

    Args:
        attachment: Of the model.
        rank: Rank of each change.
        alpha: The change is multiplied by this over the rank; the rank by default.
        dropout: Dropout of what goes in.
        targets: Which are changed: letters of ``"qkv"``.
    """
    _at_least("rank", rank, 1)
    if not targets or set(targets) - set("qkv"):
        raise ValueError(f"targets must be letters of 'qkv', as 'qv'; got {targets!r}")
    for block in attachment.model.blocks:
        attn = getattr(block, "attn", None)
        if type(attn) is not Attention:
            raise ValueError(
                f"lora is defined in timm's Attention, not in {type(attn or block).__name__}"
            )
        change = LowRank(
            attn.qkv.in_features,
            attn.qkv.out_features,
            tuple(letter in targets for letter in "qkv"),
            rank,
            rank if alpha is None else alpha,
            dropout,
            **attachment.dd,
        )
        attachment.become(attn.qkv, LowRankLinear)
        attachment.add(attn.qkv, "lora", change)


@_register
def adaptformer(
    attachment: Attachment, bottleneck: int = 64, dropout: float = 0.1, scale: float = 0.1
) -> None:
    """A bottleneck beside each MLP (AdaptFormer, arXiv 2205.13535).

    Args:
        attachment: Of the model.
        bottleneck: Hidden channels.
        dropout: Dropout of hidden channels.
        scale: Factor of its output.
    """
    _at_least("bottleneck", bottleneck, 1)
    check_blocks(attachment.model, "adaptformer")
    for block in attachment.model.blocks:
        adapter = Bottleneck(
            attachment.model.embed_dim, bottleneck, dropout, scale, **attachment.dd
        )
        attachment.become(block, AdaptedBlock)
        attachment.add(block, "adapter", adapter)


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1; got {value}")


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name} is a number, or two for class and image; got {value!r}")
    return pair
