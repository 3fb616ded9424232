"""Training a UNet, or ROICtrl on a frozen one, on mmengine's runner."""

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from mmengine.hooks import Hook

from visattn.heads.diffusion.roictrl import gates, load_roictrl, roictrl_state_dict
from visattn.zoo.checkpoint import CheckpointError
from visattn.zoo.diffusion.cards import DigitsInBoxes
from visattn.zoo.diffusion.hooks import GatesHook
from visattn.zoo.diffusion.model import LatentDiffusion, loss_weights
from visattn.zoo.errors import ConfigError


def weights(runner):
    return {name: p.detach().clone() for name, p in runner.bare_model.named_parameters()}


def batch_of(model, count=2):
    """A batch of noise with two boxes an image."""
    torch.manual_seed(1)
    box = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.25, 1.0, 1.0]])
    return {
        "image": torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8),
        "caption": ["a red seven"] * count,
        "boxes": [box] * count,
        "captions": [["a seven", "red"]] * count,
        "path": [f"{i}.png" for i in range(count)],
    }


def test_base_trains_unet_and_text_and_writes_a_pipeline(make_run):
    runner = make_run("base")
    before = weights(runner)
    runner.train()
    moved = {name for name, p in weights(runner).items() if not torch.equal(p, before[name])}
    assert not any(name.startswith("vae.") for name in moved)
    assert {name.split(".")[0] for name in moved} == {"unet", "text_encoder"}
    assert len(moved) > 0.9 * len(before)

    written = StableDiffusionPipeline.from_pretrained(f"{runner.work_dir}/pipeline")
    (ema,) = (hook for hook in runner.hooks if type(hook).__name__ == "ModelEmaHook")
    average = ema.ema_model.module.unet.state_dict()
    for name, value in written.unet.state_dict().items():
        torch.testing.assert_close(value, average[name], rtol=0, atol=0)
    assert any(not torch.equal(p, average[n]) for n, p in runner.model.unet.state_dict().items())


def test_roictrl_alone_is_trained_kept_and_written(make_run, tiny_folder):
    runner = make_run("roictrl")
    before = weights(runner)
    runner.train()
    after = weights(runner)
    own = {f"unet.{name}" for name in roictrl_state_dict(runner.bare_model.unet)}
    moved = {name for name, p in after.items() if not torch.equal(p, before[name])}
    assert moved <= own and len(moved) > 0.9 * len(own)
    kept = torch.load(f"{runner.work_dir}/iter_4.pth", weights_only=True)
    assert kept["state_dict"].keys() == own | {"frozen_digest"}
    assert {name.removeprefix("module.") for name in kept["ema_state_dict"]} == own | {"steps"}

    unet = StableDiffusionPipeline.from_pretrained(tiny_folder).unet
    load_roictrl(unet, f"{runner.work_dir}/roictrl.safetensors")
    for name, value in roictrl_state_dict(unet).items():
        torch.testing.assert_close(value, kept["state_dict"][f"unet.{name}"], rtol=0, atol=0)


class Kill(Hook):
    """Breaks a run off in its second iteration, after its checkpoint."""

    priority = "LOWEST"

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["base", "roictrl"])
def test_resuming_ends_where_an_unbroken_run_does(make_run, kind):
    whole = make_run(kind, "whole")
    whole.train()
    half = make_run(kind, "half")
    half.register_hook(Kill())
    with pytest.raises(KeyboardInterrupt):
        half.train()
    rest = make_run(kind, "half", resume=True)
    rest.train()
    assert rest.iter == 4
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(rest)[name], value, rtol=0, atol=0)


def test_a_checkpoint_of_another_frozen_base_is_refused(make_run, tiny, tmp_path):
    runner = make_run("roictrl")
    runner.train()
    torch.manual_seed(7)
    LatentDiffusion(**tiny).pipeline().save_pretrained(tmp_path / "other")
    changes = {"model.pretrained": str(tmp_path / "other")}
    other = make_run("roictrl", "other", load_from=f"{runner.work_dir}/iter_4.pth", **changes)
    with pytest.raises(CheckpointError, match="another frozen"):
        other.train()


def test_gates_and_both_losses_are_logged(make_run, monkeypatch):
    runner = make_run("roictrl")
    monkeypatch.setattr(GatesHook.__init__, "__defaults__", (2,))
    seen = []
    runner.visualizer.add_scalars = lambda values, **_: seen.append(values)
    runner.train()
    scalars = runner.message_hub.log_scalars
    for name in ("loss_diffusion", "loss_regularisation"):
        assert len(scalars[f"train/{name}"].data[0]) == 4
    for kind in ("roi_self_attn", "coord_self_attn", "dense"):
        assert scalars[f"train/gate_{kind}"].current() > 0
    recorded = [values for values in seen if any(key.startswith("gates/") for key in values)]
    expected = {f"gates/{name}" for name in gates(runner.bare_model.unet)}
    assert recorded and recorded[-1].keys() == expected


def test_gates_have_a_learning_rate_of_their_own(make_run):
    runner = make_run("roictrl")
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    rates = {}
    names = {id(p): name for name, p in runner.bare_model.named_parameters()}
    for group in runner.optim_wrapper.optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                rates[names[id(parameter)]] = group["lr"]
    gate = {rate for name, rate in rates.items() if "alpha_" in name}
    other = {rate for name, rate in rates.items() if "alpha_" not in name}
    assert len(gate) == len(other) == 1
    assert gate.pop() == pytest.approx(10 * other.pop())


