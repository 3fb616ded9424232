"""What a Vision Transformer becomes while prompts are in it, and how that is undone."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import nn

from .blocks import ShallowBlock
from .layers import PromptPools

__all__ = [
    "Attachment",
    "Prompted",
    "PromptedDistilledTransformer",
    "PromptedTransformer",
    "check_blocks",
    "check_transformer",
    "heads_of",
    "is_prompted",
    "pool_loss",
    "prompted_class",
    "set_epoch",
]


class Prompted:
    """What a model has more while prompts are in it.

    ``train()`` leaves the frozen backbone in eval mode: what was added and the head train.
    """

    attachment: "Attachment"

    def train(self, mode: bool = True) -> nn.Module:
        """Sets what is trained to training or eval mode, and the backbone to eval mode."""
        super().train(False)
        self.training = mode
        for module in (*self.attachment.modules(), *heads_of(self), self.head_drop):
            module.train(mode)
        return self

    def forward_features(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Tokens (B, N, D) of images (B, C, H, W)."""
        return super().forward_features(self._begin(x), *args, **kwargs)

    def forward_intermediates(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the model's own.

        Raises:
            ValueError: If shallow prompts stay among the tokens.
        """
        if any(isinstance(block, ShallowBlock) for block in self.blocks):
            raise ValueError(
                "vpt_shallow's prompts are among the tokens between blocks, which are no maps "
                "then: use vpt_deep, or forward_features"
            )
        return super().forward_intermediates(self._begin(x), *args, **kwargs)

    def _begin(self, x: torch.Tensor) -> torch.Tensor:
        for pools in _pools(self):
            pools.collects, pools.distance = True, None
        return self.prompter(x) if hasattr(self, "prompter") else x


class PromptedTransformer(Prompted, VisionTransformer):
    """timm's Vision Transformer while prompts are in it."""


class PromptedDistilledTransformer(Prompted, VisionTransformerDistilled):
    """timm's distilled Vision Transformer while prompts are in it."""


_PROMPTED = {
    VisionTransformer: PromptedTransformer,
    VisionTransformerDistilled: PromptedDistilledTransformer,
}


def prompted_class(model: nn.Module) -> type[nn.Module]:
    """The class that a model gets."""
    return _PROMPTED[type(model)]


def is_prompted(model: nn.Module) -> bool:
    """Whether prompts, or anything else of the registry, are in a model."""
    return isinstance(model, Prompted)


def check_transformer(model: nn.Module) -> None:
    """Checks that prompts can be put into a model.

    Raises:
        ValueError: If it is no plain timm ViT, or has prompts already.
    """
    if is_prompted(model):
        raise ValueError(
            f"the model has {model.attachment.name!r} in it already: remove(model) it first"
        )
    if type(model) not in _PROMPTED:
        raise ValueError(
            f"prompts go into timm's VisionTransformer and VisionTransformerDistilled, and a "
            f"{type(model).__name__} is another network: create one of timm's vit_* or deit_* "
            "models"
        )


def check_blocks(model: nn.Module, name: str) -> None:
    """Checks that the blocks of a model are those that prompts and adapters are defined for.

    Raises:
        ValueError: If they are not.
    """
    for block in model.blocks:
        kinds = (type(block), type(getattr(block, "attn", None)))
        if kinds != (Block, Attention):
            raise ValueError(
                f"{name} is defined in timm's Block with its Attention, not in "
                f"{' with '.join(kind.__name__ for kind in kinds)}: 'linear', 'bias' and pixel "
                "prompts go into any"
            )


def heads_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """The classifier, or both of a distilled model."""
    head = model.get_classifier()
    return head if isinstance(head, tuple) else (head,)


def _pools(model: nn.Module) -> Iterator[PromptPools]:
    for block in model.blocks:
        if isinstance(getattr(block, "prompts", None), PromptPools):
            yield block.prompts


def pool_loss(model: nn.Module) -> torch.Tensor | None:
    """The distance of tokens from the keys that they chose, in the last forward pass.

    It is the sum over blocks and roles of mean distances (1 - cosine), to be weighed by the caller
    and added to the loss; only it trains the keys. It can be asked for once after each pass.

    Returns:
        A scalar, or None if nothing was chosen: tokens do not choose, or no pass was made.
    """
    distances = []
    for pools in _pools(model):
        # What checkpointing recomputes in the backward pass must not be kept.
        pools.collects = False
        if pools.distance is not None:
            distances.append(pools.distance)
        pools.distance = None
    return torch.stack(distances).sum() if distances else None


def set_epoch(model: nn.Module, epoch: int) -> None:
    """Tells pools which epoch, counted from 0, begins: in the first ones tokens choose at random.

    Until this is called they choose by keys.
    """
    for pools in _pools(model):
        for pool in (pools.cls, pools.image):
            if pool is not None:
                pool.random = epoch < model.attachment.random_epoch


class Attachment:
    """What was changed in a model, and how to undo it.

    Creating it freezes all but the head.

    Args:
        model: Model.
        name: What is put into it.
    """

    def __init__(self, model: nn.Module, name: str):
        self.name = name
        self.random_epoch = 0
        self.model = model
        first = next(model.parameters())
        self.dd = {"device": first.device, "dtype": first.dtype}
        """Device and type of what is added."""
        self._flags = {key: p.requires_grad for key, p in model.named_parameters()}
        self._training = [(module, module.training) for module in model.modules()]
        self._classes: list[tuple[nn.Module, type[nn.Module]]] = []
        self._children: list[tuple[nn.Module, str]] = []
        self._attributes: list[tuple[nn.Module, str]] = []
        self._values: dict[str, torch.Tensor] = {}
        model.requires_grad_(False)
        own = {id(p) for head in heads_of(model) for p in head.parameters()}
        self.unfreeze({key for key, p in model.named_parameters() if id(p) in own})

    def unfreeze(self, names: set[str]) -> None:
        """Has weights of the model itself trained; undoing restores their values."""
        for key, parameter in self.model.named_parameters():
            if key in names:
                parameter.requires_grad_(True)
                self._values.setdefault(key, parameter.detach().clone())

    def become(self, module: nn.Module, cls: type[nn.Module]) -> None:
        """Gives a module another class."""
        self._classes.append((module, type(module)))
        module.__class__ = cls

    def add(self, module: nn.Module, name: str, child: nn.Module) -> None:
        """Gives a module a child that is trained."""
        self._children.append((module, name))
        module.add_module(name, child)

    def set(self, module: nn.Module, name: str, value: Any) -> None:
        """Gives a module a plain attribute."""
        self._attributes.append((module, name))
        setattr(module, name, value)

    def modules(self) -> list[nn.Module]:
        """The children that were added."""
        return [getattr(parent, name) for parent, name in self._children]

    def undo(self) -> None:
        """Makes the model what it was."""
        for parent, name in (*self._children, *self._attributes):
            # A model may have been pruned meanwhile.
            with suppress(AttributeError):
                delattr(parent, name)
        for module, cls in reversed(self._classes):
            module.__class__ = cls
        for key, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._flags.get(key, True))
            value = self._values.get(key)
            if value is not None and value.shape == parameter.shape:
                with torch.no_grad():
                    parameter.copy_(value)
        for module, training in self._training:
            module.training = training
