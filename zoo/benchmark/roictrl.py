"""Benchmark of ROICtrl beside masked attention: one row a method, pass and number of instances."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from .agentsd import UNETS
from .counters import count_parameters, peak_memory
from .environment import describe_device, describe_software
from .report import print_table
from .summary import markdown, read_rows
from .timing import count_processor_time, percentiles, time_side_by_side

__all__ = ["COLUMNS", "METHODS", "PASSES", "benchmark_roictrl", "print_tables", "roictrl_table"]

Row = dict[str, Any]

METHODS = ("prompt alone", "roictrl", "masked attention")
PASSES = ("inference", "training")
COLUMNS = (
    "method", "pass", "instances", "unet", "latents", "batch_size", "parameters", "p20_ms",
    "p50_ms", "p80_ms", "ratio", "cpu_ms", "cpu_ratio", "peak_mib", "memory_ratio", "dtype",
    "device", "device_name", "threads", "torch", "diffusers", "visattn", "commit", "date",
)  # fmt: skip


def benchmark_roictrl(
    counts: Sequence[int],
    device: torch.device,
    unet: str = "sd15-small",
    latents: int | None = None,
    batch_size: int = 1,
    passes: Sequence[str] = PASSES,
    rounds: int = 3,
    seconds: float = 2.0,
    dtype: torch.dtype = torch.float32,
    say: Callable[[str], None] | None = None,
) -> Iterator[list[Row]]:
    """Times a UNet of Stable Diffusion's shape with its prompt alone, with ROICtrl, and with masked
    attention, which attends from the whole map to the caption of every instance.

    A training step is a forward pass and the gradients of the latents and all that trains. ROICtrl
    has more to compute than the other's attention: its self-attentions and feed-forward networks.

    Args:
        counts: Numbers of instances of an image.
        device: Where it runs.
        unet: One of ``agentsd.UNETS``.
        latents: Side of the latents; the UNet's own by default.
        batch_size: Images.
        passes: Of ``PASSES``.
        rounds: Turns of all.
        seconds: Seconds of timed steps of each, about.
        dtype: Precision.
        say: Called with what is done next.

    Yields:
        Of each pass and count, rows of ``COLUMNS``; ``ratio``, ``cpu_ratio`` and ``memory_ratio``
        are durations, time of processors and peak memory over ROICtrl's.

    Raises:
        UserError: If there is no such UNet.
    """
    from diffusers import UNet2DConditionModel

    from ...heads.diffusion.masked import masked_attention
    from ...heads.diffusion.roictrl import apply, controlled

    torch.manual_seed(0)
    slots = max(30, *counts)
    if unet not in UNETS:
        raise UserError(f"no UNet {unet!r}; there are {', '.join(UNETS)}")
    config = UNETS[unet]
    latents = latents or config["sample_size"]
    dim = config["cross_attention_dim"]
    plain, controllable = (
        UNet2DConditionModel(**config).requires_grad_(False).to(device).eval() for _ in range(2)
    )
    if dtype != torch.float32:  # Of which diffusers would warn.
        plain.to(dtype), controllable.to(dtype)
    apply(controllable, max_instances=slots)
    unets = dict(zip(METHODS, (plain, controllable, plain), strict=True))
    x = torch.randn(batch_size, 4, latents, latents, device=device, dtype=dtype)
    text = torch.randn(batch_size, 77, dim, device=device, dtype=dtype)
    where = {
        **describe_device(device),
        **describe_software(("torch", "diffusers", "visattn")),
        "dtype": str(dtype).removeprefix("torch."),
    }
    for kind in passes:
        for count in counts:
            rows = []
            instances = _instances(count, batch_size, slots, dim).to(device, dtype)
            contexts = {
                "prompt alone": nullcontext,
                "roictrl": partial(controlled, controllable, instances),
                "masked attention": partial(masked_attention, plain, instances),
            }
            steps = {
                name: partial(_step, unets[name], x, text, contexts[name], kind == "training")
                for name in METHODS
            }
            if say:
                say(f"{kind}, {count} instances")
            if count == counts[0]:
                for step in steps.values():  # What is compiled then is used for all counts.
                    step()
            counted, processors = count_processor_time(steps)
            durations = time_side_by_side(
                counted, device, warmup=0, iters=rounds, min_time=seconds, rounds=rounds
            )
            cpu = {name: percentiles(values).p50 for name, values in processors.items()}
            on_cpu = device.type == "cpu"
            peaks = {name: peak_memory(step, device) for name, step in steps.items()}
            base, base_peak = percentiles(durations["roictrl"]).p50, peaks["roictrl"]
            for name in METHODS:
                times, peak = percentiles(durations[name]), peaks[name]
                rows.append(
                    {
                        "method": name,
                        "pass": kind,
                        "instances": count,
                        "latents": latents,
                        "unet": unet,
                        "batch_size": batch_size,
                        "parameters": count_parameters(unets[name]),
                        **{f"{p}_ms": round(1e3 * getattr(times, p), 2) for p in times._fields},
                        "ratio": round(times.p50 / base, 3),
                        "cpu_ms": round(1e3 * cpu[name], 2) if on_cpu else None,
                        "cpu_ratio": round(cpu[name] / cpu["roictrl"], 3) if on_cpu else None,
                        "peak_mib": None if peak is None else round(peak / 2**20, 1),
                        "memory_ratio": None if peak is None else round(peak / base_peak, 3),
                        **where,
                    }
                )
            yield rows


def _instances(count: int, batch_size: int, slots: int, dim: int) -> Any:
    """Random boxes with sides of 0.15 to 0.5, and random captions."""
    from ...heads.diffusion.roictrl import Instances

    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(batch_size):
        sides = 0.15 + 0.35 * torch.rand(count, 2, generator=generator)
        corners = torch.rand(count, 2, generator=generator) * (1 - sides)
        captions = torch.randn(count, 77, dim, generator=generator)
        parts.append((torch.cat((corners, corners + sides), 1), captions))
    return Instances.from_lists(parts, slots)


def _step(
    unet: nn.Module,
    x: torch.Tensor,
    text: torch.Tensor,
    context: Callable[[], AbstractContextManager[Any]],
    trains: bool,
) -> object:
    with context(), torch.set_grad_enabled(trains):
        x = x.detach().requires_grad_(trains)
        out = unet(x, 500, text).sample
        if not trains:
            return out
        return torch.autograd.grad(
            out.float().sum(), [x, *(p for p in unet.parameters() if p.requires_grad)],
            allow_unused=True,
        )  # fmt: skip


def print_tables(rows: Sequence[Row]) -> None:
    """Prints a table a pass."""
    for kind in dict.fromkeys(row["pass"] for row in rows):
        own = [row for row in rows if row["pass"] == kind]
        body = [
            [
                str(row["instances"]),
                row["method"],
                f"{row['p50_ms']:.0f}",
                f"{row['ratio']:.2f} x",
                *_and_ratio(row, "cpu_ms", "cpu_ratio"),
                *_and_ratio(row, "peak_mib", "memory_ratio"),
            ]
            for row in own
        ]
        first = own[0]
        title = (
            f"{kind.capitalize()}, {first['batch_size']} images of {first['latents']} x "
            f"{first['latents']} latents, {first['unet']}, {first['threads']} threads"
        )
        against = "Of ROICtrl's"
        head = ["Instances", "Method", "Median ms", against, "CPU ms", against, "Peak MiB", against]
        print_table(title, head, body)


def _and_ratio(row: Row, value: str, ratio: str) -> tuple[str, str]:
    return ("", "") if row[value] is None else (f"{row[value]:.0f}", f"{row[ratio]:.2f} x")


def roictrl_table(path: Path) -> str:
    """A Markdown table of a CSV file of ``tools/benchmark.py roictrl``: time, of processors where
    it was counted, and peak memory.

    Raises:
        UserError: If the file has no such rows.
    """
    rows = read_rows(path, ("method", "pass", "instances", "p50_ms", "ratio", "cpu_ms", "peak_mib"))
    timer = ("cpu_ms", "cpu_ratio") if rows[0]["cpu_ms"] else ("p50_ms", "ratio")
    by_key = {(row["pass"], row["instances"], row["method"]): row for row in rows}
    lines = [["Pass", "Instances", *METHODS], ["---", *["---:"] * (1 + len(METHODS))]]
    for kind in PASSES:
        for count in dict.fromkeys(row["instances"] for row in rows if row["pass"] == kind):
            own = [by_key[kind, count, method] for method in METHODS]
            cells = [
                f"{float(row[timer[0]]) / 1e3:.2f} s ({float(row[timer[1]]):.2f} x), "
                f"{float(row['peak_mib']):.0f} MiB ({float(row['memory_ratio']):.2f} x)"
                for row in own
            ]
            lines.append([kind, count, *cells])
    return markdown(lines)