def test_validation_draws_held_out_cards_with_averaged_weights(make_run, monkeypatch):
    seen = {}

    def record(self, batch, samples):
        model = runner.bare_model.unet.state_dict()
        seen.setdefault("weights", {name: value.clone() for name, value in model.items()})
        seen.setdefault("samples", []).extend(samples)
        self.results += [{"digit": 1.0}] * len(samples)

    monkeypatch.setattr(DigitsInBoxes, "process", record)
    changes = {"train_cfg.val_interval": 4, "val_evaluator.checkpoint": __file__}
    runner = make_run("roictrl", validate=True, **changes)
    runner.train()
    assert runner.message_hub.get_scalar("val/boxes/digit").current() == 100
    assert len(seen["samples"]) == len(runner.val_dataloader.dataset) == 6
    for sample in seen["samples"]:
        assert "val2017" in sample["path"] and sample["drawn"].shape == (3, 16, 16)
        assert len(sample["boxes"]) == len(sample["captions"]) > 0 and all(sample["captions"])
    (ema,) = (hook for hook in runner.hooks if type(hook).__name__ == "ModelEmaHook")
    for name, value in ema.ema_model.module.unet.state_dict().items():
        torch.testing.assert_close(seen["weights"][name], value, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_what_the_scheduler_predicts(tiny, kind):
    model = LatentDiffusion(**{**tiny, "scheduler": {**tiny["scheduler"], "prediction_type": kind}})
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 4, 48, 8, 8).unbind()
    step = torch.tensor([3, 300, 600, 990])
    target = model.target(clean, noise, step)
    noisy = model.noise_scheduler.add_noise(clean, noise, step)
    for i, t in enumerate(step):
        # A scheduler that steps with the right prediction recovers the image.
        out = model.noise_scheduler.step(target[i], t, noisy[i]).pred_original_sample
        torch.testing.assert_close(out, clean[i], atol=2e-2, rtol=0)


def test_min_snr_weighs_the_error_of_the_image_alike_for_all_targets():
    snr = torch.tensor([1e-3, 0.5, 5.0, 400.0])
    of_image = loss_weights(snr, "sample", 5.0)
    assert of_image.tolist() == pytest.approx([1e-3, 0.5, 5.0, 5.0])
    # An error of the image is one of the noise times snr, and one of v times snr + 1.
    torch.testing.assert_close(loss_weights(snr, "epsilon", 5.0) * snr, of_image)
    torch.testing.assert_close(loss_weights(snr, "v_prediction", 5.0) * (snr + 1), of_image)


def test_gradient_checkpointing_changes_no_gradient(tiny_folder):
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = LatentDiffusion(
            pretrained=str(tiny_folder),
            roictrl={"roi_sizes": {8: 6, 16: 4}, "dropout": 0.0, "shuffle": "never"},
            grad_checkpointing=checkpointing,
        ).train()
        torch.manual_seed(2)
        losses = model(**batch_of(model))
        sum(losses.values()).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.heavy)])
def test_trains_in_mixed_precision(make_run, dtype):
    changes = {"optim_wrapper.type": "AutocastOptimWrapper", "optim_wrapper.dtype": dtype}
    runner = make_run("roictrl", **changes)
    runner.train()
    losses = runner.message_hub.get_scalar("train/loss").data[0]
    assert len(losses) == 4 and all(map(torch.isfinite, torch.tensor(losses)))


def test_a_picture_depends_on_its_name_and_not_on_its_batch(tiny_folder):
    model = LatentDiffusion(
        pretrained=str(tiny_folder),
        roictrl={"roi_sizes": {8: 6, 16: 4}},
        sampling={"num_inference_steps": 2},
    ).eval()
    batch = batch_of(model, 3)
    together = model(**batch, mode="predict")
    alone = model(**{key: value[1:2] for key, value in batch.items()}, mode="predict")
    assert together[1]["drawn"].shape == (3, 32, 32)
    difference = together[1]["drawn"].int() - alone[0]["drawn"].int()
    assert difference.abs().max() <= 1
    assert not torch.equal(together[0]["drawn"], together[1]["drawn"])


def test_boxes_change_pictures_of_roictrl_alone(tiny_folder, tiny):
    settings = {"pretrained": str(tiny_folder), "sampling": {"num_inference_steps": 2}}
    plain = LatentDiffusion(**settings).eval()
    model = LatentDiffusion(**settings, roictrl={"roi_sizes": {8: 6, 16: 4}}).eval()
    batch = batch_of(plain, 1)
    moved = copy.deepcopy(batch)
    moved["boxes"] = [box.flip(0) for box in batch["boxes"]]

    def drawn(of, what):
        return of(**what, mode="predict")[0]["drawn"]

    assert torch.equal(drawn(plain, batch), drawn(plain, moved))
    assert not torch.equal(drawn(model, batch), drawn(model, moved))
    empty = {**batch, "boxes": [torch.zeros(0, 4)], "captions": [[]]}
    assert torch.equal(drawn(model, empty), drawn(plain, batch))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": None}, "or all of unet, vae, text and scheduler"),
        ({"pretrained": "here/there/none"}, "no folder here/there/none"),
        ({"text": {"words": ["a"]}}, "max_length"),
        ({"roictrl": {"shuffle": "never mind"}}, "model.roictrl"),
        ({"vae": {"factor": 3}}, "power of two"),
    ],
)
def test_wrong_models_are_named(tiny, changes, message):
    if "pretrained" in changes:
        tiny = {}
    with pytest.raises(ConfigError, match=message):
        LatentDiffusion(**{**tiny, **changes})
