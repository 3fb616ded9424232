"""How the fusers get into a UNet of diffusers, and out of it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .boxes import BoxEmbedding
from .fuser import Call, ROIFuser
from .instances import Instances

__all__ = [
    "KEY",
    "apply",
    "attachment",
    "blocks",
    "controlled",
    "fusers",
    "gates",
    "is_applied",
    "regularisation_loss",
    "remove",
    "set_enabled",
]

KEY = "roictrl"
"""Where ``cross_attention_kwargs`` has the instances."""

_UNET_POSITION, _BLOCK_POSITION = 6, 5
"""Where ``cross_attention_kwargs`` is among the arguments of a UNet and of a block."""


def apply(
    unet: nn.Module,
    max_instances: int = 30,
    dropout: float = 0.2,
    unpool_mode: str = "official",
    shuffle: str = "train_only",
    gate: str = "official_max",
    roi_sizes: Mapping[int, int] | None = None,
) -> nn.Module:
    """Attaches ROICtrl to a UNet by hooks, and freezes all else.

    Every transformer block with cross-attention gets a ``roifuser``, and the UNet a
    ``position_net``, as submodules: its ``state_dict`` has the authors' names. Processors, LoRA,
    IP-Adapter and everything else of diffusers go on working, before and after.

    Without instances the UNet computes what it did. They are given for one call by
    ``cross_attention_kwargs={"roictrl": instances}``, or for all calls in a block of code by
    ``controlled``.

    Args:
        unet: A ``UNet2DConditionModel``: Stable Diffusion 1.x, 2.x, XL, and others like them.
        max_instances: Slots of an image; the authors' weights have 30.
        dropout: See ``ROIFuser``, as all that follow.
        unpool_mode: ``"official"`` or ``"aligned"``.
        shuffle: ``"train_only"``, ``"always"`` or ``"never"``.
        gate: ``"official_max"`` or ``"sum"``.
        roi_sizes: Sides of pooled regions by rate.

    Returns:
        The UNet.

    Raises:
        ValueError: If it has ROICtrl or GLIGEN in it already, or no block for it, or a switch has
            no such value.
    """
    if is_applied(unet):
        raise ValueError("the UNet has ROICtrl in it already: remove(unet) it first")
    if isinstance(getattr(unet, "position_net", None), nn.Module):
        raise ValueError("the UNet is one of GLIGEN, whose position_net ROICtrl's would replace")
    found = list(blocks(unet))
    if not found:
        raise ValueError(
            f"no BasicTransformerBlock with cross-attention and LayerNorm in this "
            f"{type(unet).__name__}: ROICtrl is defined for UNets like Stable Diffusion's"
        )
    net = BoxEmbedding(**_where(unet))
    own = Attachment(unet, net, max_instances)
    made = []
    for block in found:
        made.append(
            ROIFuser(
                block.norm2.normalized_shape[0],
                block.attn2.heads,
                net.linears[-1].out_features,
                max_instances=max_instances,
                dropout=dropout,
                unpool_mode=unpool_mode,
                shuffle=shuffle,
                gate=gate,
                roi_sizes=roi_sizes,
                **_where(block.norm2),
            ).train(block.training)
        )
    unet.requires_grad_(False)
    unet.position_net = net.train(unet.training)
    for layer, (block, fuser) in enumerate(zip(found, made, strict=True)):
        block.roifuser = fuser
        own.hook(block, BlockHooks(fuser, own, layer, len(found)))
    own.handles += [
        unet.register_forward_pre_hook(own.begin, with_kwargs=True),
        unet.conv_in.register_forward_pre_hook(own.place),
        unet.register_forward_hook(own.end),
    ]
    unet.roictrl = own
    return unet


def remove(unet: nn.Module) -> nn.Module:
    """Takes ROICtrl out: outputs, keys and flags are what they were before ``apply``.

    Raises:
        ValueError: If it is not in.
    """
    own = attachment(unet)
    for handle in own.handles:
        handle.remove()
    for block in blocks(unet):
        if hasattr(block, "roifuser"):
            del block.roifuser
    del unet.position_net, unet.roictrl
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(own.flags.get(name, parameter.requires_grad))
    return unet


def is_applied(unet: nn.Module) -> bool:
    """Whether ROICtrl is in a UNet."""
    return isinstance(unet.__dict__.get("roictrl"), Attachment)


def attachment(unet: nn.Module) -> "Attachment":
    """What ``apply`` has put into a UNet.

    Raises:
        ValueError: If it was not applied.
    """
    if not is_applied(unet):
        raise ValueError(
            f"this {type(unet).__name__} has no ROICtrl in it: apply(unet), or load_roictrl, first"
        )
    return unet.__dict__["roictrl"]


def blocks(unet: nn.Module) -> Iterator[nn.Module]:
    """The blocks that ROICtrl is for, in the order in which they run: down, mid, up."""
    from diffusers.models.attention import BasicTransformerBlock

    for part in ("down_blocks", "mid_block", "up_blocks"):
        for module in getattr(unet, part, None).modules() if getattr(unet, part, None) else ():
            if (
                isinstance(module, BasicTransformerBlock)
                and module.attn2 is not None
                and module.norm_type == "layer_norm"
            ):
                yield module


def fusers(unet: nn.Module) -> dict[str, ROIFuser]:
    """The fusers of a UNet by name."""
    attachment(unet)
    return {name: m for name, m in unet.named_modules() if isinstance(m, ROIFuser)}


@contextmanager
def controlled(
    unet: nn.Module,
    instances: Instances | Mapping[str, torch.Tensor] | None,
    when: Callable[[], bool] | None = None,
) -> Iterator[nn.Module]:
    """Gives instances to all calls of a UNet in a block of code, whoever calls it.

    Args:
        unet: UNet with ROICtrl in it.
        instances: Of the images of its batches; None for none.
        when: Asked at each call whether it gets them.

    Raises:
        ValueError: If ROICtrl is not in the UNet.
    """
    own = attachment(unet)
    before = own.current
    own.current = None if instances is None else Instances.of(instances, own.max_instances), when
    try:
        yield unet
    finally:
        own.current = before


def set_enabled(unet: nn.Module, enabled: bool = True) -> None:
    """Switches all fusers on or off; while they are off the UNet is as without ROICtrl."""
    for fuser in fusers(unet).values():
        fuser.enabled = enabled


def gates(unet: nn.Module) -> dict[str, float]:
    """tanh(alpha) of the three gates of each block, by name, for logs.

    Gates that stay near 0 are the usual reason for boxes without effect.
    """
    alphas = ("alpha_roi_self_attn", "alpha_coord_self_attn", "alpha_dense")
    return {
        f"{name}.{alpha}": getattr(fuser, alpha).detach().float().tanh().item()
        for name, fuser in fusers(unet).items()
        for alpha in alphas
    }


def regularisation_loss(unet: nn.Module, reduction: str = "mean") -> torch.Tensor:
    """How much of the blend in boxes is the whole image's map, in the last call (section 3.4).

    For each block it is the mean weight over the pixels of all boxes of the batch, and 0 if there
    are none. It can be asked for once after each call.

    Args:
        unet: UNet with ROICtrl in it.
        reduction: ``"mean"`` or ``"sum"`` over blocks.

    Returns:
        A scalar, fp32, to be weighed with 0.01 and added to the loss.

    Raises:
        ValueError: If there was no call with instances since, or no such reduction.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be mean or sum; got {reduction!r}")
    penalties = []
    for fuser in fusers(unet).values():
        if fuser.regularisation is not None:
            penalties.append(fuser.regularisation)
        fuser.regularisation = None
    if not penalties:
        raise ValueError("there was no call of the UNet with instances since the last loss")
    return getattr(torch.stack(penalties), reduction)()


