"""Benchmarks of AgentSD: one row for a step of a UNet as it is, and for each way of merging."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...heads.diffusion.agent_sd import Stage, Tokens, agent_sd, published_stages
from ..errors import UserError
from .counters import peak_memory
from .environment import describe_device, describe_software
from .report import print_table
from .summary import DASH, markdown, read_rows
from .timing import count_processor_time, percentiles, time_side_by_side

__all__ = ["COLUMNS", "UNETS", "agentsd_table", "benchmark_agentsd", "print_tables"]

Row = dict[str, Any]

PLAIN = "as it is"
KINDS = ("agents among merged tokens", "merged tokens")
"""What the stages of the authors' schedule do."""
COLUMNS = (
    "unet", "contestant", "ratio", "latents", "batch_size", "tokens", "merged", "agents", "p20_ms",
    "p50_ms", "p80_ms", "speed", "cpu_ms", "cpu_speed", "difference", "peak_mib", "dtype", "device",
    "device_name", "threads", "torch", "diffusers", "visattn", "commit", "date",
)  # fmt: skip

_SD = {"sample_size": 64, "cross_attention_dim": 768}
_SD2 = {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": _SD,
    "sd21": {**_SD, **_SD2, "cross_attention_dim": 1024},
    "sd15-small": {**_SD, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 1},
    "micro": {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
    },
}
"""Keywords of ``UNet2DConditionModel``: Stable Diffusion's UNets, a narrower one of half
the layers, and one to try commands."""


def benchmark_agentsd(
    unet: str,
    device: torch.device,
    ratios: Sequence[float] = (0.4,),
    batch_size: int = 2,
    latents: int | None = None,
    rounds: int = 3,
    seconds: float = 0.0,
    dtype: torch.dtype = torch.float32,
    say: Callable[[str], None] | None = None,
) -> list[Row]:
    """Times a call of a UNet with random weights, with AgentSD and without, in turns.

    The contestants of a ratio are the two stages of the authors' schedule: agents among merged
    tokens, and merged tokens alone.

    Args:
        unet: Name in ``UNETS``.
        device: Where it runs.
        ratios: Shares of tokens that are merged.
        batch_size: Latents; two are those of one image with guidance.
        latents: Side of the latents; the UNet's own by default.
        rounds: Turns of all.
        seconds: Seconds of timed calls of each, at least; one call a turn is made anyway.
        dtype: Precision.
        say: Called with what is done next.

    Returns:
        Rows of ``COLUMNS``: ``speed`` is in multiples of the plain UNet's, ``difference`` the norm
        of the change of the output over the norm of the output. ``cpu_ms`` is the processors' time,
        which others on the machine disturb little, and ``cpu_speed`` its ratio.

    Raises:
        UserError: If there is no such UNet.
    """
    if unet not in UNETS:
        raise UserError(f"there is no UNet {unet!r}; there are {', '.join(UNETS)}")
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    with device:
        model = UNet2DConditionModel(**UNETS[unet]).eval()
    if dtype != torch.float32:
        model.to(dtype)
    side = latents or model.config.sample_size
    generator = torch.Generator().manual_seed(0)
    width = model.config.cross_attention_dim
    sample = torch.randn(batch_size, model.config.in_channels, side, side, generator=generator)
    text = torch.randn(batch_size, 77, width, generator=generator)
    sample, text = sample.to(device, dtype), text.to(device, dtype)

    @torch.inference_mode()
    def step(stages: Sequence[Stage] | None) -> tuple[torch.Tensor, Tokens | None]:
        if stages is None:
            return model(sample, 999, encoder_hidden_states=text).sample, None
        with agent_sd(model, stages) as patch:
            out = model(sample, 999, encoder_hidden_states=text).sample
        return out, next(iter(patch.used.values()))

    contestants: dict[str, tuple[float, list[Stage] | None]] = {PLAIN: (0.0, None)}
    for ratio in ratios:
        for kind, stage in zip(KINDS, published_stages(ratio), strict=True):
            contestants[f"{kind}, {ratio:g}"] = (ratio, [replace(stage, begin=0.0)])
    outputs = {}
    for name, (_, stages) in contestants.items():
        if say:
            say(f"first call: {name}")
        outputs[name] = step(stages)
    plain = outputs[PLAIN][0].float()
    steps = {name: partial(step, stages) for name, (_, stages) in contestants.items()}
    counted, processors = count_processor_time(steps)
    durations = time_side_by_side(counted, device, 0, rounds, seconds, rounds)
    cpu = {name: percentiles(values).p50 for name, values in processors.items()}
    base = percentiles(durations[PLAIN]).p50
    where = {
        "dtype": str(dtype).removeprefix("torch."),
        **describe_device(device),
        **describe_software(("torch", "diffusers", "visattn")),
    }
    rows = []
    for name, (ratio, _) in contestants.items():
        times = percentiles(durations[name])
        peak = peak_memory(steps[name], device)
        out, tokens = outputs[name]
        rows.append(
            {
                "unet": unet,
                "contestant": name,
                "ratio": ratio,
                "latents": side,
                "batch_size": batch_size,
                "tokens": side**2,
                "merged": tokens and tokens.merged,
                "agents": tokens and tokens.agents,
                **{f"{p}_ms": round(1e3 * getattr(times, p), 1) for p in times._fields},
                "speed": round(base / times.p50, 3),
                "cpu_ms": round(1e3 * cpu[name], 1) if device.type == "cpu" else None,
                "cpu_speed": round(cpu[PLAIN] / cpu[name], 3) if device.type == "cpu" else None,
                "difference": round(float((out.float() - plain).norm() / plain.norm()), 4),
                "peak_mib": None if peak is None else round(peak / 2**20, 1),
                **where,
            }
        )
    return rows


