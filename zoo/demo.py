"""The whole path on real input in minutes: ``python -m visattn.zoo.demo``.

Makes the embedded data, trains a small BiFormer on the digits, tests it on held-out ones and writes
a report.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from .report import Step, write_report, write_steps

__all__ = ["StepFailed", "run_demo"]

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/classification/biformer/biformer-micro_embedded.py"


class StepFailed(RuntimeError):
    """A command of the demo ended with an error; ``code`` is its exit code."""

    def __init__(self, step: str, command: str, code: int):
        super().__init__(f"{step!r} failed with exit code {code}: {command}")
        self.code = code


def run_demo(
    work_dir: str | Path = "work_dirs/demo",
    data: str | Path = "data/embedded",
    config: str | Path = CONFIG,
    options: list[str] | None = None,
) -> Path:
    """Runs every step as a process of its own, from the current folder, and writes the report.

    Args:
        work_dir: Folder of checkpoints, logs and the report.
        data: Folder of the embedded data; the one that the configuration names.
        config: Configuration, from the current folder or the package's.
        options: ``KEY=VALUE`` changes of the configuration.

    Returns:
        The report, ``work_dir/report.html``.

    Raises:
        StepFailed: If a step ends with an error.
    """
    work_dir = Path(work_dir)
    config = _locate(config)
    changes = ["--cfg-options", *options] if options else []
    predictions = work_dir / "predictions.json"
    # Threads that spin while they wait slow a small model tenfold where processors are shared.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    steps: list[Step] = []

    def run(name: str, *command: str | Path) -> None:
        arguments = list(map(str, command))
        shown = shlex.join(["python", *arguments])
        print(f"\n=== {name}: {shown}", flush=True)
        start = time.perf_counter()
        code = subprocess.run([sys.executable, *arguments], check=False, env=environment).returncode
        if code:
            raise StepFailed(name, shown, code)
        steps.append(Step(name, shown, time.perf_counter() - start))

    run("Make the data", "-m", "visattn.zoo.data.embedded", data)
    run("Train", _locate("tools/train.py"), config, "--work-dir", work_dir, *changes)
    checkpoint = (work_dir / "last_checkpoint").read_text().strip()
    test = [_locate("tools/test.py"), config, _shorten(Path(checkpoint))]
    run("Test", *test, "--work-dir", work_dir, "--out", predictions, *changes)
    write_steps(work_dir, steps)
    start = time.perf_counter()
    report = write_report(config, work_dir, checkpoint, predictions)
    print(f"\n=== Report, in {time.perf_counter() - start:.1f} s: {report}")
    return report


def _locate(path: str | Path) -> Path:
    """A path from the current folder where there is such a file, else from the package."""
    return Path(path) if Path(path).is_file() else _shorten(ROOT / path)


def _shorten(path: Path) -> Path:
    """A path relative to the current folder where it is below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def main(argv: list[str] | None = None) -> None:
    """Command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work-dir", default="work_dirs/demo", help="output folder (%(default)s)")
    parser.add_argument("--data", default="data/embedded", help="data folder (%(default)s)")
    parser.add_argument("--config", default=CONFIG, help="configuration (%(default)s)")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="override values")
    args = parser.parse_args(argv)
    try:
        run_demo(args.work_dir, args.data, args.config, args.cfg_options)
    except StepFailed as error:
        parser.exit(error.code if error.code > 0 else 1, f"error: {error}\n")


if __name__ == "__main__":
    main()
