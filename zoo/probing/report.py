"""Tables, plots and drawings of probes."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..attention.drawing import draw_heat
from ..benchmark.report import print_table
from ..errors import UserError
from ..files import replacing
from .model import Probe
from .summary import Row, spread

__all__ = ["draw_queries", "plot", "print_rows"]


def print_rows(summary: Sequence[Row], title: str) -> None:
    """Prints a summary, the best head first."""
    body = [
        [
            row["head"],
            f"{row['parameters']:,}",
            spread(row, "top1"),
            spread(row, "last_top1"),
            "" if row["step_ms"] is None else f"{row['step_ms']:.2f}",
        ]
        for row in sorted(summary, key=lambda row: -row["top1_mean"])
    ]
    head = ["Head", "Parameters", "Best top-1 %", "Last top-1 %", "Head's step, ms"]
    print_table(title, head, body)


def plot(summary: Sequence[Row], path: Path) -> None:
    """Draws accuracy against trainable parameters, and against the time of a training step."""
    from matplotlib.figure import Figure

    figure = Figure((11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, label in (
        (axes[0], "parameters", "trainable parameters"),
        (axes[1], "step_ms", "training step of the head, ms"),
    ):
        for row in summary:
            if not row[key]:
                continue
            colour = f"C{int(not row['pooling'].startswith('ep'))}"
            axis.errorbar(
                row[key], row["top1_mean"], row["top1_std"], fmt="o", color=colour, capsize=3
            )
            axis.annotate(
                row["head"],
                (row[key], row["top1_mean"]),
                (4, 4),
                textcoords="offset points",
                fontsize=7,
            )
        axis.set(xscale="log", xlabel=label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("top-1 accuracy, %")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


@torch.no_grad()
def draw_queries(
    model: Probe, images: torch.Tensor, folder: Path, most: int = 16, scale: int = 2
) -> list[Path]:
    """Draws what the queries of each head look at: a row an image, a column a query.

    Args:
        model: Trained probe.
        images: Bytes (B, 3, H, W).
        folder: Where ``<head>.png`` go; heads without attention to look at have none.
        most: Queries drawn at most.
        scale: Enlargement of the images.

    Returns:
        The files.
    """
    from PIL import Image

    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    tokens = model.reader(model.data_preprocessor({"inputs": images.to(device)})["inputs"])
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    written = []
    for name in model.specs:
        head = model.head(name)
        if not hasattr(head.pooling, "attention"):
            continue
        weights = head.pooling.attention(model.tokens_for(name, tokens)).float().cpu()
        if head.tokens == "all":
            weights = weights[..., 1:]
        height, width = _grid(weights.shape[2], *images.shape[2:])
        maps = weights[:, :most].unflatten(2, (height, width))  # (B, M, height, width)
        rows = [
            np.concatenate(
                [_enlarged(picture, scale), *(draw_heat(picture, m, scale=scale) for m in own)], 1
            )
            for picture, own in zip(pixels, maps, strict=True)
        ]
        path = Path(folder) / f"{name}.png"
        with replacing(path) as temporary:
            Image.fromarray(np.concatenate(rows)).save(temporary)
        written.append(path)
    model.train(was_training)
    return written


def _enlarged(picture: np.ndarray, scale: int) -> np.ndarray:
    return picture.repeat(scale, 0).repeat(scale, 1)


def _grid(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tokens of an image."""
    rows = max(round(math.sqrt(tokens * height / width)), 1)
    if tokens % rows:
        raise UserError(f"{tokens} tokens make no grid on an image of {height}x{width}")
    return rows, tokens // rows
