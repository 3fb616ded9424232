"""Models with all that is needed to predict: preparation, classes, and how to read outputs."""

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
import timm.data
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from torch import nn

from ..checkpoint import CheckpointError, StateDict, load_checkpoint, read_state_dict
from ..config import load_config, test_dataset
from ..devices import pick_device
from ..errors import ConfigError
from ..models import build_configured, build_model, is_config, model_name
from ..openmm.convert import has_heads, is_dense, load_dense_checkpoint, read_dataset_meta
from .results import Classification, Result, Size
from .samples import read_predictions


class Predictor(Protocol):
    """A model ready to predict.

    Attributes:
        names: Names of the classes.
        palette: Colour (red, green, blue) of each class in drawings, or None for any.
    """

    names: list[str]
    palette: list[Sequence[int]] | None

    def prepare(self, image: PIL.Image.Image) -> Any:
        """An image as what ``predict`` takes a list of."""

    def predict(self, samples: list[Any]) -> list[Any]:
        """The model's outputs, one a sample."""

    def result(self, path: str | None, size: Size, output: Any) -> Result:
        """An output in plain terms."""


def load_predictor(
    config_or_name: str | Path,
    checkpoint: str | Path | None,
    device: str | torch.device | None = None,
    topk: int = 5,
    score_threshold: float = 0.3,
) -> Predictor:
    """Builds a model and loads its weights, strictly; see ``visattn.zoo.predict``."""
    device = pick_device(device)
    if not is_config(config_or_name):
        return _named(str(config_or_name), checkpoint, device, topk)
    cfg = load_config(config_or_name)
    if cfg.model.get("type") == "ReIdentifier":
        raise ConfigError(
            f"{config_or_name} tells identities, and says nothing of single images: rank queries "
            "with tools/test.py --out lists.json --show-dir FOLDER"
        )
    if cfg.get("test_dataloader") is None:
        raise ConfigError(f"{config_or_name} has no test_dataloader, whose pipeline would be used")
    if checkpoint is None:
        raise CheckpointError(f"{config_or_name} needs a checkpoint: random weights know nothing")
    scope = cfg.get("default_scope", "visattn")
    model = build_configured(cfg)
    load_weights(model, checkpoint)
    model.to(device)
    with DefaultScope.overwrite_default_scope(scope):
        meta = _dataset_meta(cfg, checkpoint)
        if scope in ("mmdet", "mmseg"):
            return DensePredictor(model, cfg, meta, score_threshold)
        return _configured_classifier(model, cfg, meta, topk)


def _named(
    name: str, checkpoint: str | Path | None, device: torch.device, topk: int
) -> "Classifier":
    classes = None if checkpoint is None else _count_classes(name, read_state_dict(checkpoint))
    kwargs = {} if classes is None else {"num_classes": classes}
    model = build_model(name, pretrained=checkpoint is None, **kwargs).eval().to(device)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))

    def scores(samples: list[torch.Tensor]) -> torch.Tensor:
        return model(torch.stack(samples).to(device)).float().softmax(-1)

    return Classifier(transform, scores, _names(None, model.num_classes), topk)


def _count_classes(name: str, state_dict: StateDict) -> int | None:
    """The classes that weights were trained for, by the size of their last layer."""
    classifier = timm.get_pretrained_cfg(model_name(name)).classifier
    for key, value in state_dict.items():
        if re.sub(r"^(module\.)?(backbone\.)?", "", key) in ("head.bias", f"{classifier}.bias"):
            return len(value)
    return None


def image_pipeline(cfg: Any) -> Callable[[PIL.Image.Image], torch.Tensor]:
    """The test pipeline of a classifier's or re-identifier's configuration, as a function.

    It takes an image, and gives bytes (3, H, W).
    """
    from ..data.transforms import to_byte_tensor

    transforms = [TRANSFORMS.build(step) for step in _test_pipeline(cfg)]

    def prepare(image: PIL.Image.Image) -> torch.Tensor:
        for transform in transforms:
            image = transform(image)
        return to_byte_tensor(image)

    return prepare


def _configured_classifier(
    model: nn.Module, cfg: Any, meta: dict[str, Any], topk: int
) -> "Classifier":
    def scores(samples: list[torch.Tensor]) -> list[torch.Tensor]:
        outputs = model.test_step({"inputs": torch.stack(samples)})
        return [output["scores"] for output in outputs]

    names = _names(meta, model.backbone.num_classes)
    return Classifier(image_pipeline(cfg), scores, names, topk)


