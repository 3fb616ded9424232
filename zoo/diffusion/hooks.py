"""What happens beside the training of diffusion models: gates in the log, pipelines on disk."""

from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..training.ema import averaged

__all__ = ["GatesHook", "SavePipelineHook"]


class GatesHook(Hook):
    """Logs tanh(alpha) of ROICtrl's gates: their mean size by kind, and each to the visualiser.

    Gates that stay near 0 are the usual reason for boxes without effect. The model brings it along.

    Args:
        interval: Iterations between records.
    """

    def __init__(self, interval: int = 50):
        self.interval = interval

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Logs the gates."""
        if not self.every_n_train_iters(runner, self.interval):
            return
        from ...heads.diffusion.roictrl import gates

        values = gates(runner.bare_model.unet)
        kinds: dict[str, list[float]] = {}
        for name, value in values.items():
            kind = name.rpartition(".")[2].removeprefix("alpha_")
            kinds.setdefault(kind, []).append(abs(value))
        for kind, sizes in kinds.items():
            runner.message_hub.update_scalar(f"train/gate_{kind}", sum(sizes) / len(sizes))
        scalars = {f"gates/{name}": value for name, value in values.items()}
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)


@HOOKS.register_module()
class SavePipelineHook(Hook):
    """Writes the pipeline, or ROICtrl alone where that was trained, after training.

    They go to ``pipeline/``, a folder for ``from_pretrained`` of diffusers, or to
    ``roictrl.safetensors`` of the working folder; averaged, where there is an average.
    """

    priority = "LOWEST"

    @master_only
    def after_train(self, runner: Any) -> None:
        """Writes it."""
        model, folder = runner.bare_model, Path(runner.work_dir)
        with averaged(runner):
            if model.has_roictrl:
                from ...heads.diffusion.roictrl import save_roictrl

                path = folder / "roictrl.safetensors"
                save_roictrl(model.unet, path)
            else:
                path = folder / "pipeline"
                model.pipeline().save_pretrained(path)
        runner.logger.info(f"Wrote {path}")
