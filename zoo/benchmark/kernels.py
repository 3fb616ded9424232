"""Benchmarks of the kernels: implementations and their peers at the zoo's shapes, side by side."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...kernels import dispatch
from ...kernels._memory import empty_like
from .cases import Case, Copy
from .counters import peak_memory
from .environment import describe_device, describe_software
from .peers import CannotRunError
from .timing import percentiles, time_side_by_side

Row = dict[str, Any]
Tensors = dict[str, torch.Tensor]

PASSES = ("forward", "both")
REFERENCE = "reference"
FLOOR = "floor"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
COLUMNS = (
    "op",
    "case",
    "pass",
    "batch_size",
    "dtype",
    "contestant",
    "kind",
    "p20_ms",
    "p50_ms",
    "p80_ms",
    "calls",
    "peak_mib",
    "vs_floor",
    "fastest_peer",
    "vs_fastest_peer",
    "device",
    "device_name",
    "threads",
    "torch",
    "numba",
    "triton",
    "natten",
    "visattn",
    "commit",
    "date",
    "error",
)
TOLERANCE = 8
"""Times the error of plain torch in the same dtype, and the rounding, that a result may err."""


@dataclass(frozen=True)
class Settings:
    """How kernels are run.

    Attributes:
        device: Where.
        dtype: ``"fp32"``, ``"fp16"`` or ``"bf16"``, of all inputs.
        batch_size: Images; fewer where they are large, see ``Case.share``.
        rounds: Turns of all contestants.
        seconds: Seconds of timed calls of each contestant, about; one that takes longer is timed
            once.
    """

    device: torch.device
    dtype: str = "fp32"
    batch_size: int = 8
    rounds: int = 10
    seconds: float = 1.0


class WrongResultError(ValueError):
    """A result that is not the op's: the speed of getting it means nothing."""


