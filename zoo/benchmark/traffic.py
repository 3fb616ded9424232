"""How many bytes a Triton kernel asks of memory, read off its intermediate representation.

Integers and masks of sampled programs are evaluated, floating-point values are not; what depends
on values in memory is unknown, and then an estimate is a lower bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

SAMPLES = 16
UNKNOWN = None

_BITS = re.compile(r"!tt\.ptr<\w*?(\d+)")
_RESULTS = re.compile(r"^(%[\w#-]+)(?::(\d+))?(?:, %[\w#-]+)* = (.*)$")
_NAME = re.compile(r"%[\w-]+(?:#\d+)?")
_SHAPE = re.compile(r"tensor<((?:\d+x)+)")
_COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "slt": np.less,
    "sle": np.less_equal,
    "sgt": np.greater,
    "sge": np.greater_equal,
    "ult": np.less,
    "ule": np.less_equal,
    "ugt": np.greater,
    "uge": np.greater_equal,
}


def _divide(a: Any, b: Any) -> Any:
    """Division towards zero."""
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.maximum(np.abs(b), 1))


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "arith.addi": np.add,
    "arith.subi": np.subtract,
    "arith.muli": np.multiply,
    "arith.divsi": _divide,
    "arith.divui": _divide,
    "arith.remsi": lambda a, b: a - _divide(a, b) * b,
    "arith.remui": lambda a, b: a - _divide(a, b) * b,
    "arith.minsi": np.minimum,
    "arith.minui": np.minimum,
    "arith.maxsi": np.maximum,
    "arith.maxui": np.maximum,
    "arith.andi": np.bitwise_and,
    "arith.ori": np.bitwise_or,
    "arith.xori": np.bitwise_xor,
    "arith.shli": np.left_shift,
    "arith.shrsi": np.right_shift,
    "arith.shrui": np.right_shift,
    "arith.select": np.where,
    "arith.extsi": lambda a: a,
    "arith.extui": lambda a: np.int64(a) if np.ndim(a) == 0 else a.astype(np.int64),
    "arith.trunci": lambda a: a,
    "arith.index_cast": lambda a: a,
}


class Op(NamedTuple):
    """A line of the representation, with the lines of its regions."""

    text: str
    name: str
    results: list[str]
    operands: list[str]
    regions: list[list[Op]]


class Traffic(NamedTuple):
    """Bytes that all programs of a launch load and store, repeated accesses and caches aside.

    Attributes:
        loaded: Bytes loaded.
        stored: Bytes stored.
        exact: Whether nothing that decides on accesses was unknown.
    """

    loaded: int
    stored: int
    exact: bool


def estimate_traffic(ttir: str, grid: Sequence[int], arguments: Mapping[str, Any]) -> Traffic:
    """Estimates the traffic of a launch.

    Args:
        ttir: Representation in Triton's own dialect, ``compiled.asm["ttir"]``.
        grid: Programs along each axis.
        arguments: Arguments by name; only integers matter.
    """
    lines = [re.sub(r"\s+loc\(.*$", "", line).strip() for line in ttir.splitlines()]
    entry = next(i for i, line in enumerate(lines) if line.startswith("tt.func public"))
    body = _parse_block(iter(lines[entry + 1 :]))
    known = {
        f"%{name}": int(value) for name, value in arguments.items() if isinstance(value, int | bool)
    }
    grid = (*grid, 1, 1)[:3]
    programs = grid[0] * grid[1] * grid[2]
    # Multiples of the golden ratio cover the grid evenly, whatever its sides are.
    count = min(programs, SAMPLES)
    sample = {int(i * 0.6180339887 % 1 * programs) for i in range(count)}
    loaded = stored = 0
    exact = True
    for index in sample:
        program = _Program(
            grid, (index % grid[0], index // grid[0] % grid[1], index // grid[0] // grid[1])
        )
        program.run(body, dict(known))
        loaded += program.loaded
        stored += program.stored
        exact &= program.exact
    scale = programs / len(sample) if sample else 0
    return Traffic(round(loaded * scale), round(stored * scale), exact)


def _parse_block(lines: Iterator[str]) -> list[Op]:
    """Lines up to the brace that closes a block; ``None`` ends it where another block follows."""
    ops: list[Op] = []
    for line in lines:
        if line.startswith("}"):
            if line.endswith("{"):  # } else {  or  } do {
                ops.append(Op(line, "else", [], [], []))
            return ops
        if not line or line.startswith(("^", "#", "//")):
            continue
        ops.append(_parse_op(line, lines))
    return ops


def _parse_op(line: str, lines: Iterator[str]) -> Op:
    regions = []
    if line.endswith("{"):
        more = True
        while more:
            block = _parse_block(lines)
            more = bool(block) and block[-1].name == "else"
            regions.append(block[:-1] if more else block)
    match = _RESULTS.match(line)
    results: list[str] = []
    text = line
    if match:
        first, several, text = match.groups()
        results = [f"{first}#{i}" for i in range(int(several))] if several else [first]
    name = re.match(r'"?([\w.]+)', text)[1]
    return Op(text, name, results, _NAME.findall(text), regions)


class _Program:
    """Runs one program of a kernel and counts its accesses."""

    def __init__(self, grid: Sequence[int], ids: Sequence[int]):
        self.grid, self.ids = grid, ids
        self.loaded = self.stored = 0
        self.exact = True

    def run(self, ops: list[Op], values: dict[str, Any]) -> list[Any]:
        """Runs a block; returns what it yields."""
        for op in ops:
            if op.name in ("scf.yield", "tt.return"):
                return [values.get(name) for name in op.operands]
            if op.name == "scf.for":
                found = self._loop(op, values)
            elif op.name == "scf.if":
                found = self._branch(op, values)
            elif op.name == "scf.while":
                self.exact = False
                found = [UNKNOWN] * len(op.results)
                self.run(op.regions[-1], dict(values))
            elif op.name in ("tt.load", "tt.store", "tt.atomic_rmw"):
                self._access(op, values)
                found = [UNKNOWN]
            else:
                found = [self._evaluate(op, [values.get(name) for name in op.operands])]
            values.update(zip(op.results, found, strict=False))
        return []

    def _loop(self, op: Op, values: dict[str, Any]) -> list[Any]:
        head, _, rest = op.text.partition(" step ")
        index, low, high = _NAME.findall(head)
        step = _NAME.match(rest)[0]
        carried = _NAME.findall(rest.partition("iter_args(")[2].partition(")")[0])
        names, state = carried[::2], [values.get(name) for name in carried[1::2]]
        bounds = [values.get(name) for name in (low, high, step)]
        if any(bound is UNKNOWN for bound in bounds):
            self.exact = False
            indices: Any = [UNKNOWN]
            state = [UNKNOWN] * len(state)
        else:
            indices = range(*(int(bound) for bound in bounds))
        for i in indices:
            inner = {**values, index: i, **dict(zip(names, state, strict=True))}
            state = self.run(op.regions[0], inner)
        return state

    def _branch(self, op: Op, values: dict[str, Any]) -> list[Any]:
        condition = values.get(op.operands[0])
        if condition is UNKNOWN:
            self.exact = False
            self.run(op.regions[0], dict(values))
            return [UNKNOWN] * len(op.results)
        if condition:
            return self.run(op.regions[0], dict(values))
        return self.run(op.regions[1], dict(values)) if len(op.regions) > 1 else []

    def _access(self, op: Op, values: dict[str, Any]) -> None:
        masks = {"tt.load": 1, "tt.store": 2, "tt.atomic_rmw": 2}
        operands = _NAME.findall(op.text.rpartition(" : ")[0])
        shape = _shape(op.text.rpartition(" : ")[2])
        count = int(np.prod(shape, dtype=np.int64))
        if len(operands) > masks[op.name]:
            mask = values.get(operands[masks[op.name]])
            if mask is UNKNOWN:
                self.exact = False
            else:
                count = int(np.count_nonzero(mask)) if np.ndim(mask) else count * bool(mask)
        size = count * int(_BITS.search(op.text)[1]) // 8
        if op.name == "tt.load":
            self.loaded += size
        else:
            self.stored += size

    def _evaluate(self, op: Op, operands: list[Any]) -> Any:
        if op.name == "arith.constant":
            return _constant(op.text)
        if op.name in ("tt.get_program_id", "tt.get_num_programs"):
            axis = "xyz".index(op.text.split()[1])
            return (self.ids if op.name == "tt.get_program_id" else self.grid)[axis]
        if op.name == "tt.make_range":
            bounds = dict(re.findall(r"(start|end) = (-?\d+)", op.text))
            return np.arange(int(bounds["start"]), int(bounds["end"]))
        if not operands or any(operand is UNKNOWN for operand in operands):
            return UNKNOWN
        if op.name == "arith.cmpi":
            return _COMPARE[op.text.split()[1].rstrip(",")](*operands)
        if op.name in _ARITHMETIC:
            return _ARITHMETIC[op.name](*operands)
        if op.name == "tt.splat":
            return np.full(_shape(op.text.rpartition("->")[2]), operands[0])
        if op.name == "tt.broadcast":
            return np.broadcast_to(operands[0], _shape(op.text.rpartition("->")[2]))
        if op.name == "tt.reshape":
            return operands[0].reshape(_shape(op.text.rpartition("->")[2]))
        if op.name == "tt.expand_dims":
            return np.expand_dims(operands[0], int(re.search(r"axis = (\d+)", op.text)[1]))
        if op.name == "tt.trans":
            order = re.search(r"order = array<i32: ([\d, ]+)>", op.text)[1]
            return operands[0].transpose([int(axis) for axis in order.split(",")])
        return UNKNOWN


def _shape(text: str) -> tuple[int, ...]:
    match = _SHAPE.search(text)
    return tuple(map(int, match[1].split("x")[:-1])) if match else ()


def _constant(text: str) -> Any:
    value, _, kind = text.removeprefix("arith.constant ").partition(" : ")
    value = value.partition(" {")[0]
    dense = re.match(r"dense<(.*)>", value)
    value = dense[1] if dense else value
    if value in ("true", "false"):
        number: Any = value == "true"
    elif re.fullmatch(r"-?\d+", value):
        number = int(value)
    else:
        return UNKNOWN
    return np.full(_shape(kind), number) if dense else number
