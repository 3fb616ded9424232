"""Probes of frozen networks: tokens of any layer, and heads of pooling, batch norm and classifier.

Of Efficient Probing (arXiv 2506.10178, section 4), whose released layout the heads have.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .poolings import create_pooling, split_name

__all__ = ["ProbeHead", "TokenReader", "ep_options", "select_tokens"]

_NO_CLASS_TOKEN = (
    "gives no class token: probe its patches, by 'gap', or another pooling without '_all'"
)


class ProbeHead(nn.Sequential):
    """Pooling, batch norm without gain and shift, linear classifier, under 0, 1 and 2.

    A pooling without parameters (``"gap"``, ``"cls"``) is linear probing, and takes no number:
    batch norm and classifier are 0 and 1, as in the released code.

    Args:
        name: Pooling, see ``visattn.heads.poolings.split_name``.
        dim: Width of the tokens.
        num_classes: Classes.
        classifier: Classifier to go on with, such as the network's own; a new one by default, whose
            weights are drawn after the pooling's.
        **kwargs: Options of the pooling.

    Raises:
        ValueError: If the options do not fit the width, or the classifier the pooling.
    """

    def __init__(
        self,
        name: str,
        dim: int,
        num_classes: int,
        classifier: nn.Linear | None = None,
        **kwargs: Any,
    ):
        pooling = create_pooling(name, dim, **kwargs)
        width = pooling.out_features
        if classifier is None:
            classifier = nn.Linear(width, num_classes)
        if (classifier.in_features, classifier.out_features) != (width, num_classes):
            raise ValueError(
                f"{name!r} needs a classifier of {width} features to {num_classes} classes; got "
                f"{classifier.in_features} to {classifier.out_features}"
            )
        is_linear = not pooling.state_dict()
        norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        super().__init__(*([] if is_linear else [pooling]), norm, classifier)
        self.name = name
        self.tokens = split_name(name)[1]
        # Not registered, so that the numbers of the others are right.
        self.__dict__["pooling"] = pooling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, dim) that the pooling is for, to logits (B, num_classes)."""
        *_, norm, classifier = self
        return classifier(norm(self.pooling(x)))


def ep_options(state_dict: Mapping[str, torch.Tensor], prefix: str = "head.") -> dict[str, int]:
    """What a saved head of efficient probing was built with, read off its shapes.

    Args:
        state_dict: State dict that contains the head.
        prefix: What its names begin with.

    Returns:
        ``dim``, ``num_classes``, ``num_queries`` and ``d_out``, for ``ProbeHead("ep", ...)``.

    Raises:
        ValueError: If there is no such head.
    """
    try:
        queries, values, classifier = (
            state_dict[f"{prefix}{name}"].shape
            for name in ("0.cls_token", "0.v.weight", "2.weight")
        )
    except KeyError as error:
        raise ValueError(
            f"no head of efficient probing under {prefix!r}: {error} is missing"
        ) from (error)
    return {
        "dim": queries[2],
        "num_classes": classifier[0],
        "num_queries": queries[1],
        "d_out": values[1] // values[0],
    }


def select_tokens(x: torch.Tensor, tokens: str, has_class_token: bool) -> torch.Tensor:
    """Of what ``TokenReader`` reads, what a pooling is given.

    Args:
        x: Class token, where there is one, and patches: (B, 1 + N, D) or (B, N, D).
        tokens: ``"patch"``, ``"all"`` or ``"cls"``.
        has_class_token: Whether the first is the class token.

    Raises:
        ValueError: If a class token is wanted and there is none.
    """
    if tokens != "patch" and not has_class_token:
        raise ValueError(f"the network {_NO_CLASS_TOKEN}")
    if tokens == "patch":
        return x[:, int(has_class_token) :]
    return x[:, :1] if tokens == "cls" else x


class TokenReader(nn.Module):
    """Reads the tokens of layers of a timm model: the class token, if any, and the patches.

    Registers and distillation tokens are left out. Pixels of feature maps are tokens, row by row.
    A frozen network stays in eval mode, and no gradient is computed of it.

    Args:
        backbone: Any timm model with ``forward_intermediates``.
        layers: Blocks, or stages of a pyramid, as ``forward_intermediates`` counts them; negative
            numbers from the last.
        final_norm: Whether the network's last norm is applied to what is read, of any layer.
        frozen: Whether the network is frozen.
        keep: What is read: ``"all"``, ``"patch"``, ``"cls"``, or the mean of the patches alone,
            ``"mean"``, which is their average pooling.

    Raises:
        ValueError: If the model has no such method, no such layer, or no class token to keep.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layers: Sequence[int] = (-1,),
        final_norm: bool = False,
        frozen: bool = True,
        keep: str = "all",
    ):
        super().__init__()
        if keep not in ("all", "patch", "cls", "mean"):
            raise ValueError(f"keep must be 'all', 'patch', 'cls' or 'mean'; got {keep!r}")
        if not hasattr(backbone, "forward_intermediates"):
            raise ValueError(f"{type(backbone).__name__} of timm has no forward_intermediates")
        self.backbone = backbone
        info = list(backbone.feature_info)
        wrong = [layer for layer in layers if not -len(info) <= layer < len(info)]
        if wrong or not layers:
            raise ValueError(
                f"{type(backbone).__name__} has layers 0 to {len(info) - 1}; got {list(layers)}"
            )
        self.layers = tuple(layer % len(info) for layer in layers)
        self.dims = {layer: info[layer]["num_chs"] for layer in self.layers}
        self.final_norm, self.frozen = final_norm, frozen
        parameters = inspect.signature(backbone.forward_intermediates).parameters.values()
        self._gives_prefix = any(
            p.name == "return_prefix_tokens" or p.kind is p.VAR_KEYWORD for p in parameters
        )
        has_class = getattr(backbone, "has_class_token", None)
        if has_class is None:
            has_class = getattr(backbone, "cls_token", None) is not None
        has_prefix = getattr(backbone, "num_prefix_tokens", 0) > 0
        has_class = bool(has_class and has_prefix and self._gives_prefix)
        if keep == "cls" and not has_class:
            raise ValueError(f"{type(backbone).__name__} {_NO_CLASS_TOKEN}")
        self.keep = keep
        self.has_class_token = has_class and keep in ("all", "cls")
        if frozen:
            backbone.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "TokenReader":
        """Sets the mode of a network that is not frozen."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: torch.Tensor) -> dict[int, torch.Tensor]:
        """Images (B, C, H, W) to tokens (B, 1 + N, D) by layer, without the 1 if no class token.

        Raises:
            ValueError: If the network refuses, as some do to norm what is not their last layer.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            try:
                read = self.backbone.forward_intermediates(
                    images,
                    indices=sorted(set(self.layers)),
                    norm=self.final_norm,
                    stop_early=True,
                    intermediates_only=True,
                    **({"return_prefix_tokens": True} if self._gives_prefix else {}),
                )
            except AssertionError as error:
                raise ValueError(
                    f"{type(self.backbone).__name__} cannot give its tokens so: {error}"
                    f"{'; set final_norm=False' if self.final_norm else ''}"
                ) from error
            return {
                layer: self._tokens(features)
                for layer, features in zip(sorted(set(self.layers)), read, strict=True)
            }

    def _tokens(self, features: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        features, prefix = features if isinstance(features, tuple) else (features, None)
        if self.keep == "cls":
            return prefix[:, :1]
        patches = features.flatten(2).mT  # (B, N, D)
        if self.keep == "mean":
            return patches.mean(1, keepdim=True)
        return torch.cat((prefix[:, :1], patches), 1) if self.has_class_token else patches
