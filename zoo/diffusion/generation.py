"""Pictures from layouts, by several methods of instance control, with any Stable Diffusion."""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from ..errors import UserError
from ..files import replacing
from ..inference.saving import save_image
from .drawing import draw_comparison
from .layouts import Layout

__all__ = ["METHODS", "Settings", "draw", "generate", "load_pipeline", "native_size"]

METHODS = ("roictrl", "masked", "gligen", "plain")
BETAS = {
    "roictrl": "roictrl_scheduled_sampling_beta",
    "masked": "roictrl_scheduled_sampling_beta",
    "gligen": "gligen_scheduled_sampling_beta",
}


@dataclass(frozen=True)
class Settings:
    """How pictures are drawn; all that is the same for all of a run.

    Attributes:
        steps: Steps of the scheduler.
        guidance_scale: Of classifier-free guidance.
        negative_prompt: Of layouts that have none.
        width: Of layouts that have none; None is the model's.
        height: The same.
        beta: Share of the steps in which boxes are used; None is the method's.
        agent_sd: Share of tokens that AgentSD merges; None is without it.
    """

    steps: int = 50
    guidance_scale: float = 7.5
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    beta: float | None = None
    agent_sd: float | None = None


def load_pipeline(
    method: str,
    model: str | Path,
    roictrl: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Any:
    """A pipeline of a method, which takes ``instances``.

    Args:
        method: Of ``METHODS``.
        model: Folder of a pipeline of diffusers, name on the hub, or one file of weights.
        roictrl: Weights of ROICtrl, which that method needs.
        device: Where it runs.
        dtype: Precision.

    Raises:
        UserError: If there is no such method, or weights are missing or do not fit.
    """
    # diffusers imports no module because a folder names it.
    from . import pixels  # noqa: F401

    if method not in METHODS:
        raise UserError(f"there is no method {method!r}; there are {', '.join(METHODS)}")
    if (method == "roictrl") != (roictrl is not None):
        needs = "needs the weights of ROICtrl" if method == "roictrl" else "takes none of ROICtrl"
        raise UserError(f"method {method!r} {needs}: --roictrl FILE")
    cls = _pipeline_class(method)
    try:
        read = cls.from_single_file if Path(model).is_file() else cls.from_pretrained
        pipeline = read(str(model), dtype=dtype, safety_checker=None)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        cause = str(error).strip().splitlines()[0]
        raise UserError(f"cannot load a Stable Diffusion from {model}: {cause}") from error
    grounded = pipeline.unet.config.attention_type == "gated"
    if (method == "gligen") != grounded:
        kind = "GLIGEN's" if grounded else "none of GLIGEN's"
        raise UserError(f"the UNet of {model} is {kind}, and method {method!r} needs the other")
    if roictrl is not None:
        from safetensors import SafetensorError

        try:
            pipeline.load_roictrl(roictrl)
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"cannot load {roictrl}: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device, dtype)


def _pipeline_class(method: str) -> Any:
    if method == "roictrl":
        from ...heads.diffusion.pipeline import StableDiffusionROICtrlPipeline

        return StableDiffusionROICtrlPipeline
    from ...heads.diffusion import grounding

    return {
        "masked": grounding.StableDiffusionMaskedAttentionPipeline,
        "gligen": grounding.StableDiffusionGroundedPipeline,
        "plain": grounding.StableDiffusionPlainPipeline,
    }[method]


def draw(
    pipeline: Any, method: str, layouts: Sequence[Layout], seeds: Sequence[int], settings: Settings
) -> list[PIL.Image.Image]:
    """Draws layouts of one size together.

    Args:
        pipeline: Of ``load_pipeline``.
        method: Its method.
        layouts: Layouts.
        seeds: Seed of each; a picture does not depend on what else is drawn with it.
        settings: How to draw.

    Raises:
        UserError: If memory does not suffice, or the model does not take the size.
    """
    from ...heads.diffusion.agent_sd import agent_sd

    options: dict[str, Any] = {}
    if settings.beta is not None:
        if method not in BETAS:
            raise UserError(f"method {method!r} has no share of steps, beta, to set")
        options[BETAS[method]] = settings.beta
    ratio = settings.agent_sd
    faster = nullcontext() if ratio is None else agent_sd(pipeline, ratio=ratio)
    try:
        with faster:
            return pipeline(
                [layout.prompt for layout in layouts],
                instances=[layout.for_pipeline() for layout in layouts],
                negative_prompt=[layout.negative_prompt for layout in layouts],
                width=layouts[0].width,
                height=layouts[0].height,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                **options,
            ).images
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory with {len(layouts)} pictures at once: lower the batch size"
        ) from error
    except ValueError as error:
        names = ", ".join(layout.name for layout in layouts)
        raise UserError(f"cannot draw {names}: {error}") from error


