"""The command line that predicts."""

import json

import numpy as np
import PIL.Image

from visattn.tools import predict as tool


def test_predicts_on_folders_and_names_what_failed(dense_config, tmp_path, capsys):
    config, checkpoint = dense_config("detection")
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        pixels = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "zero.png").write_bytes(b"nothing")
    options = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
    assert tool.main([str(folder), "--model", str(config), *options]) == 2
    captured = capsys.readouterr()
    assert "1 of 3 images could not be predicted on" in captured.err
    assert str(folder / "zero.png") in captured.err
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert ["error" in entry for entry in entries] == [False, False, True]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "predictions.json", "one.jpg", "two.jpg",
    }  # fmt: skip


def test_a_folder_without_images_is_named(tmp_path, capsys):
    argv = [str(tmp_path), "--model", "test_vit", "--out", str(tmp_path / "out")]
    assert tool.main(argv) == 2
    assert f"no images in {tmp_path}" in capsys.readouterr().err
