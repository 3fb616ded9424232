"""Panoptic Cityscapes for mmdet, from the files that cityscapesScripts write."""

import os.path as osp
from typing import Any

from mmdet.datasets import CocoPanopticDataset
from mmdet.datasets.api_wrappers import COCOPanoptic
from mmdet.registry import DATASETS

THINGS = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
STUFF = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky",
)  # fmt: skip


class _ThingsFirst(COCOPanoptic):
    """Annotations whose things come before the stuff, as labels do; in the files it is last."""

    def createIndex(self) -> None:
        """Makes the index, with categories in this order."""
        if "categories" in self.dataset:
            self.dataset["categories"].sort(key=lambda category: not category["isthing"])
        super().createIndex()


@DATASETS.register_module()
class CityscapesPanopticDataset(CocoPanopticDataset):
    """Cityscapes with panoptic annotations of ``cityscapesscripts.preparation``.

    The folder ``img`` of ``data_prefix`` has a folder for each city; ``seg`` has all label maps.
    """

    METAINFO = {
        "classes": THINGS + STUFF,
        "thing_classes": THINGS,
        "stuff_classes": STUFF,
        "palette": [
            (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100),
            (0, 0, 230), (119, 11, 32), (128, 64, 128), (244, 35, 232), (70, 70, 70),
            (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30), (220, 220, 0),
            (107, 142, 35), (152, 251, 152), (70, 130, 180),
        ],
    }  # fmt: skip
    COCOAPI = _ThingsFirst

    def parse_data_info(self, raw_data_info: dict[str, Any]) -> dict[str, Any]:
        """Parses an image's annotation; its files are named after its id."""
        info = super().parse_data_info(raw_data_info)
        name = info["img_id"]
        city = name.partition("_")[0]
        info["img_path"] = osp.join(self.data_prefix["img"], city, f"{name}_leftImg8bit.png")
        if info["seg_map_path"] is not None:
            info["seg_map_path"] = osp.join(self.data_prefix["seg"], f"{name}_gtFine_panoptic.png")
        return info
