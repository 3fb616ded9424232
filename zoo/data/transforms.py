"""Image transforms by configuration: timm's and albumentations'.

A transform takes a PIL image, or an array (H, W, 3) of bytes, and returns one of these or a byte
tensor (3, H, W). Normalisation is not among them; the data preprocessor of the model does that.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.registry import TRANSFORMS
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import RandomResizedCrop, v2

from ..errors import ConfigError, DataError

ImageLike = Image.Image | np.ndarray | torch.Tensor


def check_image_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a size given as one number or two.

    Raises:
        DataError: If it is not one or two positive whole numbers.
    """
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise DataError(
            f"image size {size!r} is impossible: give a positive number of pixels, or "
            "(height, width)"
        )
    return pair


@TRANSFORMS.register_module()
class TimmTrainTransform:
    """timm's training augmentation: random resized crop, flips, AutoAugment family, jitter.

    Random erasing is not here, since it follows normalisation; see ``ImagePreprocessor``.

    Args:
        img_size: Pixels a side, or (height, width).
        scale: Range of the crop's area over the image's.
        ratio: Range of the crop's width over its height.
        hflip: Probability of mirroring.
        vflip: Probability of turning upside down.
        color_jitter: Strength of brightness, contrast and saturation jitter, as one number, three,
            or four with hue. As in timm it has no effect beside ``auto_augment``, except for AugMix
            policies and those with ``3a``.
        color_jitter_prob: Probability of the jitter; None for always.
        grayscale_prob: Probability of dropping colour.
        gaussian_blur_prob: Probability of blurring.
        auto_augment: timm's policy string, such as ``"rand-m9-mstd0.5-inc1"``.
        interpolation: ``"bilinear"``, ``"bicubic"`` or ``"random"``.
        train_crop_mode: ``"rrc"`` (random resized crop), ``"rkrc"`` or ``"rkrr"`` (resize keeping
            the ratio, then centre or random crop).
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        scale: Sequence[float] | None = None,
        ratio: Sequence[float] | None = None,
        hflip: float = 0.5,
        vflip: float = 0.0,
        color_jitter: float | Sequence[float] | None = 0.4,
        color_jitter_prob: float | None = None,
        grayscale_prob: float = 0.0,
        gaussian_blur_prob: float = 0.0,
        auto_augment: str | None = None,
        interpolation: str = "bicubic",
        train_crop_mode: str | None = None,
    ):
        self.img_size = check_image_size(img_size)
        self.transform = create_transform(
            self.img_size,
            is_training=True,
            normalize=False,
            scale=scale,
            ratio=ratio,
            hflip=hflip,
            vflip=vflip,
            color_jitter=color_jitter,
            color_jitter_prob=color_jitter_prob,
            grayscale_prob=grayscale_prob,
            gaussian_blur_prob=gaussian_blur_prob,
            auto_augment=auto_augment,
            interpolation=interpolation,
            train_crop_mode=train_crop_mode,
        )

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self.transform(image)


class _SingleDrawCrop(RandomResizedCrop):
    """torchvision's, but one draw of area and ratio is all, cut to the image where it is larger."""

    @staticmethod
    def get_params(
        img: Image.Image, scale: Sequence[float], ratio: Sequence[float]
    ) -> tuple[int, int, int, int]:
        area = img.width * img.height * float(torch.empty(1).uniform_(*scale))
        aspect = math.exp(float(torch.empty(1).uniform_(*map(math.log, ratio))))
        width = min(round(math.sqrt(area * aspect)), img.width)
        height = min(round(math.sqrt(area / aspect)), img.height)
        top = int(torch.randint(img.height - height + 1, ()))
        left = int(torch.randint(img.width - width + 1, ()))
        return top, left, height, width


@TRANSFORMS.register_module()
class ProbeTrainTransform:
    """The augmentation of linear probing as in MAE: BYOL's random resized crop, and a flip.

    The crop is of one draw, as in TensorFlow; timm's and torchvision's draw again where it does not
    fit into the image.

    Args:
        img_size: Pixels a side, or (height, width).
        scale: Range of the crop's area over the image's.
        ratio: Range of the crop's width over its height.
        hflip: Probability of mirroring.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        interpolation: str = "bicubic",
    ):
        self.img_size = check_image_size(img_size)
        self.transform = v2.Compose(
            [
                _SingleDrawCrop(
                    self.img_size,
                    tuple(scale),
                    tuple(ratio),
                    v2.InterpolationMode(interpolation),
                ),
                v2.RandomHorizontalFlip(hflip),
            ]
        )

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.transform(image)


@TRANSFORMS.register_module()
class TimmEvalTransform:
    """timm's evaluation transform: resize to ``img_size / crop_pct``, then crop the centre.

    Args:
        img_size: Pixels a side, or (height, width).
        crop_pct: Part of the resized image that is kept.
        crop_mode: ``"center"``, ``"squash"`` (ignores the aspect ratio) or ``"border"`` (pads).
        interpolation: ``"bilinear"`` or ``"bicubic"``.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        crop_pct: float = 0.875,
        crop_mode: str = "center",
        interpolation: str = "bicubic",
    ):
        self.img_size = check_image_size(img_size)
        self.transform = create_transform(
            self.img_size,
            is_training=False,
            normalize=False,
            crop_pct=crop_pct,
            crop_mode=crop_mode,
            interpolation=interpolation,
        )

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self.transform(image)


