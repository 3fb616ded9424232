"""Exports: parity with eager on sizes that were not traced, and what is refused."""

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import nn

from visattn.tools import export
from visattn.zoo.export import ExportError, export_onnx, export_torch, relative_difference, trace


class Tiny(nn.Module):
    """A convolution, and attention over tokens picked by a remainder of the size."""

    pretrained_cfg = {"input_size": (3, 80, 80)}

    def __init__(self, num_classes: int = 4):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4, padding=2)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        count = x.shape[1]
        x = x[:, torch.arange(2 * count) % count]
        x = x[:, None]
        x = F.scaled_dot_product_attention(x, x, x)
        return self.head(x.mean((1, 2)))


class FixedSize(Tiny):
    def forward(self, x):
        return self.head(self.stem(x).reshape(-1, 8, 21 * 21).mean(2))


@register_model
def export_tiny(pretrained=False, **kwargs):
    return Tiny(kwargs.get("num_classes", 4))


@register_model
def export_fixed(pretrained=False, **kwargs):
    return FixedSize()


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    model = Tiny().eval()
    return model, trace(model, (2, 3, 80, 112))


def test_both_formats_agree_with_eager_at_other_sizes(tmp_path, capsys):
    out = tmp_path / "new" / "tiny"
    assert export.main(["export_tiny", "--format", "both", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("relative difference") == 2 and "3 x 3 x 105 x 83" in printed
    assert sorted(path.name for path in out.parent.iterdir()) == ["tiny.onnx", "tiny.pt2"]
    onnx.checker.check_model(str(out.with_suffix(".onnx")))
    session = onnxruntime.InferenceSession(out.with_suffix(".onnx"))
    shape = session.get_inputs()[0].shape
    assert shape[1] == 3 and all(isinstance(shape[i], str) for i in (0, 2, 3))


@pytest.mark.parametrize("writer", [export_torch, export_onnx])
def test_a_difference_is_noticed_and_the_last_good_file_kept(traced, tmp_path, writer):
    model, program = traced
    path = tmp_path / {export_torch: "x.pt2", export_onnx: "x.onnx"}[writer]
    path.write_bytes(b"last good")
    torch.manual_seed(1)
    other = Tiny().eval()
    with pytest.raises(ExportError, match="differs from the model by .* was not kept"):
        writer(program, path, other, (3, 3, 91, 77), 1e-4)
    assert path.read_bytes() == b"last good" and list(tmp_path.iterdir()) == [path]
    assert writer(program, path, model, (3, 3, 91, 77), 1e-4) < 1e-5
    assert path.read_bytes() != b"last good"


def test_relative_difference():
    expected = torch.tensor([1.0, -4.0])
    assert relative_difference(torch.tensor([1.0, -3.0]), expected) == 0.25
    assert relative_difference(torch.tensor([1.0, float("nan")]), expected) == float("inf")
    assert relative_difference(torch.zeros(3), expected) == float("inf")


def test_a_model_of_one_size_needs_static(tmp_path, capsys):
    out = tmp_path / "fixed.pt2"
    assert export.main(["export_fixed", "--out", str(out)]) == 2
    assert "--static" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert export.main(["export_fixed", "--out", str(out), "--static"]) == 0
    module = torch.export.load(out).module()
    assert module(torch.randn(2, 3, 80, 80)).shape == (2, 4)


def test_checkpoint_is_exported(tmp_path):
    model = Tiny().eval()
    weights, out = tmp_path / "weights.pth", tmp_path / "tiny.pt2"
    torch.save(model.state_dict(), weights)
    arguments = ["export_tiny", "--checkpoint", str(weights), "--out", str(out)]
    assert export.main(arguments) == 0
    x = torch.randn(1, 3, 97, 65)
    actual = torch.export.load(out).module()(x)
    torch.testing.assert_close(actual, model(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export_tinny"], "did you mean export_tiny"),
        (["export_tiny", "--checkpoint", "missing.pth"], "no checkpoint at missing.pth"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, capsys):
    assert export.main([*arguments, "--out", str(tmp_path / "x.onnx")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_biformer_exports_to_onnx_at_any_size(tmp_path):
    import timm

    model = timm.create_model("biformer_tiny", depths=(0, 1, 0, 1), num_classes=5).eval()
    program = trace(model, (2, 3, 224, 256), min_size=33)
    path = tmp_path / "biformer.onnx"
    assert export_onnx(program, path, model, (3, 3, 249, 227), 1e-4) < 1e-4
    session = onnxruntime.InferenceSession(path)
    for shape in [(1, 3, 64, 96), (2, 3, 33, 100)]:
        x = torch.randn(shape)
        (actual,) = session.run(None, {"images": x.numpy()})
        with torch.no_grad():
            assert relative_difference(torch.from_numpy(actual), model(x)) < 1e-4
