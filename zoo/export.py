"""Exporting models to torch.export and ONNX, each checked against eager before it is kept."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from .errors import UserError
from .files import replacing

Shape = tuple[int, int, int, int]

# A map of one token a side, or none, would need a trace of its own. At stride 32 images of 64
# pixels have two, however a model rounds. Those that round up, as most do, have from 33 pixels on;
# with CSWin's stem it is 35, and PVT, which rounds down, needs the 64.
MIN_SIZE = 64


class ExportError(UserError):
    """A model that does not export as asked, or whose export computes something else."""


def trace(
    model: nn.Module, shape: Shape, dynamic: bool = True, min_size: int = MIN_SIZE
) -> ExportedProgram:
    """Traces a model's inference by ``torch.export``.

    Args:
        model: Model; put into eval mode.
        shape: Images to trace with, (B, C, H, W).
        dynamic: Whether batch, height and width may differ from ``shape``.
        min_size: Least height and width in pixels of a dynamic export.

    Raises:
        ExportError: If the model's operations depend on the size of its input.
    """
    dims = None
    if dynamic:
        dims = {0: Dim("batch"), 2: Dim("height", min=min_size), 3: Dim("width", min=min_size)}
    try:
        with torch.no_grad():
            return torch.export.export(
                model.eval(), (torch.randn(shape),), dynamic_shapes=dims and (dims,)
            )
    except (torch._dynamo.exc.UserError, RuntimeError, AssertionError) as error:
        cause = str(error).strip() or type(error).__name__
        suggestion = cause.partition("Suggested fixes:")[2].partition("\n\n")[0]
        detail = suggestion or cause.splitlines()[0]
        raise ExportError(
            f"{type(model).__name__} does not export with {'any' if dynamic else 'this'} size "
            f"({detail.strip()}); pass --static, or another --min-size"
        ) from error


def export_torch(
    program: ExportedProgram, path: str | Path, model: nn.Module, shape: Shape, tolerance: float
) -> float:
    """Writes a program for ``torch.export.load``, if it reproduces the model.

    Args:
        program: Traced model.
        path: ``.pt2`` file; replaced only if all goes well.
        model: Model that it was traced from.
        shape: Images (B, C, H, W) to compare on, of a size that was not traced.
        tolerance: Greatest relative difference.

    Returns:
        The relative difference between the reloaded file and the model.

    Raises:
        ExportError: If they differ by more than ``tolerance``.
    """
    with replacing(path) as temporary:
        torch.export.save(program, temporary)
        module = torch.export.load(temporary).module()
        return _compare(module, model, shape, tolerance)


def export_onnx(
    program: ExportedProgram,
    path: str | Path,
    model: nn.Module,
    shape: Shape,
    tolerance: float,
    opset: int | None = None,
) -> float:
    """Writes an ONNX model, if ONNX Runtime reproduces the model with it.

    Arguments, result and errors are as in ``export_torch``, and ``opset`` is the version of ONNX's
    operators, by default the one PyTorch chooses.
    """
    try:
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise ExportError(
            f'ONNX needs {error.name}: pip install "visattn[export]", or pass --format torch-export'
        ) from error
    ops = getattr(onnxscript, f"opset{opset or 18}")

    def remainder(self, other):
        """Of integers, also by a size that is only known when the model runs."""
        return ops.Mod(self, ops.CastLike(other, self))

    table = {torch.ops.aten.remainder.Scalar: remainder} if _only_integers(program) else {}
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            opset_version=opset,
            custom_translation_table=table,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(
            f"{type(model).__name__} has no translation to ONNX ({_root_cause(error)}); "
            "try another --opset, or --format torch-export"
        ) from error
    with replacing(path) as temporary:
        converted.save(temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])

        def run(images: torch.Tensor) -> torch.Tensor:
            (logits,) = session.run(None, {"images": images.numpy()})
            return torch.from_numpy(logits)

        return _compare(run, model, shape, tolerance)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _only_integers(program: ExportedProgram) -> bool:
    """Whether the program takes remainders of nothing but integers."""
    return not any(
        node.meta["val"].is_floating_point()
        for node in program.graph.nodes
        if node.target is torch.ops.aten.remainder.Scalar
    )


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Greatest absolute difference over the greatest absolute expected value.

    Infinite if the shapes differ or a value is not finite.
    """
    if actual.shape != expected.shape or not bool(actual.isfinite().all()):
        return float("inf")
    return float((actual - expected).abs().max() / expected.abs().max())


def _compare(
    exported: Callable[[torch.Tensor], torch.Tensor],
    model: nn.Module,
    shape: Shape,
    tolerance: float,
) -> float:
    images = torch.randn(shape)
    size = " x ".join(map(str, shape))
    with torch.no_grad():
        expected = model.eval()(images)
        try:
            actual = exported(images)
        except Exception as error:
            raise ExportError(
                f"the export does not run on {size}: {str(error).splitlines()[0]}"
            ) from error
    difference = relative_difference(actual, expected)
    if not difference <= tolerance:
        raise ExportError(
            f"the export differs from the model by {difference:.1e} on {size}, more than "
            f"{tolerance:.1e}; it was not kept"
        )
    return difference
