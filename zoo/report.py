"""A classification run as one self-contained HTML file: ``python -m visattn.zoo.report``."""

import argparse
import base64
import io
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import find_latest_checkpoint
from PIL import Image

from ..backbones.biformer import BiLevelRoutingAttention
from .attention import RoutingMap, attention_layers, attention_maps, draw_routing, last_of_stages
from .checkpoint import load_checkpoint
from .config import load_config
from .env import choices
from .errors import DataError

__all__ = ["Step", "write_report", "write_steps"]

BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#94a3b8"
STEPS = "steps.json"


@dataclass(frozen=True)
class Step:
    """A command that led to the run.

    Attributes:
        name: What it does, in a word or two.
        command: The command as typed.
        seconds: How long it took.
    """

    name: str
    command: str
    seconds: float


@dataclass(frozen=True)
class Sample:
    """An image and what the model made of it.

    Attributes:
        pixels: What the model saw, bytes (H, W, 3).
        label: True class.
        top: Best classes with their probabilities, the best first.
        routing: Where each routing stage looks.
    """

    pixels: np.ndarray
    label: int
    top: list[tuple[int, float]]
    routing: dict[str, RoutingMap]


def write_steps(work_dir: str | Path, steps: Sequence[Step]) -> Path:
    """Notes the steps of a run in its folder, for the report."""
    path = Path(work_dir) / STEPS
    path.write_text(json.dumps([asdict(step) for step in steps], indent=2) + "\n")
    return path


def write_report(
    config: str | Path,
    work_dir: str | Path,
    checkpoint: str | Path | None = None,
    predictions: str | Path | None = None,
    out: str | Path | None = None,
) -> Path:
    """Writes the report of a classification run.

    Args:
        config: Configuration of the run.
        work_dir: Folder of the run; its newest ``vis_data/scalars.json`` gives the curves.
        checkpoint: Weights; by default the last ones in ``work_dir``.
        predictions: What ``tools/test.py --out`` wrote; by default ``work_dir/predictions.json``.
        out: File to write; by default ``work_dir/report.html``.

    Returns:
        The file written.

    Raises:
        DataError: If there are no predictions, curves or checkpoint.
    """
    work_dir = Path(work_dir)
    predictions = Path(predictions or work_dir / "predictions.json")
    out = Path(out or work_dir / "report.html")
    checkpoint = checkpoint or find_latest_checkpoint(str(work_dir))
    if checkpoint is None:
        raise DataError(f"no checkpoint in {work_dir}: train there first, with tools/train.py")
    if not predictions.is_file():
        raise DataError(
            f"no predictions at {predictions}: make them with tools/test.py {config} {checkpoint} "
            f"--out {predictions}"
        )
    results = json.loads(predictions.read_text())
    scalars = read_scalars(work_dir)
    cfg = load_config(config)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    model = MODELS.build(cfg.model)
    load_checkpoint(model, checkpoint)
    steps_file = work_dir / STEPS
    steps = [Step(**s) for s in json.loads(steps_file.read_text())] if steps_file.is_file() else []
    right, wrong = choose_samples(results["predictions"], len(results["classes"]))
    by_path = {dataset.path(index): index for index in range(len(dataset))}
    samples, mistakes = (
        [_look(model, dataset[by_path[chosen["path"]]], chosen) for chosen in group]
        for group in (right, wrong)
    )
    page = _page(cfg, model, results, scalars, steps, samples, mistakes)
    out.write_text(page, encoding="utf-8")
    return out


def read_scalars(work_dir: str | Path) -> list[dict[str, Any]]:
    """Rows of the newest run in a folder, preceded by what it resumed from.

    Raises:
        DataError: If there are none.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted(Path(work_dir).glob("*/vis_data/scalars.json"), reverse=True):
        earlier = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        if not any("loss" in row for row in earlier):
            continue
        first = next((row["iter"] for row in rows if "loss" in row), float("inf"))
        count = sum("loss" in row and row["iter"] < first for row in earlier)
        rows = _until_training_row(earlier, count) + rows
        if next(row for row in rows if "loss" in row)["epoch"] == 1:
            break
    if not rows:
        raise DataError(f"no vis_data/scalars.json of a training under {work_dir}: train there")
    return rows


def _until_training_row(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first rows with ``count`` training rows among them, and what follows the last."""
    positions = [index for index, row in enumerate(rows) if "loss" in row] + [len(rows)]
    return rows[: positions[count]]


