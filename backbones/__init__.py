"""Backbones, one family a file; importing this registers them all with timm."""

from .biformer import BiFormer
from .nat import NeighborhoodAttentionTransformer

__all__ = ["BiFormer", "NeighborhoodAttentionTransformer"]
