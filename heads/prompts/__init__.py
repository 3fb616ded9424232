"""Prompts, adapters and other ways to adapt a frozen Vision Transformer, by name.

model = timm.create_model("vit_base_patch16_224", num_classes=47)
apply(model, "tcpa", host="vfpt")  # freezes all but the head and what it adds
loss = criterion(model(images), labels) + 0.01 * pool_loss(model)
torch.save(trainable_state_dict(model), "dtd.pth")
remove(model)  # the model as it was, to the bit
"""

from .methods import apply, list_prompts, method, remove
from .model import Prompted, is_prompted, pool_loss, set_epoch
from .state import load_trainable, trainable_state_dict

__all__ = [
    "Prompted",
    "apply",
    "is_prompted",
    "list_prompts",
    "load_trainable",
    "method",
    "pool_loss",
    "remove",
    "set_epoch",
    "trainable_state_dict",
]
