"""Image classification with any timm model."""

from collections.abc import Sequence
from typing import Any

import timm
import timm.loss
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup
from timm.data.random_erasing import RandomErasing
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter_fn
from torch import nn
from torch.utils.data import DataLoader

from ...heads.dcal import DualCrossAttentionLoss
from ...heads.prompts import is_prompted, pool_loss
from ..checkpoint import StateDict, load_checkpoint
from ..errors import ConfigError, DataError
from .prompting import PromptHook, complete_checkpoint, complete_state_dict, put_prompts

_LOSSES_OF_ONE_OUTPUT = (
    timm.loss.SoftTargetCrossEntropy,
    timm.loss.LabelSmoothingCrossEntropy,
    timm.loss.BinaryCrossEntropy,
    timm.loss.PolyCrossEntropy,
    timm.loss.AsymmetricLossSingleLabel,
    nn.CrossEntropyLoss,
)
LOSSES = (*_LOSSES_OF_ONE_OUTPUT, DualCrossAttentionLoss)
for _loss in LOSSES:
    MODELS.register_module(module=_loss)


@MODELS.register_module()
class ImagePreprocessor(BaseDataPreprocessor):
    """Normalises a batch of bytes (B, 3, H, W) and, in training, erases rectangles of it.

    Args:
        mean: Mean of each channel, of 1.
        std: Standard deviation of each channel, of 1.
        random_erasing: Arguments of timm's ``RandomErasing``, applied after normalisation.
        channels_last: Whether the batch is handed on in channels-last memory.
    """

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        random_erasing: dict[str, Any] | None = None,
        channels_last: bool = False,
        non_blocking: bool = True,
    ):
        super().__init__(non_blocking)
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.erase = RandomErasing(**random_erasing) if random_erasing else None
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        data = self.cast_data(data)
        inputs = (data["inputs"].float() - self.mean) / self.std
        inputs = inputs.contiguous(memory_format=self.memory_format)
        if training and self.erase is not None:
            self.erase.device = inputs.device
            self.erase(inputs)
        return {**data, "inputs": inputs}


def check_images(dataset: Any, backbone: nn.Module, num_classes: int, key: str) -> None:
    """Checks classes and image size of a data set against a model.

    Args:
        dataset: Data set with ``metainfo`` and ``image_size``, if it knows them.
        backbone: timm model.
        num_classes: Outputs.
        key: Where a configuration says how many these are.

    Raises:
        DataError: If there are more classes than outputs, or images smaller than the stride.
    """
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes", ())
    if len(classes) > num_classes:
        raise DataError(
            f"the data set has {len(classes)} classes but the model {num_classes} outputs: set "
            f"{key}={len(classes)}"
        )
    check_image_size(dataset, backbone)


def check_image_size(dataset: Any, backbone: nn.Module) -> None:
    """Checks that the images of a data set are no smaller than the stride of a model.

    Raises:
        DataError: If they are.
    """
    size = getattr(dataset, "image_size", None)
    stride = max((f["reduction"] for f in getattr(backbone, "feature_info", [])), default=1)
    if size is not None and min(size) < stride:
        raise DataError(
            f"images of {size[0]}x{size[1]} are smaller than the stride {stride} of "
            f"{type(backbone).__name__}: raise img_size in the pipeline"
        )


class TimmModel(BaseModel):
    """A timm model as ``backbone``, with what it starts from and how images come to it.

    Args:
        backbone: ``model_name`` and further keywords of ``timm.create_model``.
        checkpoint: File to start from, in the authors' layout or ours or of a run with the model
            as its backbone, loaded strictly; position embeddings of Vision Transformers are
            resized.
        checkpoint_ignore: Prefixes of names that need not match, such as ``["head."]``.
        data_preprocessor: Arguments of ``ImagePreprocessor``; mean and std default to those of the
            model's pretrained configuration.
        grad_checkpointing: Whether to recompute activations in the backward pass.
        channels_last: Whether to run in channels-last memory.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        checkpoint: str | None = None,
        checkpoint_ignore: Sequence[str] = (),
        data_preprocessor: dict[str, Any] | None = None,
        grad_checkpointing: bool = False,
        channels_last: bool = False,
    ):
        model = timm.create_model(**backbone)
        if checkpoint is not None:
            load_checkpoint(model, checkpoint, ignore=checkpoint_ignore, convert=to_model)
        super().__init__(
            {
                "type": "ImagePreprocessor",
                "mean": model.pretrained_cfg["mean"],
                "std": model.pretrained_cfg["std"],
                "channels_last": channels_last,
                **(data_preprocessor or {}),
            }
        )
        self.backbone = model
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        if grad_checkpointing:
            self.backbone.set_grad_checkpointing(True)

    def init_weights(self) -> None:
        """Does nothing: timm models are initialised, or loaded, when they are built.

        mmengine's would call ``init_weights`` of the timm model again, over a loaded checkpoint.
        """


def to_model(model: nn.Module, state_dict: StateDict) -> StateDict:
    """Weights of a model, or of a run that has it as its backbone, as the model's own."""
    prefix = "backbone."
    if all(name.startswith(prefix) for name in state_dict):
        state_dict = {name.removeprefix(prefix): value for name, value in state_dict.items()}
    if hasattr(model, "convert_state_dict"):
        return model.convert_state_dict(model, state_dict)
    if isinstance(model, VisionTransformer):
        # timm's, which resizes position embeddings.
        return vit_filter_fn(state_dict, model)
    return state_dict


