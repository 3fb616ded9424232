"""Exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS

from ..errors import ConfigError


@HOOKS.register_module()
class ModelEmaHook(EMAHook):
    """Averages weights and buffers after every optimiser step, as timm's ``ModelEma`` does.

    ``state_dict`` of a checkpoint holds the weights that are evaluated; ``ema_state_dict`` the
    others.

    Args:
        decay: Weight of the old average.
        evaluate: Which weights validation and test use: ``"ema"`` or ``"raw"``.
        update_buffers: Whether buffers, such as statistics of batch norm, are averaged or copied.
        begin_iter: Iteration of the first averaging; before it the average is a copy.
    """

    def __init__(
        self,
        decay: float = 0.9999,
        evaluate: str = "ema",
        update_buffers: bool = True,
        begin_iter: int = 0,
    ):
        if evaluate not in ("ema", "raw"):
            raise ConfigError(f"evaluate must be 'ema' or 'raw'; got {evaluate!r}")
        self.evaluate = evaluate
        super().__init__(
            "ExponentialMovingAverage",
            strict_load=True,
            begin_iter=begin_iter,
            momentum=1 - decay,
            update_buffers=update_buffers,
        )

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Averages if the optimiser has just stepped, which it does not while accumulating."""
        if runner.optim_wrapper.should_update():
            super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Adds the weights that are not evaluated."""
        checkpoint["ema_state_dict"] = self.ema_model.state_dict()
        checkpoint["meta"]["state_dict_is"] = self.evaluate
        if self.evaluate == "ema":
            self._swap_ema_state_dict(checkpoint)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Puts raw and averaged weights back in their places.

        To resume, ``state_dict`` has to be the raw weights; otherwise it is what will be evaluated.
        """
        is_saved = checkpoint.get("meta", {}).get("state_dict_is")
        wanted = "raw" if runner._resume else self.evaluate
        if is_saved is not None and is_saved != wanted:
            self._swap_ema_state_dict(checkpoint)
        if is_saved is not None and runner._resume:
            self.ema_model.load_state_dict(checkpoint["ema_state_dict"])

    def _swap_ema_parameters(self) -> None:
        # Before its first step the average is of nothing, and the model has what is to be tested.
        if self.evaluate == "ema" and self.ema_model.steps > 0:
            super()._swap_ema_parameters()


@contextmanager
def averaged(runner: Any) -> Iterator[None]:
    """Has a runner's model hold, for a block of code, the weights that are evaluated."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, ModelEmaHook)]
    for hook in hooks:
        hook._swap_ema_parameters()
    try:
        yield
    finally:
        for hook in hooks:
            hook._swap_ema_parameters()
