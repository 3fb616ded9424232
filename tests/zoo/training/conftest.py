"""Runs that break off."""

from collections.abc import Callable, Sequence

import pytest
from mmengine.hooks import Hook


class Interruption(Exception):
    """What breaks off a training."""


class InterruptionHook(Hook):
    """Breaks off before an iteration."""

    def __init__(self, iteration: int):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            raise Interruption


@pytest.fixture
def train(make_runner) -> Callable:
    """Trains the tiny configuration, with a checkpoint at every iteration; gives the runner.

    The function takes the name of the working folder, an iteration to break off before, further
    hooks, whether to resume, and changes of the configuration by dotted name.
    """

    def run(
        name: str,
        overrides: dict | None = None,
        stop_before: int | None = None,
        hooks: Sequence[Hook] = (),
        resume: bool = False,
    ):
        every_iteration = {
            "default_hooks.checkpoint.by_epoch": False,
            "default_hooks.checkpoint.max_keep_ckpts": -1,
        }
        runner = make_runner(name, resume, overrides={**every_iteration, **(overrides or {})})
        for hook in hooks:
            runner.register_hook(hook)
        if stop_before is None:
            runner.train()
        else:
            runner.register_hook(InterruptionHook(stop_before))
            with pytest.raises(Interruption):
                runner.train()
        return runner

    return run