@TRANSFORMS.register_module()
class ResizeCropTransform:
    """Resizes whatever the ratio, then crops: as fine-grained and re-identification data have it.

    Args:
        img_size: Pixels a side, or (height, width), of the crop.
        resize: Size to resize to before; ``img_size`` by default.
        is_training: Whether the crop is at random, and the image padded and mirrored before;
            otherwise the crop is of the centre, and nothing else happens.
        padding: Black pixels added on each side.
        hflip: Probability of mirroring.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
    """

    def __init__(
        self,
        img_size: int | Sequence[int],
        resize: int | Sequence[int] | None = None,
        is_training: bool = False,
        padding: int = 0,
        hflip: float = 0.5,
        interpolation: str = "bicubic",
    ):
        self.img_size = check_image_size(img_size)
        size = self.img_size if resize is None else check_image_size(resize)
        if any(r < i for r, i in zip(size, self.img_size, strict=True)):
            raise ConfigError(f"resize={size} leaves no room for a crop of {self.img_size}")
        steps = [v2.Resize(size, v2.InterpolationMode(interpolation))]
        if is_training:
            steps += [v2.RandomHorizontalFlip(hflip), v2.Pad(padding), v2.RandomCrop(self.img_size)]
        else:
            steps.append(v2.CenterCrop(self.img_size))
        self.transform = v2.Compose(steps)

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.transform(image)


@TRANSFORMS.register_module()
class AlbumentationsTransform:
    """A composition of albumentations' transforms.

    Args:
        transforms: Each a dictionary of ``type``, a class of ``albumentations``, and its arguments;
            compositions such as ``OneOf`` nest theirs under ``transforms``.
    """

    def __init__(self, transforms: Sequence[dict[str, Any]]):
        import albumentations

        self.transform = albumentations.Compose([_build_albumentations(t) for t in transforms])

    def __call__(self, image: ImageLike) -> np.ndarray:
        self.transform.set_random_seed(random.getrandbits(32))
        return self.transform(image=np.asarray(image))["image"]


def _build_albumentations(cfg: dict[str, Any]) -> Any:
    import albumentations

    kwargs = dict(cfg)
    name = kwargs.pop("type", None)
    cls = getattr(albumentations, str(name), None)
    if cls is None:
        raise ConfigError(f"albumentations has no transform {name!r}: check the name")
    if "transforms" in kwargs:
        kwargs["transforms"] = [_build_albumentations(t) for t in kwargs["transforms"]]
    return cls(**kwargs)


@TRANSFORMS.register_module()
class ShortSideTrainTransform:
    """Resizes the shorter side, crops at random and mirrors: how prompts and FGVC are trained.

    Args:
        img_size: Pixels a side, or (height, width), of the crop.
        resize: Pixels of the shorter side before it.
        hflip: Probability of mirroring.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        resize: int = 256,
        hflip: float = 0.5,
        interpolation: str = "bilinear",
    ):
        self.img_size = check_image_size(img_size)
        if resize < max(self.img_size):
            raise ConfigError(f"resize={resize} leaves no room for a crop of {self.img_size}")
        self.transform = v2.Compose(
            [
                v2.Resize(resize, v2.InterpolationMode(interpolation)),
                v2.RandomCrop(self.img_size),
                v2.RandomHorizontalFlip(hflip),
            ]
        )

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.transform(image)


def to_byte_tensor(image: ImageLike) -> torch.Tensor:
    """Bytes (3, H, W) of an image.

    Raises:
        DataError: If it is none of the kinds a transform may return.
    """
    if isinstance(image, Image.Image):
        image = np.asarray(image)
    if isinstance(image, np.ndarray) and image.ndim == 3:
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    if not isinstance(image, torch.Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
        raise DataError(
            f"the pipeline ended with {_describe(image)}, not an image of bytes: leave normalising "
            "and tensor conversion to the model's data preprocessor"
        )
    return image


def _describe(image: Any) -> str:
    shape = f" of shape {tuple(image.shape)}" if hasattr(image, "shape") else ""
    return f"a {type(image).__name__}{shape} {getattr(image, 'dtype', '')}".rstrip()
