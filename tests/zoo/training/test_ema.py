"""Which weights a checkpoint holds, and which are tested."""

from pathlib import Path

import pytest
import torch

SAVED = ["ema", "raw"]


@pytest.fixture(params=SAVED)
def run(request, make_runner):
    """A finished run that saved and evaluated averaged or raw weights, and both of these."""
    hook = {"type": "ModelEmaHook", "decay": 0.9, "evaluate": request.param}
    runner = make_runner("run", custom_hooks=[hook])
    runner.train()
    (ema_hook,) = (h for h in runner.hooks if type(h).__name__ == "ModelEmaHook")
    return {
        "checkpoint": str(Path(runner.work_dir) / "epoch_2.pth"),
        "raw": weight(runner.bare_model).clone(),
        "ema": weight(ema_hook.ema_model.module).clone(),
    }


def weight(model) -> torch.Tensor:
    return model.backbone.head.weight.detach()


@pytest.mark.parametrize("evaluate", SAVED)
def test_either_weights_can_be_tested(run, make_runner, evaluate):
    hook = {"type": "ModelEmaHook", "evaluate": evaluate}
    runner = make_runner("test", mode="test", custom_hooks=[hook], load_from=run["checkpoint"])
    used = []
    head = runner.bare_model.backbone.head
    head.register_forward_hook(
        lambda module, args, out: used.append(module.weight.detach().clone())
    )
    runner.test()
    assert not torch.equal(run["raw"], run["ema"])
    assert len(used) == 3 and all(torch.equal(w, run[evaluate]) for w in used)


def test_foreign_weights_are_tested_as_they_are(make_runner, tmp_path):
    source = make_runner("source").bare_model.backbone
    torch.save(source.state_dict(), tmp_path / "foreign.pth")
    runner = make_runner(
        "test",
        mode="test",
        custom_hooks=[{"type": "ModelEmaHook"}],
        randomness={"seed": 1},
        load_from=str(tmp_path / "foreign.pth"),
    )
    used = []
    head = runner.bare_model.backbone.head
    head.register_forward_hook(
        lambda module, args, out: used.append(module.weight.detach().clone())
    )
    runner.test()
    assert all(torch.equal(w, source.head.weight) for w in used)
