"""The command that draws layouts, on a tiny Stable Diffusion."""

import json

import numpy as np
import PIL.Image
import pytest

from visattn.tools import generate

LAYOUTS = [
    {
        "name": "desk",
        "prompt": "a desk",
        "seed": 5,
        "instances": [
            {"bbox": [0.0, 0.0, 0.5, 1.0], "caption": "a red cup"},
            {"bbox": [0.5, 0.0, 1.0, 0.5], "caption": "a pen"},
        ],
    },
    {"prompt": "a room", "negative_prompt": "dark"},
]


@pytest.fixture
def command(tiny_diffusion, tmp_path):
    """Runs the command on these layouts; gives its code and the folder it writes to."""

    def run(*arguments, layouts=LAYOUTS, out="out", model=None):
        (tmp_path / "layouts.json").write_text(json.dumps(layouts))
        model = model or tiny_diffusion("gligen" in arguments)
        given = [tmp_path / "layouts.json", "--model", model, "--out", tmp_path / out]
        options = ["--steps", "2", "--device", "cpu"]
        return generate.main([*map(str, given), *options, *arguments]), tmp_path / out

    return run


def pixels(path):
    return np.asarray(PIL.Image.open(path)).astype(int)


@pytest.fixture
def adapter(tmp_path, tiny_diffusion):
    """A file of ROICtrl with the weights that it starts with."""
    from diffusers import UNet2DConditionModel

    from visattn.heads.diffusion.roictrl import apply, save_roictrl

    unet = UNet2DConditionModel.from_pretrained(tiny_diffusion(), subfolder="unet")
    save_roictrl(apply(unet), tmp_path / "roictrl.safetensors")
    return tmp_path / "roictrl.safetensors"


@pytest.mark.parametrize("method", ["plain", "masked", "gligen", "roictrl"])
def test_draws_all_layouts_and_says_how(command, adapter, method):
    weights = ["--roictrl", str(adapter)] if method == "roictrl" else []
    code, out = command("--method", method, "--batch-size", "2", *weights)
    assert code == 0
    entries = json.loads((out / "results.json").read_text())
    assert [entry["image"] for entry in entries] == ["desk_5.png", "00001_0.png"]
    assert entries[0]["layout"]["instances"][1]["caption"] == "a pen"
    assert entries[0]["how"]["method"] == method and entries[0]["how"]["steps"] == 2
    for entry in entries:
        assert pixels(out / entry["image"]).shape == (64, 64, 3)
        name = entry["image"].replace("png", "jpg")
        assert PIL.Image.open(out / "side_by_side" / name).height > 384


def test_roictrl_is_meant_where_its_weights_are_given(command, adapter, capsys):
    _, out = command("--roictrl", str(adapter), "--agent-sd")
    how = json.loads((out / "results.json").read_text())[0]["how"]
    assert (how["method"], how["agent_sd"]) == ("roictrl", 0.4)
    adapter.write_bytes(b"no weights")
    assert command("--roictrl", str(adapter), out="other")[0] == 2
    assert f"cannot load {adapter}" in capsys.readouterr().err


def test_a_picture_does_not_depend_on_its_batch(command):
    _, together = command("--method", "masked", "--batch-size", "2", out="a", layouts=LAYOUTS)
    _, alone = command("--method", "masked", "--no-pictures", out="b", layouts=LAYOUTS)
    for name in ("desk_5.png", "00001_0.png"):
        assert abs(pixels(together / name) - pixels(alone / name)).max() <= 1
    assert not (alone / "side_by_side").exists()


def test_draws_only_what_is_not_there(command, capsys):
    _, out = command("--seeds", "0", "1")
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    (out / "desk_1.png").unlink()
    capsys.readouterr()
    code, _ = command("--seeds", "0", "1", "2")
    shown = capsys.readouterr().out
    assert code == 0 and shown.count("was there") == 3
    assert {p.name for p in out.glob("*.png")} == {
        f"{name}_{seed}.png" for name in ("desk", "00001") for seed in range(3)
    }
    kept = out / "00001_0.png"
    assert kept.stat().st_mtime_ns == times[kept]
    assert len(json.loads((out / "results.json").read_text())) == 6


def test_sizes_and_agents(command):
    layouts = [{**LAYOUTS[0], "width": 128, "height": 64}, LAYOUTS[1]]
    code, out = command("--size", "96", "64", "--agent-sd", "0.3", layouts=layouts)
    assert code == 0
    assert pixels(out / "desk_5.png").shape == (64, 128, 3)
    assert pixels(out / "00001_0.png").shape == (64, 96, 3)
    _, other = command("--size", "96", "64", layouts=layouts, out="other")
    assert (pixels(out / "desk_5.png") != pixels(other / "desk_5.png")).any()
    assert json.loads((out / "results.json").read_text())[0]["how"]["agent_sd"] == 0.3


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["--method", "roictrl"], {}, "'roictrl' needs the weights of ROICtrl: --roictrl FILE"),
        (["--method", "gligen"], {"model": "nowhere"}, "cannot load a Stable Diffusion from"),
        (["--beta", "0.5"], {}, "method 'plain' has no share of steps"),
        (["--device", "tpu"], {}, "device tpu cannot be used"),
        (["--batch-size", "0"], {}, "batch size must be at least 1"),
        (["--size", "100", "64"], {}, "cannot draw desk: .*divisible by 8"),
        ([], {"layouts": [{"prompt": "x", "instances": [{"caption": "y"}]}]}, "lacks 'bbox'"),
    ],
)
def test_mistakes_end_with_one_line(command, arguments, options, message, capsys):
    code, _ = command(*arguments, **options)
    captured = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and captured.startswith("error: ")
    with pytest.raises(ValueError, match=message):
        raise ValueError(captured)


def test_other_settings_or_layouts_need_another_folder(command, capsys):
    command()
    assert command("--guidance", "3")[0] == 2
    assert "drawn with guidance_scale=7.5, and now it is 3.0" in capsys.readouterr().err
    assert command(layouts=[{**LAYOUTS[0], "prompt": "a table"}])[0] == 2
    assert "is of another layout 'desk'" in capsys.readouterr().err


def test_a_model_of_the_other_kind_is_named(command, tiny_diffusion, capsys):
    assert command("--method", "plain", model=tiny_diffusion(True))[0] == 2
    assert "is GLIGEN's, and method 'plain' needs the other" in capsys.readouterr().err
