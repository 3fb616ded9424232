"""visattn, the zoo of vision attention: importing it registers every model with timm."""

from . import backbones as backbones

__version__ = "0.1.0"
