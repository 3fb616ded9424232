"""What backbones made of stages share: timm's contract over a stem, stages, a norm and a head."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead, get_device_dtype, trunc_normal_
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import nn

__all__ = ["Pyramid", "SizeChecked", "Stage", "check_size"]


def check_size(model: nn.Module, x: torch.Tensor) -> None:
    """Checks that images (B, C, H, W) have at least the stride of a model a side.

    Raises:
        ValueError: If they are smaller.
    """
    stride = model.feature_info[-1]["reduction"]
    if x.shape[-2] < stride or x.shape[-1] < stride:
        raise ValueError(
            f"{type(model).__name__} takes images of at least {stride} x {stride} pixels, its "
            f"stride; got {x.shape[-2]} x {x.shape[-1]}: resize them"
        )


class SizeChecked:
    """A timm model that checks the size of images; a base before timm's class."""

    def forward_features(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Features, as of the timm model."""
        check_size(self, x)
        return super().forward_features(x, *args, **kwargs)

    def forward_intermediates(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Features of levels, as of the timm model."""
        check_size(self, x)
        return super().forward_intermediates(x, *args, **kwargs)


class Stage(nn.Module):
    """Downsampling, then blocks."""

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module]):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x, use_reentrant=False)
        return self.blocks(x)


class Pyramid(nn.Module):
    """A stem, stages, a norm and a classifier.

    Features are NCHW, whatever the layout of the maps between the stages.

    Args:
        stem: Images (B, C, H, W) to maps.
        stages: Maps to maps.
        norm: Norm of the last map.
        dims: Channels of each stage.
        reductions: Pixels a token a side, of each stage.
        in_chans: Input channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier.
        channels_last: Whether maps are (B, H, W, C) and not (B, C, H, W).
        head_layer: Class of the classifier.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Stage],
        norm: nn.Module,
        dims: Sequence[int],
        reductions: Sequence[int],
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        channels_last: bool = False,
        head_layer: Callable[..., nn.Module] = ClassifierHead,
        **dd: Any,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = dims[-1]
        self.channels_last = channels_last
        self.feature_info = [
            {"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"}
            for i, (dim, reduction) in enumerate(zip(dims, reductions, strict=True))
        ]
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.head = head_layer(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd
        )
        self.head_hidden_size = self.head.num_features
        self.apply(_init_weights)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, beyond biases and norms: bias tables."""
        return {name for name, _ in self.named_parameters() if name.endswith(".rpb")}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order parameters by depth, for layer-wise decay."""
        if coarse:
            blocks = r"^stages\.(\d+)"
        else:
            blocks = [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ]
        return {"stem": r"^stem", "blocks": blocks}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the blocks in the backward pass instead of keeping their activations."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head.fc

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None, reset_other: bool = False
    ) -> None:
        """Replaces the classifier, and the pooling where ``global_pool`` is given."""
        self.num_classes = num_classes
        self.head.reset(
            num_classes, pool_type=global_pool, reset_other=reset_other, **get_device_dtype(self)
        )

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Features of stages, NCHW.

        Args:
            x: Images, (B, C, H, W).
            indices: The last n stages if int, all if None, else those listed.
            norm: Whether the last stage's features pass the final norm.
            stop_early: Whether to leave out the stages after the last one asked for.
            output_fmt: ``"NCHW"``.
            intermediates_only: Whether to return the features alone.

        Returns:
            The features, or (final features, features).
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW'; got {output_fmt!r}")
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        last = len(self.stages) - 1

        check_size(self, x)
        x = self.stem(x)
        intermediates = []
        for i, stage in enumerate(self.stages[: max_index + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take_indices:
                intermediates.append(self._to_nchw(self.norm(x) if norm and i == last else x))
        if intermediates_only:
            return intermediates
        return self._to_output(self.norm(x) if i == last else x), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what the given intermediates do not need; returns their indices."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        prune_end = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        if prune_norm or prune_end:
            self.norm = nn.Identity()
        if prune_end:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or prune_end:
            self.reset_classifier(0, "", reset_other=True)
        return take_indices

    def _to_nchw(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 3, 1, 2) if self.channels_last else x

    def _to_output(self, x: torch.Tensor) -> torch.Tensor:
        """What the head takes, of the last stage."""
        return self._to_nchw(x)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to the features of the last stage, NCHW."""
        check_size(self, x)
        return self._to_output(self.norm(self.stages(self.stem(x))))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Features to logits, or to pooled features where ``pre_logits``."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
