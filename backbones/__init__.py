"""Backbones, one family a file; importing this registers them all with timm."""

from .biformer import BiFormer

__all__ = ["BiFormer"]
