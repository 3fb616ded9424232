"""Probes of a network, several of them side by side in one pass over the data."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn

from ...heads.poolings import split_name
from ...heads.probing import ProbeHead, TokenReader, select_tokens
from ..checkpoint import StateDict, load_checkpoint
from ..errors import ConfigError
from ..training.classifier import ImagePreprocessor, check_images, to_model

__all__ = ["HeadSpec", "Probe", "ProbePreprocessor", "expand_heads"]


class HeadSpec(NamedTuple):
    """One head of a probe.

    Attributes:
        pooling: Name of its pooling.
        options: Options of the pooling.
        layer: Layer that it reads, as the configuration counts it.
        lr: Its learning rate before scaling by the batch; None for the optimiser's.
    """

    pooling: str
    options: dict[str, Any]
    layer: int
    lr: float | None


def expand_heads(
    heads: Mapping[str, Mapping[str, Any]], layers: Sequence[int], lrs: Sequence[float] | None
) -> dict[str, HeadSpec]:
    """Every head at every layer with every learning rate, by name.

    Args:
        heads: By name the ``pooling`` and its options, and perhaps ``layer`` and ``lr`` of its own.
        layers: Layers of heads that name none.
        lrs: Learning rates of heads that name none; None for the optimiser's.

    Returns:
        Specifications by name; ``-layer3`` and ``@0.1`` are added where there are several.
    """
    specs = {}
    for name, cfg in heads.items():
        options = dict(cfg)
        pooling = options.pop("pooling", name)
        own_layers = [options.pop("layer")] if "layer" in options else layers
        own_lrs = [options.pop("lr")] if "lr" in options else lrs or [None]
        for layer in own_layers:
            for lr in own_lrs:
                full = name
                full += f"-layer{layer}" if len(own_layers) > 1 else ""
                full += f"@{lr:g}" if len(own_lrs) > 1 else ""
                specs[full] = HeadSpec(pooling, options, layer, lr)
    return specs


class ProbePreprocessor(ImagePreprocessor):
    """Normalises images; features that were read before pass, in single precision."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        if "features" not in data:
            return super().forward(data, training)
        data = self.cast_data(data)
        return {**data, "features": {k: x.float() for k, x in data["features"].items()}}


