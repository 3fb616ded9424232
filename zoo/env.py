"""What is installed, what it enables and what would be chosen here: ``python -m visattn.zoo.env``.

Works on a core installation, and imports none of the optional packages but rich.
"""

import os
import pkgutil
import platform
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from typing import NamedTuple

import torch
from packaging.requirements import Requirement

from .. import kernels
from ..kernels import dispatch

__all__ = ["Part", "choices", "installed_parts"]

ENABLES = {
    "core": "every backbone and kernel, in plain torch and timm",
    "train": "tools/train.py and test.py, embedded data, reports",
    "openmm": "detection and segmentation (mmdet, mmseg)",
    "natten": "NATTEN's kernels for neighborhood attention on NVIDIA GPUs",
    "diffusion": "diffusion models and adapters",
    "export": "tools/export.py to ONNX",
    "dev": "tests and linters",
}


# Title, names of columns, rows.
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


class Part(NamedTuple):
    """An installable part of the package.

    Attributes:
        name: ``"core"``, or the name of an extra.
        enables: What it is good for.
        packages: Versions by distribution; None for what is missing or too old.
    """

    name: str
    enables: str
    packages: dict[str, str | None]

    @property
    def is_complete(self) -> bool:
        """Whether every package of it is there."""
        return None not in self.packages.values()

    @property
    def remedy(self) -> str:
        """The command that installs what is missing."""
        return (
            "pip install visattn" if self.name == "core" else f'pip install "visattn[{self.name}]"'
        )


def installed_parts() -> list[Part]:
    """Reads the parts from the package's own metadata and looks up what is installed of each."""
    packages: dict[str, dict[str, str | None]] = {name: {} for name in ENABLES}
    for requirement in map(Requirement, requires("visattn") or ()):
        for name, found in packages.items():
            if _belongs(requirement, name):
                found[requirement.name] = _installed_version(requirement)
    return [Part(name, ENABLES[name], found) for name, found in packages.items()]


def _belongs(requirement: Requirement, part: str) -> bool:
    if "extra ==" not in str(requirement.marker):
        return part == "core"
    return requirement.marker.evaluate({"extra": part})


def _installed_version(requirement: Requirement) -> str | None:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return None
    return found if requirement.specifier.contains(found, prereleases=True) else None


def choices() -> dict[str, str]:
    """What would be chosen on this machine, by topic."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return {
        "device": _describe_device(device),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
        "mixed precision": _amp_dtype(device),
        **{f"kernel {op}": implementation for op, implementation in _kernels(device).items()},
        "mmcv operators": _mmcv_operators(),
    }


def _describe_device(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"cuda ({', '.join(names)})"


def _amp_dtype(device: torch.device) -> str:
    """The dtype to autocast to: bfloat16 has the range of float32 and needs no loss scaling."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float16 with loss scaling, --amp fp16: this GPU has no bfloat16"
    return (
        "float16 with loss scaling, --amp fp16" if device.type == "mps" else "bfloat16, --amp bf16"
    )


def _kernels(device: torch.device) -> dict[str, str]:
    """The implementation that every op would take for float32 tensors on a device."""
    x = torch.empty(0, device=device)
    candidates = {
        "triton": lambda: dispatch.triton_can_run(x),
        "cpu": lambda: dispatch.cpu_can_run(x),
    }
    described = {
        "reference": "reference (plain torch)",
        "cpu": "cpu (Numba)",
        "triton": "triton, or natten where an op has it and it can run",
    }
    return {
        module.name: described[dispatch.choose(module.name, None, candidates)]
        for module in pkgutil.iter_modules(kernels.__path__)
        if module.ispkg
    }


def _mmcv_operators() -> str:
    mmcv = find_spec("mmcv")
    if mmcv is None:
        return "none: mmcv is not installed"
    if PathFinder.find_spec("mmcv._ext", mmcv.submodule_search_locations):
        return "compiled (mmcv._ext)"
    return "torchvision and torch, from visattn.zoo.openmm.mmcv_ops"


def main() -> None:
    """Prints what is installed and what would be chosen."""
    parts = installed_parts()
    system = f"{platform.system()} {platform.machine()}"
    heading = f"visattn {version('visattn')}, Python {platform.python_version()}, {system}"
    installed = [
        (
            part.name,
            ", ".join(f"{name} {found or 'MISSING'}" for name, found in part.packages.items()),
            part.enables,
        )
        for part in parts
    ]
    missing = [(part.name, part.remedy) for part in parts if not part.is_complete]
    tables = [
        ("Installed", ("part", "packages", "enables"), installed),
        ("Chosen on this machine", ("what", "choice"), list(choices().items())),
    ]
    if missing:
        tables.append(("Missing, and how to get it", ("part", "command"), missing))
    show = _show_rich if find_spec("rich") else _show_plain
    show(heading, tables)


def _show_plain(heading: str, tables: list[Table]) -> None:
    print(heading)
    for title, _, rows in tables:
        print(f"\n{title}")
        width = max(len(row[0]) for row in rows)
        for first, *rest in rows:
            print(f"  {first:{width}}  {'; '.join(rest)}")


def _show_rich(heading: str, tables: list[Table]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    console = Console()
    console.print(f"[bold]{escape(heading)}[/]", highlight=False)
    for title, columns, rows in tables:
        table = RichTable(title=title, title_justify="left", title_style="bold", box=box.ROUNDED)
        for column in columns:
            table.add_column(column, overflow="fold")
        for first, *rest in rows:
            cells = (escape(cell).replace("MISSING", "[red]missing[/]") for cell in rest)
            table.add_row(f"[cyan]{escape(first)}[/]", *cells)
        console.print(table)


if __name__ == "__main__":
    main()
