"""What mmcv tells about how its operators were built."""


def get_compiler_version() -> str:
    """The compiler of the operators, for reports of the environment."""
    return "none (visattn over torch and torchvision)"


def get_compiling_cuda_version() -> str:
    """The CUDA toolkit that the operators were compiled with, for reports of the environment."""
    return "not available"