def choose_samples(
    predictions: list[dict[str, Any]], classes: int, num_right: int = 10, num_wrong: int = 5
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Right predictions, in turn over the classes, and the wrong ones the model was surest of."""
    right: list[dict[str, Any]] = []
    for turn in range(-(-num_right // classes)):
        for label in range(classes):
            of_class = [p for p in predictions if p["label"] == label == p["predicted"]]
            right += of_class[turn : turn + 1]
    wrong = [p for p in predictions if p["label"] != p["predicted"]]
    wrong.sort(key=lambda p: -p["score"])
    return right[:num_right], wrong[:num_wrong]


def _look(model: Any, item: dict[str, Any], prediction: dict[str, Any]) -> Sample:
    batch = {"inputs": item["inputs"][None]}
    inputs = model.data_preprocessor(batch)["inputs"]
    layers = attention_layers(model.backbone)
    routing = [name for name, m in layers.items() if isinstance(m, BiLevelRoutingAttention)]
    return Sample(
        pixels=item["inputs"].permute(1, 2, 0).numpy(),
        label=prediction["label"],
        top=[(int(index), float(score)) for index, score in prediction["top"]],
        routing=attention_maps(model.backbone, inputs, last_of_stages(routing)) if routing else {},
    )


def _data_uri(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return _data_uri(buffer.getvalue(), "image/png")


def _brightest_stroke(pixels: np.ndarray) -> tuple[float, float]:
    """y and x amid the brightest pixels nearest to the centre of what is drawn."""
    ink = pixels.mean(-1)
    ys, xs = np.nonzero(ink >= np.quantile(ink, 0.95))
    nearest = np.hypot(ys - np.median(ys), xs - np.median(xs)).argmin()
    return ys[nearest] + 0.5, xs[nearest] + 0.5


def _curve(series: dict[str, tuple[list[float], list[float], str]], unit: str = "") -> str:
    """A line chart of named (x, y, colour) series over epochs as an SVG data URI."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style = {
        "svg.hashsalt": "visattn",
        "font.size": 10,
        "axes.edgecolor": "#cbd5e1",
        "axes.labelcolor": "#475569",
        "text.color": "#475569",
        "xtick.color": "#64748b",
        "ytick.color": "#64748b",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        figure.patch.set_alpha(0)
        axis = figure.subplots()
        axis.patch.set_alpha(0)
        for name, (x, y, colour) in series.items():
            marker = {"marker": "o", "markersize": 4} if len(x) < 40 else {}
            axis.plot(
                x, y, color=colour, linewidth=1.8, label=name, solid_capstyle="round", **marker
            )
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e2e8f0", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.set_xlabel("epoch")
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
        if len(series) > 1:
            axis.legend(frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _data_uri(buffer.getvalue(), "image/svg+xml")


def _curves(scalars: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Titled charts of loss, accuracy and learning rate."""
    training = [row for row in scalars if "loss" in row]
    per_epoch = max(row["iter"] for row in training) / max(row["epoch"] for row in training)
    epochs = [row["iter"] / per_epoch for row in training]
    charts = [
        ("Training loss", _curve({"loss": (epochs, [row["loss"] for row in training], BLUE)})),
    ]
    tested = [row for row in scalars if "accuracy/top1" in row]
    if tested:
        x = [row["step"] for row in tested]
        series = {"top-1": (x, [row["accuracy/top1"] for row in tested], BLUE)}
        charts.append(("Held-out accuracy", _curve(series, " %")))
    rates = {"lr": (epochs, [row["lr"] for row in training], ORANGE)}
    charts.append(("Learning rate", _curve(rates)))
    return charts


def _page(
    cfg: Config,
    model: Any,
    results: dict[str, Any],
    scalars: list[dict[str, Any]],
    steps: Sequence[Step],
    samples: Sequence[Sample],
    mistakes: Sequence[Sample],
) -> str:
    classes = results["classes"]
    name = Path(cfg.filename).stem
    sections = [
        _headline(results, model, steps),
        _section("How it learned", _figures(_curves(scalars))),
        _section(
            "What it confuses",
            _confusion(results["confusion_matrix"], classes),
            "Rows are what was written, columns what the model read.",
        ),
        _section("What it reads right", _cards(samples, classes), "One of each class."),
    ]
    if mistakes:
        remark = "Of all mistakes, those it was surest of."
        sections.append(_section("What it gets wrong", _cards(mistakes, classes), remark))
    if any(sample.routing for sample in samples):
        remark = (
            "Bi-level routing attention: the region of a query (blue) attends to all tokens of the "
            "regions it is routed to (framed), and to no others (faded); the warmer, the more."
        )
        sections.append(
            _section("Where it looks", _routing([*mistakes, *samples][:8], classes), remark)
        )
    if steps:
        sections.append(_section("How long it took", _timeline(steps)))
    sections.append(_section("With what", _facts(cfg)))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>{_STYLE}</style></head>"
        "<body><main><header><p class=kicker>visattn &middot; run report</p>"
        f"<h1>{escape(name)}</h1><p class=remark>{escape(_summary(cfg, model))}</p></header>"
        f"{''.join(sections)}</main></body></html>\n"
    )


def _summary(cfg: Config, model: Any) -> str:
    return (
        f"{type(model.backbone).__name__}, trained for {cfg.train_cfg.max_epochs} epochs on "
        f"{cfg.train_dataloader.dataset.data_root}, tested on "
        f"{cfg.test_dataloader.dataset.data_root}"
    )


def _section(title: str, body: str, remark: str = "") -> str:
    remark = f"<p class=remark>{escape(remark)}</p>" if remark else ""
    return f"<section><h2>{escape(title)}</h2>{remark}{body}</section>"


def _headline(results: dict[str, Any], model: Any, steps: Sequence[Step]) -> str:
    predictions = results["predictions"]
    right = sum(p["predicted"] == p["label"] for p in predictions)
    top5 = sum(p["label"] in [index for index, _ in p["top"]] for p in predictions)
    tiles = [("top-5", f"{100 * top5 / len(predictions):.1f} %")]
    parameters = sum(p.numel() for p in model.backbone.parameters())
    tiles.append(("parameters", f"{parameters:,}"))
    tiles += [(f"to {step.name.lower()}", _duration(step.seconds)) for step in steps]
    if steps:
        tiles.append(("in all", _duration(sum(step.seconds for step in steps))))
    small = "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in tiles)
    return (
        f"<section class=hero><div class=big><b>{100 * right / len(predictions):.1f}"
        f"<small>%</small></b><span>top-1 accuracy: {right} of {len(predictions)} held-out images"
        f"</span></div><div class=tiles>{small}</div></section>"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _figures(charts: Iterable[tuple[str, str]]) -> str:
    figures = (
        f'<figure><figcaption>{escape(title)}</figcaption><img src="{uri}" alt="{escape(title)}">'
        "</figure>"
        for title, uri in charts
    )
    return f"<div class=charts>{''.join(figures)}</div>"


def _confusion(matrix: list[list[int]], classes: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in classes)
    rows = []
    for label, row in enumerate(matrix):
        total = max(sum(row), 1)
        cells = []
        for predicted, count in enumerate(row):
            share = count / total
            colour, strength = (
                ("37 99 235", 0.08 + 0.84 * share)
                if label == predicted
                else ("234 88 12", min(0.2 + 2 * share, 0.9))
            )
            style = f"background:rgb({colour}/{strength:.2f});" if count else ""
            style += "color:#fff" if count and strength > 0.5 else ""
            title = f"{classes[label]} read as {classes[predicted]}: {count} of {sum(row)}"
            cells.append(f'<td style="{style}" title="{escape(title)}">{count or ""}</td>')
        accuracy = 100 * row[label] / total
        bar = f"<i style='width:{accuracy:.1f}%'></i>"
        rows.append(
            f"<tr><th>{escape(classes[label])}</th>{''.join(cells)}"
            f"<td class=bar><div>{bar}</div></td><td class=share>{accuracy:.1f}&thinsp;%</td></tr>"
        )
    return (
        f"<div class=scroll><table class=confusion><thead><tr><th></th>{head}"
        "<th class=wide></th><th class=share>recall</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cards(samples: Iterable[Sample], classes: Sequence[str]) -> str:
    cards = []
    for sample in samples:
        bars = "".join(
            f"<tr class={'true' if index == sample.label else 'false'}>"
            f"<th>{escape(classes[index])}</th>"
            f"<td><i style='width:{100 * score:.1f}%'></i></td><td>{100 * score:.1f}</td></tr>"
            for index, score in sample.top[:3]
        )
        best = sample.top[0][0]
        verdict = (
            f"<b class=ok>{escape(classes[best])}</b>"
            if best == sample.label
            else f"<b class=bad>{escape(classes[best])}</b> "
            f"<span>instead of {escape(classes[sample.label])}</span>"
        )
        cards.append(
            f'<div class=card><img class=pixels src="{_png(sample.pixels)}" alt="">'
            f"<p>{verdict}</p><table>{bars}</table></div>"
        )
    return f"<div class=cards>{''.join(cards)}</div>"


def _routing(samples: Iterable[Sample], classes: Sequence[str]) -> str:
    rows = []
    for sample in samples:
        query = _brightest_stroke(sample.pixels)
        scale = max(1, 256 // min(sample.pixels.shape[:2]))
        panels = [("image", _png(sample.pixels))]
        for stage, routing in enumerate(sample.routing.values()):
            regions = routing.grid.rows * routing.grid.columns
            title = f"stage {stage + 1}: {routing.indices.shape[-1]} of {regions}"
            panels.append((title, _png(draw_routing(sample.pixels, routing, query, scale=scale))))
        figures = "".join(
            f'<figure><img class=pixels src="{uri}" alt=""><figcaption>{escape(title)}'
            "</figcaption></figure>"
            for title, uri in panels
        )
        rows.append(f"<div class=route>{figures}</div>")
    return f"<div class=routes>{''.join(rows)}</div>"


def _timeline(steps: Sequence[Step]) -> str:
    longest = max(step.seconds for step in steps)
    rows = "".join(
        f"<tr><th>{escape(step.name)}</th><td class=bar><div>"
        f"<i style='width:{max(100 * step.seconds / longest, 0.5):.1f}%'></i></div></td>"
        f"<td class=share>{_duration(step.seconds)}</td></tr>"
        f"<tr class=command><td></td><td colspan=2><code>{escape(step.command)}</code></td></tr>"
        for step in steps
    )
    return f"<table class=steps>{rows}</table>"


def _facts(cfg: Config) -> str:
    arguments = (f"{k}={v}" for k, v in cfg.model.backbone.items() if k != "model_name")
    packages = ("visattn", "torch", "timm", "onedl-mmengine")
    facts = {
        "model": f"{cfg.model.backbone.model_name} ({', '.join(arguments)})",
        "optimiser": ", ".join(f"{k} {v}" for k, v in cfg.optim_wrapper.optimizer.items()),
        "batch": str(cfg.train_dataloader.batch_size),
        "epochs": str(cfg.train_cfg.max_epochs),
        "seed": str(cfg.get("randomness", {}).get("seed")),
        "versions": ", ".join(f"{package} {version(package)}" for package in packages),
        "machine": f"Python {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} processors",
        **choices(),
    }
    items = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items()
    )
    return f"<dl>{items}</dl>"


_STYLE = """
:root{--ink:#0f172a;--soft:#64748b;--line:#e2e8f0;--blue:#2563eb;--orange:#ea580c;--green:#059669}
*{box-sizing:border-box}
body{margin:0;background:#f1f5f9;color:var(--ink);
font:15px/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue","DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:48px 24px 72px}
header .kicker{margin:0;color:var(--blue);font-weight:600;letter-spacing:.06em;font-size:12px;
text-transform:uppercase}
header .remark{max-width:none;margin-bottom:20px}
h1{margin:4px 0;font-size:32px;letter-spacing:-.02em;line-height:1.2}
h2{margin:0 0 4px;font-size:19px;letter-spacing:-.01em}
section{background:#fff;border:1px solid var(--line);border-radius:16px;padding:24px 28px;
margin-bottom:20px;box-shadow:0 1px 2px rgb(15 23 42/.04)}
.remark{margin:0 0 16px;color:var(--soft);max-width:70ch}
h2+div,h2+table,h2+dl{margin-top:16px}
.hero{display:flex;gap:40px;align-items:center;flex-wrap:wrap;color:#fff;border:0;
background:linear-gradient(120deg,#1e3a8a,#2563eb 60%,#38bdf8)}
.big b{display:block;font-size:88px;line-height:1;letter-spacing:-.04em;font-weight:700}
.big small{font-size:40px;font-weight:500;margin-left:6px}
.big span{opacity:.85}
.tiles{display:grid;grid-template-columns:repeat(3,1fr);gap:12px;flex:1;
min-width:300px}
.tiles div{background:rgb(255 255 255/.13);border-radius:12px;padding:12px 16px}
.tiles b{display:block;font-size:20px;letter-spacing:-.01em}
.tiles span{font-size:13px;opacity:.8}
figure{margin:0}
figcaption{font-size:13px;color:var(--soft)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:24px}
.charts figcaption{font-weight:600;color:var(--ink);margin-bottom:4px}
.charts img{width:100%;display:block}
.scroll{overflow-x:auto}
table{border-collapse:collapse}
.confusion{width:100%;table-layout:fixed;font-variant-numeric:tabular-nums}
.confusion th{font-weight:600;color:var(--soft);padding:6px;width:44px}
.confusion td{height:40px;text-align:center;border:2px solid #fff;border-radius:8px;
background:#f8fafc;font-weight:600;font-size:14px}
.confusion .wide{width:150px}.confusion th.share{width:76px;text-align:right}
.confusion td.bar,.confusion td.share{background:none}
td.bar{padding:0 0 0 16px}
td.bar div{background:#eff3f8;border-radius:4px;height:8px}
td.bar i{display:block;height:8px;border-radius:4px;background:var(--blue)}
td.share{text-align:right;color:var(--soft);font-variant-numeric:tabular-nums;white-space:nowrap;
padding-left:12px}
.pixels{image-rendering:pixelated;display:block;width:100%;border-radius:10px}
.cards{display:grid;grid-template-columns:repeat(5,1fr);gap:16px}
.card{border:1px solid var(--line);border-radius:14px;padding:12px}
.card p{margin:8px 0 4px;font-size:18px}
.card b.ok{color:var(--green)}.card b.bad{color:var(--orange)}
.card p span{color:var(--soft);font-size:13px}
.card table{width:100%;font-size:12px;font-variant-numeric:tabular-nums}
.card th{width:20px;text-align:left;font-weight:600;color:var(--soft)}
.card td:last-child{width:38px;text-align:right;color:var(--soft)}
.card i{display:block;height:6px;border-radius:3px;background:#cbd5e1;min-width:1px}
.card .true i{background:var(--green)}.card .false:first-child i{background:var(--orange)}
.routes{display:grid;grid-template-columns:repeat(auto-fit,minmax(460px,1fr));gap:24px 32px}
.route{display:grid;grid-auto-flow:column;grid-auto-columns:1fr;gap:10px}
.route figcaption{margin-top:4px}
.steps{width:100%}
.steps th{text-align:left;font-weight:600;white-space:nowrap;padding-right:8px;width:1%}
.steps .share{width:1%}
.steps .command td{padding:2px 0 14px 16px}
code{font:12.5px/1.5 ui-monospace,"SF Mono",Menlo,"DejaVu Sans Mono",monospace;color:#334155;
background:#f1f5f9;border-radius:6px;padding:3px 8px;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:6px 24px;margin:0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
@media(max-width:760px){.cards{grid-template-columns:repeat(2,1fr)}.big b{font-size:64px}}
@media print{body{background:#fff}section{break-inside:avoid;box-shadow:none}}
"""


def main(argv: list[str] | None = None) -> None:
    """Command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", help="configuration of the run")
    parser.add_argument("work_dir", help="folder of the run")
    parser.add_argument("--checkpoint", help="weights (default: the last ones of the run)")
    parser.add_argument("--predictions", help="default: WORK_DIR/predictions.json")
    parser.add_argument("--out", help="default: WORK_DIR/report.html")
    args = parser.parse_args(argv)
    try:
        out = write_report(**vars(args))
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"report in {out}")


if __name__ == "__main__":
    main()
