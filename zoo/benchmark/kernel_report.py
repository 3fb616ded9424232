"""Tables and a plot of kernel benchmarks."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..errors import UserError
from .kernels import FLOOR, PASSES, TITLES, Row
from .report import print_table


def tables(rows: Sequence[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """A table an op and pass: title, names of columns, rows of texts, those of a case by speed."""
    result = []
    usual = max((row["batch_size"] for row in rows), default=0)
    for op, kind in _panels(rows):
        body = []
        for case in dict.fromkeys(row["case"] for row in rows if row["op"] == op):
            timed = sorted(_select(rows, op, kind, case), key=lambda row: row["p50_ms"])
            for i, row in enumerate(timed):
                others = "" if row["batch_size"] == usual else f" (batch {row['batch_size']})"
                cells = ["" if i else case + others, row["contestant"]]
                cells += [f"{row[f'{p}_ms']:.3f}" for p in ("p20", "p50", "p80")]
                cells += [
                    "-" if row[ratio] is None else f"{row[ratio]:.2f}"
                    for ratio in ("vs_floor", "vs_fastest_peer")
                ]
                peak = row["peak_mib"]
                cells.append("-" if peak is None else f"{peak:.1f}")
                body.append(cells)
        head = ["case", "contestant", "p20 ms", "p50 ms", "p80 ms"]
        head += ["x floor", "x fastest peer", "peak MiB"]
        result.append((f"{op}, {TITLES[kind]}", head, body))
    return result


def print_tables(rows: Sequence[Row]) -> None:
    """Prints the tables, where they were measured, and who did not take part and why."""
    if not rows:
        return
    where = rows[0]
    versions = ", ".join(f"{name} {where[name]}" for name in ("torch", "numba", "triton", "natten"))
    batch = max(row["batch_size"] for row in rows)
    print(
        f"\n{where['device_name']}, {where['threads']} threads, {where['dtype']}, batch {batch}, "
        f"{versions}; ratios are of medians, peak memory is beyond the inputs\n"
    )
    for table in tables(rows):
        print_table(*table)
    absent: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row["error"]:
            absent.setdefault((row["contestant"], row["error"]), set()).add(row["op"])
    for (contestant, error), ops in absent.items():
        print(f"{contestant} ({', '.join(sorted(ops))}): {error}")


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draws the time of each contestant at each case, a panel an op and pass.

    Raises:
        UserError: If matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UserError('the plot needs matplotlib: pip install "visattn[train]"')
    from matplotlib.figure import Figure

    panels = _panels(rows)
    cases = {op: list(dict.fromkeys(r["case"] for r in rows if r["op"] == op)) for op, _ in panels}
    heights = [1.0 + 0.4 * len(cases[op]) for op, _ in panels]
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    names = dict.fromkeys(row["contestant"] for row in rows if row["p50_ms"] is not None)
    colors = {name: f"C{i}" for i, name in enumerate(n for n in names if n != FLOOR)}
    for axis, (op, kind) in zip(axes, panels, strict=True):
        for name in names:
            shown = [r for r in _select(rows, op, kind) if r["contestant"] == name]
            places = [-cases[op].index(row["case"]) for row in shown]
            color = colors.get(name, "black")
            low, middle, high = ([row[f"{p}_ms"] for row in shown] for p in ("p20", "p50", "p80"))
            axis.hlines(places, low, high, color=color, linewidth=5, alpha=0.4)
            marker = "|" if name == FLOOR else "o"
            axis.scatter(middle, places, c=color, marker=marker, label=name, zorder=3)
        axis.set_yticks([-i for i in range(len(cases[op]))], cases[op])
        axis.set(title=f"{op}, {TITLES[kind]}", xscale="log", xlabel="ms")
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _select(rows: Sequence[Row], op: str, kind: str, case: str | None = None) -> list[Row]:
    """Timed rows of an op and pass, at a case or all."""
    return [
        row
        for row in rows
        if (row["op"], row["pass"]) == (op, kind)
        and case in (None, row["case"])
        and row["p50_ms"] is not None
    ]


def _panels(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Ops and passes that anything was timed for."""
    ops = dict.fromkeys(row["op"] for row in rows)
    return [(op, kind) for op in ops for kind in PASSES if _select(rows, op, kind)]
