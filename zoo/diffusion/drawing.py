"""Pictures of layouts: boxes, captions and what was drawn side by side, and contact sheets."""

import textwrap
from collections.abc import Mapping, Sequence

import PIL.Image
from PIL import ImageDraw, ImageFont

from ..inference.drawing import distinct_colours
from .layouts import Layout

__all__ = ["contact_sheet", "draw_boxes", "draw_comparison", "draw_layout"]

GROUND, INK, GAP = (245, 245, 242), (30, 30, 30), 8


def draw_boxes(
    image: PIL.Image.Image, layout: Layout, captions: bool = True, line: int = 2
) -> PIL.Image.Image:
    """An image with the boxes of a layout, and their captions on the upper edges.

    Args:
        image: RGB.
        layout: Layout; smaller boxes are drawn over larger ones.
        captions: Whether to write captions.
        line: Width of the lines in pixels.

    Returns:
        A new image.
    """
    image = image.convert("RGB")
    brush = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(9, round(min(image.size) / 24)))
    colours = distinct_colours(len(layout.instances))
    pairs = zip(layout.instances, colours, strict=True)
    for instance, colour in sorted(pairs, key=lambda pair: -_area(pair[0].bbox)):
        x1, y1, x2, y2 = instance.in_pixels(*image.size)
        brush.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), None, colour, line)
        if captions:
            text = _fitted(brush, instance.caption, font, max(x2 - x1 - 2 * line, 12))
            left, top, right, bottom = brush.multiline_textbbox((x1 + line, y1 + line), text, font)
            brush.rectangle((left - line, top - line, right + line, bottom + line), colour)
            ink = "black" if _brightness(colour) > 128 else "white"
            brush.multiline_text((x1 + line, y1 + line), text, ink, font)
    return image


def draw_layout(layout: Layout, size: tuple[int, int]) -> PIL.Image.Image:
    """The boxes and captions of a layout alone.

    Args:
        layout: Layout.
        size: Width and height of the picture.
    """
    return draw_boxes(PIL.Image.new("RGB", size, GROUND), layout)


def draw_comparison(
    layout: Layout, images: Mapping[str, PIL.Image.Image], height: int = 384
) -> PIL.Image.Image:
    """A layout, and what was drawn of it with the boxes on it, side by side; the prompt below.

    Args:
        layout: Layout.
        images: What was drawn, by titles.
        height: Height of each picture.
    """
    return contact_sheet([layout], {title: [image] for title, image in images.items()}, height)


def contact_sheet(
    layouts: Sequence[Layout],
    columns: Mapping[str, Sequence[PIL.Image.Image]],
    height: int = 192,
    boxes: bool = True,
) -> PIL.Image.Image:
    """A row a layout: its boxes and captions, then a picture a column; its prompt below.

    Args:
        layouts: Layouts.
        columns: Pictures of all layouts, by the titles of columns.
        height: Height of each picture; narrower and wider ones keep their shape.
        boxes: Whether boxes are drawn on the pictures, too.

    Raises:
        ValueError: If a column has not one picture a layout.
    """
    for title, images in columns.items():
        if len(images) != len(layouts):
            raise ValueError(f"{title!r} has {len(images)} pictures of {len(layouts)} layouts")
    rows = [
        [_scaled(image, height, boxes and layout or None) for image in images]
        for layout, *images in zip(layouts, *columns.values(), strict=True)
    ]
    firsts = [
        draw_layout(layout, row[0].size if row else (height, height))
        for layout, row in zip(layouts, rows, strict=True)
    ]
    rows = [[first, *row] for first, row in zip(firsts, rows, strict=True)]
    widths = [max(tiles) for tiles in zip(*([t.width for t in row] for row in rows), strict=True)]
    size = max(10, height // 16)
    font, band = ImageFont.load_default(size), round(1.6 * size)
    lines = [_wrapped(layout.prompt, sum(widths), size) for layout in layouts]
    total = band + sum(height + band * len(text) + GAP for text in lines)
    sheet = PIL.Image.new("RGB", (sum(widths) + GAP * (len(widths) + 1), total), "white")
    brush = ImageDraw.Draw(sheet)
    lefts = [GAP + sum(widths[:index]) + GAP * index for index in range(len(widths))]
    for left, width, title in zip(lefts, widths, ["layout", *columns], strict=True):
        brush.text((left + width / 2, band / 2), title, INK, font, "mm")
    top = band
    for row, text in zip(rows, lines, strict=True):
        for left, tile in zip(lefts, row, strict=True):
            sheet.paste(tile, (left, top))
        top += height
        for line in text:
            brush.text((GAP, top + band / 2), line, INK, font, "lm")
            top += band
        top += GAP
    return sheet


def _scaled(image: PIL.Image.Image, height: int, layout: Layout | None) -> PIL.Image.Image:
    width = max(1, round(image.width * height / image.height))
    method = PIL.Image.Resampling.NEAREST if image.height * 2 <= height else None
    image = image.convert("RGB").resize((width, height), method)
    return image if layout is None else draw_boxes(image, layout, captions=False)


def _wrapped(text: str, width: int, size: int) -> list[str]:
    return textwrap.wrap(text, max(8, round(width / (0.55 * size)))) or [""]


def _fitted(
    brush: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: float
) -> str:
    """A text broken into lines that are not wider, if its words allow."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and brush.textlength(longer, font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def _area(bbox: Sequence[float]) -> float:
    return (bbox[2] - bbox[0]) * (bbox[3] - bbox[1])


def _brightness(colour: Sequence[int]) -> float:
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue
