"""A classifier set up for inference and training steps on synthetic images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from ...backbones.dcal import Branches
from ...heads.dcal import DualCrossAttentionLoss
from ...kernels import use_impl
from ...kernels.dispatch import IMPLEMENTATIONS
from ..errors import UserError
from ..models import Size, build_model, input_size, wrong_size
from .counters import count_macs, count_parameters

AMP_DTYPES = {"none": None, "fp16": torch.float16, "bf16": torch.bfloat16}


class NotFiniteError(ValueError):
    """Outputs, loss or gradients that are not finite: the speed of such a model means nothing."""


@dataclass(frozen=True)
class Settings:
    """How models are run.

    Attributes:
        device: Where.
        batch_size: Images a step.
        img_size: Height and width in pixels; None for what each model is made for.
        amp: ``"none"``, ``"fp16"`` or ``"bf16"`` autocast; fp16 trains with loss scaling.
        compile: Whether models go through ``torch.compile``.
        channels_last: Whether weights and images are laid out channels-last.
        model_kwargs: Further keywords for ``timm.create_model``.
    """

    device: torch.device
    batch_size: int
    img_size: Size | None = None
    amp: str = "none"
    compile: bool = False
    channels_last: bool = False
    model_kwargs: dict[str, Any] = field(default_factory=dict)


def split_name(name: str) -> tuple[str, str | None]:
    """The model of a name such as ``"biformer_tiny@reference"``, and the implementation of ops.

    Raises:
        UserError: If there is no such implementation.
    """
    model, at, impl = name.partition("@")
    if at and impl not in IMPLEMENTATIONS:
        raise UserError(f"{name}: after @ comes one of {', '.join(IMPLEMENTATIONS)}")
    return model, impl or None


class Subject:
    """A classifier on a device, with one batch of standard-normal images and random labels.

    Attributes:
        name: Name as given, such as ``"timm/resnet50"``, or ``"biformer_tiny@reference"`` for an
            implementation of visattn's ops.
        img_size: Height and width of its images.
        params: Number of parameters.
        macs: Multiply-adds of one image.

    Raises:
        UserError: If the model cannot be built, or does not take images of this size.
    """

    def __init__(self, name: str, settings: Settings):
        self.name = name
        self.settings = settings
        bare, self._impl = split_name(name)
        model = self._build(bare)
        self.params = count_parameters(model)

        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        self._images = self._make_images(model).to(settings.device, memory_format=layout)
        model = model.to(settings.device, memory_format=layout)
        try:
            self.macs = self._count_macs(model.eval())
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(wrong_size(name, self.img_size, error)) from error
        self._raw_model = model
        self._model = self._compile(model) if settings.compile else model
        self._labels: torch.Tensor | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._scaler = torch.amp.GradScaler(
            settings.device.type, enabled=settings.amp == "fp16", init_scale=1024.0
        )

    def _build(self, name: str) -> nn.Module:
        model = build_model(name, self.settings.img_size, **self.settings.model_kwargs)
        self.img_size = self.settings.img_size or input_size(model)
        return model

    def _make_images(self, model: nn.Module) -> torch.Tensor:
        channels = model.pretrained_cfg["input_size"][0]
        return torch.randn(self.settings.batch_size, channels, *self.img_size)

    def _count_macs(self, model: nn.Module) -> int:
        return count_macs(model, self._images[:1])

    def _compile(self, model: nn.Module) -> Callable[..., Any]:
        return torch.compile(model)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Autocast, and the implementation of ops."""
        dtype = AMP_DTYPES[self.settings.amp]
        impl = use_impl(self._impl) if self._impl else nullcontext()
        with torch.autocast(self.settings.device.type, dtype, enabled=dtype is not None), impl:
            yield

    def prepare(self, bench: str) -> Callable[[], object]:
        """Sets the model up and checks that what a step computes is finite.

        Args:
            bench: ``"infer"`` or ``"train"``.

        Returns:
            The step to time.

        Raises:
            NotFiniteError: If outputs, loss or a gradient are not finite.
        """
        if bench == "infer":
            self._raw_model.eval()
            self._require_finite("outputs", self.infer())
            return self.infer
        self._raw_model.train()
        if self._optimizer is None:
            self._prepare_loss()
            self._optimizer = torch.optim.AdamW(self._raw_model.parameters(), lr=1e-5)
        self._require_finite("loss", self._backward())
        for name, parameter in self._raw_model.named_parameters():
            if parameter.grad is not None:
                self._require_finite(f"gradient of {name}", parameter.grad)
        self._optimizer.zero_grad(set_to_none=True)
        return self.train

    def _prepare_loss(self) -> None:
        with torch.no_grad(), self._running():
            output = self._raw_model(self._images[:2])
            # Some models give the logits of several branches, to train with.
            self._loss = (
                DualCrossAttentionLoss() if isinstance(output, Branches) else F.cross_entropy
            )
            classes = (output.sa if isinstance(output, Branches) else output).shape[-1]
        self._labels = torch.randint(
            classes, (self.settings.batch_size,), device=self.settings.device
        )

    def _compute_loss(self) -> torch.Tensor:
        return self._loss(self._model(self._images), self._labels)

    def check(self, bench: str) -> None:
        """Checks that a step still gives finite outputs, after any number of them.

        Raises:
            NotFiniteError: If not.
        """
        if bench == "infer":
            self._require_finite("outputs", self.infer())
        else:
            self._require_finite("loss", self.train())

    @torch.inference_mode()
    def infer(self) -> Any:
        """One forward pass without gradients; returns the outputs."""
        with self._running():
            return self._model(self._images)

    def train(self) -> torch.Tensor:
        """One step: forward, loss, backward, AdamW; returns the loss."""
        loss = self._backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def _backward(self) -> torch.Tensor:
        with self._running():
            loss = self._compute_loss()
        self._scaler.scale(loss).backward()
        return loss.detach()

    def _require_finite(self, what: str, values: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise NotFiniteError(f"the {what} of {self.name} are not finite; it was not timed")


def describe_error(error: Exception, batch_size: int) -> str:
    """One line for an error of a step; running out of memory gets a remedy."""
    message = (str(error) or type(error).__name__).strip().splitlines()[0]
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate" in message:
        return f"out of memory at batch size {batch_size}; pass a smaller --batch-size"
    return message
