"""mmcv's operators without compiling mmcv: :func:`install` provides the module ``mmcv._ext``."""

import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

from .ops import boxes, deform, info, losses, neighbors, roi, rotated

_NAME = "mmcv._ext"
_OPERATORS: tuple[Callable, ...] = (
    boxes.bbox_overlaps,
    boxes.nms,
    boxes.nms_match,
    boxes.softnms,
    deform.deform_conv_backward_input,
    deform.deform_conv_backward_parameters,
    deform.deform_conv_forward,
    deform.modulated_deform_conv_backward,
    deform.modulated_deform_conv_forward,
    deform.ms_deform_attn_backward,
    deform.ms_deform_attn_forward,
    info.get_compiler_version,
    info.get_compiling_cuda_version,
    losses.sigmoid_focal_loss_backward,
    losses.sigmoid_focal_loss_forward,
    losses.softmax_focal_loss_backward,
    losses.softmax_focal_loss_forward,
    neighbors.carafe_backward,
    neighbors.carafe_forward,
    neighbors.carafe_naive_backward,
    neighbors.carafe_naive_forward,
    neighbors.masked_col2im_forward,
    neighbors.masked_im2col_forward,
    neighbors.psamask_backward,
    neighbors.psamask_forward,
    roi.roi_align_backward,
    roi.roi_align_forward,
    roi.roi_pool_backward,
    roi.roi_pool_forward,
    rotated.box_iou_rotated,
    rotated.nms_rotated,
)


class _Extension(ModuleType):
    """Stands for the compiled module; operators that are missing resolve and raise when called."""

    def __getattr__(self, name: str) -> Callable:
        if name.startswith("__"):
            raise AttributeError(f"module {_NAME!r} has no attribute {name!r}")

        def missing(*args, **kwargs):
            raise NotImplementedError(
                f"mmcv's operator {name!r} is not provided by visattn without compiling: "
                "install an mmcv built with its operators (pip install --no-binary onedl-mmcv "
                "onedl-mmcv with MMCV_WITH_OPS=1 set), or use a model without it"
            )

        missing.__name__ = missing.__qualname__ = name
        return missing


def install() -> bool:
    """Provides ``mmcv._ext`` over torch and torchvision if the compiled one is missing.

    Must run before ``mmcv.ops`` is imported; ``mmdet.structures`` may have been. A second call
    changes nothing.

    Returns:
        Whether ``mmcv._ext`` is ours: False when mmcv has its compiled operators.

    Raises:
        ImportError: If mmcv is not installed.
    """
    try:
        mmcv = importlib.import_module("mmcv")
    except ModuleNotFoundError as error:
        if error.name != "mmcv":
            raise
        raise ImportError("mmcv is not installed: pip install 'visattn[openmm]'") from error
    try:
        return isinstance(importlib.import_module(_NAME), _Extension)
    except ModuleNotFoundError as error:
        if error.name != _NAME:
            raise
    module = _Extension(_NAME, "mmcv's operators over torch and torchvision.")
    module.__spec__ = ModuleSpec(_NAME, loader=None, origin=__file__)
    for operator in _OPERATORS:
        setattr(module, operator.__name__, operator)
    sys.modules[_NAME] = mmcv._ext = module
    masks = sys.modules.get("mmdet.structures.mask.structures")
    if masks is not None:
        # Imported before, it put a stub in the operator's place.
        masks.roi_align = importlib.import_module("mmcv.ops.roi_align").roi_align
    return True