def _where(module: nn.Module) -> dict[str, Any]:
    """Device and type of the weights of a module."""
    first = next(module.parameters())
    return {"device": first.device, "dtype": first.dtype}


def _exchange(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with another value of ``cross_attention_kwargs``."""
    if len(args) > position:
        return (*args[:position], value, *args[position + 1 :]), kwargs
    return args, {**kwargs, "cross_attention_kwargs": value}


def _given(args: tuple[Any, ...], kwargs: dict[str, Any], position: int) -> dict[str, Any]:
    """The value of ``cross_attention_kwargs``, or nothing."""
    value = args[position] if len(args) > position else kwargs.get("cross_attention_kwargs")
    return value or {}


class Attachment:
    """What ROICtrl is to a UNet beside its weights: hooks, flags before, instances now."""

    def __init__(self, unet: nn.Module, embed: BoxEmbedding, max_instances: int):
        self.embed = embed
        self.max_instances = max_instances
        self.flags = {name: p.requires_grad for name, p in unet.named_parameters()}
        self.handles: list[Any] = []
        self.current: tuple[Instances | None, Callable[[], bool] | None] = None, None
        self.call: Call | None = None
        self.has_run = False
        self.collects = True
        """Whether a call is going on; what checkpointing recomputes later is not recorded."""

    def hook(self, block: nn.Module, hooks: "BlockHooks") -> None:
        """Adds the hooks of a block."""
        self.handles += [
            block.register_forward_pre_hook(hooks.begin, with_kwargs=True),
            block.norm2.register_forward_pre_hook(hooks.keep),
            block.attn2.register_forward_pre_hook(hooks.choose_layer, with_kwargs=True),
            block.attn2.register_forward_hook(hooks.fuse, with_kwargs=True),
        ]

    def begin(
        self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Sends instances to the blocks with the arguments of the call.

        So they are there when checkpointing calls blocks again in the backward pass.
        """
        self.collects, self.call, self.has_run = True, None, False
        own = _given(args, kwargs, _UNET_POSITION)
        instances, when = self.current
        if own.get(KEY) is not None:
            instances, when = own[KEY], None
        if instances is None or (when is not None and not when()):
            return None
        sample = args[0] if args else kwargs["sample"]
        self.call = self._call(Instances.of(instances, self.max_instances), sample)
        return _exchange(args, kwargs, _UNET_POSITION, {**own, KEY: self.call})

    def _call(self, instances: Instances, sample: torch.Tensor) -> Call:
        if instances.batch_size != sample.shape[0]:
            raise ValueError(
                f"there are instances of {instances.batch_size} images, and the UNet was given "
                f"{sample.shape[0]}; for classifier-free guidance double them by "
                "instances.with_unconditional(negative_text)"
            )
        if instances.max_instances != self.max_instances:
            raise ValueError(
                f"instances have {instances.max_instances} slots, and ROICtrl was applied with "
                f"max_instances={self.max_instances}: make them with the same"
            )
        return Call(instances, tuple(sample.shape[-2:]))

    def place(self, conv: nn.Module, args: tuple[Any, ...]) -> None:
        """Embeds the boxes once for a call, when the UNet begins to compute.

        Before, what offloads weights has not yet brought them to where they are used.
        """
        if self.call is not None:
            self.call.place(args[0].device, _where(self.embed)["dtype"], self.embed)

    def end(self, unet: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Ends a call.

        Raises:
            RuntimeError: If instances were given and no block has used them.
        """
        unused = self.call is not None and not self.has_run
        self.collects, self.call = False, None
        if unused:
            raise RuntimeError(
                "instances were given and no block used them: something has replaced the UNet's "
                "blocks, or what they call, since ROICtrl was applied; apply it afterwards"
            )


class BlockHooks:
    """The hooks of one block, and what they keep during its call."""

    def __init__(self, fuser: ROIFuser, owner: Attachment, layer: int, layers: int):
        self.fuser = fuser
        self.owner = owner
        self.layer = layer
        self.layers = layers
        self.call: Call | None = None
        self.hidden: torch.Tensor | None = None

    def begin(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Takes the instances out of the block's arguments, before processors see them."""
        given = _given(args, kwargs, _BLOCK_POSITION)
        self.call, self.hidden = given.get(KEY), None
        if KEY not in given:
            return None
        rest = {name: value for name, value in given.items() if name != KEY}
        return _exchange(args, kwargs, _BLOCK_POSITION, rest)

    def keep(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        """Keeps the hidden state before the norm of the cross-attention."""
        if self.call is not None:
            self.owner.has_run = True
            self.hidden = args[0] if self.fuser.enabled else None

    def choose_layer(
        self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Chooses this block's caption where there is one for each (ED-LoRA)."""
        text = kwargs.get("encoder_hidden_states")
        if not isinstance(text, torch.Tensor) or text.ndim != 4:
            return None
        if text.shape[1] != self.layers:
            raise ValueError(
                f"captions for each of {text.shape[1]} layers, and the UNet has {self.layers} with "
                "cross-attention"
            )
        return args, {**kwargs, "encoder_hidden_states": text[:, self.layer]}

    def fuse(
        self,
        attention: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: torch.Tensor,
    ) -> torch.Tensor | None:
        """Replaces the cross-attention's output; its calls for regions are left alone."""
        if self.hidden is None:
            return None
        call, hidden = self.call, self.hidden
        self.call = self.hidden = None
        normed = args[0] if args else kwargs["hidden_states"]
        text: Any = call.instances.text
        given = kwargs.get("encoder_hidden_states")
        if isinstance(given, tuple):  # IP-Adapter: a region sees the image prompts of its image.
            images = call.instances.images
            text = text, [tokens[images] for tokens in given[1]]
        return self.fuser(
            normed,
            hidden,
            output,
            lambda tokens: attention(tokens, encoder_hidden_states=text),
            call,
            self.owner.collects,
        )
