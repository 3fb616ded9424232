"""Checkpoints that a kill or a full disk cannot damage and that load without running code."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader

from ..checkpoint import read_checkpoint
from ..errors import CheckpointWriteError

# Nothing in these can run code; checkpoints that mmengine's own hook has written hold them.
MMENGINE_TYPES = [HistoryBuffer, np._core.multiarray._reconstruct, np.ndarray]

_PLAIN = (torch.Tensor, torch.dtype, torch.device, bool, int, float, str, bytes)


@register_backend("atomic")
class AtomicLocalBackend(LocalBackend):
    """Local files that are either there whole or not at all.

    Contents go to a temporary file beside the target, reach the disk, and then take the target's
    name.
    """

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Writes bytes to a file.

        Raises:
            CheckpointWriteError: If the disk is full or the file cannot be written; what was there
                under that name is untouched.
        """
        target = Path(filepath)
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointWriteError(
                f"cannot make the folder {target.parent} ({error.strerror}): set another work_dir"
            ) from error
        try:
            with open(temporary, "wb") as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _sync_folder(target.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CheckpointWriteError(
                f"cannot write {target} ({error.strerror}; {len(obj) / 1e6:,.1f} MB to write"
                f"{_free_space(target.parent)}): free some space or set work_dir to another disk, "
                "then continue with --resume; checkpoints written before are untouched"
            ) from error

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        """Writes text to a file; see ``put``."""
        self.put(obj.encode(encoding), filepath)


def _sync_folder(folder: Path) -> None:
    """Makes a rename last through a power cut, where folders can be opened at all."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _free_space(folder: Path) -> str:
    try:
        return f", {shutil.disk_usage(folder).free / 1e6:,.1f} MB free"
    except OSError:
        return ""


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` with atomic files, of plain types, removed only when replaced.

    Args:
        interval: Epochs, or iterations, between checkpoints; -1 for none but the last.
        by_epoch: Whether ``interval`` counts epochs. Iterations work in epoch-based loops, too.
        max_keep_ckpts: How many checkpoints are kept; -1 for all.
        save_last: Whether the last epoch or iteration is always saved.
        save_best: Metric, or metrics, whose best weights are kept in ``best_*.pth``.
        rule: ``"greater"`` or ``"less"``, for each metric; by default from its name.
        save_begin: First epoch or iteration to count ``interval`` from.
        filename_tmpl: File name with a place for the number; ``epoch_{}.pth`` or ``iter_{}.pth``.
        out_dir: Folder; the working folder by default.
        published_keys: Entries to keep in a copy written after training.
    """

    def __init__(
        self,
        interval: int = 1,
        by_epoch: bool = True,
        max_keep_ckpts: int = -1,
        save_last: bool = True,
        save_best: str | Sequence[str] | None = None,
        rule: str | Sequence[str] | None = None,
        save_begin: int = 0,
        filename_tmpl: str | None = None,
        out_dir: str | None = None,
        published_keys: str | Sequence[str] | None = None,
    ):
        super().__init__(
            interval,
            by_epoch,
            max_keep_ckpts=max_keep_ckpts,
            save_last=save_last,
            save_best=save_best,
            rule=rule,
            save_begin=save_begin,
            filename_tmpl=filename_tmpl,
            out_dir=out_dir,
            published_keys=published_keys,
            backend_args={"backend": "atomic"},
        )

    def before_train(self, runner: Any) -> None:
        """Settles the folder, and what is kept in it after resuming."""
        super().before_train(runner)
        self.file_backend = _LateRemoval()
        if is_main_process():
            for unfinished in Path(self.out_dir).glob(".*.pth.tmp"):
                unfinished.unlink()

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        kept = []
        if self.max_keep_ckpts > 0:
            kept = [*(i for i in self.keep_ckpt_ids if i != step), step]
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)
            # With those to be removed below: if that is interrupted, resuming makes up for it.
            runner.message_hub.update_info("keep_ckpt_ids", kept)
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            os.path.basename(self.last_ckpt),
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
        )
        if is_main_process():
            record = os.path.join(runner.work_dir, "last_checkpoint")
            AtomicLocalBackend().put_text(self.last_ckpt, record)
            for old in kept[: -self.max_keep_ckpts]:
                Path(self._path(old)).unlink(missing_ok=True)

    def _save_best_checkpoint(self, runner: Any, metrics: dict[str, Any]) -> None:
        super()._save_best_checkpoint(runner, metrics)
        best = getattr(self, "best_ckpt_path_dict", None) or {
            "": getattr(self, "best_ckpt_path", None)
        }
        self.file_backend.remove_pending(keep=set(best.values()))

    def _path(self, step: int) -> str:
        return os.path.join(self.out_dir, self.filename_tmpl.format(step))

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Makes everything in the checkpoint tensors and plain Python types."""
        for key in [key for key in checkpoint if not key.endswith("state_dict")]:
            checkpoint[key] = to_plain(checkpoint[key])

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Restores the histories of logged values."""
        scalars = checkpoint.get("message_hub", {}).get("log_scalars", {})
        for name, value in scalars.items():
            if isinstance(value, dict):
                scalars[name] = HistoryBuffer(
                    value["log"].numpy(), value["count"].numpy(), value["max_length"]
                )


class _LateRemoval(LocalBackend):
    """Removes files only when told that what replaces them is written."""

    def __init__(self):
        self._pending: set[str] = set()

    def remove(self, filepath: str | Path) -> None:
        self._pending.add(str(filepath))

    def remove_pending(self, keep: set[str]) -> None:
        for path in self._pending - keep:
            Path(path).unlink(missing_ok=True)
        self._pending.clear()


def to_plain(value: Any) -> Any:
    """The value as tensors and built-in types, which load with ``weights_only=True``."""
    if isinstance(value, HistoryBuffer):
        log, count = value.data
        return {
            "log": torch.from_numpy(np.asarray(log, dtype=np.float64)),
            "count": torch.from_numpy(np.asarray(count, dtype=np.float64)),
            "max_length": value.max_length,
        }
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value) if value.dtype.kind in "biuf" else to_plain(value.tolist())
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(to_plain(item) for item in value)
    if isinstance(value, (list, set, frozenset)):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, _PLAIN):
        return value
    return str(value)


@CheckpointLoader.register_scheme(prefixes="", force=True)
def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Reads a local checkpoint onto the CPU, never running code from it.

    Takes the place of mmengine's loader, which falls back to unpickling anything.
    """
    with torch.serialization.safe_globals(MMENGINE_TYPES):
        return read_checkpoint(filename)
