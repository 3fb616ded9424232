"""The figures of a comparison on embedded cards, on disk and as a table."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from ..files import replacing

__all__ = ["COLUMNS", "TITLES", "cards_table", "write_rows"]

COLUMNS = ("method", "boxes", "digit", "colour", "both", "iou", "success")
TITLES = {
    "real": "real cards",
    "plain": "plain prompt",
    "masked": "masked attention",
    "roictrl": "ROICtrl",
}


def write_rows(rows: Sequence[Mapping[str, float | str]], path: str | Path) -> None:
    """Writes what ``compare`` gives as CSV."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def cards_table(path: Path) -> str:
    """The Markdown table of a CSV file of ``write_rows``.

    Raises:
        UserError: If there is no such file.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}: python -m visattn.zoo.diffusion.comparison")
    title = ["Method", "Right digit", "Right colour", "Both", "IoU", "Both and IoU >= 0.5"]
    lines = [title, ["---", *["---:"] * (len(title) - 1)]]
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            shares = [f"{float(row[key]):.1f}" for key in COLUMNS[2:]]
            lines.append([TITLES.get(row["method"], row["method"]), *shares])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
