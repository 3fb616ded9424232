"""mmengine's runner with strict checkpoints, CPU-only distributed training and data checks."""

import os
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, find_latest_checkpoint
from mmengine.runner import Runner as MMEngineRunner
from torch import nn

from ..checkpoint import CheckpointError, compare, load_checkpoint
from ..data.checks import check_dataset
from ..data.classification import require_folder
from ..errors import ConfigError
from ..openmm.auto import resolve_auto
from ..openmm.convert import convert_state_dict, has_heads, is_dense, load_dense_checkpoint


@RUNNERS.register_module(name="VisattnRunner")
class Runner(MMEngineRunner):
    """mmengine's ``Runner`` for the zoo's recipes.

    What differs: checkpoints load strictly and never run code; data are checked against the model
    before training; the learning rate scales with the batch an optimiser step really sees;
    ``compile`` compiles the backbone; processes without a GPU train together over gloo; SyncBN is
    BN where there is nothing to synchronise.
    """

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Sets up processes; over gloo where there is no GPU."""
        if self.distributed and get_device() == "cpu" and not is_distributed():
            torch.distributed.init_process_group("gloo")
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wraps the model for distributed training; all processes use the first one's buffers.

        Batch norms that synchronise over GPUs become plain ones where they cannot: without a GPU,
        or with one process.
        """
        if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()) and (
            get_device() == "cpu" or not self.distributed
        ):
            self.logger.info("SyncBN needs several GPUs: it runs as BN here")
            model = revert_sync_batchnorm(model)
        if self.distributed:
            model_wrapper_cfg = {
                "type": "MMDistributedDataParallel",
                "broadcast_buffers": True,
                "find_unused_parameters": self.cfg.get("find_unused_parameters", False),
                **(model_wrapper_cfg or {}),
            }
            if get_device() == "cpu":
                model_wrapper_cfg["device_ids"] = None
        return super().wrap_model(model_wrapper_cfg, model)

    @property
    def bare_model(self) -> nn.Module:
        """The model without its wrapper for distributed training."""
        return self.model.module if is_model_wrapper(self.model) else self.model

    def build_train_loop(self, loop: Any) -> Any:
        """Builds the training loop, checks its data against the model, adds the model's hooks."""
        loop = self._checked(super().build_train_loop(loop))
        model = self.bare_model
        if hasattr(model, "check_batches"):
            model.check_batches(loop.dataloader)
        for hook in model.training_hooks() if hasattr(model, "training_hooks") else ():
            self.register_hook(hook)
        report = check_dataset(loop.dataloader.dataset, self.cfg.model)
        for warning in report.warnings if report else ():
            self.logger.warning(warning)
        return loop

    def build_val_loop(self, loop: Any) -> Any:
        """Builds the validation loop and checks its data against the model."""
        return self._checked(super().build_val_loop(loop))

    def build_test_loop(self, loop: Any) -> Any:
        """Builds the test loop and checks its data against the model."""
        return self._checked(super().build_test_loop(loop))

    def _checked(self, loop: Any) -> Any:
        if hasattr(self.bare_model, "check_dataset"):
            self.bare_model.check_dataset(loop.dataloader.dataset)
        return loop

    def scale_lr(
        self, optim_wrapper: OptimWrapper, auto_scale_lr: dict[str, Any] | None = None
    ) -> None:
        """Scales learning rates by the batch of an optimiser step over the declared one.

        That batch is the sum over processes and accumulated iterations.
        """
        if not (auto_scale_lr or {}).get("enable", False):
            return
        if "base_batch_size" not in auto_scale_lr:
            raise ConfigError("auto_scale_lr needs base_batch_size, the batch that lr is meant for")
        base = auto_scale_lr["base_batch_size"]
        per_process = self.train_dataloader.batch_sampler.batch_size
        accumulated = optim_wrapper._accumulative_counts
        batch = per_process * self.world_size * accumulated
        # The wrapper's groups include the settings that the log shows as base_lr.
        for group in optim_wrapper.param_groups:
            group["lr"] *= batch / base
        self.logger.info(
            f"Scaled lr by {batch}/{base}: {per_process} images x {self.world_size} processes x "
            f"{accumulated} accumulated iterations; the highest is now "
            f"{max(group['lr'] for group in optim_wrapper.param_groups):.4g}"
        )

    def load_or_resume(self) -> None:
        """Loads or resumes what the configuration says; resuming without a checkpoint starts."""
        if self._resume and self._load_from is None and not self._has_loaded:
            self._load_from = self._latest_checkpoint()
            if self._load_from is None:
                self.logger.info(f"Nothing to resume in {self.work_dir}: starting from iteration 0")
                self._resume = False
        super().load_or_resume()

    def _latest_checkpoint(self) -> str | None:
        latest = find_latest_checkpoint(self.work_dir)
        if latest and not os.path.isfile(latest):
            # The folder may have been moved since.
            latest = os.path.join(self.work_dir, os.path.basename(latest))
        return latest or None

    def load_checkpoint(
        self, filename: str, map_location: Any = "cpu", strict: bool = True, **kwargs: Any
    ) -> dict[str, Any]:
        """Loads a checkpoint of a run, or the authors', strictly.

        The authors' may be of a classifier, a detector or a segmentor, or, to train the latter two,
        of a backbone alone.

        Raises:
            CheckpointError: If the file cannot be read, does not fit, or is not of a run although
                one is to be resumed; or if heads are to be tested that it does not have.
        """
        from mmengine.runner.checkpoint import _load_checkpoint, _load_checkpoint_to_model

        checkpoint = _load_checkpoint(filename, map_location=map_location)
        is_run = "meta" in checkpoint and "state_dict" in checkpoint
        if not is_run:
            return self._load_foreign(filename, checkpoint)
        if self._resume and "message_hub" not in checkpoint:
            raise CheckpointError(
                f"{filename} holds weights but no state of a run, and cannot be resumed: start "
                f"a new run from it with --cfg-options load_from={filename}"
            )
        if hasattr(self.bare_model, "complete_checkpoint"):
            self.bare_model.complete_checkpoint(checkpoint)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        strict = strict and self.cfg.get("load_strict", True)
        if is_dense(self.bare_model):
            converted = convert_state_dict(self.bare_model, checkpoint["state_dict"])
            checkpoint["state_dict"] = converted
        report = compare(checkpoint["state_dict"], self.bare_model.state_dict())
        if strict and not report.is_whole:
            raise CheckpointError(
                f"{filename} does not fit this model: {report}\n  Is it of another configuration? "
                "load_strict=False takes what fits"
            )
        _load_checkpoint_to_model(self.bare_model, checkpoint, strict)
        self._has_loaded = True
        self.logger.info(f"Loaded {filename}: {report}")
        return checkpoint

    def _load_foreign(self, filename: str, checkpoint: dict[str, Any]) -> dict[str, Any]:
        if self._resume:
            raise CheckpointError(
                f"{filename} is no checkpoint of a run and cannot be resumed: start a new run from "
                f"its weights with --cfg-options load_from={filename}"
            )
        model = self.bare_model
        strict = self.cfg.get("load_strict", True)
        if is_dense(model) and has_heads(model, checkpoint.get("model", checkpoint)):
            report = load_dense_checkpoint(model, filename, strict)
        elif is_dense(model) and not isinstance(self._train_loop, BaseLoop):
            raise CheckpointError(
                f"{filename} holds a backbone alone, and cannot be tested as "
                f"{type(model).__name__}: give a checkpoint that has its heads"
            )
        else:
            # The authors' files hold a backbone alone; the classifier has nothing else.
            report = load_checkpoint(getattr(model, "backbone", model), filename, strict)
        self._has_loaded = True
        self.logger.info(f"Loaded {filename}: {report}")
        return checkpoint

    def _maybe_compile(self, target: str) -> None:
        """Compiles the backbone, in place, where ``compile`` is on; the rest stays eager."""
        options = self.cfg.get("compile", False)
        if options:
            self.bare_model.backbone.compile(**(options if isinstance(options, dict) else {}))
            self.logger.info("The backbone will be compiled in the first iterations")


def build_runner(cfg: Config, mode: str = "train") -> Runner:
    """Builds the runner of a configuration from ``visattn.zoo.config.load_config``.

    Checks that the data folders exist, and resolves what of the model is ``"auto"``, first.

    Args:
        cfg: Configuration.
        mode: What it will be used for: ``"train"`` or ``"test"``.

    Raises:
        DataError: If a data folder that the mode needs is missing.
    """
    for part in ("train", "val") if mode == "train" else ("test",):
        for root in _values_of("data_root", cfg.get(f"{part}_dataloader")):
            for folder in [root] if isinstance(root, str) else root or ():
                require_folder(folder)
    if mode == "test" and (cfg.model.get("backbone") or {}).get("pretrained"):
        # A checkpoint comes over it, for which nothing need be downloaded.
        cfg.model.backbone.pretrained = False
    return Runner.from_cfg(resolve_auto(cfg))


def _values_of(key: str, node: Any) -> list[Any]:
    """All values under a key, at any depth."""
    if isinstance(node, dict):
        found = [node[key]] if key in node else []
        return found + [value for child in node.values() for value in _values_of(key, child)]
    if isinstance(node, (list, tuple)):
        return [value for child in node for value in _values_of(key, child)]
    return []
