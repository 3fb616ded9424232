"""Who says what is on a picture: detectors, and judges and scorers of what is in a box."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch

from ..errors import UserError
from ..inference import Classification, Detection, Failure, Predictor, predict_each
from .layouts import Instance

__all__ = [
    "HSV_COLOURS",
    "ClipAttributes",
    "ClipScore",
    "ColourJudge",
    "Detector",
    "Judge",
    "LabelJudge",
    "Scorer",
    "ZeroShotDetector",
    "ZooDetector",
]


class Detector(Protocol):
    """Finds instances on an image."""

    def __call__(self, image: PIL.Image.Image, labels: Sequence[str]) -> Detection:
        """Instances of what the labels say; those of other labels may be among them."""


class Judge(Protocol):
    """Says of what is in boxes whether it is right."""

    def __call__(
        self, crops: Sequence[PIL.Image.Image], instances: Sequence[Instance]
    ) -> Sequence[bool]:
        """One answer a crop."""


class Scorer(Protocol):
    """Says how well what is in boxes fits captions."""

    def __call__(
        self, crops: Sequence[PIL.Image.Image], captions: Sequence[str]
    ) -> Sequence[float]:
        """One score a crop."""


class ZooDetector:
    """A detector of the zoo, with the classes that it was trained for.

    Args:
        predictor: Of ``visattn.zoo.inference.load_predictor``.
    """

    def __init__(self, predictor: Predictor):
        self.predictor = predictor

    def __call__(self, image: PIL.Image.Image, labels: Sequence[str]) -> Detection:
        """Instances on an image.

        Raises:
            UserError: If the model knows none of the labels, is no detector, or fails.
        """
        unknown = sorted(set(labels) - set(self.predictor.names))
        if unknown:
            raise UserError(
                f"the detector does not know {unknown[0]!r}, only "
                f"{', '.join(self.predictor.names[:8])}...: give layouts labels that it knows"
            )
        result = next(predict_each(self.predictor, [image]))
        if isinstance(result, Failure):
            raise UserError(result.error)
        if not isinstance(result, Detection):
            raise UserError(f"a detector is needed; this model gives {type(result).__name__}")
        return result


class ZeroShotDetector:
    """A detector of transformers that takes texts, such as Grounding DINO or OWL-ViT.

    Args:
        path: Folder of weights, or a name whose weights are in the local cache.
        threshold: Least score of a detection.
        device: Where it runs.
        prefix: Put before each label, such as ``"a photo of a "``.
    """

    def __init__(
        self,
        path: str | Path,
        threshold: float = 0.25,
        device: str | torch.device = "cpu",
        prefix: str = "",
    ):
        from transformers import pipeline

        self.prefix, self.threshold = prefix, threshold
        self.find = _local(
            lambda: pipeline(
                "zero-shot-object-detection",
                model=str(path),
                device=device,
                model_kwargs={"local_files_only": True},
            ),
            path,
        )

    def __call__(self, image: PIL.Image.Image, labels: Sequence[str]) -> Detection:
        """Instances of what the labels say."""
        labels = list(dict.fromkeys(labels))
        texts = {f"{self.prefix}{label}": label for label in labels}
        found = self.find(image, candidate_labels=list(texts), threshold=self.threshold)
        found.sort(key=lambda entry: -entry["score"])
        sides = ("xmin", "ymin", "xmax", "ymax")
        boxes = [[entry["box"][side] for side in sides] for entry in found]
        names = [texts[entry["label"]] for entry in found]
        return Detection(
            None,
            (image.height, image.width),
            names,
            np.array([entry["score"] for entry in found], np.float32),
            np.array([labels.index(name) for name in names], np.int64),
            np.array(boxes, np.float32).reshape(-1, 4),
        )


HSV_COLOURS = {
    "red": (((0, 50, 70), (9, 255, 255)), ((159, 50, 70), (180, 255, 255))),
    "brown": (((6, 43, 35), (25, 255, 255)),),
    "yellow": (((25, 50, 70), (35, 255, 255)),),
    "green": (((36, 50, 70), (89, 255, 255)),),
    "blue": (((90, 50, 70), (128, 255, 255)),),
    "black": (((0, 0, 0), (180, 255, 30)),),
    "white": (((0, 0, 221), (180, 43, 255)),),
}
"""MIG-Bench's colours: least and greatest hue (0 to 180), saturation and value (0 to 255)."""


