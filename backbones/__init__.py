"""Backbones, one family a file; importing this registers them all with timm."""

from .agent_cswin import AgentCSWin
from .agent_deit import AgentDeiT
from .agent_pvt import AgentPVT
from .agent_swin import AgentSwin
from .biformer import BiFormer
from .dcal import DualCrossAttentionTransformer
from .ela import ELAMobileNetV2, ELAResNet
from .nat import NeighborhoodAttentionTransformer
from .nat_isotropic import IsotropicTransformer

__all__ = [
    "AgentCSWin",
    "AgentDeiT",
    "AgentPVT",
    "AgentSwin",
    "BiFormer",
    "DualCrossAttentionTransformer",
    "ELAMobileNetV2",
    "ELAResNet",
    "IsotropicTransformer",
    "NeighborhoodAttentionTransformer",
]
