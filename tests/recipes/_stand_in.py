"""Embedded scenes in the layout of whatever data set a recipe reads, so that it runs as it is."""

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat

IMAGES = 4


class Scenes:
    """The first embedded scenes: images, semantic maps and objects.

    Args:
        root: Folder ``scenes`` of the embedded data.
    """

    def __init__(self, root: Path):
        content = json.loads((root / "annotations/instances_train2017.json").read_text())
        self.images = content["images"][:IMAGES]
        self.objects = [o for o in content["annotations"] if o["image_id"] <= IMAGES]
        self.folder = root

    def picture(self, image: dict[str, Any]) -> Image.Image:
        return Image.open(self.folder / "train2017" / image["file_name"]).convert("RGB")

    def labels(self, image: dict[str, Any]) -> np.ndarray:
        """Semantic map (H, W): 0 is background, 1 to 10 the digits."""
        return np.array(Image.open(self.folder / "stuffthingmaps/train2017" / image["file_name"]))

    def objects_of(self, image: dict[str, Any]) -> list[dict[str, Any]]:
        return [o for o in self.objects if o["image_id"] == image["id"]]


def dataset_configs(cfg: Any) -> Iterator[Any]:
    """The innermost data sets of a data loader's configuration."""
    inner = cfg.get("datasets") or ([cfg["dataset"]] if "dataset" in cfg else None)
    if inner is None:
        yield cfg
    else:
        for part in inner:
            yield from dataset_configs(part)


def write(cfg: Any, num_classes: int, root: Path, scenes: Scenes) -> None:
    """Writes what a data set reads below ``root``, and has the configuration read it from there."""
    cfg["data_root"] = str(root)
    bases = {base.__name__ for base in _class(cfg).__mro__}
    for name, writer in _WRITERS.items():
        if name in bases:
            writer(cfg, num_classes, root, scenes)
            return
    raise NotImplementedError(f"no stand-in for data sets of type {cfg['type']}")


def _class(cfg: Any) -> type:
    """The class of a data set of the scope that is in force."""
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(cfg["type"])


def _metainfo(cfg: Any) -> dict[str, Any]:
    return {**getattr(_class(cfg), "METAINFO", {}), **(cfg.get("metainfo") or {})}


def _suffix(cfg: Any, name: str) -> str:
    for cls in _class(cfg).__mro__:
        parameter = inspect.signature(cls.__init__).parameters.get(name)
        if parameter is not None:
            return cfg.get(name, parameter.default)
    raise KeyError(name)


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _write_folders(cfg: Any, num_classes: int, root: Path, scenes: Scenes) -> None:
    picture = scenes.picture(scenes.images[0]).resize((64, 64))
    for label in range(num_classes):
        _save(picture, root / f"{label:05d}" / "0.jpg")


def _write_instead(cfg: Any, num_classes: int, root: Path, scenes: Scenes) -> None:
    """Folders in place of archives that are only read as published."""
    pipeline = cfg["pipeline"]
    cfg.clear()
    cfg.update(type="ImageFolder", data_root=str(root), pipeline=pipeline)
    _write_folders(cfg, num_classes, root, scenes)


def _instances(cfg: Any, scenes: Scenes, names: list[str]) -> dict[str, Any]:
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    objects = [
        {**o, "category_id": (o["category_id"] - 1) % len(names) + 1} for o in scenes.objects
    ]
    return {"images": scenes.images, "annotations": objects, "categories": categories}


def _write_coco(cfg: Any, num_classes: int, root: Path, scenes: Scenes) -> None:
    images = root / cfg["data_prefix"]["img"]
    for image in scenes.images:
        _save(scenes.picture(image), images / image["file_name"])
    path = root / cfg["ann_file"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_instances(cfg, scenes, list(_metainfo(cfg)["classes"]))))


