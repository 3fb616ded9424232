"""Backbones, one family a file; importing this registers them all with timm."""

from .agent_swin import AgentSwin
from .biformer import BiFormer
from .ela import ELAMobileNetV2, ELAResNet
from .nat import NeighborhoodAttentionTransformer
from .nat_isotropic import IsotropicTransformer

__all__ = [
    "AgentSwin",
    "BiFormer",
    "ELAMobileNetV2",
    "ELAResNet",
    "IsotropicTransformer",
    "NeighborhoodAttentionTransformer",
]
