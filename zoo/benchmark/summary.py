"""Benchmarks in short, as Markdown: how many times longer than ours others take."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from .kernels import FLOOR, PASSES, TITLES

OURS = "cpu"
DASH = "–"


def kernels_table(path: Path) -> str:
    """A table of a CSV file of ``tools/benchmark.py kernels``: a row an op and contestant.

    Entries are the least and the greatest ratio, over all shapes, of the median time to that of our
    fused code for processors, and that code's own range of milliseconds.

    Raises:
        UserError: If the file has no such rows, or some twice, which would mix runs.
    """
    times: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for row in read_rows(path, ("op", "case", "pass", "contestant", "p50_ms")):
        if row["p50_ms"]:
            kinds = times.setdefault(row["op"], {}).setdefault(row["contestant"], {})
            cases = kinds.setdefault(row["pass"], {})
            if row["case"] in cases:
                raise UserError(
                    f"{path}: {row['op']} at {row['case']!r} was measured more than once: "
                    "delete the rows of the older run"
                )
            cases[row["case"]] = float(row["p50_ms"])
    lines = [["Op", "Contestant", *(f"{TITLES[kind].capitalize()}" for kind in PASSES)]]
    lines.append(["---", "---", *["---:"] * len(PASSES)])
    for op, contestants in times.items():
        if OURS not in contestants:
            raise UserError(f"{path}: {op} was measured without {OURS!r}")
        ours = contestants.pop(OURS)
        shapes = {case for cases in ours.values() for case in cases}
        spans = [f"{_span(ours.get(kind, {}).values())} ms" for kind in PASSES]
        lines.append([f"`{op}`, {len(shapes)} shapes", "**ours**", *spans])
        for name in sorted(contestants, key=lambda name: name != FLOOR):
            kinds = contestants[name]
            ratios = [
                [t / ours[kind][case] for case, t in kinds.get(kind, {}).items()] for kind in PASSES
            ]
            lines.append(["", name, *(f"{_span(r)} x" if r else DASH for r in ratios)])
    return markdown(lines)


def models_table(path: Path) -> str:
    """A table of a CSV file of ``tools/benchmark.py``: a row a model, ratios to the last one.

    Raises:
        UserError: If the file has no such rows.
    """
    rows = read_rows(path, ("model", "infer_samples_per_sec", "train_samples_per_sec"))
    head = ["Model", "Inference img/s", "Training img/s", "Latency p20 / p50 / p80 ms"]
    head += ["Inference MiB", "Training MiB"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        line = [f"`{row['model']}`"]
        for bench in ("infer", "train"):
            key = f"{bench}_samples_per_sec"
            line.append(f"{float(row[key]):.1f} ({float(row[key]) / float(rows[-1][key]):.2f} x)")
        line.append(" / ".join(f"{float(row[f'infer_{p}_ms']):.0f}" for p in ("p20", "p50", "p80")))
        line += [f"{float(row[f'{bench}_peak_mib']):.0f}" for bench in ("infer", "train")]
        lines.append(line)
    return markdown(lines)


def dense_table(path: Path) -> str:
    """A table of a CSV file of ``tools/benchmark.py`` on configurations: a row a recipe, one image.

    Raises:
        UserError: If the file has no such rows.
    """
    columns = ("model", "param_count", "infer_img_size", "infer_gmacs", "infer_p50_ms")
    head = ["Recipe", "Image", "Parameters", "GMACs", "Latency p20 / p50 / p80 s", "Peak MiB"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in read_rows(path, columns):
        times = (float(row[f"infer_{p}_ms"]) / 1000 for p in ("p20", "p50", "p80"))
        lines.append(
            [
                f"`{row['model']}`",
                row["infer_img_size"].replace("x", " x "),
                f"{float(row['param_count']):.2f} M",
                f"{float(row['infer_gmacs']):.1f}",
                " / ".join(f"{time:.2f}" for time in times),
                f"{float(row['infer_peak_mib']):.0f}",
            ]
        )
    return markdown(lines)


TABLES = {"kernels": kernels_table, "models": models_table, "dense": dense_table}


def read_rows(path: Path, columns: Sequence[str]) -> list[Mapping[str, str]]:
    """Rows of a CSV file.

    Raises:
        UserError: If there is none, or it lacks a column.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or any(column not in rows[0] for column in columns):
        raise UserError(f"{path} is no result of tools/benchmark.py: it needs {', '.join(columns)}")
    return rows


def _span(values: Iterable[float]) -> str:
    values = sorted(values)
    ends = (f"{value:.2g}" if value < 100 else f"{value:.0f}" for value in (values[0], values[-1]))
    return f" {DASH} ".join(dict.fromkeys(ends))


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of lines of cells, the second of which says how they are aligned."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
