"""Training what is put into a frozen backbone: its checkpoints, epochs and final figures."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from torch import nn

from ...heads.prompts import apply, set_epoch
from ..checkpoint import CheckpointError, StateDict, read_state_dict
from ..errors import ConfigError

TEST_RESULTS = "test_results.json"
"""Where ``FinalTestHook`` writes its figures, in the working folder."""

DIGEST = "frozen_digest"
"""Name of the entry that tells on which frozen weights others were trained."""


def put_prompts(model: nn.Module, prompts: Mapping[str, Any]) -> None:
    """Puts what a configuration says into a timm model.

    Args:
        model: timm model, changed in place.
        prompts: ``type``, a name of ``visattn.heads.prompts.list_prompts()``, and its keywords.

    Raises:
        ConfigError: If that is impossible.
    """
    kwargs = dict(prompts)
    try:
        apply(model, kwargs.pop("type", None), **kwargs)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.prompts: {error}") from error


def trained_names(model: nn.Module) -> set[str]:
    """Names of the weights that are trained; those that modules share under all their names."""
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if parameter.requires_grad}


def frozen_digest(model: nn.Module) -> torch.Tensor:
    """A digest (32 bytes) of all that a model's state has beside what is trained."""
    trained, digest = trained_names(model), hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name not in trained:
            content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(name.encode())
            digest.update(content.numpy())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def reduce_state_dict(model: nn.Module, state_dict: StateDict) -> StateDict:
    """What is trained of a model's state, and a digest of what is not."""
    trained = trained_names(model)
    kept = {name: value for name, value in state_dict.items() if name in trained}
    return {**kept, DIGEST: frozen_digest(model)}


def complete_state_dict(model: nn.Module, state_dict: StateDict) -> StateDict:
    """The whole state of a model, of which what is frozen is the model's own.

    Args:
        model: Model with the frozen weights.
        state_dict: From ``reduce_state_dict``; whole ones are returned as they are.

    Raises:
        CheckpointError: If it was trained on other frozen weights.
    """
    state_dict = dict(state_dict)
    digest = state_dict.pop(DIGEST, None)
    if digest is None:
        return state_dict
    if not torch.equal(digest, frozen_digest(model)):
        raise CheckpointError(
            "the checkpoint holds what was trained into another frozen backbone: set "
            "model.checkpoint (or model.backbone.pretrained) to the weights it was trained on"
        )
    trained = trained_names(model)
    own = {name: value for name, value in model.state_dict().items() if name not in trained}
    return {**own, **state_dict}


class TrainedOnlyHook(Hook):
    """Keeps checkpoints to what is trained.

    Models with frozen parts bring it along.
    """

    priority = "LOWEST"

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Takes what is frozen out of a checkpoint."""
        model = runner.bare_model
        checkpoint["state_dict"] = reduce_state_dict(model, checkpoint["state_dict"])
        averaged = checkpoint.get("ema_state_dict")
        if averaged is not None:
            kept = {f"module.{name}" for name in trained_names(model)} | {"steps"}
            checkpoint["ema_state_dict"] = {k: v for k, v in averaged.items() if k in kept}


class PromptHook(TrainedOnlyHook):
    """Tells pools the epoch, and keeps checkpoints to what is trained.

    The classifier brings it along.
    """

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Tells pools the epoch."""
        set_epoch(runner.bare_model.backbone, runner.epoch)


def complete_checkpoint(model: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Puts what is frozen back into a checkpoint of a run, in place.

    Raises:
        CheckpointError: If it was trained on other frozen weights.
    """
    checkpoint["state_dict"] = complete_state_dict(model, checkpoint["state_dict"])
    averaged = checkpoint.get("ema_state_dict")
    if averaged is not None:
        own = {f"module.{name}": value for name, value in model.state_dict().items()}
        checkpoint["ema_state_dict"] = {**own, **averaged}


@HOOKS.register_module()
class FinalTestHook(Hook):
    """Tests the last weights, and those that were best on the validation set, after training.

    The figures go to the log and to ``test_results.json`` of the working folder. The test set has
    no part in the choice.
    """

    priority = "LOWEST"

    def before_train(self, runner: Any) -> None:
        """Checks that there is something to test on, and one set of weights to test.

        Raises:
            ConfigError: If there is not.
        """
        if runner.cfg.get("test_dataloader") is None:
            raise ConfigError("FinalTestHook needs a test_dataloader, test_cfg and test_evaluator")
        if any(isinstance(hook, EMAHook) for hook in runner.hooks):
            raise ConfigError(
                "FinalTestHook tests the weights of checkpoints, not their average: remove it, and "
                "test with tools/test.py"
            )

    def after_train(self, runner: Any) -> None:
        """Tests."""
        results = {"last": self._test(runner)}
        best = runner.message_hub.runtime_info.get("best_ckpt")
        if best is not None and Path(best).is_file():
            model = runner.bare_model
            last = {name: value.clone() for name, value in model.state_dict().items()}
            weights = read_state_dict(best)
            complete = getattr(model, "convert_state_dict", lambda _, state: state)
            model.load_state_dict(complete(model, weights))
            results["best_on_val"] = self._test(runner)
            model.load_state_dict(last)
        for name, metrics in results.items():
            figures = ", ".join(f"{key} {value:.2f}" for key, value in metrics.items())
            runner.logger.info(f"On the test set, {name.replace('_', ' ')}: {figures}")
        if is_main_process():
            path = Path(runner.work_dir) / TEST_RESULTS
            path.write_text(json.dumps(results, indent=1) + "\n")

    def _test(self, runner: Any) -> dict[str, float]:
        return {key: float(value) for key, value in runner.test_loop.run().items()}