def _write_panoptic(cfg: Any, num_classes: int, root: Path, scenes: Scenes) -> None:
    _write_coco(cfg, num_classes, root, scenes)
    things = _metainfo(cfg)["thing_classes"]
    path = root / cfg["ann_file"]
    content = json.loads(path.read_text())
    for category in content["categories"]:
        category["isthing"] = int(category["name"] in things)
    stuff = next(c["id"] for c in content["categories"] if not c["isthing"])
    content["annotations"] = []
    for image in scenes.images:
        ids = np.full((image["height"], image["width"]), 1, np.int64)
        segments = [{"id": 1, "category_id": stuff, "iscrowd": 0}]
        for number, item in enumerate(scenes.objects_of(image), 2):
            code = coco_mask.frPyObjects(item["segmentation"], image["height"], image["width"])
            ids[coco_mask.decode(code).astype(bool)] = number
            segments.append({"id": number, "category_id": item["category_id"], "iscrowd": 0})
        for segment in segments:
            rows, columns = np.nonzero(ids == segment["id"])
            segment["area"] = len(rows)
            left, top = int(columns.min()), int(rows.min())
            segment["bbox"] = [left, top, int(columns.max()) - left, int(rows.max()) - top]
        name = Path(image["file_name"]).with_suffix(".png").name
        coded = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        _save(Image.fromarray(coded), root / cfg["data_prefix"]["seg"] / name)
        content["annotations"].append(
            {"image_id": image["id"], "file_name": name, "segments_info": segments}
        )
    path.write_text(json.dumps(content))


def _write_semantic(cfg: Any, num_classes: int, root: Path, scenes: Scenes) -> None:
    images, maps = _suffix(cfg, "img_suffix"), _suffix(cfg, "seg_map_suffix")
    for image in scenes.images:
        stem = Path(image["file_name"]).stem
        _save(scenes.picture(image), root / cfg["data_prefix"]["img_path"] / f"{stem}{images}")
        labels = Image.fromarray(scenes.labels(image))
        _save(labels, root / cfg["data_prefix"]["seg_map_path"] / f"{stem}{maps}")
    if cfg.get("ann_file"):
        path = root / cfg["ann_file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(Path(i["file_name"]).stem for i in scenes.images) + "\n")


def _write_voc(cfg: Any, num_classes: int, root: Path, scenes: Scenes) -> None:
    folder = root / cfg["data_prefix"]["sub_data_root"]
    names = _metainfo(cfg)["classes"]
    path = root / cfg["ann_file"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(Path(i["file_name"]).stem for i in scenes.images) + "\n")
    for image in scenes.images:
        stem = Path(image["file_name"]).stem
        _save(scenes.picture(image), folder / "JPEGImages" / f"{stem}.jpg")
        objects = []
        for item in scenes.objects_of(image):
            left, top, width, height = item["bbox"]
            objects.append(
                f"<object><name>{names[(item['category_id'] - 1) % len(names)]}</name>"
                f"<difficult>0</difficult><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
                f"<xmax>{left + width}</xmax><ymax>{top + height}</ymax></bndbox></object>"
            )
        annotation = folder / "Annotations" / f"{stem}.xml"
        annotation.parent.mkdir(parents=True, exist_ok=True)
        annotation.write_text(
            f"<annotation><size><width>{image['width']}</width><height>{image['height']}</height>"
            f"<depth>3</depth></size>{''.join(objects)}</annotation>"
        )


def _write_panoptic_cityscapes(cfg: Any, num_classes: int, root: Path, scenes: Scenes) -> None:
    """Ids are names there, which files are named after."""
    _write_panoptic(cfg, num_classes, root, scenes)
    path = root / cfg["ann_file"]
    content = json.loads(path.read_text())
    images, maps = (root / cfg["data_prefix"][kind] for kind in ("img", "seg"))
    for image in content["images"]:
        name = f"town_000000_{image['id']:06d}"
        (images / "town").mkdir(exist_ok=True)
        (images / image["file_name"]).rename(images / "town" / f"{name}_leftImg8bit.png")
        for item in content["annotations"]:
            if item["image_id"] == image["id"]:
                (maps / item["file_name"]).rename(maps / f"{name}_gtFine_panoptic.png")
                item.update(image_id=name, file_name=f"{name}_gtFine_panoptic.png")
        image.update(id=name, file_name=f"{name}_gtFine_leftImg8bit.png")
    path.write_text(json.dumps(content))


def _write_identities(cfg: Any, num_classes: int, root: Path, scenes: Scenes) -> None:
    """The people of the embedded data, named as the set names its identities."""
    cfg["check"] = None
    people = sorted((scenes.folder.parent / "reid" / "bounding_box_train").iterdir())
    identities = sorted({path.name[:4] for path in people})
    folders = {"VeRi776": "image_train", "MSMT17": "train"}
    lines = []
    for path in people:
        person = identities.index(path.name[:4])
        camera = int(path.name[6])
        name = path.name.replace(path.name[:4], f"{person:04d}", 1)
        if cfg["type"] == "MSMT17":
            name = f"{person:04d}/{person:04d}_{len(lines):03d}_{camera:02d}_0303morning_0015_0.jpg"
            lines.append(f"{name} {person}\n")
        _save(Image.open(path), root / folders.get(cfg["type"], "bounding_box_train") / name)
    if cfg["type"] == "MSMT17":
        (root / "test").mkdir()
        (root / "list_train.txt").write_text("".join(lines[::2]))
        (root / "list_val.txt").write_text("".join(lines[1::2]))


def _write_fine_grained(cfg: Any, num_classes: int, root: Path, scenes: Scenes) -> None:
    """Two classes in the layout of the archive."""
    cfg["check"] = None
    folder = root / _class(cfg).FOLDER
    names = [f"{number:07d}" for number in range(1, 5)]
    rows = list(zip(names, (1, 2, 1, 2), strict=True))
    images = {"CUB200": "images", "StanfordCars": "cars_train", "FGVCAircraft": "data/images"}
    for name in names:
        _save(scenes.picture(scenes.images[0]), folder / images[cfg["type"]] / f"{name}.jpg")
    if cfg["type"] == "StanfordCars":
        (folder / "devkit").mkdir()
        annotations = np.array(
            [(label, f"{name}.jpg") for name, label in rows], [("class", "O"), ("fname", "O")]
        )
        savemat(folder / "devkit/cars_train_annos.mat", {"annotations": annotations})
        classes = np.array([f"car {number}" for number in range(2)], object)
        savemat(folder / "devkit/cars_meta.mat", {"class_names": classes})
        return
    if cfg["type"] == "FGVCAircraft":
        texts = {
            "data/variants": ["1", "2"],
            "data/images_variant_trainval": [f"{name} {label}" for name, label in rows],
        }
    else:
        texts = {
            "images": [f"{name} {name}.jpg" for name in names],
            "image_class_labels": [f"{name} {label}" for name, label in rows],
            "train_test_split": [f"{name} 1" for name in names],
            "classes": ["1 one", "2 two"],
        }
    for name, lines in texts.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))