def generate(
    pipeline: Any,
    method: str,
    layouts: Sequence[Layout],
    out: str | Path,
    settings: Settings,
    seeds: Sequence[int] = (),
    batch_size: int = 1,
    about: dict[str, Any] | None = None,
    pictures: bool = True,
) -> Iterator[dict[str, Any]]:
    """Draws layouts into a folder, but those that are there already.

    There are ``NAME_SEED.png`` of each layout and seed, with ``pictures`` as well
    ``side_by_side/NAME_SEED.jpg`` with the layout, and ``results.json``, a list with an entry a
    picture, which is written after each batch.

    Args:
        pipeline: Of ``load_pipeline``.
        method: Its method.
        layouts: Layouts.
        out: Folder, made if need be.
        settings: How to draw.
        seeds: Seeds of each layout; by default its own, or 0.
        batch_size: Pictures at once.
        about: More on how they are drawn, such as the model, for ``results.json``.
        pictures: Whether to draw side by side.

    Yields:
        The entry of each picture, those that were there first; ``new`` says whether it was drawn.

    Raises:
        UserError: If the folder has pictures that were drawn otherwise, or one cannot be drawn.
    """
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1; got {batch_size}")
    out = Path(out)
    how = json.loads(json.dumps({"method": method, **asdict(settings), **(about or {})}))
    layouts = [_with_defaults(layout, settings, pipeline) for layout in layouts]
    jobs = [(layout, seed) for layout in layouts for seed in seeds or [layout.seed or 0]]
    done = _done(out, how)
    waiting = []
    for layout, seed in jobs:
        entry = done.get((layout.name, seed))
        if entry is None or not (out / entry["image"]).is_file():
            waiting.append((layout, seed))
        elif entry["layout"] != _plain(layout):
            raise UserError(
                f"{out / entry['image']} is of another layout {layout.name!r}: name another --out, "
                "or delete it"
            )
        else:
            yield {**entry, "new": False}
    for batch in _batches(waiting, batch_size):
        group, numbers = zip(*batch, strict=True)
        images = draw(pipeline, method, group, numbers, settings)
        entries = []
        for (layout, seed), image in zip(batch, images, strict=True):
            name = f"{layout.name}_{seed}"
            save_image(image, out / f"{name}.png")
            if pictures:
                picture = draw_comparison(layout, {method: image})
                save_image(picture, out / "side_by_side" / f"{name}.jpg")
            entry = {"name": layout.name, "seed": seed, "image": f"{name}.png"}
            entries.append({**entry, "layout": _plain(layout), "how": how})
        done.update({(entry["name"], entry["seed"]): entry for entry in entries})
        with replacing(out / "results.json") as path:
            path.write_text(json.dumps(list(done.values()), indent=1))
        yield from ({**entry, "new": True} for entry in entries)


def native_size(pipeline: Any) -> tuple[int, int]:
    """Width and height of the pictures that a pipeline's model was made for."""
    side = pipeline.unet.config.sample_size
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    return width * pipeline.vae_scale_factor, height * pipeline.vae_scale_factor


def _with_defaults(layout: Layout, settings: Settings, pipeline: Any) -> Layout:
    width, height = native_size(pipeline)
    return replace(
        layout,
        negative_prompt=layout.negative_prompt or settings.negative_prompt,
        width=layout.width or settings.width or width,
        height=layout.height or settings.height or height,
    )


def _plain(layout: Layout) -> dict[str, Any]:
    return json.loads(json.dumps(layout.to_json()))


def _batches(jobs: Sequence[tuple[Layout, int]], size: int) -> Iterator[list[tuple[Layout, int]]]:
    """Jobs of one size of picture, so many at once."""
    groups: dict[tuple[int, int], list[tuple[Layout, int]]] = {}
    for layout, seed in jobs:
        groups.setdefault((layout.width, layout.height), []).append((layout, seed))
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _done(out: Path, how: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    path = out / "results.json"
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text())
        done = {(entry["name"], entry["seed"]): entry for entry in entries}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is none of ours ({error}): name another --out") from error
    for entry in entries:
        for key in {**how, **entry["how"]}:
            if entry["how"].get(key) != how.get(key):
                raise UserError(
                    f"{out} has pictures that were drawn with {key}={entry['how'].get(key)!r}, and "
                    f"now it is {how.get(key)!r}: name another --out"
                )
    return done
