"""The results of the metafiles, checked and as tables: ``python -m visattn.zoo.results``.

``configs/**/metafile.yml`` follow OpenMMLab's schema (``Collections``; ``Models`` with ``Name``,
``In Collection``, ``Config``, ``Metadata``, ``Results``), with keys more. Each model has ``Model``,
its name with timm, or ``mmdet/`` and its type, and ``Weights``, a path, address or remark on where
they are to be had; where it is a backbone, ``Head``, what is on it; where it is probed,
``Parameters`` are those trained. Each result has ``Source``: ``paper``, ``log`` (of the authors,
not in the paper) or ``measured``, and may have a ``Remark``.
They are the only source of the tables between ``<!-- results:NAME -->`` and ``<!-- /results -->``
in Markdown files, NAME being a collection's. Likewise those between ``<!-- KIND:FILE -->`` and
``<!-- /results -->`` are of the rows of a CSV file: KIND is ``kernels``, ``models``, ``dense``,
``poolings``, ``agentsd`` or ``roictrl`` where ``tools/benchmark.py`` wrote it, ``probing`` where
``tools/probe.py`` did, ``seeds`` where ``tools/seeds.py`` did, and ``cards`` where
``visattn.zoo.diffusion.comparison`` did.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import yaml

from .. import backbones  # noqa: F401  registers the models
from .benchmark.agentsd import agentsd_table
from .benchmark.poolings import poolings_table
from .benchmark.roictrl import roictrl_table
from .benchmark.summary import TABLES as BENCHMARK_TABLES
from .diffusion.summary import cards_table
from .errors import UserError
from .files import replacing
from .probing.summary import probing_table
from .seeds import seeds_table

ROOT = Path(__file__).parents[1]
SOURCES = ("paper", "log", "measured")
TABLES = {
    **BENCHMARK_TABLES,
    "poolings": poolings_table,
    "agentsd": agentsd_table,
    "roictrl": roictrl_table,
    "cards": cards_table,
    "probing": probing_table,
    "seeds": seeds_table,
}

_BLOCK = re.compile(
    rf"(<!-- (?P<kind>results|{'|'.join(TABLES)}):(?P<name>[^>]+?) -->\n).*?(<!-- /results -->)",
    re.DOTALL,
)


class Result(NamedTuple):
    """One row of a metafile: a model, and one set of figures of it.

    Attributes:
        collection: Family, such as ``"BiFormer"``.
        model: Name with timm.
        config: Path of the recipe, relative to the repository.
        parameters: Number of parameters.
        macs: Multiply-adds of one image (OpenMMLab's ``FLOPs``).
        task: Such as ``"Image Classification"``.
        dataset: Such as ``"ImageNet-1k"``.
        metrics: Values by name.
        source: One of ``SOURCES``.
        weights: Where weights are to be had.
        head: What is on the model and its schedule, such as ``"Mask R-CNN 1x"``; empty for
            classifiers.
        remark: What is to be known of the figures, beside their source.
    """

    collection: str
    model: str
    config: str
    parameters: int
    macs: int | None
    task: str
    dataset: str
    metrics: dict[str, float]
    source: str
    weights: str
    head: str = ""
    remark: str = ""


def read_metafile(path: Path) -> list[Result]:
    """Reads the results of a metafile.

    Raises:
        UserError: If it is no YAML, or a model lacks a key.
    """
    try:
        content = yaml.safe_load(path.read_text())
        collections = {entry["Name"] for entry in content["Collections"]}
        results = [result for entry in content["Models"] for result in _results(entry)]
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} lacks {error} in a model or collection") from error
    for result in results:
        if result.collection not in collections:
            raise UserError(f"{path}: {result.model} is in no collection {result.collection!r}")
        if result.source not in SOURCES:
            raise UserError(
                f"{path}: Source of {result.model} must be one of {', '.join(SOURCES)}; "
                f"got {result.source!r}"
            )
    return results


def _results(entry: dict[str, Any]) -> list[Result]:
    metadata = entry["Metadata"]
    return [
        Result(
            collection=entry["In Collection"],
            model=entry["Model"],
            config=entry["Config"],
            parameters=metadata["Parameters"],
            macs=metadata.get("FLOPs"),
            task=result["Task"],
            dataset=result["Dataset"],
            metrics=dict(result["Metrics"]),
            source=result["Source"],
            weights=entry["Weights"],
            head=entry.get("Head", ""),
            remark=result.get("Remark", ""),
        )
        for result in entry["Results"]
    ]


def read_results(root: Path = ROOT) -> list[Result]:
    """Reads every metafile of a repository's configs, in the order of their paths."""
    paths = sorted((root / "configs").rglob("metafile.yml"))
    return [result for path in paths for result in read_metafile(path)]


def validate(results: Sequence[Result], root: Path = ROOT) -> list[str]:
    """What the metafiles say that is not so; empty if all is well.

    Checks that configs exist, that models are registered, and that classifiers have as many
    parameters as said.
    """
    problems = []
    for result in dict.fromkeys(r._replace(metrics=()) for r in results):
        if not (root / result.config).is_file():
            problems.append(f"{result.model}: there is no config {result.config}")
        if not (result.model.startswith("mmdet/") or timm.is_model(result.model)):
            problems.append(f"{result.model}: there is no such model")
        elif result.task == "Image Classification":
            with torch.device("meta"):
                model = timm.create_model(result.model)
            count = sum(parameter.numel() for parameter in model.parameters())
            if count != result.parameters:
                problems.append(
                    f"{result.model}: has {count} parameters, not {result.parameters} as said"
                )
    return problems


def table(results: Sequence[Result], home: str = "") -> str:
    """Results as a Markdown table; one column a metric, and one of heads where there are any.

    Args:
        results: Rows.
        home: Path to the repository from the file that the table is in, as ``"../"``.
    """
    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    heads = ["Head"] if any(result.head for result in results) else []
    right = {"Parameters", "GMACs", *metrics}
    start, end = ["Model", *heads, "Parameters", "GMACs", "Data"], ["Source", "Config", "Weights"]
    title = [*start, *metrics, *end]
    rows = [title, ["---:" if name in right else "---" for name in title]]
    for result in results:
        rows.append(
            [
                f"`{result.model}`",
                *(result.head for _ in heads),
                f"{result.parameters / 1e6:.2f} M",
                f"{result.macs / 1e9:.2f}" if result.macs else "",
                result.dataset,
                *(str(result.metrics.get(name, "")) for name in metrics),
                f"{result.source}: {result.remark}" if result.remark else result.source,
                f"[config]({home}{result.config})",
                result.weights,
            ]
        )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def render(
    text: str, results: Sequence[Result], root: Path = ROOT, folder: Path | None = None
) -> str:
    """Puts the tables of results between the markers of a text.

    Args:
        text: The text.
        results: Results of all collections.
        root: Repository, which files of the markers are relative to.
        folder: Folder of the text's file, which links are relative to; the repository by default.

    Raises:
        UserError: If a marker names no collection or benchmark, or there is no marker.
    """
    names = list(dict.fromkeys(result.collection for result in results))
    home = Path(os.path.relpath(root, folder or root)).as_posix()
    home = "" if home == "." else f"{home}/"

    def fill(match: re.Match[str]) -> str:
        if match["kind"] in TABLES:
            return f"{match[1]}{TABLES[match['kind']](root / match['name'])}{match[4]}"
        chosen = [result for result in results if result.collection == match["name"]]
        if not chosen:
            raise UserError(
                f"<!-- results:{match['name']} --> names no collection; there are: "
                f"{', '.join(names)}"
            )
        return f"{match[1]}{table(chosen, home)}{match[4]}"

    filled, count = _BLOCK.subn(fill, text)
    if not count:
        raise UserError(
            f"no table to fill: put <!-- results:{names[0] if names else 'NAME'} --> and "
            "<!-- /results --> on lines of their own"
        )
    return filled


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Checks metafiles, and fills tables from them.")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository (default: this one)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", type=Path, metavar="FILE", help="fill the tables of FILE")
    action.add_argument("--check", type=Path, metavar="FILE", help="fail unless FILE is up to date")
    args = parser.parse_args(argv)
    try:
        results = read_results(args.root)
        problems = validate(results, args.root)
        if problems:
            raise UserError("\n  ".join(["the metafiles are wrong", *problems]))
        path = args.write or args.check
        if path is None:
            print(table(results), end="")
            return 0
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        text = path.read_text()
        filled = render(text, results, args.root, path.parent)
        if args.check and filled != text:
            raise UserError(
                f"{path} is out of date: run python -m visattn.zoo.results --write {path}"
            )
        if args.write and filled != text:
            with replacing(path) as temporary:
                temporary.write_text(filled)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
