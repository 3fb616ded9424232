"""Compiles the Triton kernels ahead of time, without a GPU, and shows what became of them.

python tools/audit.py
python tools/audit.py window_attention --targets sm_80 --dtypes fp16 --out work_dirs/audit
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from visattn.tools._cli import run
from visattn.zoo.benchmark.cases import OPS, select_cases
from visattn.zoo.benchmark.kernels import DTYPES, Row
from visattn.zoo.benchmark.report import append_rows, check_appendable, output_stem, print_table
from visattn.zoo.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"{', '.join(OPS)} (default: all)")
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases named like this")
    parser.add_argument(
        "--targets",
        nargs="+",
        default=["sm_80", "sm_90", "gfx942"],
        metavar="ARCH",
        help="sm_80, sm_86, sm_89, sm_90, gfx942 (default: sm_80 sm_90 gfx942)",
    )
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--batch-size", type=int, default=64, help="images (default: 64)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="append rows to FILE.csv and FILE.jsonl"
    )
    return parser


def audit(argv: Sequence[str] | None) -> None:
    """Audits kernels; raises if one spills, multiplies without tensor cores, or does not fit."""
    args = parser().parse_args(argv)
    if find_spec("triton") is None:
        raise UserError("there is nothing to audit without triton: pip install triton")
    from visattn.zoo.benchmark import audit as auditing

    if args.out:
        stem = output_stem(args.out)
        check_appendable(stem.with_name(stem.name + ".csv"), auditing.COLUMNS)
    rows = auditing.audit(
        select_cases(args.ops, args.case),
        args.targets,
        args.dtypes,
        args.batch_size,
        say=lambda message: print(message, file=sys.stderr),
    )
    for title, head, body in tables(rows):
        print_table(title, head, body)
    if args.out:
        written = append_rows(rows, stem, auditing.COLUMNS)
        print(f"written to {', '.join(map(str, written))}")
    bad = [
        f"{row['kernel']}, {row['target']}, {row['dtype']}, {row['case']}: {row['error']}"
        for row in rows
        if row["error"]
    ]
    if bad:
        raise UserError("\n  ".join(["not all kernels are as they should be", *bad]))
    print(f"{len(rows)} compiled kernels: no spills, tensor cores in every product of matrices")


def tables(rows: Sequence[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """A table an op and target: title, names of columns, rows of texts."""
    head = ["kernel", "dtype", "first case", "cases", "warps", "regs", "spilled", "shared"]
    head += ["occupancy", "tensor", "async", "moved MiB", "x least"]
    bodies: dict[str, list[list[str]]] = {}
    for row in rows:
        kernel = row["kernel"].removeprefix(row["op"] + "_").replace("_kernel", "")
        cells = [kernel.replace("_", " "), *(str(row[name]) for name in ("dtype", "case", "cases"))]
        if row["registers"] is None:
            cells += ["-"] * (len(head) - len(cells))
        else:
            names = "num_warps", "registers", "spilled_bytes", "shared_bytes"
            cells += [str(row[name]) for name in names]
            cells.append(f"{row['occupancy']:.0%}")
            cells.append(str(row["tensor_core_instructions"]) if row["matrix"] else "-")
            cells.append(str(row["async_copies"]))
            least = "" if row["moved_exactly"] else "≥ "
            cells.append(f"{least}{row['mib_moved']:.1f}")
            cells.append(f"{least}{row['mib_moved'] / row['mib_compulsory']:.2f}")
        bodies.setdefault(f"{row['op']}, {row['target']}", []).append(cells)
    return [(title, head, body) for title, body in bodies.items()]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the audit."""
    return run(audit, argv)


if __name__ == "__main__":
    sys.exit(main())
