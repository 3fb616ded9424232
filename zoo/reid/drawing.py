"""Pictures of ranked lists: a query, where DCAL looks on it, and what was found."""

import json
from collections.abc import Callable, Sequence
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
from ..errors import DataError
from ..inference.drawing import side_by_side
from ..inference.predictors import image_pipeline
from ..inference.saving import free_name, save_image

__all__ = [
    "DrawRankingsHook",
    "draw_ranking",
    "draw_rankings",
    "patch_selector",
    "read_rankings",
    "selected_patches",
]

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


def patch_selector(
    model: nn.Module, prepare: Callable[[PIL.Image.Image], torch.Tensor]
) -> Callable[[str], np.ndarray | None]:
    """A function from an image file to the patches (H, W) that a ``ReIdentifier`` selects on it.

    Args:
        model: The model, in eval mode.
        prepare: An image to bytes (3, H, W), as of ``image_pipeline``.
    """

    def selected(path: str) -> np.ndarray | None:
        inputs = {"inputs": prepare(read_image(path))[None]}
        return selected_patches(model.backbone, model.data_preprocessor(inputs)["inputs"][0])

    return selected


def read_rankings(path: str | Path) -> list[dict[str, Any]]:
    """Reads the ranked lists of queries that ``ReIDMetric`` wrote with ``out_file``.

    Raises:
        DataError: If there is no such file, or it holds something else.
    """
    try:
        queries = json.loads(Path(path).read_text())["queries"]
        if not all({"path", "ranked"} <= set(query) for query in queries):
            raise KeyError("path and ranked of each query")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} holds no ranked lists: write them with tools/test.py CONFIG CHECKPOINT "
            "--out lists.json"
        ) from error
    return queries


def draw_rankings(
    queries: Sequence[dict[str, Any]],
    folder: str | Path,
    count: int = 10,
    limit: int = 100,
    selected: Callable[[str], np.ndarray | None] | None = None,
) -> list[Path]:
    """Draws ranked lists, a picture a query.

    Args:
        queries: Ranked lists, as of ``read_rankings``.
        folder: Where pictures go; they are called as the queries are.
        count: How many of what was found are shown.
        limit: Most pictures; queries are then evenly spread.
        selected: From the path of a query to the patches (H, W) that DCAL selects on it.

    Returns:
        Paths of the pictures.
    """
    taken: set[str] = set()
    paths = []
    for query in _spread(queries, limit):
        patches = None if selected is None else selected(query["path"])
        picture = draw_ranking(query, count, patches)
        paths.append(Path(folder) / f"{free_name(Path(query['path']).stem, taken)}.jpg")
        save_image(picture, paths[-1])
    return paths


class DrawRankingsHook(Hook):
    """Draws ranked lists after a test; see ``draw_rankings``.

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
        selected = patch_selector(runner.bare_model, image_pipeline(runner.cfg))
        queries = read_rankings(self.lists)
        draw_rankings(queries, self.folder, self.count, self.limit, selected)


def _spread(items: Sequence[Any], limit: int) -> list[Any]:
    places = np.unique(np.linspace(0, len(items) - 1, min(len(items), limit)).round().astype(int))
    return [items[place] for place in places]
