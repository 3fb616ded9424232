"""Rows of figures of heads, and their summary over seeds."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import replacing

__all__ = ["COLUMNS", "SUMMARY", "Row", "probing_table", "spread", "summarize", "write_rows"]

COLUMNS = (
    "head", "pooling", "tokens", "layer", "lr", "seed", "parameters", "top1", "epoch", "last_top1",
    "step_ms",
)  # fmt: skip
SUMMARY = (
    "head", "pooling", "tokens", "layer", "lr", "seeds", "parameters", "top1_mean", "top1_std",
    "last_top1_mean", "last_top1_std", "step_ms",
)  # fmt: skip

Row = Mapping[str, Any]


def write_rows(rows: Sequence[Row], path: Path, columns: Sequence[str] = COLUMNS) -> None:
    """Writes rows as CSV, in the place of a file of that name."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Mean and sample standard deviation over seeds, a row of ``SUMMARY`` a head."""
    result = []
    for name in dict.fromkeys(row["head"] for row in rows):
        own = [row for row in rows if row["head"] == name]
        summary = {key: own[0][key] for key in SUMMARY if key in own[0]}
        summary["seeds"] = len(own)
        for key in ("top1", "last_top1"):
            values = [row[key] for row in own]
            summary[f"{key}_mean"] = float(np.mean(values))
            summary[f"{key}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        times = [row["step_ms"] for row in own if row["step_ms"] is not None]
        summary["step_ms"] = float(np.median(times)) if times else None
        result.append(summary)
    return result


def spread(row: Row, key: str) -> str:
    """Mean and deviation of a row of a summary, in percent."""
    mean, std = float(row[f"{key}_mean"]), float(row[f"{key}_std"])
    return f"{mean:.2f} ± {std:.2f}" if int(row["seeds"]) > 1 else f"{mean:.2f}"


def probing_table(path: Path) -> str:
    """A Markdown table of a CSV file of ``tools/probe.py``: a row a head.

    Raises:
        UserError: If the file has no such rows.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or any(column not in rows[0] for column in SUMMARY):
        raise UserError(f"{path} is no summary of tools/probe.py: it needs {', '.join(SUMMARY)}")
    lines = [
        "| Head | Pooling | Trainable parameters | Top-1 % |\n",
        "| --- | --- | ---: | ---: |\n",
    ]
    for row in rows:
        tokens = {"all": " of class token and patches", "cls": ""}.get(row["tokens"], " of patches")
        pooling = f"`{row['pooling'].removesuffix('_all')}`{tokens}"
        parameters, top1 = f"{int(row['parameters']):,}", spread(row, "last_top1")
        lines.append(f"| {row['head']} | {pooling} | {parameters} | {top1} |\n")
    return "".join(lines)