@MODELS.register_module()
class Probe(BaseModel):
    """Heads on the tokens of a frozen timm model.

    The network is in eval mode and without gradients, whatever the heads do. Each head has a loss
    of its own; the sum trains all at once, as each alone would be.

    Args:
        backbone: ``model_name`` and further keywords of ``timm.create_model``.
        num_classes: Classes.
        heads: By name the ``pooling`` of a head (its name by default) and its options; ``layer``
            and ``lr`` too, of a head's own.
        layers: Layers to probe, see ``visattn.heads.probing.TokenReader``.
        lrs: Learning rates: every head is trained with every one of them.
        final_norm: Whether the network's last norm is applied to the tokens.
        frozen: False trains the network, too.
        checkpoint: File of the network's weights, in its authors' layout or ours, or a checkpoint
            of a classifier's training. Its classifier is left out.
        data_preprocessor: Arguments of ``ImagePreprocessor``; mean and std default to those of the
            model's pretrained configuration.

    Raises:
        ConfigError: If a head cannot be built, or the network has no such layer.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        num_classes: int,
        heads: Mapping[str, Mapping[str, Any]],
        layers: Sequence[int] = (-1,),
        lrs: Sequence[float] | None = None,
        final_norm: bool = False,
        frozen: bool = True,
        checkpoint: str | None = None,
        data_preprocessor: dict[str, Any] | None = None,
    ):
        network = timm.create_model(**{"num_classes": 0, **backbone})
        if checkpoint is not None:
            load_encoder(network, checkpoint)
        preprocessor = ProbePreprocessor(
            **{
                "mean": network.pretrained_cfg["mean"],
                "std": network.pretrained_cfg["std"],
                **(data_preprocessor or {}),
            }
        )
        super().__init__(preprocessor)
        self.num_classes = num_classes
        self.specs = expand_heads(heads, layers, lrs)
        if not self.specs:
            raise ConfigError("model.heads is empty: give at least one, such as ep=dict()")
        try:
            self.reader = TokenReader(
                network,
                tuple(spec.layer for spec in self.specs.values()),
                final_norm,
                frozen,
                tokens_to_keep(self.specs.values()),
            )
            self.layer_of = dict(zip(self.specs, self.reader.layers, strict=True))
            self.heads = nn.ModuleDict()
            for name, spec in self.specs.items():
                dim = self.reader.dims[self.layer_of[name]]
                self.heads[_key(name)] = ProbeHead(spec.pooling, dim, num_classes, **spec.options)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"cannot build the heads of model.heads: {error}") from error

    @property
    def backbone(self) -> nn.Module:
        """The network that is probed."""
        return self.reader.backbone

    def head(self, name: str) -> ProbeHead:
        """A head by its name in ``specs``."""
        return self.heads[_key(name)]

    def init_weights(self) -> None:
        """Does nothing: all is initialised, or loaded, when it is built."""

    def check_dataset(self, dataset: Any) -> None:
        """Checks classes and image size of a data set against the model; see ``check_images``."""
        check_images(dataset, self.backbone, self.num_classes, "model.num_classes")

    def forward(
        self,
        inputs: torch.Tensor | None = None,
        features: Mapping[str, torch.Tensor] | None = None,
        labels: torch.Tensor | None = None,
        paths: Sequence[str] | None = None,
        mode: str = "tensor",
    ) -> dict[str, torch.Tensor] | list[dict[str, Any]]:
        """Logits (B, classes) of each head, their losses, or predictions.

        A prediction has ``heads``, the scores of each, and ``scores``, those of the first.

        Args:
            inputs: Normalised images (B, 3, H, W).
            features: Or what ``TokenReader`` made of them before, by layer.
            labels: Class indices (B,).
            paths: File names, passed on to the predictions.
            mode: ``"tensor"``, ``"loss"`` or ``"predict"``.
        """
        read = self.reader(inputs) if features is None else features
        tokens = {int(layer): x for layer, x in read.items()}
        logits = {name: self._logits(name, tokens) for name in self.specs}
        if mode == "tensor":
            return logits
        if mode == "loss":
            return {f"loss_{name}": F.cross_entropy(x, labels) for name, x in logits.items()}
        scores = {name: x.float().softmax(-1) for name, x in logits.items()}
        first = next(iter(scores.values()))
        return [
            {
                "scores": first[i],
                "heads": {name: x[i] for name, x in scores.items()},
                "label": None if labels is None else int(labels[i]),
                "path": None if paths is None else paths[i],
            }
            for i in range(len(first))
        ]

    def tokens_for(self, name: str, tokens: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """What a head is given of the tokens that ``reader`` reads."""
        kind, has_class = self.head(name).tokens, self.reader.has_class_token
        return select_tokens(tokens[self.layer_of[name]], kind, has_class)

    def _logits(self, name: str, tokens: Mapping[int, torch.Tensor]) -> torch.Tensor:
        return self.head(name)(self.tokens_for(name, tokens))


def tokens_to_keep(specs: Sequence[HeadSpec]) -> str:
    """The least that ``TokenReader`` may keep for all heads."""
    names = [split_name(spec.pooling) for spec in specs]
    kinds = {tokens for _, tokens in names}
    if kinds == {"cls"}:
        return "cls"
    if kinds == {"patch"}:
        return "mean" if {pooling for pooling, _ in names} == {"gap"} else "patch"
    return "all"


def _key(name: str) -> str:
    """A name without dots, which modules must not have."""
    return name.replace(".", "_")


def load_encoder(network: nn.Module, checkpoint: str) -> None:
    """Loads weights of a network strictly, but for its classifier.

    Raises:
        CheckpointError: If the file cannot be read or does not fit, or holds what is not finite.
    """
    names = {name for name, _ in network.named_parameters()}
    classifier = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    classifiers = [classifier] if isinstance(classifier, str) else classifier
    ignore = [f"{name}." for name in classifiers if f"{name}.weight" not in names]

    def convert(model: nn.Module, state_dict: StateDict) -> StateDict:
        of_run = {k: v for k, v in state_dict.items() if k.startswith("backbone.")}
        return to_model(model, of_run or state_dict)

    load_checkpoint(network, checkpoint, ignore=ignore, convert=convert)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ConfigError(
                f"{checkpoint} holds values in {name} that are not finite: get another copy, or "
                "leave that part out of the network"
            )
