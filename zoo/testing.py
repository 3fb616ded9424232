"""What testing a configuration may do beside measuring: save, draw, report, augment."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook, PrepareTTAHook
from mmengine.registry import METRICS

from .config import test_dataset
from .errors import ConfigError
from .per_class import (
    Confusion,
    Row,
    coco_precisions,
    draw_confusion,
    print_rows,
    table_of,
    write_table,
)

TASKS = {"mmdet": "detection", "mmseg": "segmentation", "visattn": "classification"}


def task_of(cfg: Config) -> str:
    """The task of a configuration: a value of ``TASKS``, or ``"reid"``."""
    if cfg.model.get("type") == "ReIdentifier":
        return "reid"
    return TASKS[cfg.get("default_scope", "visattn")]


def add_dump(cfg: Config, out: str | Path) -> None:
    """Has predictions saved while a configuration is tested.

    Args:
        cfg: Configuration, changed in place.
        out: ``.pkl`` for mmengine's of any task; ``.json`` for those of a classifier, for the
            ranked lists of re-identification, or for COCO's result files beside it,
            ``NAME.bbox.json`` and so on; a folder for the maps of a segmentor, as PNG.

    Raises:
        ConfigError: If the task has no predictions of this kind.
    """
    out, task = Path(out), task_of(cfg)
    if out.suffix == ".pkl":
        _add_evaluator(cfg, {"type": "DumpResults", "out_file_path": str(out)})
    elif out.suffix == ".json" and task == "classification":
        _add_evaluator(cfg, {"type": "DumpClassification", "out_file": str(out)})
    elif out.suffix == ".json" and task == "reid":
        _evaluator_with(cfg, "out_file", f"--out {out}")["out_file"] = str(out)
    elif out.suffix == ".json" and task == "detection":
        evaluator = _evaluator_with(cfg, "outfile_prefix", f"--out {out}")
        evaluator["outfile_prefix"] = str(out.with_suffix(""))
        out.parent.mkdir(parents=True, exist_ok=True)
    elif not out.suffix and task == "segmentation":
        _evaluator_with(cfg, "output_dir", f"--out {out}")["output_dir"] = str(out)
    else:
        kinds = {
            "classification": ".json or .pkl",
            "detection": ".json (COCO's) or .pkl",
            "reid": ".json (ranked lists) or .pkl",
            "segmentation": ".pkl, or be a folder for maps as PNG",
        }
        raise ConfigError(f"--out {out} must end with {kinds[task]}")


def _evaluators(cfg: Config) -> list[dict[str, Any]]:
    evaluators = cfg.test_evaluator
    return list(evaluators) if isinstance(evaluators, (list, tuple)) else [evaluators]


def _add_evaluator(cfg: Config, evaluator: dict[str, Any]) -> None:
    cfg.test_evaluator = [*_evaluators(cfg), evaluator]


def _evaluator_with(cfg: Config, argument: str, wish: str) -> dict[str, Any]:
    """The first evaluator that has an argument; raises what the wish for it says, if none has."""
    evaluators = _evaluators(cfg)
    with METRICS.switch_scope_and_registry(cfg.default_scope) as registry:
        for evaluator in evaluators:
            if argument in inspect.signature(registry.get(evaluator["type"])).parameters:
                cfg.test_evaluator = evaluators
                return evaluator
    types = ", ".join(str(evaluator["type"]) for evaluator in evaluators)
    raise ConfigError(f"{wish}: none of the evaluators ({types}) takes {argument}")


def use_augmentation(cfg: Config) -> PrepareTTAHook:
    """Has a configuration tested with its ``tta_pipeline`` and ``tta_model``.

    Args:
        cfg: Configuration, changed in place.

    Returns:
        A hook for its runner.

    Raises:
        ConfigError: If it has none, or they cannot merge what the model predicts.
    """
    missing = [key for key in ("tta_model", "tta_pipeline") if cfg.get(key) is None]
    if missing:
        raise ConfigError(
            f"{cfg.filename} has no {' and no '.join(missing)}, which test-time augmentation needs"
        )
    has_masks = (cfg.model.get("roi_head") or {}).get("mask_head") is not None
    if has_masks and cfg.tta_model["type"].rpartition(".")[2] == "DetTTAModel":
        raise ConfigError(
            "DetTTAModel merges boxes but not masks: set tta_model.type=InstanceTTAModel"
        )
    test_dataset(cfg)["pipeline"] = cfg.tta_pipeline
    return PrepareTTAHook({**cfg.tta_model, "_scope_": cfg.default_scope})


class DrawPredictionsHook(Hook):
    """Draws the annotations of tested images at the left, and predictions at the right.

    Args:
        folder: Where pictures go.
        score_threshold: Least score of a drawn instance.
    """

    def __init__(self, folder: str | Path, score_threshold: float = 0.3):
        self.folder = Path(folder)
        self.score_threshold = score_threshold
        self._taken: set[str] = set()

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] = ()
    ) -> None:
        """Draws a batch."""
        from .inference.drawing import draw, side_by_side
        from .inference.images import open_image
        from .inference.samples import read_predictions, read_truth
        from .inference.saving import free_name, save_image

        meta = runner.test_dataloader.dataset.metainfo
        names, palette = list(meta["classes"]), meta.get("palette")
        for sample in outputs:
            path = sample.img_path
            image = open_image(path)
            size = (image.height, image.width)
            found = read_predictions(sample, names, path, size, self.score_threshold)
            shown = [read_truth(sample, names, path, size), found]
            drawn = [draw(image, result, names, palette) for result in shown if result is not None]
            name = free_name(Path(path).stem, self._taken)
            save_image(side_by_side(drawn), self.folder / f"{name}.jpg")


def drawing_hook(cfg: Config, folder: str | Path, score_threshold: float = 0.3) -> Hook:
    """A hook that draws what is predicted while, or after, a configuration is tested.

    Args:
        cfg: Configuration; that of re-identification is changed so that it writes ranked lists.
        folder: Where pictures go.
        score_threshold: Least score of a drawn instance.

    Raises:
        ConfigError: If the task has nothing to draw.
    """
    task = task_of(cfg)
    if task == "classification":
        raise ConfigError(
            "--show-dir is of detection, segmentation and re-identification: see tools/predict.py"
        )
    if task != "reid":
        return DrawPredictionsHook(folder, score_threshold)
    from .reid.drawing import DrawRankingsHook

    evaluator = _evaluator_with(cfg, "out_file", f"--show-dir {folder}")
    if not evaluator.get("out_file"):
        evaluator["out_file"] = str(Path(folder) / "rankings.json")
    return DrawRankingsHook(folder, evaluator["out_file"])


def add_report(cfg: Config, folder: str | Path, score_threshold: float = 0.3) -> None:
    """Has what ``write_report`` needs written while a configuration is tested.

    Args:
        cfg: Configuration, changed in place.
        folder: Folder of the report.
        score_threshold: Least score of a detection that counts as one in the matrix of confusion.

    Raises:
        ConfigError: If the task has no classes.
    """
    file, task = str(Path(folder) / "confusion.json"), task_of(cfg)
    if task == "reid":
        raise ConfigError("--report is of classes, which re-identification has not: see --out")
    if task == "classification":
        _add_evaluator(cfg, {"type": "DumpClassification", "out_file": file})
    elif task == "detection":
        evaluator = {"type": "DetectionConfusion", "score_threshold": score_threshold}
        _add_evaluator(cfg, {**evaluator, "out_file": file})
        coco = _coco_evaluator(cfg)
        if coco is not None and not coco.get("outfile_prefix"):
            coco["outfile_prefix"] = str(Path(folder) / "predictions")
    else:
        ignored = (_evaluators(cfg)[0].get("ignore_index"), 255)
        evaluator = {"type": "SegmentationConfusion", "out_file": file}
        _add_evaluator(
            cfg, {**evaluator, "ignore_index": next(i for i in ignored if i is not None)}
        )
    Path(folder).mkdir(parents=True, exist_ok=True)


def _coco_evaluator(cfg: Config) -> dict[str, Any] | None:
    """The evaluator that compares with an annotation file of COCO's layout, if any."""
    for evaluator in _evaluators(cfg):
        if str(evaluator["type"]).endswith("CocoMetric") and evaluator.get("ann_file"):
            return evaluator
    return None


def write_report(cfg: Config, folder: str | Path) -> list[Row]:
    """Prints a table of the classes, and writes it and a picture of the confusion.

    Args:
        cfg: Configuration that was tested after ``add_report``.
        folder: Folder; gets ``per_class.csv`` and ``confusion.png``.

    Returns:
        The table's rows.
    """
    folder, task = Path(folder), task_of(cfg)
    confusion = Confusion.read(folder / "confusion.json")
    rows = table_of(confusion, task)
    evaluator = _coco_evaluator(cfg) if task == "detection" else None
    if evaluator is not None:
        classes = confusion.rows[: confusion.num_classes]
        for kind in ("bbox", "segm"):
            predictions = Path(f"{evaluator['outfile_prefix']}.{kind}.json")
            if predictions.is_file():
                more = coco_precisions(evaluator["ann_file"], predictions, kind, classes)
                rows = [{**row, **extra} for row, extra in zip(rows, more, strict=True)]
    name = Path(cfg.filename).stem
    print_rows(rows, name)
    write_table(rows, folder / "per_class.csv")
    draw_confusion(confusion, folder / "confusion.png", name)
    return rows