class Classifier:
    """A classifier ready to predict; see ``Predictor``.

    Args:
        prepare: An image to what ``scores`` takes a list of.
        scores: Those to probabilities (B, classes).
        names: Names of the classes.
        topk: How many classes are in a result.
    """

    palette = None

    def __init__(
        self,
        prepare: Callable[[PIL.Image.Image], torch.Tensor],
        scores: Callable[[list[torch.Tensor]], Sequence[torch.Tensor]],
        names: list[str],
        topk: int,
    ):
        self.prepare = prepare
        self.predict = torch.inference_mode()(scores)
        self.names = names
        self.topk = topk

    def result(self, path: str | None, size: Size, output: torch.Tensor) -> Classification:
        """Probabilities (classes,) as the best classes."""
        scores, classes = output.cpu().topk(min(self.topk, len(output)))
        names = [self.names[i] for i in classes.tolist()]
        return Classification(path, size, names, scores.numpy(), classes.numpy())


class DensePredictor:
    """A detector or segmentor ready to predict; see ``Predictor``.

    Args:
        model: Model of mmdet or mmseg, with weights, in eval mode.
        cfg: Its configuration, whose test pipeline prepares images.
        meta: ``classes`` and ``palette``, as far as known.
        score_threshold: Least score of an instance.
    """

    def __init__(self, model: nn.Module, cfg: Any, meta: dict[str, Any], score_threshold: float):
        self.model = model
        self.pipeline = Compose(_from_arrays(_test_pipeline(cfg)))
        self.names = _names(meta, _outputs_of(model))
        palette = meta.get("palette")
        fits = isinstance(palette, (list, tuple)) and len(palette) >= len(self.names)
        self.palette = list(palette) if fits else None
        self.score_threshold = score_threshold

    def prepare(self, image: PIL.Image.Image) -> dict[str, Any]:
        """An image through the test pipeline, which takes channels in reverse."""
        pixels = np.ascontiguousarray(np.asarray(image)[..., ::-1])
        return self.pipeline({"img": pixels, "img_id": 0})

    @torch.no_grad()
    def predict(self, samples: list[dict[str, Any]]) -> list[Any]:
        """Data samples with predictions."""
        return self.model.test_step(pseudo_collate(samples))

    def result(self, path: str | None, size: Size, output: Any) -> Result:
        """A data sample's predictions as arrays."""
        return read_predictions(output, self.names, path, size, self.score_threshold)


def load_weights(model: nn.Module, checkpoint: str | Path) -> None:
    """Loads weights into a configured model of any task, strictly.

    Raises:
        CheckpointError: If they do not fit, or lack the heads of a detector or segmentor.
    """
    if is_dense(model):
        if not has_heads(model, read_state_dict(checkpoint)):
            raise CheckpointError(
                f"{checkpoint} holds a backbone alone, and cannot predict as "
                f"{type(model).__name__}: give a checkpoint that has its heads"
            )
        load_dense_checkpoint(model, checkpoint)
    elif any(key.startswith("backbone.") for key in read_state_dict(checkpoint)):
        load_checkpoint(model, checkpoint)
    else:
        load_checkpoint(model.backbone, checkpoint)


def _test_pipeline(cfg: Any) -> list[dict[str, Any]]:
    """The steps of the test pipeline, without those that read annotations."""
    return [
        step
        for step in test_dataset(cfg)["pipeline"]
        if not re.search(r"Load\w*Annotations|LoadProposals|FilterAnnotations", str(step["type"]))
    ]


def _from_arrays(pipeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A pipeline that takes images where it read files."""
    return [
        {**step, "type": "LoadImageFromNDArray"} if step["type"] == "LoadImageFromFile" else step
        for step in pipeline
    ]


def _dataset_meta(cfg: Any, checkpoint: str | Path) -> dict[str, Any]:
    """Names of classes, and a palette, of the checkpoint or else of the test set."""
    dataset = test_dataset(cfg)
    with DATASETS.switch_scope_and_registry(None) as registry:
        read = getattr(registry.get(dataset["type"]), "_load_metainfo", None)
    known = dict(read(deepcopy(dataset.get("metainfo")))) if read else {}
    return {**known, **read_dataset_meta(checkpoint)}


def _outputs_of(model: nn.Module) -> int | None:
    """The number of classes of a detector or segmentor, by its head."""
    for name in ("decode_head", "bbox_head", "roi_head", "panoptic_head"):
        head = getattr(model, name, None)
        head = getattr(head, "bbox_head", head)
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        if hasattr(head, "num_classes"):
            return head.num_classes
    return None


def _names(meta: dict[str, Any] | None, count: int | None) -> list[str]:
    """Names of classes: those known if their number is right, ImageNet's, or numbers."""
    names = list((meta or {}).get("classes", ()))
    if names and (count is None or len(names) == count):
        return names
    if count == 1000 and meta is None:
        info = timm.data.ImageNetInfo()
        return [info.index_to_description(index) for index in range(count)]
    return [str(index) for index in range(count or 0)]
