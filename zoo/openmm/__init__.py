"""OpenMMLab without compiling: mmcv ops in torch, and timm backbones for its heads."""
