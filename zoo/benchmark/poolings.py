"""Benchmarks of poolings: one row a pooling and pass."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import AttentionPoolLatent
from torch import nn

from ...heads.poolings import create_pooling, split_name
from ..errors import UserError
from .counters import count_parameters, peak_memory
from .environment import describe_device, describe_software
from .report import print_table
from .summary import markdown, read_rows
from .timing import percentiles, time_side_by_side

__all__ = ["COLUMNS", "PASSES", "PEER", "benchmark_poolings", "poolings_table", "print_tables"]

Row = dict[str, Any]

PASSES = ("forward", "training")
PEER = "timm AttentionPoolLatent"
COLUMNS = (
    "pooling", "pass", "tokens", "dim", "batch_size", "parameters", "samples_per_sec", "p20_ms",
    "p50_ms", "p80_ms", "ratio", "peak_mib", "dtype", "device", "device_name", "threads", "torch",
    "timm", "triton", "visattn", "commit", "date",
)  # fmt: skip


def benchmark_poolings(
    names: Sequence[str],
    device: torch.device,
    tokens: int = 196,
    dim: int = 768,
    batch_size: int = 64,
    passes: Sequence[str] = PASSES,
    rounds: int = 5,
    seconds: float = 2.0,
    dtype: torch.dtype = torch.float32,
    options: dict[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Row]:
    """Times poolings of frozen tokens, and timm's ``AttentionPoolLatent``, in turns.

    A training step is the forward pass and the gradients of all parameters.

    Args:
        names: Poolings.
        device: Where they run.
        tokens: Tokens of an image.
        dim: Width of the tokens.
        batch_size: Images.
        passes: Of ``PASSES``.
        rounds: Turns of all.
        seconds: Seconds of timed steps of each, about.
        dtype: Precision.
        options: Options of single poolings by their names.
        say: Called with what is done next.

    Returns:
        Rows of ``COLUMNS``; ``ratio`` is throughput over timm's.

    Raises:
        UserError: If a pooling cannot be built for these tokens.
    """
    torch.manual_seed(0)
    modules = {}
    for name in names:
        own = dict((options or {}).get(name, {}))
        side = round(tokens**0.5)
        try:
            if split_name(name)[0] == "clip":
                own.setdefault("feat_size", (side, tokens // side))
            modules[name] = create_pooling(name, dim, **own)
            modules[name].eval()(torch.randn(1, tokens, dim))
        except ValueError as error:
            raise UserError(f"cannot measure {name!r}: {error}") from error
    modules[PEER] = AttentionPoolLatent(dim)
    modules = {name: module.to(device, dtype) for name, module in modules.items()}
    x = torch.randn(batch_size, tokens, dim, device=device, dtype=dtype)
    where = {
        **describe_device(device),
        **describe_software(("torch", "timm", "triton", "visattn")),
        "dtype": str(dtype).removeprefix("torch."),
    }
    rows = []
    for kind in passes:
        steps = {name: _step(module, x, kind) for name, module in modules.items()}
        if say:
            say(f"{kind}: {len(steps)} poolings")
        durations = time_side_by_side(
            steps, device, warmup=1, iters=rounds, min_time=seconds, rounds=rounds
        )
        base = percentiles(durations[PEER]).p50
        for name, module in modules.items():
            times = percentiles(durations[name])
            peak = peak_memory(steps[name], device)
            rows.append(
                {
                    "pooling": name,
                    "pass": kind,
                    "tokens": tokens,
                    "dim": dim,
                    "batch_size": batch_size,
                    "parameters": count_parameters(module),
                    "samples_per_sec": round(batch_size / times.p50, 2),
                    **{f"{p}_ms": round(1e3 * getattr(times, p), 4) for p in times._fields},
                    "ratio": round(base / times.p50, 3),
                    "peak_mib": None if peak is None else round(peak / 2**20, 2),
                    **where,
                }
            )
    return rows


def _step(module: nn.Module, x: torch.Tensor, kind: str) -> Callable[[], object]:
    parameters = [p for p in module.parameters() if p.requires_grad]

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return module.eval()(x)

    def training() -> object:
        out = module.train()(x)
        return torch.autograd.grad(out.float().sum(), parameters) if parameters else out

    return training if kind == "training" else forward


def print_tables(rows: Sequence[Row]) -> None:
    """Prints a table a pass, the fastest first."""
    for kind in dict.fromkeys(row["pass"] for row in rows):
        own = sorted((r for r in rows if r["pass"] == kind), key=lambda r: r["p50_ms"])
        body = [
            [
                row["pooling"],
                f"{row['parameters']:,}",
                f"{row['samples_per_sec']:,.0f}",
                f"{row['p50_ms']:.2f}",
                f"{row['ratio']:.2f} x",
                "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
            ]
            for row in own
        ]
        first = own[0]
        title = (
            f"{kind.capitalize()}, {first['batch_size']} images, {first['tokens']} tokens of "
            f"{first['dim']}, {first['threads']} threads"
        )
        head = ["Pooling", "Parameters", "Images/s", "Median ms", "Against timm", "Peak MiB"]
        print_table(title, head, body)


def poolings_table(path: Path) -> str:
    """A Markdown table of a CSV file of ``tools/benchmark.py probing``.

    Raises:
        UserError: If the file has no such rows.
    """
    rows = read_rows(path, ("pooling", "pass", "p50_ms", "ratio", "peak_mib", "parameters"))
    lines = [["Pooling", "Parameters", "Forward", "Training", "Peak memory, training"]]
    lines.append(["---", *["---:"] * 4])
    names = dict.fromkeys(row["pooling"] for row in rows)
    by_key = {(row["pooling"], row["pass"]): row for row in rows}
    for name in sorted(names, key=lambda name: float(by_key[name, "training"]["p50_ms"])):
        line = [f"`{name}`" if name != PEER else name]
        line.append(f"{int(by_key[name, 'training']['parameters']):,}")
        for kind in PASSES:
            row = by_key[name, kind]
            line.append(f"{float(row['p50_ms']):.1f} ms ({float(row['ratio']):.3g} x)")
        lines.append([*line, f"{float(by_key[name, 'training']['peak_mib']):.0f} MiB"])
    return markdown(lines)
