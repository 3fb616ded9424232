"""mmcv's compiled operators over torch and torchvision, with the calling conventions of mmcv._ext.

Outputs are written in place into the tensors that mmcv.ops allocates. Results are those of
compiled mmcv on CPU (of its CUDA kernels where it has no CPU one), on any device that torch has.
"""
