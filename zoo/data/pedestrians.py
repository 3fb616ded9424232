"""Rendered people under several cameras, written with the names of Market-1501.

Clothes come in few colours that many wear, so that people are told apart by details: the pattern
of a shirt, a handwritten sign on it, a bag, a hat. Each camera has colours, sharpness, a noise, a
tilt and a place of its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["CAMERAS", "PEOPLE", "write_people"]

PEOPLE = {"train": 64, "test": 40}
CAMERAS = 6
# Cameras that see a person, images by each, and images of passers-by and of parts of people.
SEEN_BY = 4
IMAGES = {"train": 4, "test": 3}
DISTRACTORS, JUNK = 60, 20
HEIGHT, WIDTH = 96, 48
_FINE = 3  # drawn finer than needed

_CLOTHES = (
    (190, 40, 45),
    (45, 80, 170),
    (225, 225, 220),
    (50, 50, 55),
    (70, 130, 75),
    (225, 190, 70),
)
_TROUSERS = ((40, 45, 70), (60, 60, 62), (150, 130, 100), (95, 70, 55))
_SKIN = ((240, 205, 180), (205, 160, 125), (140, 95, 70), (85, 58, 45))
_HAIR = ((30, 25, 22), (95, 60, 35), (205, 175, 110), (150, 150, 150))
_ACCENTS = ((250, 250, 250), (20, 20, 20), (250, 220, 40), (240, 110, 30), (60, 200, 220))
_PATTERNS = ("plain", "stripes", "pinstripes", "checks", "halves", "sleeves")
_LEGS = ("trousers", "shorts", "skirt")
_BAGS = (None, "backpack", "handbag", "shoulder bag")

Colour = tuple[int, int, int]


class Person(NamedTuple):
    """What somebody wears, on every image."""

    skin: Colour
    hair: Colour
    long_hair: bool
    hat: Colour | None
    shirt: Colour
    pattern: str
    accent: Colour
    sign: np.ndarray | None  # (8, 8), opacity
    sign_left: bool
    legs: str
    trousers: Colour
    bag: str | None
    bag_colour: Colour
    build: float
    height: float


class Camera(NamedTuple):
    """What a camera does to every image."""

    gains: np.ndarray  # (3,)
    gamma: float
    contrast: float
    blur: float
    noise: float
    tilt: float
    zoom: float


def write_people(
    folder: Path,
    split: str,
    signs: np.ndarray,
    photographs: Sequence[Image.Image],
    rng: np.random.Generator,
    seed: int,
) -> None:
    """Writes ``bounding_box_train``, or ``query`` and ``bounding_box_test``, of Market-1501.

    People to train have odd numbers and people to test even ones. A test has one query of each
    person by each camera that sees them, distractors (0000) and junk (-1).

    Args:
        folder: Folder of the data set.
        split: ``"train"`` or ``"test"``.
        signs: Opacities (N, 8, 8) of what may be on a shirt.
        photographs: What is behind people, a camera's own each.
        rng: Source of people and poses.
        seed: Seed of the cameras, which both splits share.
    """
    cameras = [_camera(np.random.default_rng([seed, 7, number])) for number in range(CAMERAS)]
    studio = _Studio(cameras, photographs, rng)
    parts = {"train": ("bounding_box_train",), "test": ("query", "bounding_box_test")}[split]
    for part in parts:
        (folder / part).mkdir(parents=True)
    for index in range(PEOPLE[split]):
        person = _person(signs, rng)
        identity = 2 * index + (1 if split == "train" else 2)
        for camera in rng.choice(CAMERAS, SEEN_BY, replace=False).tolist():
            for shot in range(IMAGES[split]):
                part = parts[0] if split == "train" or shot == 0 else parts[1]
                studio.shoot(person, camera).save(folder / part / studio.name(identity, camera))
    if split == "test":
        for number in range(DISTRACTORS + JUNK):
            camera = int(rng.integers(CAMERAS))
            picture = studio.shoot(_person(signs, rng), camera)
            identity = 0
            if number >= DISTRACTORS:
                identity = -1
                picture = picture.crop((0, 0, WIDTH, HEIGHT // 3)).resize((WIDTH, HEIGHT))
            picture.save(folder / parts[1] / studio.name(identity, camera))


def _person(signs: np.ndarray, rng: np.random.Generator) -> Person:
    def pick(choices: Sequence[Any]) -> Any:
        return choices[int(rng.integers(len(choices)))]

    shirt = pick(_CLOTHES)
    accents = [accent for accent in _ACCENTS if np.abs(np.subtract(accent, shirt)).sum() > 150]
    return Person(
        skin=pick(_SKIN),
        hair=pick(_HAIR),
        long_hair=bool(rng.random() < 0.4),
        hat=pick(_ACCENTS) if rng.random() < 0.25 else None,
        shirt=shirt,
        pattern=pick(_PATTERNS),
        accent=pick(accents),
        sign=pick(signs) if rng.random() < 0.6 else None,
        sign_left=bool(rng.random() < 0.5),
        legs=pick(_LEGS),
        trousers=pick(_TROUSERS),
        bag=pick(_BAGS),
        bag_colour=pick(_CLOTHES),
        build=float(rng.uniform(0.85, 1.15)),
        height=float(rng.uniform(0.92, 1.0)),
    )


def _camera(rng: np.random.Generator) -> Camera:
    return Camera(
        gains=rng.uniform(0.75, 1.2, 3),
        gamma=float(rng.uniform(0.7, 1.4)),
        contrast=float(rng.uniform(0.7, 1.1)),
        blur=float(rng.uniform(0.2, 1.0)),
        noise=float(rng.uniform(2, 8)),
        tilt=float(rng.uniform(-6, 6)),
        zoom=float(rng.uniform(0.85, 1.05)),
    )


class _Studio:
    """Takes pictures, and names them as Market-1501 does.

    Args:
        cameras: Cameras.
        photographs: What is behind people.
        rng: Source of poses.
    """

    def __init__(
        self,
        cameras: Sequence[Camera],
        photographs: Sequence[Image.Image],
        rng: np.random.Generator,
    ):
        self.cameras, self.photographs, self.rng = cameras, photographs, rng
        self.frame = 0

    def name(self, identity: int, camera: int) -> str:
        """A file name, with the next frame number."""
        self.frame += 25
        person = f"{identity:04d}" if identity >= 0 else "-1"
        return f"{person}_c{camera + 1}s1_{self.frame:06d}_01.jpg"

    def shoot(self, person: Person, number: int) -> Image.Image:
        """A picture of a person by a camera, 48 x 96 pixels."""
        camera, rng = self.cameras[number], self.rng
        size = (WIDTH * _FINE, HEIGHT * _FINE)
        photograph = self.photographs[number % len(self.photographs)]
        left, top = (
            int(rng.integers(0, a - b)) for a, b in zip(photograph.size, size, strict=True)
        )
        scene = photograph.crop((left, top, left + size[0], top + size[1]))
        figure = _draw(person, rng)
        scale = camera.zoom * rng.uniform(0.92, 1.05)
        figure = figure.rotate(camera.tilt + rng.uniform(-3, 3), Image.Resampling.BILINEAR)
        figure = figure.resize([round(side * scale) for side in size], Image.Resampling.BILINEAR)
        offset = [
            round((a - b) / 2 + rng.uniform(-0.04, 0.04) * a)
            for a, b in zip(size, figure.size, strict=True)
        ]
        scene.paste(figure, offset, figure)
        scene = scene.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
        scene = scene.filter(ImageFilter.GaussianBlur(camera.blur))
        pixels = (np.asarray(scene, np.float64) / 255) ** camera.gamma * camera.gains
        pixels = 0.5 + camera.contrast * rng.uniform(0.9, 1.1) * (pixels - 0.5)
        pixels = 255 * pixels + rng.normal(0, camera.noise, pixels.shape)
        return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


def _draw(person: Person, rng: np.random.Generator) -> Image.Image:
    """A person in some pose, with transparency, 144 x 288 pixels."""
    width, height = WIDTH * _FINE, HEIGHT * _FINE
    canvas = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    turn = 1 if rng.random() < 0.5 else -1
    step, swing = rng.uniform(0.3, 1.0), rng.uniform(-1, 1)
    centre, half = width / 2, 0.19 * width * person.build
    head = height * (1 - person.height) + 0.03 * height
    neck, waist, feet = head + 0.145 * height, head + 0.5 * height, 0.98 * height

    if person.bag == "backpack":
        side = centre - turn * half
        box = sorted((side - turn * 0.12 * width, side + turn * 0.3 * half))
        draw.rounded_rectangle(
            (box[0], neck + 8, box[1], waist - 20), 8, fill=(*person.bag_colour, 255)
        )
    knee = (waist + feet) / 2
    for leg in (-1, 1):
        foot = centre + leg * (0.05 + 0.11 * step) * width
        hip = centre + leg * half / 2
        middle = ((hip + foot) / 2 + turn * 3, knee)
        lower = person.trousers if person.legs == "trousers" else person.skin
        draw.line([middle, (foot, feet - 6)], fill=(*lower, 255), width=round(0.85 * half))
        upper = person.skin if person.legs == "skirt" else person.trousers
        draw.line([(hip, waist), middle], fill=(*upper, 255), width=round(half))
        shoe = sorted((foot - turn * 8, foot + turn * 16))
        draw.rectangle((shoe[0], feet - 10, shoe[1], feet), fill=(25, 25, 25, 255))
    if person.legs == "skirt":
        points = [(centre - half, waist - 4), (centre + half, waist - 4)]
        points += [(centre + 1.5 * half, knee + 6), (centre - 1.5 * half, knee + 6)]
        draw.polygon(points, fill=(*person.trousers, 255))
    for arm in (-1, 1):
        shoulder = (centre + arm * 1.05 * half, neck + 12)
        elbow = (centre + arm * 1.35 * half, (neck + waist) / 2)
        hand = (centre + arm * (1.35 * half) + arm * swing * 14, waist + 8)
        sleeve = person.accent if person.pattern == "sleeves" else person.shirt
        draw.line([elbow, hand], fill=(*person.skin, 255), width=14)
        draw.line([shoulder, elbow], fill=(*sleeve, 255), width=20)
    _draw_shirt(canvas, person, (centre - half, neck, centre + half, waist))
    if person.bag == "handbag":
        x = centre + turn * 1.5 * half + turn * swing * 14
        draw.rectangle((x - 14, waist + 8, x + 14, waist + 44), fill=(*person.bag_colour, 255))
    elif person.bag == "shoulder bag":
        x = centre + turn * 1.1 * half
        strap = [(centre - turn * 0.8 * half, neck), (x, waist - 8)]
        draw.line(strap, fill=(*person.bag_colour, 255), width=6)
        draw.rectangle((x - 16, waist - 14, x + 16, waist + 22), fill=(*person.bag_colour, 255))

    radius = 0.062 * height
    middle = (centre + turn * 3, head + radius)
    if person.long_hair:
        box = (middle[0] - radius - 4, head, middle[0] + radius + 4, neck + 26)
        draw.rounded_rectangle(box, 12, fill=(*person.hair, 255))
    box = (middle[0] - radius, head, middle[0] + radius, head + 2.2 * radius)
    draw.ellipse(box, fill=(*person.skin, 255))
    draw.chord(box, 180, 360, fill=(*(person.hat or person.hair), 255))
    if person.hat is not None:
        brim = sorted((middle[0], middle[0] + turn * 1.5 * radius))
        top = head + radius
        draw.rectangle((brim[0], top - 2, brim[1], top + 5), fill=(*person.hat, 255))
    return canvas


def _draw_shirt(canvas: Image.Image, person: Person, box: Sequence[float]) -> None:
    """A shirt with its pattern and sign, in a box of the canvas."""
    left, top, right, bottom = map(round, box)
    width, height = right - left, bottom - top
    rows, columns = np.mgrid[:height, :width]
    masks = {
        "stripes": rows % 24 < 9,
        "pinstripes": columns % 12 < 3,
        "checks": (rows // 14 + columns // 14) % 2 == 0,
        "halves": rows > height / 2,
    }
    cloth = np.empty((height, width, 3))
    cloth[:] = person.shirt
    if person.pattern in masks:
        cloth[masks[person.pattern]] = person.accent
    if person.sign is not None:
        side = round(0.42 * width)
        opacity = np.asarray(
            Image.fromarray((255 * person.sign).astype(np.uint8)).resize(
                (side, side), Image.Resampling.BICUBIC
            )
        )
        x = round((0.06 if person.sign_left else 0.52) * width)
        y = round(0.12 * height)
        patch = cloth[y : y + side, x : x + side]
        patch[:] = 0.5 * patch + 0.5 * np.array(person.shirt)
        alpha = (opacity[..., None] > 90).astype(float)
        patch[:] = (1 - alpha) * patch + alpha * np.array(person.accent)
    shape = Image.new("L", (width, height), 0)
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, width - 1, height + 20), 16, fill=255)
    canvas.paste(Image.fromarray(cloth.astype(np.uint8)), (left, top), shape)
