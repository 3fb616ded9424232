"""ROICtrl: captions for regions of an image, for UNets of Stable Diffusion (arXiv 2411.17949).

unet = UNet2DConditionModel.from_pretrained(path, subfolder="unet")
apply(unet)  # freezes it; what is added trains
instances = Instances.from_lists([(boxes, embeddings)])  # of each image: (n, 4) and (n, 77, 768)
noise = unet(x, t, text, cross_attention_kwargs={"roictrl": instances}).sample
loss = mse_loss(noise, target) + 0.01 * regularisation_loss(unet)
save_roictrl(unet, "roictrl.safetensors")
remove(unet)  # the UNet as it was, to the bit
"""

from .attach import (
    apply,
    controlled,
    gates,
    is_applied,
    regularisation_loss,
    remove,
    set_enabled,
)
from .boxes import BoxEmbedding, fourier_embedding
from .fuser import GATES, ROI_SIZES, SHUFFLES, ROIFuser, roi_size
from .instances import Instances
from .state import load_roictrl, roictrl_state_dict, save_roictrl

__all__ = [
    "GATES",
    "ROI_SIZES",
    "SHUFFLES",
    "BoxEmbedding",
    "Instances",
    "ROIFuser",
    "apply",
    "controlled",
    "fourier_embedding",
    "gates",
    "is_applied",
    "load_roictrl",
    "regularisation_loss",
    "remove",
    "roi_size",
    "roictrl_state_dict",
    "save_roictrl",
    "set_enabled",
]
