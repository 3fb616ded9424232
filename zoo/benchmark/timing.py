"""Timing several things side by side on a machine whose speed drifts."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

Step = Callable[[], object]


class Percentiles(NamedTuple):
    """Seconds a step: a fifth, a half and four fifths of the steps took no longer."""

    p20: float
    p50: float
    p80: float


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """The 20th, 50th and 80th percentile of durations, interpolated linearly.

    Raises:
        ValueError: If there are none.
    """
    if not len(seconds):
        raise ValueError("percentiles of no durations")
    return Percentiles(*(float(value) for value in np.percentile(seconds, (20, 50, 80))))


def ratios(values: Mapping[str, float | None], baseline: str) -> dict[str, float | None]:
    """Each value over that of the baseline; None where either is missing."""
    base = values.get(baseline)
    return {name: value / base if value and base else None for name, value in values.items()}


def count_processor_time(
    steps: Mapping[str, Step],
) -> tuple[dict[str, Step], dict[str, list[float]]]:
    """Counts what processors spend on steps, which others on the machine disturb little.

    Returns:
        The steps, and for each the seconds, of all threads of this process, of every call to come.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}

    def counted(name: str) -> object:
        begin = time.process_time()
        result = steps[name]()
        seconds[name].append(time.process_time() - begin)
        return result

    return {name: partial(counted, name) for name in steps}, seconds


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def time_steps(step: Step, count: int, device: torch.device) -> list[float]:
    """Seconds of each of ``count`` calls; on CUDA by events, without waiting between calls."""
    if device.type != "cuda":
        seconds = []
        for _ in range(count):
            begin = time.perf_counter()
            step()
            synchronize(device)
            seconds.append(time.perf_counter() - begin)
        return seconds
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    synchronize(device)
    return [a.elapsed_time(b) / 1e3 for a, b in zip(marks[:-1], marks[1:], strict=True)]


def time_side_by_side(
    steps: Mapping[str, Step],
    device: torch.device,
    warmup: int,
    iters: int,
    min_time: float,
    rounds: int = 5,
    max_time: float = math.inf,
    on_error: Callable[[str, Exception], None] | None = None,
) -> dict[str, list[float]]:
    """Times steps in turns, so that a drift of the machine's speed meets all of them alike.

    Args:
        steps: What to time, by name.
        device: Where the steps run.
        warmup: Untimed calls of each before the first turn.
        iters: Timed calls of each, at least.
        min_time: Seconds of timed calls of each, at least.
        rounds: Turns; the order is reversed in every other one.
        max_time: Seconds of timed calls after which a step takes no further turn, whatever
            ``iters`` says. Of one that takes longer the first call after ``warmup`` is the timing.
        on_error: Called with the name and error of a step that raises, which is then left out;
            without it the error is raised.

    Returns:
        Seconds of every timed call, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    counts: dict[str, int] = {}

    def attempt(name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            if on_error is None:
                raise
            seconds.pop(name)
            on_error(name, error)

    def warm_up(name: str) -> None:
        time_steps(steps[name], warmup, device)
        probe = time_steps(steps[name], 1, device)[0]
        wanted = max(-(-iters // rounds), round(min_time / rounds / probe))
        counts[name] = max(1, int(min(wanted, max_time / rounds / probe)))
        if probe > max_time:
            seconds[name].append(probe)

    def measure(name: str) -> None:
        if sum(seconds[name]) < max_time:
            seconds[name] += time_steps(steps[name], counts[name], device)

    for name in list(seconds):
        attempt(name, lambda name=name: warm_up(name))
    for turn in range(rounds):
        for name in list(seconds)[:: -1 if turn % 2 else 1]:
            attempt(name, lambda name=name: measure(name))
    return seconds