def print_tables(rows: Sequence[Row]) -> None:
    """Prints a table."""
    first = rows[0]
    title = (
        f"A call of {first['unet']}, {first['batch_size']} latents of {first['latents']} x "
        f"{first['latents']}, {first['threads']} threads"
    )
    head = ["Contestant", "Tokens", "Agents", "Median ms", "Speed", "CPU ms", "CPU speed"]
    head += ["Difference", "Peak MiB"]
    body = [
        [
            row["contestant"],
            str(row["merged"] or row["tokens"]),
            str(row["agents"] or DASH),
            f"{row['p50_ms']:.0f}",
            f"{row['speed']:.2f} x",
            "" if row["cpu_ms"] is None else f"{row['cpu_ms']:.0f}",
            "" if row["cpu_ms"] is None else f"{row['cpu_speed']:.2f} x",
            f"{row['difference']:.3f}",
            "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
        ]
        for row in rows
    ]
    print_table(title, head, body)


def agentsd_table(path: Path) -> str:
    """A Markdown table of a CSV file of ``tools/benchmark.py agentsd``.

    Raises:
        UserError: If the file has no such rows.
    """
    columns = ("contestant", "merged", "agents", "p50_ms", "speed", "cpu_ms", "difference")
    rows = read_rows(path, columns)
    timer = ("cpu_ms", "cpu_speed") if rows[0]["cpu_ms"] else ("p50_ms", "speed")
    title = "Time of processors" if rows[0]["cpu_ms"] else "Time"
    lines = [["Step", "Tokens", "Agents", title, "Speed", "Change of the output", "Peak memory"]]
    lines.append(["---", *["---:"] * 6])
    for row in rows:
        duration, speed = (float(row[name]) for name in timer)
        lines.append(
            [
                row["contestant"],
                row["merged"] or row["tokens"],
                row["agents"] or DASH,
                f"{duration / 1e3:.2f} s",
                f"{speed:.2f} x",
                f"{float(row['difference']):.3f}",
                f"{float(row['peak_mib']):.0f} MiB" if row["peak_mib"] else "",
            ]
        )
    return markdown(lines)
