"""Learning-rate schedules that mmengine lacks."""

import math
from typing import Any

from mmengine.optim import BaseOptimWrapper
from mmengine.optim.scheduler.param_scheduler import INF, _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS
from torch.optim import Optimizer


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(_ParamScheduler):
    """timm's cosine schedule: linear warm-up, half a cosine, then the lowest rate.

    The cosine runs from step 0, hidden by the warm-up; so the rate steps from the end of the
    warm-up line onto the cosine at ``warmup``. With ``warmup_prefix`` it begins there instead. The
    two absolute rates hold for the group with the highest rate; others keep their ratio to it.

    Args:
        optimizer: Optimiser or its wrapper.
        T_max: Length of the half cosine, in epochs (or steps, if ``by_epoch=False``).
        warmup: Length of the warm-up in the same unit.
        warmup_lr: Rate at step 0 of the warm-up.
        min_lr: Rate at the end of the cosine and after it.
        warmup_prefix: Whether the cosine begins after the warm-up.
        **kwargs: Of all schedulers of mmengine. ``convert_to_iter_based=True`` in the configuration
            gives lengths in epochs and changes the rate at every iteration.
    """

    def __init__(
        self,
        optimizer: Optimizer | BaseOptimWrapper,
        T_max: int,
        warmup: int = 0,
        warmup_lr: float = 0.0,
        min_lr: float = 0.0,
        warmup_prefix: bool = False,
        **kwargs: Any,
    ):
        self.T_max = T_max
        self.warmup = warmup
        self.warmup_lr = warmup_lr
        self.min_lr = min_lr
        self.warmup_prefix = warmup_prefix
        super().__init__(optimizer, "lr", **kwargs)

    @classmethod
    def build_iter_from_epoch(
        cls,
        *args: Any,
        T_max: int,
        epoch_length: int,
        warmup: int = 0,
        begin: int = 0,
        end: int = INF,
        by_epoch: bool = True,
        **kwargs: Any,
    ) -> "WarmupCosineLR":
        """The same schedule over iterations, from lengths in epochs."""
        return cls(
            *args,
            T_max=round(T_max * epoch_length),
            warmup=round(warmup * epoch_length),
            begin=begin * epoch_length,
            end=end if end == INF else end * epoch_length,
            by_epoch=False,
            **kwargs,
        )

    def rate(self, step: int, base: float) -> float:
        """Rate at a step for a base rate."""
        if step < self.warmup:
            return self.warmup_lr + (base - self.warmup_lr) * step / self.warmup
        step -= self.warmup if self.warmup_prefix else 0
        progress = min(step / self.T_max, 1.0)
        return self.min_lr + 0.5 * (base - self.min_lr) * (1 + math.cos(math.pi * progress))

    def _get_value(self) -> list[float]:
        highest = max(self.base_values)
        rate = self.rate(self.last_step, highest)
        return [rate * base / highest for base in self.base_values]


@PARAM_SCHEDULERS.register_module()
class YOLOXWarmCosineLR(_ParamScheduler):
    """YOLOX's schedule: quadratic warm-up, half a cosine, then the lowest rate.

    Args:
        optimizer: Optimiser or its wrapper.
        T_max: Length of the whole, in epochs (or steps, if ``by_epoch=False``).
        warmup: Length of the warm-up in the same unit.
        warmup_ratio: Rate at step 0, as a part of the base rate.
        constant: Length of the last part, at the lowest rate.
        min_ratio: Lowest rate, as a part of the base rate.
        **kwargs: Of all schedulers of mmengine.
    """

    def __init__(
        self,
        optimizer: Optimizer | BaseOptimWrapper,
        T_max: int,
        warmup: float = 3,
        warmup_ratio: float = 0.1,
        constant: float = 15,
        min_ratio: float = 0.01,
        **kwargs: Any,
    ):
        self.T_max = T_max
        self.warmup = warmup
        self.warmup_ratio = warmup_ratio
        self.constant = constant
        self.min_ratio = min_ratio
        super().__init__(optimizer, "lr", **kwargs)

    def ratio(self, step: int) -> float:
        """Rate at a step, as a part of the base rate."""
        if step < self.warmup:
            return self.warmup_ratio + (1 - self.warmup_ratio) * (step / self.warmup) ** 2
        if step >= self.T_max - self.constant:
            return self.min_ratio
        progress = (step - self.warmup) / (self.T_max - self.warmup - self.constant)
        return self.min_ratio + 0.5 * (1 - self.min_ratio) * (1 + math.cos(math.pi * progress))

    def _get_value(self) -> list[float]:
        return [self.ratio(self.last_step) * base for base in self.base_values]
