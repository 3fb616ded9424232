"""Any timm model as a backbone of mmdet, mmseg and mmengine."""

import re
from collections.abc import Sequence
from typing import Any

import timm
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import get_norm_layer
from torch import nn

from ..checkpoint import StateDict, load_checkpoint
from ..config import nearest
from ..errors import ConfigError


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """Feature pyramid of a timm model, ours included, NCHW whatever the model's own layout.

    Args:
        model_name: Name for ``timm.create_model``.
        out_indices: Feature levels to return.
        pretrained: Whether timm loads the weights that it knows for this model.
        checkpoint: File of weights, of a classifier or of a backbone for dense prediction, in the
            authors' layout or ours; loaded strictly.
        norm_outputs: timm name of a norm layer put on each output, such as ``"layernorm2d"``, or
            its name under ``type`` and its arguments; the un-normalised features go on to the next
            stage.
        frozen_stages: Number of leading feature levels whose parameters do not train, and all
            before them; 0 freezes what comes before the first, -1 nothing.
        norm_eval: Whether batch norms use and keep their running statistics while training.
        bn_momentum: Share that a batch has in the running statistics of batch norms; the model's by
            default.
        with_cp: Whether to recompute activations in the backward pass.
        init_cfg: Not used: timm models initialise themselves.
        **kwargs: For the model, such as ``drop_path_rate``.

    Attributes:
        out_channels: Channels of each output.
        out_strides: Stride of each output.

    Raises:
        ConfigError: If timm has no such model, or it has no such levels.
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrained: bool = False,
        checkpoint: str | None = None,
        norm_outputs: str | dict[str, Any] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        bn_momentum: float | None = None,
        with_cp: bool = False,
        init_cfg: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(init_cfg)
        self.out_indices = tuple(out_indices)
        self.checkpoint = checkpoint
        self.norm_eval = norm_eval
        self.model = create_features(model_name, self.out_indices, pretrained, **kwargs)
        if with_cp:
            getattr(self.model, "model", self.model).set_grad_checkpointing(True)
        self.out_channels = tuple(self.model.feature_info.channels())
        self.out_strides = tuple(self.model.feature_info.reduction())
        self.norms = None
        if norm_outputs is not None:
            norm = {"type": norm_outputs} if isinstance(norm_outputs, str) else dict(norm_outputs)
            norm_layer = get_norm_layer(norm.pop("type"))
            self.norms = nn.ModuleList(
                norm_layer(channels, **norm) for channels in self.out_channels
            )
        if bn_momentum is not None:
            for norm in self._batch_norms():
                norm.momentum = bn_momentum
        self.frozen = self._freeze(frozen_stages)

    def init_weights(self) -> None:
        """Loads ``checkpoint``; norms on outputs that it lacks keep their initial values."""
        if self.checkpoint is not None:
            load_checkpoint(self, self.checkpoint, ignore=["norms."] if self.norms else [])
        self._is_init = True

    def convert_state_dict(self, model: nn.Module, state_dict: StateDict) -> StateDict:
        """Maps an official state dict to ours, also that of a dense model with norms on outputs.

        The authors call those ``extra_norms.{level}`` (BiFormer) or ``norm{level}`` (NAT, DiNAT,
        Agent-Swin).
        """
        if any(key.startswith("model.") for key in state_dict):
            return state_dict
        root = getattr(self.model, "model", self.model)
        norms, rest = {}, {}
        for key, value in state_dict.items():
            match = re.match(r"(?:backbone\.)?(?:extra_norms\.|norm)(\d)\.(\w+)$", key)
            level = int(match[1]) if match else len(self.model.feature_info.info)
            if level >= len(self.model.feature_info.info) or hasattr(root, f"norm{level}"):
                rest[key] = value
            elif level in self.out_indices:
                norms[f"norms.{self.out_indices.index(level)}.{match[2]}"] = value
        if hasattr(self.model, "convert_state_dict"):
            rest = self.model.convert_state_dict(self.model, rest)
        return {**{f"model.{key}": value for key, value in rest.items()}, **norms}

    def _freeze(self, stages: int) -> list[nn.Module]:
        """Stops the gradients of leading levels; returns the modules that hold their norms."""
        if stages < 0:
            return []
        root = getattr(self.model, "model", self.model)
        levels = [level["module"] for level in self.model.feature_info.info]
        if stages > len(levels):
            raise ConfigError(f"frozen_stages is {stages}, but there are {len(levels)} levels")
        if root is self.model:
            levels = [name.replace(".", "_") for name in levels]
        frozen = []
        for name, module in root.named_modules():
            level = next((i for i, at in enumerate(levels) if _is_under(name, at)), None)
            if level is not None and level >= stages:
                break
            if not list(module.children()):
                frozen.append(module)
                module.requires_grad_(False)
        return frozen

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Sets training mode; frozen layers, and batch norms where ``norm_eval``, stay in eval."""
        super().train(mode)
        if mode:
            for module in self.frozen:
                module.eval()
            if self.norm_eval:
                for norm in self._batch_norms():
                    norm.eval()
        return self

    def _batch_norms(self) -> list[nn.Module]:
        return [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Images (B, C, H, W) to one feature map (B, C_i, H_i, W_i) for each level."""
        features = self.model(x)
        if str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC"):
            features = [f.permute(0, 3, 1, 2).contiguous() for f in features]
        if self.norms is not None:
            features = [norm(f) for norm, f in zip(self.norms, features, strict=True)]
        return tuple(features)


def _is_under(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def create_features(
    model_name: str, out_indices: Sequence[int], pretrained: bool = False, **kwargs: Any
) -> nn.Module:
    """Builds a ``features_only`` timm model.

    Raises:
        ConfigError: If timm has no such model, or it has no such levels.
    """
    if not timm.is_model(model_name.partition(".")[0]):
        raise ConfigError(
            f"timm has no model {model_name!r}{nearest(model_name, timm.list_models())}"
        )
    try:
        return timm.create_model(
            model_name,
            features_only=True,
            out_indices=tuple(out_indices),
            pretrained=pretrained,
            **kwargs,
        )
    except (AssertionError, IndexError) as error:
        raise ConfigError(
            f"{model_name} cannot give the feature levels out_indices={tuple(out_indices)}: {error}"
        ) from error
