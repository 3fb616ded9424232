"""Re-identification with any timm model."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

from ...backbones.dcal import Branches, DualCrossAttentionTransformer
from ...heads.dcal import combine_losses
from ...heads.reid import ReIDHead
from ..errors import ConfigError, DataError
from ..training.classifier import TimmModel, check_image_size
from .losses import build_loss

__all__ = ["ReIdentifier"]


@MODELS.register_module()
class ReIdentifier(TimmModel):
    """A timm model that tells identities by descriptors of images.

    It trains with an identity loss and losses of distance; for DCAL on each branch, the sums
    weighed by what they leave uncertain, where PWCA shares the head of SA. It predicts normalised
    descriptors, of DCAL those of SA and GLCA side by side.

    Args:
        backbone: ``model_name`` and further keywords of ``timm.create_model``.
        num_classes: Identities to train.
        id_loss: Configuration of the identity loss: by default ``dict(type="CrossEntropyLoss")``,
            which may have ``label_smoothing``; or ``dict(type="ArcFaceLoss")``.
        metric_losses: Configurations of losses of distance, by default
            ``[dict(type="BatchHardTripletLoss")]``; further there are ``CircleLoss`` and
            ``CenterLoss``.
        neck_feat: Whether descriptors are of features ``"before"`` or ``"after"`` the batch norm.
        use_glca: Whether descriptors have GLCA's part, too.
        flip_test: Whether descriptors are sums of an image's and its mirror image's.
        checkpoint: File to start from; see ``TimmModel``.
        checkpoint_ignore: Prefixes of names that need not match; the classifier is not used.
        data_preprocessor: Arguments of ``ImagePreprocessor``.
        grad_checkpointing: Whether to recompute activations in the backward pass.
        channels_last: Whether to run in channels-last memory.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        num_classes: int,
        id_loss: dict[str, Any] | None = None,
        metric_losses: Sequence[dict[str, Any]] | None = None,
        neck_feat: str = "before",
        use_glca: bool = True,
        flip_test: bool = False,
        checkpoint: str | None = None,
        checkpoint_ignore: Sequence[str] = ("head.", "head_dist.", "fc.", "classifier."),
        data_preprocessor: dict[str, Any] | None = None,
        grad_checkpointing: bool = False,
        channels_last: bool = False,
    ):
        if neck_feat not in ("before", "after"):
            raise ConfigError(f"neck_feat must be 'before' or 'after'; got {neck_feat!r}")
        super().__init__(
            {**backbone, "num_classes": 0},
            checkpoint,
            checkpoint_ignore,
            data_preprocessor,
            grad_checkpointing,
            channels_last,
        )
        is_dcal = isinstance(self.backbone, DualCrossAttentionTransformer)
        self.has_glca = is_dcal and len(self.backbone.glca_blocks) > 0
        width = self.backbone.embed_dim if is_dcal else self.backbone.head_hidden_size
        id_loss = id_loss or {"type": "CrossEntropyLoss"}
        if metric_losses is None:
            metric_losses = [{"type": "BatchHardTripletLoss"}]

        def make_head() -> ReIDHead:
            built = {
                _short_name(cfg["type"]): build_loss(cfg, num_classes, width)
                for cfg in metric_losses
            }
            return ReIDHead(width, num_classes, build_loss(id_loss, num_classes, width), built)

        self.num_classes = num_classes
        self.neck_feat = neck_feat
        self.use_glca = use_glca
        self.flip_test = flip_test
        self.head = make_head()
        self.glca_head = make_head() if self.has_glca else None

    def check_dataset(self, dataset: Any) -> None:
        """Checks identities and image size of a data set against the model.

        Raises:
            DataError: If there are more identities than outputs, or images are too small.
        """
        identities = (getattr(dataset, "metainfo", None) or {}).get("classes", ())
        if len(identities) > self.num_classes:
            raise DataError(
                f"the data set has {len(identities)} identities but the model {self.num_classes}: "
                f"set model.num_classes={len(identities)}"
            )
        check_image_size(dataset, self.backbone)

    def forward(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor | None = None,
        cameras: torch.Tensor | None = None,
        is_query: torch.Tensor | None = None,
        paths: Sequence[str] | None = None,
        mode: str = "tensor",
    ) -> torch.Tensor | dict[str, torch.Tensor] | list[dict[str, Any]]:
        """Descriptors (B, D or 2D), losses, or predictions of normalised images (B, 3, H, W).

        Args:
            inputs: Images.
            labels: Identities (B,).
            cameras: Cameras (B,), passed on to the predictions.
            is_query: Which images are queries (B,), passed on to the predictions.
            paths: File names, passed on to the predictions.
            mode: ``"tensor"``, ``"loss"`` or ``"predict"``.
        """
        if mode == "loss":
            return self.losses(self.features(inputs), labels)
        descriptors = self.descriptors(inputs)
        if mode == "tensor":
            return descriptors

        def item(values: Sequence[Any] | torch.Tensor | None, index: int) -> Any:
            value = None if values is None else values[index]
            return value.item() if isinstance(value, torch.Tensor) else value

        return [
            {
                "descriptor": descriptor,
                "identity": item(labels, i),
                "camera": item(cameras, i),
                "is_query": item(is_query, i),
                "path": item(paths, i),
            }
            for i, descriptor in enumerate(descriptors.float())
        ]

    def features(self, inputs: torch.Tensor) -> Branches:
        """Features (B, D) of each branch of the backbone; SA's alone where it has none."""
        features = self.backbone(inputs)
        if isinstance(features, torch.Tensor):
            parts = features.chunk(2, -1) if self.has_glca else (features,)
            return Branches(*parts)
        return features

    def losses(self, features: Branches, identities: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss, and beside it each branch's.

        With one branch the losses have their own names. With several, ``loss`` is what combines
        them, and ``sa_id``, ``glca_id`` and so on are not summed into it again.
        """
        heads = (self.head, self.glca_head, self.head)
        found = {
            name: head.losses(x, identities)
            for name, head, x in zip(Branches._fields, heads, features, strict=False)
            if x is not None
        }
        if features.loss_weights is None:
            return {f"{name}_loss": loss for name, loss in found["sa"].items()}
        totals = [sum(found[n].values()) if n in found else None for n in Branches._fields[:3]]
        shown = {
            f"{branch}_{name}": loss.detach()
            for branch, losses in found.items()
            for name, loss in losses.items()
        }
        return {"loss": combine_losses(totals, features.loss_weights), **shown}

    def descriptors(self, inputs: torch.Tensor) -> torch.Tensor:
        """Normalised descriptors (B, D), or (B, 2D) of SA and GLCA together."""
        features = self._descriptors(inputs)
        if self.flip_test:
            features = features + self._descriptors(inputs.flip(-1))
        return F.normalize(features.float())

    def _descriptors(self, inputs: torch.Tensor) -> torch.Tensor:
        sa, glca, *_ = self.features(inputs)
        parts = [(self.head, sa)]
        if glca is not None and self.use_glca:
            parts.append((self.glca_head, glca))
        return torch.cat([head(x) if self.neck_feat == "after" else x for head, x in parts], -1)


def _short_name(type_name: str) -> str:
    """``"triplet"`` of ``"BatchHardTripletLoss"``, for the log."""
    return type_name.removeprefix("BatchHard").removesuffix("Loss").lower()
