"""Benchmarks of whole models: one row a model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm

from ..errors import UserError
from ..models import Size, is_config, model_name
from .counters import peak_memory
from .environment import describe_device, describe_software
from .subject import NotFiniteError, Settings, Subject, describe_error, split_name
from .timing import percentiles, time_side_by_side

Row = dict[str, Any]

BENCHES = ("infer", "train")
# Names without unit are those of timm's result files: milliseconds, millions of parameters, sides
# in pixels.
_BENCH_COLUMNS = (
    "img_size",
    "batch_size",
    "samples_per_sec",
    "step_time",
    "p20_ms",
    "p50_ms",
    "p80_ms",
    "peak_mib",
)
COLUMNS = (
    "model",
    *(f"infer_{column}" for column in _BENCH_COLUMNS),
    "infer_gmacs",
    *(f"train_{column}" for column in _BENCH_COLUMNS),
    "param_count",
    "implementation",
    "device",
    "device_name",
    "threads",
    "amp",
    "compile",
    "channels_last",
    "torch",
    "timm",
    "triton",
    "visattn",
    "commit",
    "date",
    "error",
)


def environment(settings: Settings) -> Row:
    """The columns that say where and how rows were measured."""
    return {
        **describe_device(settings.device),
        "amp": settings.amp,
        "compile": settings.compile,
        "channels_last": settings.channels_last,
        **describe_software(("torch", "timm", "triton", "visattn")),
    }


def benchmark_models(
    names: Sequence[str],
    settings: Settings,
    benches: Sequence[str] = BENCHES,
    warmup: int = 3,
    iters: int = 10,
    min_time: float = 4.0,
    rounds: int = 5,
    say: Callable[[str], None] = lambda message: None,
) -> list[Row]:
    """Measures models side by side.

    All are built first, then timed in turns (see ``time_side_by_side``), first at inference, then
    at training. Memory and multiply-adds are measured outside of the timed steps. A model that
    fails gets a row whose ``error`` says why; the others are measured all the same. The batch size
    is never changed.

    Args:
        names: Models, with or without the prefix ``timm/``, or configurations of detectors and
            segmentors; ``NAME@IMPL`` for an implementation of visattn's ops.
        settings: How to run them.
        benches: ``"infer"``, ``"train"`` or both.
        warmup: Untimed steps.
        iters: Timed steps, at least.
        min_time: Seconds of timed steps a model and bench, at least.
        rounds: Turns.
        say: Takes messages on progress.

    Returns:
        A row a model, in the order of ``names``, with the entries of ``COLUMNS``.

    Raises:
        UserError: If a model is unknown or given twice.
    """
    bare = [
        (model if is_config(model) else model_name(model), impl)
        for model, impl in map(split_name, names)
    ]
    twice = {name for name, key in zip(names, bare, strict=True) if bare.count(key) > 1}
    if twice:
        raise UserError(f"{', '.join(sorted(twice))} is given more than once")
    where = environment(settings)
    rows = {name: {**dict.fromkeys(COLUMNS), **where, "model": label_of(name)} for name in names}
    subjects: dict[str, Subject] = {}

    def fail(name: str, error: Exception) -> None:
        subjects.pop(name, None)
        rows[name]["error"] = describe_error(error, settings.batch_size)
        say(f"{name}: {rows[name]['error']}")

    for name in names:
        say(f"building {name}")
        rows[name]["implementation"] = _origin(name)
        try:
            subjects[name] = subject = _make_subject(name, settings)
        except (UserError, RuntimeError, MemoryError) as error:
            fail(name, error)
            continue
        rows[name]["param_count"] = round(subject.params / 1e6, 4)
        rows[name]["infer_gmacs"] = round(subject.macs / 1e9, 4)

    for bench in benches:
        steps = {}
        for name, subject in list(subjects.items()):
            try:
                steps[name] = subject.prepare(bench)
            except (NotFiniteError, RuntimeError, MemoryError, ValueError) as error:
                fail(name, error)
        if not steps:
            continue
        say(f"timing {'inference' if bench == 'infer' else 'training'} of {', '.join(steps)}")
        seconds = time_side_by_side(
            steps, settings.device, warmup, iters, min_time, rounds, on_error=fail
        )
        for name, durations in seconds.items():
            try:
                peak = peak_memory(steps[name], settings.device)
                subjects[name].check(bench)
            except (NotFiniteError, RuntimeError, MemoryError) as error:
                fail(name, error)
                continue
            subject = subjects[name]
            rows[name] |= _measured(bench, subject.img_size, settings.batch_size, durations, peak)
    return list(rows.values())


def label_of(name: str) -> str:
    """What a model is called in tables: its name, or that of its configuration's file."""
    model, impl = split_name(name)
    if not is_config(model):
        return name
    return Path(model).stem + (f"@{impl}" if impl else "")


def _make_subject(name: str, settings: Settings) -> Subject:
    if not is_config(split_name(name)[0]):
        return Subject(name, settings)
    from .dense import DenseSubject

    return DenseSubject(name, settings)


def _origin(name: str) -> str:
    if is_config(split_name(name)[0]):
        return "visattn"
    return timm.model_entrypoint(model_name(split_name(name)[0])).__module__.partition(".")[0]


def _measured(
    bench: str,
    img_size: Size,
    batch_size: int,
    seconds: Sequence[float],
    peak: int | None,
) -> Row:
    p20, p50, p80 = percentiles(seconds)
    height, width = img_size
    values = {
        "img_size": height if height == width else f"{height}x{width}",
        "batch_size": batch_size,
        "samples_per_sec": round(batch_size / p50, 3),
        "step_time": round(sum(seconds) / len(seconds) * 1e3, 3),
        "p20_ms": round(p20 * 1e3, 3),
        "p50_ms": round(p50 * 1e3, 3),
        "p80_ms": round(p80 * 1e3, 3),
        "peak_mib": None if peak is None else round(peak / 2**20, 2),
    }
    return {f"{bench}_{column}": value for column, value in values.items()}