def _write_captions(cfg: Any, num_classes: int, root: Path, scenes: Scenes) -> None:
    """Scenes with their boxes, and a caption of each."""
    cfg["data_prefix"] = {"img": "train2017/", **(cfg.get("data_prefix") or {})}
    cfg["metainfo"] = {"classes": [str(digit) for digit in range(10)]}
    _write_coco(cfg, num_classes, root, scenes)
    cfg.pop("metainfo")
    captions = [
        {"id": i, "image_id": image["id"], "caption": "digits"}
        for i, image in enumerate(scenes.images)
    ]
    (root / cfg["caption_file"]).write_text(json.dumps({"annotations": captions}))


def _write_regions(cfg: Any, num_classes: int, root: Path, scenes: Scenes) -> None:
    regions, images = [], []
    for image in scenes.images:
        _save(scenes.picture(image), root / "VG_100K" / f"{image['id']}.jpg")
        images.append(
            {
                "image_id": image["id"],
                "url": f"https://example.org/rak248/VG_100K/{image['id']}.jpg",
                "width": image["width"],
                "height": image["height"],
            }
        )
        sides = ("x", "y", "width", "height")
        own = [
            {**dict(zip(sides, item["bbox"], strict=True)), "phrase": "a digit"}
            for item in scenes.objects_of(image)
        ]
        regions.append({"id": image["id"], "regions": own})
    (root / cfg["ann_file"]).write_text(json.dumps(regions))
    (root / cfg["image_file"]).write_text(json.dumps(images))


_WRITERS: dict[str, Callable[[Any, int, Path, Scenes], None]] = {
    "ImageFolder": _write_folders,
    "ArrayDataset": _write_instead,
    "HTADataset": _write_instead,
    "ListedImages": _write_instead,
    "VTAB1k": _write_instead,
    "ReIDDataset": _write_identities,
    "FineGrainedDataset": _write_fine_grained,
    "CityscapesPanopticDataset": _write_panoptic_cityscapes,
    "CocoPanopticDataset": _write_panoptic,
    "CocoCaptions": _write_captions,
    "VisualGenome": _write_regions,
    "CocoDataset": _write_coco,
    "XMLDataset": _write_voc,
    "BaseSegDataset": _write_semantic,
}
