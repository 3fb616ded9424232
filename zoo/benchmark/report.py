"""Writing rows of benchmarks: CSV and JSON lines, a table, a plot."""

import csv
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import UserError
from .models import BENCHES, COLUMNS, Row
from .timing import ratios

TITLES = {"infer": "Inference", "train": "Training step (forward, loss, backward, AdamW)"}


def check_appendable(path: Path, columns: Sequence[str] = COLUMNS) -> None:
    """Makes sure that rows can be appended to a CSV file, before anything is measured.

    Raises:
        UserError: If the file has other columns.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open(newline="") as file:
        header = next(csv.reader(file), [])
    if header != list(columns):
        raise UserError(f"{path} has other columns; pass another --out, or move it away")


def output_stem(out: Path) -> Path:
    """What is given as ``--out``, without the suffix of one of the files written."""
    return out.with_suffix("") if out.suffix in (".csv", ".jsonl", ".png") else out


def append_rows(rows: Sequence[Row], stem: Path, columns: Sequence[str] = COLUMNS) -> list[Path]:
    """Appends rows to ``stem.csv`` and ``stem.jsonl``, and returns these paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    table, lines = (stem.with_name(stem.name + suffix) for suffix in (".csv", ".jsonl"))
    check_appendable(table, columns)
    is_new = not table.is_file() or not table.stat().st_size
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if is_new:
            writer.writeheader()
        writer.writerows(rows)
    with lines.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return [table, lines]


def tables(rows: Sequence[Row], baseline: str | None) -> list[tuple[str, list[str], list[list]]]:
    """A table a measured bench: title, names of columns, rows of texts.

    Args:
        rows: Rows of ``benchmark_models``.
        baseline: Model that speeds are given in multiples of; None for none.
    """
    result = []
    for bench in BENCHES:
        shown = [row for row in rows if row[f"{bench}_samples_per_sec"]]
        if not shown:
            continue
        speeds = {row["model"]: row[f"{bench}_samples_per_sec"] for row in shown}
        relative = ratios(speeds, baseline) if baseline in speeds else {}
        head = ["model", "params M", "GMACs", "img/s"]
        head += [f"vs {baseline}"] if relative else []
        head += ["p20 ms", "p50 ms", "p80 ms", "peak MiB"]
        body = []
        for row in shown:
            name = row["model"]
            cells = [name, f"{row['param_count']:.2f}", f"{row['infer_gmacs']:.3f}"]
            cells.append(f"{speeds[name]:.1f}")
            cells += [f"{relative[name]:.2f} x"] if relative else []
            cells += [f"{row[f'{bench}_{p}_ms']:.1f}" for p in ("p20", "p50", "p80")]
            peak = row[f"{bench}_peak_mib"]
            cells.append("-" if peak is None else f"{peak:.1f}")
            body.append(cells)
        sizes = ", ".join(dict.fromkeys(str(row[f"{bench}_img_size"]) for row in shown))
        batch = shown[0][f"{bench}_batch_size"]
        result.append((f"{TITLES[bench]}, batch {batch}, {sizes} pixels", head, body))
    return result


def print_tables(rows: Sequence[Row], baseline: str | None) -> None:
    """Prints the tables and where they were measured, by rich if it is installed."""
    if not any(row[f"{bench}_samples_per_sec"] for row in rows for bench in BENCHES):
        return
    where = rows[0]
    print(
        f"\n{where['device_name']}, {where['threads']} threads, amp {where['amp']}, "
        f"{'compiled' if where['compile'] else 'eager'}, torch {where['torch']}, "
        f"timm {where['timm']}; speed is that of the median step, peak memory is beyond the "
        "model, its optimiser and the input\n"
    )
    for table in tables(rows, baseline):
        print_table(*table)


def print_table(title: str, head: list[str], body: list[list[str]]) -> None:
    """Prints a table whose first column is text, by rich if it is installed."""
    show = _print_rich if find_spec("rich") else _print_plain
    show(title, head, body)


def _print_plain(title: str, head: list[str], body: list[list]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    print(title)
    for cells in (head, *body):
        first, *rest = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        print("  ".join((f"{first.strip():<{widths[0]}}", *rest)))
    print()


def _print_rich(title: str, head: list[str], body: list[list]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    table = Table(title=title, title_justify="left", title_style="bold", box=box.ROUNDED)
    for index, column in enumerate(head):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    for cells in body:
        table.add_row(*cells)
    console.print(table)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draws throughput as bars and the percentiles of a step's time as ranges.

    Raises:
        UserError: If matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UserError('the plot needs matplotlib: pip install "visattn[train]"')
    from matplotlib.figure import Figure

    benches = [b for b in BENCHES if any(row[f"{b}_samples_per_sec"] for row in rows)]
    count = len(rows)
    figure = Figure(figsize=(10, len(benches) * (1.1 + 0.45 * count)), layout="constrained")
    axes = figure.subplots(len(benches), 2, squeeze=False)
    for (speed, latency), bench in zip(axes, benches, strict=True):
        shown = [row for row in rows if row[f"{bench}_samples_per_sec"]][::-1]
        names = [row["model"] for row in shown]
        colors = ["C0" if row["implementation"] == "visattn" else "0.65" for row in shown]
        bars = speed.barh(names, _column(shown, bench, "samples_per_sec"), color=colors)
        speed.bar_label(bars, fmt="%.1f", padding=3)
        speed.margins(x=0.15)
        speed.set(title=TITLES[bench], xlabel="images per second")
        p20, p50, p80 = (_column(shown, bench, f"{p}_ms") for p in ("p20", "p50", "p80"))
        latency.hlines(names, p20, p80, colors=colors, linewidth=7, alpha=0.5)
        latency.scatter(p50, names, c=colors, zorder=3)
        latency.set(xlabel="ms a step: median, and 20th to 80th percentile", yticks=[])
        latency.set_ylim(speed.get_ylim())
        latency.set_xlim(left=0)
        for axis in (speed, latency):
            axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _column(rows: Sequence[Row], bench: str, name: str) -> list[Any]:
    return [row[f"{bench}_{name}"] for row in rows]
