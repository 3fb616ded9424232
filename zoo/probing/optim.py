"""Optimisers of probes: a learning rate for each head, and LARS as linear probing has it."""

from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from timm.optim import create_optimizer_v2
from torch import nn

from .model import Probe

__all__ = ["ProbeOptimWrapperConstructor", "head_groups"]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ProbeOptimWrapperConstructor:
    """Builds any of timm's optimisers for a ``Probe``, each head with its learning rate.

    Biases and other vectors are not decayed. LARS (``"lars"``) adapts the rate of what is not a
    vector to its norm over its gradient's, also without weight decay.

    Args:
        optim_wrapper_cfg: Configuration of the wrapper; its ``optimizer`` has timm's name under
            ``type`` and the optimiser's arguments.
        paramwise_cfg: None.
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ):
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop("optimizer"))

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Builds the wrapper around an optimiser of the model's parameters."""
        model = model.module if is_model_wrapper(model) else model
        kwargs = dict(self.optimizer_cfg)
        name, lr = kwargs.pop("type"), kwargs.pop("lr")
        groups = head_groups(model, lr, kwargs.pop("weight_decay", 0.0), is_lars="lar" in name)
        optimizer = create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=0.0, **kwargs)
        return OPTIM_WRAPPERS.build(
            {"type": "OptimWrapper", **self.wrapper_cfg, "optimizer": optimizer}
        )


def head_groups(
    model: Probe, lr: float, weight_decay: float, is_lars: bool
) -> list[dict[str, Any]]:
    """Parameter groups of heads, and of the network where it is trained: matrices, then vectors."""
    parts = [(model.head(name), spec.lr) for name, spec in model.specs.items()]
    if not model.reader.frozen:
        parts.append((model.backbone, None))
    groups = []
    for module, own in parts:
        for is_matrix in (True, False):
            chosen = [
                p for p in module.parameters() if p.requires_grad and (p.ndim > 1) == is_matrix
            ]
            group = {
                "params": chosen,
                "lr": lr if own is None else own,
                "weight_decay": weight_decay if is_matrix else 0.0,
            }
            if is_lars:
                group["always_adapt"] = is_matrix
            if chosen:
                groups.append(group)
    return groups
