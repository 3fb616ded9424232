"""What is to be drawn: prompts with boxes and captions, read from JSON.

A file is a list of records, or has one a line (``.jsonl``)::

    {"name": "kitchen", "prompt": "a kitchen", "negative_prompt": "blurry", "seed": 7,
     "instances": [{"bbox": [0.1, 0.2, 0.5, 0.9], "caption": "a red kettle",
                    "label": "kettle", "attribute": "red"}]}

``bbox`` is left, top, right and bottom in shares of the image, or with ``"pixels": true`` in pixels
of its ``"width"`` and ``"height"``. All but ``prompt`` may be left out, and of instances all but
``bbox`` and ``caption``; ``label`` and ``attribute`` are for evaluation, as is ``track``.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..inference.saving import free_name

__all__ = ["Instance", "Layout", "read_layouts", "to_layout"]

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Instance:
    """What is to be in a box.

    Attributes:
        bbox: Left, top, right and bottom in shares of the image.
        caption: What is there, such as ``"a red kettle"``.
        label: What a detector calls it; the caption by default.
        attribute: Colour or texture that it should have.
    """

    bbox: Box
    caption: str
    label: str = ""
    attribute: str = ""

    def __post_init__(self):
        if not self.label:
            object.__setattr__(self, "label", self.caption)

    def in_pixels(self, width: int, height: int) -> Box:
        """The box in pixels of an image."""
        x1, y1, x2, y2 = self.bbox
        return x1 * width, y1 * height, x2 * width, y2 * height


@dataclass(frozen=True)
class Layout:
    """A picture to be drawn.

    Attributes:
        name: Name of the record, unique in a file.
        prompt: What the whole picture shows.
        instances: What is where.
        negative_prompt: What it should not show.
        seed: Of its noise; None leaves it to whoever draws.
        width: In pixels; None leaves it to the model.
        height: In pixels.
        track: Part of a benchmark it belongs to.
    """

    name: str
    prompt: str
    instances: tuple[Instance, ...] = ()
    negative_prompt: str = ""
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    track: str = field(default="")

    def for_pipeline(self) -> list[dict[str, Any]]:
        """The instances as pipelines take them."""
        return [{"bbox": list(i.bbox), "caption": i.caption} for i in self.instances]

    def to_json(self) -> dict[str, Any]:
        """The layout in plain types."""
        return asdict(self)


def read_layouts(path: str | Path) -> list[Layout]:
    """Reads a file of layouts.

    Raises:
        DataError: If there is no such file, it is no JSON, or a record cannot be meant; the message
            names the record.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file of layouts {path}")
    text = path.read_text()
    try:
        if path.suffix == ".jsonl":
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            records = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if not isinstance(records, list) or not records:
        raise DataError(f"{path} must hold a list of records, with one at least")
    layouts, taken = [], set()
    for index, record in enumerate(records):
        layout = to_layout(record, f"{path}, record {index}", f"{index:05d}")
        if layout.name in taken:
            raise DataError(f"{path}, record {index}: the name {layout.name!r} occurs twice")
        free_name(layout.name, taken)
        layouts.append(layout)
    return layouts


_KEYS = {
    "name": str, "prompt": str, "negative_prompt": str, "track": str, "seed": int, "width": int,
    "height": int, "instances": list, "pixels": bool,
}  # fmt: skip
_INSTANCE_KEYS = {"bbox": (list, tuple), "caption": str, "label": str, "attribute": str}


def to_layout(record: Mapping[str, Any], where: str, name: str) -> Layout:
    """Checks a record.

    Args:
        record: The record.
        where: What messages call it.
        name: Its name, if it has none.

    Raises:
        DataError: If it cannot be meant.
    """
    fields = _checked(record, _KEYS, ("prompt",), where)
    pixels = fields.pop("pixels", False)
    width, height = fields.get("width"), fields.get("height")
    if pixels and not (width and height):
        raise DataError(f'{where}: boxes in pixels need "width" and "height"')
    for key in ("width", "height"):
        if fields.get(key, 8) < 8:
            raise DataError(f"{where}: {key} must be at least 8 pixels; got {fields[key]}")
    given = fields.get("name", name)
    if not given or Path(given).name != given or given.startswith("."):
        raise DataError(f"{where}: a name becomes that of files, and {given!r} cannot")
    instances = []
    for number, entry in enumerate(fields.pop("instances", [])):
        place = f"{where}, instance {number}"
        entry = _checked(entry, _INSTANCE_KEYS, ("bbox", "caption"), place)
        scale = (width, height, width, height) if pixels else (1, 1, 1, 1)
        entry["bbox"] = _to_box(entry["bbox"], scale, place)
        instances.append(Instance(**entry))
    return Layout(**{**fields, "name": given, "instances": tuple(instances)})


def _checked(
    record: Any, kinds: Mapping[str, Any], required: tuple[str, ...], where: str
) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise DataError(f"{where} must be an object with keys; got {record!r}")
    unknown = sorted(record.keys() - kinds.keys())
    if unknown:
        raise DataError(f"{where} has the unknown key {unknown[0]!r}; there are {', '.join(kinds)}")
    for key in required:
        if key not in record:
            raise DataError(f"{where} lacks {key!r}")
    for key, value in record.items():
        right = isinstance(value, kinds[key]) and (kinds[key] is bool or value is not True)
        if not right or value is False and kinds[key] is int:
            raise DataError(f"{where}: {key} cannot be {value!r}")
        if key in required and isinstance(value, str) and not value.strip():
            raise DataError(f"{where}: {key} is empty")
    return dict(record)


def _to_box(values: Any, scale: tuple[int, int, int, int], where: str) -> Box:
    if len(values) != 4 or not all(type(value) in (int, float) for value in values):
        raise DataError(f"{where}: bbox must be four numbers; got {values!r}")
    x1, y1, x2, y2 = (value / side for value, side in zip(values, scale, strict=True))
    if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
        unit = "pixels of the image" if scale[0] > 1 else 'shares of the image (or set "pixels")'
        raise DataError(
            f"{where}: bbox must be left < right and top < bottom within it, in {unit}; "
            f"got {list(values)}"
        )
    return x1, y1, x2, y2