class ColourJudge:
    """Whether enough of a box has the colour that is the instance's attribute, as in MIG-Bench.

    There a segmentor (SAM) first takes away what is not the instance; here one may be given, too.

    Args:
        share: Least share of the pixels that must have the colour.
        segment: Gives the pixels of the instance, bool (H, W), of a crop; all by default.
    """

    def __init__(
        self, share: float = 0.2, segment: Callable[[PIL.Image.Image], np.ndarray] | None = None
    ):
        self.share, self.segment = share, segment

    def __call__(
        self, crops: Sequence[PIL.Image.Image], instances: Sequence[Instance]
    ) -> list[bool]:
        """One answer a crop.

        Raises:
            UserError: If an attribute is no colour of ``HSV_COLOURS``.
        """
        return [self._judge(*pair) for pair in zip(crops, instances, strict=True)]

    def _judge(self, crop: PIL.Image.Image, instance: Instance) -> bool:
        import cv2

        if instance.attribute not in HSV_COLOURS:
            raise UserError(
                f"{instance.caption!r} has the attribute {instance.attribute!r}, which is no "
                f"colour; there are {', '.join(HSV_COLOURS)}"
            )
        hsv = cv2.cvtColor(np.asarray(crop.convert("RGB")), cv2.COLOR_RGB2HSV)
        ranges = HSV_COLOURS[instance.attribute]
        right = np.any([cv2.inRange(hsv, low, high) for low, high in ranges], axis=0)
        if self.segment is not None:
            right = right[self.segment(crop)]
        return bool(right.size) and float(right.mean()) >= self.share


class LabelJudge:
    """Whether a classifier of the zoo gives a box its label.

    Args:
        predictor: Of ``visattn.zoo.inference.load_predictor``.
        prepare: What is done to a crop before, such as making it grey.
    """

    def __init__(
        self,
        predictor: Predictor,
        prepare: Callable[[PIL.Image.Image], PIL.Image.Image] | None = None,
    ):
        self.predictor, self.prepare = predictor, prepare

    def __call__(
        self, crops: Sequence[PIL.Image.Image], instances: Sequence[Instance]
    ) -> list[bool]:
        """One answer a crop.

        Raises:
            UserError: If the classifier does not know a label.
        """
        for instance in instances:
            if instance.label not in self.predictor.names:
                raise UserError(
                    f"the classifier does not know {instance.label!r}; it knows "
                    f"{', '.join(self.predictor.names[:12])}"
                )
        images = [crop if self.prepare is None else self.prepare(crop) for crop in crops]
        results = predict_each(self.predictor, images, max(1, len(images)))
        return [
            isinstance(result, Classification) and result.labels[0] == instance.label
            for result, instance in zip(results, instances, strict=True)
        ]


class ClipScore:
    """Cosine between CLIP's features of a box and of its caption: the regional CLIP score.

    Args:
        path: Folder of weights, or a name whose weights are in the local cache.
        device: Where it runs.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cpu"):
        from transformers import CLIPModel, CLIPProcessor

        self.processor = _local(
            lambda: CLIPProcessor.from_pretrained(path, local_files_only=True), path
        )
        model = _local(lambda: CLIPModel.from_pretrained(path, local_files_only=True), path)
        self.model, self.device = model.eval().to(device), device

    @torch.inference_mode()
    def similarities(self, crops: Sequence[PIL.Image.Image], texts: Sequence[str]) -> torch.Tensor:
        """Cosines of all crops and all texts, (crops, texts)."""
        inputs = self.processor(
            text=list(texts),
            images=[crop.convert("RGB") for crop in crops],
            padding=True,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        out = self.model(**inputs)
        return (out.image_embeds @ out.text_embeds.T).cpu()

    def __call__(self, crops: Sequence[PIL.Image.Image], captions: Sequence[str]) -> list[float]:
        """One score a crop."""
        if not crops:
            return []
        return self.similarities(crops, captions).diagonal().tolist()


INSTDIFF_ATTRIBUTES = {
    "colour": ("black", "white", "red", "green", "yellow", "blue", "pink", "purple"),
    "texture": (
        "rubber", "fluffy", "metallic", "wooden", "plastic", "fabric", "leather", "glass",
    ),
}  # fmt: skip
"""The attributes that InstDiff-Bench has CLIP choose from."""


class ClipAttributes:
    """Whether of some attributes CLIP finds the instance's own most like its box.

    Args:
        clip: CLIP.
        attributes: To choose from, such as ``INSTDIFF_ATTRIBUTES["colour"]``.
        template: Text of an attribute.
    """

    def __init__(self, clip: ClipScore, attributes: Sequence[str], template: str = "a {} object"):
        self.clip, self.attributes = clip, list(attributes)
        self.texts = [template.format(attribute) for attribute in attributes]

    def __call__(
        self, crops: Sequence[PIL.Image.Image], instances: Sequence[Instance]
    ) -> list[bool]:
        """One answer a crop.

        Raises:
            UserError: If an attribute is none of those to choose from.
        """
        for instance in instances:
            if instance.attribute not in self.attributes:
                raise UserError(
                    f"{instance.caption!r} has the attribute {instance.attribute!r}, which is none "
                    f"of {', '.join(self.attributes)}"
                )
        if not crops:
            return []
        best = self.clip.similarities(crops, self.texts).argmax(-1).tolist()
        return [
            self.attributes[index] == instance.attribute
            for index, instance in zip(best, instances, strict=True)
        ]


def _local(load: Callable[[], Any], path: str | Path) -> Any:
    try:
        return load()
    except (OSError, ValueError) as error:
        cause = str(error).strip().splitlines()[0]
        raise UserError(f"cannot load {path}: {cause}; nothing is downloaded here") from error