@MODELS.register_module()
class ImageClassifier(TimmModel):
    """A timm model with a loss.

    Args:
        backbone: ``model_name`` and further keywords of ``timm.create_model``.
        loss: Configuration of a loss of (logits, targets); by default cross entropy, with soft
            targets where ``mixup`` is on.
        mixup: Arguments of ``timm.data.Mixup`` without ``num_classes``; None for no mixing.
        drop_odd: Whether a batch of odd size, which cannot be mixed, loses its last image; else it
            is an error.
        prompts: ``type``, one of ``visattn.heads.prompts.list_prompts()``, and its keywords, to be
            put into the backbone. All else but the head is frozen, and not in checkpoints.
        pool_loss_weight: Weight of the loss of prompts that are chosen from pools.
        **kwargs: Of ``TimmModel``.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        loss: dict[str, Any] | None = None,
        mixup: dict[str, Any] | None = None,
        drop_odd: bool = False,
        prompts: dict[str, Any] | None = None,
        pool_loss_weight: float = 0.01,
        **kwargs: Any,
    ):
        super().__init__(backbone, **kwargs)
        if prompts is not None:
            put_prompts(self.backbone, prompts)
        self.pool_loss_weight = pool_loss_weight
        self.drop_odd = drop_odd
        num_classes = self.backbone.num_classes
        self.mixup = Mixup(num_classes=num_classes, **mixup) if mixup else None
        default_loss = "SoftTargetCrossEntropy" if mixup else "CrossEntropyLoss"
        # mmseg and mmdet have losses of the same names, which their scopes would find first.
        with MODELS.switch_scope_and_registry("mmengine") as registry:
            self.loss = registry.build(loss or {"type": default_loss})
        if mixup and isinstance(self.loss, timm.loss.LabelSmoothingCrossEntropy):
            raise ConfigError(
                "LabelSmoothingCrossEntropy takes class indices, but mixup makes soft targets: use "
                "loss=dict(type='SoftTargetCrossEntropy') and mixup.label_smoothing"
            )

    def training_hooks(self) -> list[Hook]:
        """Hooks that training this model needs."""
        return [PromptHook()] if is_prompted(self.backbone) else []

    @staticmethod
    def convert_state_dict(model: "ImageClassifier", state_dict: StateDict) -> StateDict:
        """A state dict with what is frozen, of one that may be without."""
        return complete_state_dict(model, state_dict)

    def complete_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts what is frozen into a checkpoint of a run that may be without, in place."""
        complete_checkpoint(self, checkpoint)

    def check_batches(self, loader: DataLoader) -> None:
        """Checks that all batches of training can be mixed.

        Raises:
            DataError: If one is of odd size, or of one image.
        """
        if self.mixup is None or isinstance(loader.batch_sampler.sampler, InfiniteSampler):
            return
        size = loader.batch_sampler.batch_size
        count = len(loader.batch_sampler.sampler)
        self._check_size(size)
        if count % size and len(loader) > count // size:
            self._check_size(count % size)

    def _check_size(self, size: int) -> None:
        if size % 2 and (size == 1 or not self.drop_odd):
            raise DataError(
                f"mixup needs batches of even size but one has size {size}: set an even "
                "train_dataloader.batch_size and train_dataloader.drop_last=True"
                + ("" if size == 1 else ", or model.drop_odd=True")
            )

    def check_dataset(self, dataset: Any) -> None:
        """Checks classes and image size of a data set against the model.

        Raises:
            DataError: If there are more classes than outputs, or images smaller than the stride.
        """
        check_images(
            dataset, self.backbone, self.backbone.num_classes, "model.backbone.num_classes"
        )

    def forward(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor | None = None,
        paths: Sequence[str] | None = None,
        mode: str = "tensor",
    ) -> torch.Tensor | dict[str, torch.Tensor] | list[dict[str, Any]]:
        """Logits (B, classes), the loss, or predictions of normalised images (B, 3, H, W).

        Args:
            inputs: Images.
            labels: Class indices (B,).
            paths: File names, passed on to the predictions.
            mode: ``"tensor"``, ``"loss"`` or ``"predict"``.
        """
        if mode == "loss":
            if self.mixup is not None:
                inputs, labels = self._mix(inputs, labels)
            losses = {"loss": self._loss(self.backbone(inputs), labels)}
            distance = pool_loss(self.backbone) if is_prompted(self.backbone) else None
            if distance is not None:
                losses["pool_loss"] = self.pool_loss_weight * distance
            return losses
        logits = self.backbone(inputs)
        if mode == "tensor":
            return logits
        is_binary = isinstance(self.loss, timm.loss.BinaryCrossEntropy)
        scores = logits.float().sigmoid() if is_binary else logits.float().softmax(-1)
        return [
            {
                "scores": score,
                "label": None if labels is None else int(labels[i]),
                "path": None if paths is None else paths[i],
            }
            for i, score in enumerate(scores)
        ]

    def _loss(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        of_one = isinstance(self.loss, _LOSSES_OF_ONE_OUTPUT)
        if of_one and not isinstance(outputs, torch.Tensor):
            raise ConfigError(
                f"{type(self.backbone).__name__} gives several outputs in training, which "
                f"{type(self.loss).__name__} does not take: set "
                "model.loss=dict(type='DualCrossAttentionLoss')"
            )
        return self.loss(outputs, labels)

    def _mix(self, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self._check_size(len(inputs))
        even = len(inputs) // 2 * 2
        return self.mixup(inputs[:even], labels[:even])