def benchmark_kernels(
    cases: Sequence[Case],
    settings: Settings,
    passes: Sequence[str] = PASSES,
    only: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> list[Row]:
    """Measures ops at shapes: a row a case, pass and contestant.

    Contestants are the op's implementations, its peers (see ``peers``) and the floor, which
    computes nothing of use: two batched products with the same useful multiply-adds, or a copy of
    the same bytes. Before it is timed, each contestant's output, and for ``"both"`` each gradient,
    is compared with the float64 reference. One that is wrong, or cannot run, gets a row whose
    ``error`` says so, and no time.

    Args:
        cases: Ops and shapes.
        settings: How to run them.
        passes: ``"forward"`` without gradients, ``"both"`` the forward and backward pass, or both.
        only: Implementations and peers to run; all by default.
        say: Takes messages on progress.

    Returns:
        Rows with the entries of ``COLUMNS``.
    """
    where = describe_device(settings.device) | describe_software(
        ("torch", "numba", "triton", "natten", "visattn")
    )
    rows = []
    for case in cases:
        # Otherwise torch would compile for varying sizes, and give up after a few.
        torch.compiler.reset()
        factory = {"device": settings.device, "dtype": DTYPES[settings.dtype]}
        torch.manual_seed(0)
        inputs = case.inputs(case.images(settings.batch_size), **factory)
        for kind in passes:
            say(f"{case.op}, {case.name}, {TITLES[kind]}")
            measured = _measure(case, inputs, kind, settings, only, say)
            shared = {
                "op": case.op,
                "case": case.name,
                "pass": kind,
                "batch_size": case.images(settings.batch_size),
                "dtype": settings.dtype,
                **where,
            }
            rows += [{**dict.fromkeys(COLUMNS), **shared, **row} for row in measured]
    return rows


TITLES = {"forward": "forward", "both": "forward and backward"}


def _measure(
    case: Case,
    inputs: Tensors,
    kind: str,
    settings: Settings,
    only: Sequence[str] | None,
    say: Callable[[str], None],
) -> list[Row]:
    rows: dict[str, Row] = {}
    steps: dict[str, Callable[[], object]] = {}

    def fail(name: str, error: Exception) -> None:
        steps.pop(name, None)
        rows[name]["error"] = _one_line(error)
        say(f"  {name}: {rows[name]['error']}")

    check = _Check(case, inputs, kind)
    for name in (*case.implementations, *case.peers):
        if only and name not in only:
            continue
        ours = name in case.implementations
        rows[name] = {"contestant": name, "kind": "visattn" if ours else "peer"}
        try:
            if name == "triton" and dispatch.interprets_triton:
                raise CannotRunError("interpreted, as TRITON_INTERPRET asks for; no speed of it")
            function = _implementation(case, name) if ours else case.peers[name](case, inputs)
            check(function)
            steps[name] = _step(case, function, inputs, kind)
        except Exception as error:  # whatever a peer raises where it cannot run
            fail(name, error)
    del check
    rows[FLOOR] = {"contestant": FLOOR, "kind": FLOOR}
    steps[FLOOR] = floor_step(case, settings, kind)
    seconds = time_side_by_side(
        steps,
        settings.device,
        warmup=0,  # The check was one.
        iters=settings.rounds,
        min_time=settings.seconds,
        rounds=settings.rounds,
        max_time=settings.seconds,
        on_error=fail,
    )
    for name, durations in seconds.items():
        p20, p50, p80 = (round(value * 1e3, 4) for value in percentiles(durations))
        peak = peak_memory(steps[name], settings.device)
        rows[name] |= {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "calls": len(durations)}
        rows[name]["peak_mib"] = None if peak is None else round(peak / 2**20, 2)
    _compare(rows, case.peers)
    return list(rows.values())


def _implementation(case: Case, impl: str) -> Callable[..., torch.Tensor]:
    return lambda **inputs: case.run(impl, **inputs)


def _compare(rows: Mapping[str, Row], peers: Collection[str]) -> None:
    """Fills in what times are multiples of: of the floor's, and of the fastest peer's.

    Our definition in plain torch counts as a peer.
    """
    times = {name: row["p50_ms"] for name, row in rows.items() if "p50_ms" in row}
    floor = times.pop(FLOOR, None)
    others = {name: time for name, time in times.items() if name in peers or name == REFERENCE}
    fastest = min(others, key=others.get) if others else None
    for name, time in times.items():
        rows[name]["vs_floor"] = round(time / floor, 3) if floor else None
        if fastest:
            rows[name]["fastest_peer"] = fastest
            rows[name]["vs_fastest_peer"] = round(time / others[fastest], 3)


def _one_line(error: BaseException) -> str:
    # torch.compile's own errors say little; what they were raised from does.
    while error.__cause__ is not None:
        error = error.__cause__
    line = next(iter(str(error).strip().splitlines()), "")
    return line or type(error).__name__


def _leaves(case: Case, inputs: Tensors, kind: str, dtype: torch.dtype | None = None) -> Tensors:
    """Copies of inputs, in another dtype if one is given, with gradients where they are run."""
    copies = {name: x.to(dtype or x.dtype, copy=True) for name, x in inputs.items()}
    for name, x in copies.items():
        x.requires_grad_(kind == "both" and name not in case.fixed)
    return copies


def _run(function: Callable[..., torch.Tensor], inputs: Tensors, kind: str) -> Tensors:
    """The output, and for ``"both"`` the gradients of inputs for a fixed gradient of it."""
    if kind == "forward":
        with torch.no_grad():
            return {"output": function(**inputs)}
    out = function(**inputs)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(out.shape, generator=generator).to(out)
    wanted = {name: x for name, x in inputs.items() if x.requires_grad}
    grads = torch.autograd.grad(out, list(wanted.values()), cotangent)
    named = {f"gradient of {name}": g for name, g in zip(wanted, grads, strict=True)}
    return {"output": out.detach(), **named}


class _Check:
    """Compares results with those of the reference in float64."""

    def __init__(self, case: Case, inputs: Tensors, kind: str):
        self.case, self.inputs, self.kind = case, inputs, kind
        reference = _implementation(case, REFERENCE)
        self.exact = _run(reference, _leaves(case, inputs, kind, torch.float64), kind)
        self.usual = _run(reference, _leaves(case, inputs, kind), kind)

    def __call__(self, function: Callable[..., torch.Tensor]) -> None:
        """Raises ``WrongResultError`` if a result is farther off than rounding explains."""
        found = _run(function, _leaves(self.case, self.inputs, self.kind), self.kind)
        for name, exact in self.exact.items():
            usual = self.usual[name]
            if found[name].shape != exact.shape:
                raise WrongResultError(f"wrong: the {name} is {tuple(found[name].shape)}")
            error, plain = ((x - exact).abs().max().item() for x in (found[name], usual))
            rounding = torch.finfo(usual.dtype).eps * exact.abs().max().item()
            if not error <= TOLERANCE * (plain + rounding):
                raise WrongResultError(
                    f"wrong: the {name} is off by {error:.2g}, plain torch's by {plain:.2g}"
                )


def _step(
    case: Case, function: Callable[..., torch.Tensor], inputs: Tensors, kind: str
) -> Callable[[], object]:
    if kind == "forward":

        @torch.no_grad()
        def step() -> None:
            function(**inputs)

        return step
    leaves = _leaves(case, inputs, kind)
    wanted = [x for x in leaves.values() if x.requires_grad]
    with torch.no_grad():
        cotangent = torch.randn_like(function(**inputs))

    def step() -> None:
        torch.autograd.grad(function(**leaves), wanted, cotangent)

    return step


def floor_step(case: Case, settings: Settings, kind: str) -> Callable[[], object]:
    """What costs the least that the op can cost, in the dtype of its inputs.

    Results are in memory like that of the op's own.
    """
    factory = {"device": settings.device, "dtype": DTYPES[settings.dtype]}
    floor = case.floor(case.images(settings.batch_size))
    if isinstance(floor, Copy):
        source = torch.ones(getattr(floor, kind) // 2, **factory)
        return lambda: _empty(source).copy_(source)
    left = torch.ones(floor.groups, floor.m, floor.k, **factory)
    right = torch.ones(floor.groups, floor.k, floor.n, **factory)
    weights = torch.empty(floor.groups, floor.m, floor.n, **factory)
    values = torch.ones(floor.groups, floor.n, floor.k, **factory)
    times = floor.pairs * (1 if kind == "forward" else floor.both)

    def step() -> None:
        for _ in range(times):
            torch.bmm(torch.bmm(left, right, out=weights), values, out=_empty(left))

    return step


def _empty(like: torch.Tensor) -> torch.Tensor:
    """Memory for a result as the ops take it."""
    return empty_like(like) if like.device.type == "cpu" else torch.empty_like(like)
