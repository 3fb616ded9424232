"""Pictures of ranked lists: a query, where DCAL looks on it, and what was found."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from torch import nn

from ...backbones.dcal import DualCrossAttentionTransformer
from ..attention import attention_maps
from ..attention.maps import ROLLOUT
from ..data.classification import read_image
from ..inference.drawing import side_by_side
from ..inference.saving import free_name, save_image

__all__ = ["DrawRankingsHook", "draw_ranking", "selected_patches"]

QUERY, RIGHT, WRONG = (60, 90, 220), (30, 160, 60), (210, 40, 40)
HEIGHT, FRAME = 192, 6


def draw_ranking(
    query: dict[str, Any], count: int = 10, selected: np.ndarray | None = None
) -> PIL.Image.Image:
    """A query, and what was found, from left to right; frames tell right (green) from wrong (red).

    Args:
        query: One of ``visattn.zoo.reid.evaluation.ranked_lists``.
        count: How many of what was found are shown.
        selected: Patches (H, W) that DCAL's global-local cross-attention asks for, which a second
            picture of the query leaves bright.
    """
    image = read_image(query["path"])
    tiles = [_framed(image, QUERY)]
    if selected is not None:
        tiles.append(_framed(_dimmed(image, selected), QUERY))
    for found in query["ranked"][:count]:
        tiles.append(_framed(read_image(found["path"]), RIGHT if found["right"] else WRONG))
    return side_by_side(tiles)


def _framed(image: PIL.Image.Image, colour: tuple[int, int, int]) -> PIL.Image.Image:
    width = max(round(HEIGHT * image.width / image.height), 1)
    image = image.resize((width, HEIGHT), PIL.Image.Resampling.BICUBIC)
    return PIL.ImageOps.expand(PIL.ImageOps.expand(image, FRAME, colour), 2, (255, 255, 255))


def _dimmed(image: PIL.Image.Image, selected: np.ndarray) -> PIL.Image.Image:
    """The image, dark but for the selected patches."""
    mask = PIL.Image.fromarray(np.where(selected, 255, 70).astype(np.uint8))
    mask = mask.resize(image.size, PIL.Image.Resampling.NEAREST)
    return PIL.Image.composite(image, PIL.Image.new("RGB", image.size), mask)


def selected_patches(backbone: nn.Module, image: torch.Tensor) -> np.ndarray | None:
    """Which patches (H, W) of an image (3, H, W) DCAL selects; None of other networks."""
    is_dcal = isinstance(backbone, DualCrossAttentionTransformer)
    if not is_dcal or not len(backbone.glca_blocks):
        return None
    return attention_maps(backbone, image, [ROLLOUT])[ROLLOUT].selected.bool().cpu().numpy()


class DrawRankingsHook(Hook):
    """Draws ranked lists after a test.

    Args:
        folder: Where pictures go, one a query.
        lists: JSON file that ``ReIDMetric`` writes with ``out_file``.
        count: How many of what was found are shown.
        limit: Most pictures; queries are then evenly spread.
    """

    # After the metric has written the lists.
    priority = "LOWEST"

    def __init__(self, folder: str | Path, lists: str | Path, count: int = 10, limit: int = 100):
        self.folder, self.lists = Path(folder), Path(lists)
        self.count, self.limit = count, limit

    @master_only
    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Draws the lists."""
        queries = json.loads(self.lists.read_text())["queries"]
        dataset, model = runner.test_dataloader.dataset, runner.bare_model
        index_of = {dataset.path(index): index for index in range(len(dataset))}
        taken: set[str] = set()
        for query in _spread(queries, self.limit):
            sample = dataset[index_of[query["path"]]]
            inputs = model.data_preprocessor({"inputs": sample["inputs"][None]}, False)["inputs"]
            picture = draw_ranking(query, self.count, selected_patches(model.backbone, inputs[0]))
            name = free_name(Path(query["path"]).stem, taken)
            save_image(picture, self.folder / f"{name}.jpg")


def _spread(items: Sequence[Any], limit: int) -> list[Any]:
    places = np.unique(np.linspace(0, len(items) - 1, min(len(items), limit)).round().astype(int))
    return [items[place] for place in places]
