"""What compilers make of the Triton kernels, found out without a GPU."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ...kernels import _library, dispatch
from ...kernels._triton import Launch, record_launches
from ..errors import UserError
from .cases import Case
from .environment import describe_software
from .kernels import DTYPES
from .traffic import estimate_traffic

Row = dict[str, Any]

COLUMNS = (
    "op",
    "kernel",
    "target",
    "dtype",
    "case",
    "cases",
    "num_warps",
    "registers",
    "spilled_bytes",
    "shared_bytes",
    "occupancy",
    "matrix",
    "tensor_core_instructions",
    "async_copies",
    "mib_moved",
    "mib_compulsory",
    "moved_exactly",
    "torch",
    "triton",
    "visattn",
    "commit",
    "date",
    "error",
)
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


class Limits(NamedTuple):
    """What a multiprocessor has for the blocks that are on it at once."""

    warps: int
    blocks: int
    registers: int
    shared: int
    shared_of_a_block: int


class Target(NamedTuple):
    """An architecture to compile for."""

    gpu: GPUTarget
    limits: Limits


def _cuda(arch: int, warps: int, blocks: int, shared_kib: int) -> Target:
    # Each block's shared memory has 1 KiB more, of the system.
    limits = Limits(warps, blocks, 65536, shared_kib << 10, (shared_kib - 1) << 10)
    return Target(GPUTarget("cuda", arch, 32), limits)


TARGETS = {
    "sm_80": _cuda(80, 64, 32, 164),
    "sm_86": _cuda(86, 48, 16, 100),
    "sm_89": _cuda(89, 48, 24, 100),
    "sm_90": _cuda(90, 64, 32, 228),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), Limits(32, 32, 512, 64 << 10, 64 << 10)),
}


class Variant(NamedTuple):
    """A kernel as it is compiled for some arguments; equal ones are one binary."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]


class _RunOnMeta(TorchDispatchMode):
    """Runs the operators themselves, and not their fakes, on meta tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _library.implementations.get(func.name(), func)(*args, **(kwargs or {}))


@contextmanager
def _recording() -> Iterator[list[Launch]]:
    """Records what the ops launch for meta tensors with ``impl="triton"``."""
    with (
        patch.object(dispatch, "TRITON_DEVICE", "meta"),
        record_launches() as launches,
        _RunOnMeta(),
    ):
        yield launches


def record(case: Case, batch: int, dtype: torch.dtype) -> list[Launch]:
    """The launches of a case's forward and backward pass."""
    inputs = case.inputs(case.images(batch), device="meta", dtype=dtype)
    wanted = [x.requires_grad_() for name, x in inputs.items() if name not in case.fixed]
    with _recording() as launches:
        out = case.run("triton", **inputs)
        torch.autograd.grad(out, wanted, torch.empty_like(out), allow_unused=True)
    return [launch for launch in launches if 0 not in launch.grid]


def specialise(launch: Launch, target: Target) -> Variant:
    """What Triton compiles a kernel for, as its launcher derives it from the arguments."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    divisible = []
    for parameter in launch.kernel.params:
        name, value = parameter.name, launch.arguments.get(parameter.name, parameter.default)
        special = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (special and _is_one(value)):
            signature[name], constants[name] = "constexpr", value
            # AMD's matrix cores have no products of tf32; see ``dot_precision``.
            if target.gpu.backend == "hip" and value in ("tf32", "tf32x3"):
                constants[name] = "ieee"
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            aligned = value.storage_offset() * value.element_size() % 16 == 0
        elif isinstance(value, bool):
            signature[name], aligned = "i1", False
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0
        else:
            signature[name], aligned = "fp32", False
        if aligned and special and not parameter.do_not_specialize_on_alignment:
            divisible.append(parameter.num)
    return Variant(
        launch.kernel,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple(divisible),
        tuple(launch.options.items()),
    )


def _is_one(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value == 1


def compile_variant(variant: Variant, target: Target) -> Any:
    """Compiles ahead of time; raises what Triton raises where it cannot."""
    source = ASTSource(
        fn=variant.kernel,
        signature=dict(variant.signature),
        constexprs=dict(variant.constants),
        attrs={(number,): [["tt.divisibility", 16]] for number in variant.divisible},
    )
    return triton.compile(source, target=target.gpu, options=dict(variant.options))


def inspect(compiled: Any, variant: Variant, target: Target) -> Row:
    """Resources and instructions of a compiled kernel."""
    on_cuda = target.gpu.backend == "cuda"
    read = _read_cubin if on_cuda else _read_amdgcn
    row = read(compiled)
    row["num_warps"] = dict(variant.options)["num_warps"]
    row["shared_bytes"] = compiled.metadata.shared
    row["matrix"] = bool(re.search(r"\btt\.dot(_scaled)?\b", compiled.asm["ttir"]))
    row["occupancy"] = occupancy(row, target)
    return row


def _read_cubin(compiled: Any) -> Row:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    ptx = compiled.asm["ptx"]
    return {
        "registers": found["REG"],
        "spilled_bytes": found["STACK"] + found["LOCAL"],
        "tensor_core_instructions": len(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async)\b", ptx)),
        "async_copies": len(re.findall(r"\bcp\.async\.(?:ca|cg|bulk)\b", ptx)),
    }


def _read_amdgcn(compiled: Any) -> Row:
    text = compiled.asm["amdgcn"]
    found = dict(re.findall(r"^\s*\.(vgpr_count|vgpr_spill_count):\s*(\d+)", text, re.M))
    loads = r"^\s*(?:buffer_load_\w+ .*\blds$|global_load_lds_)"
    return {
        "registers": int(found["vgpr_count"]),
        "spilled_bytes": 4 * int(found["vgpr_spill_count"]),
        "tensor_core_instructions": len(re.findall(r"^\s*v_mfma_", text, re.M)),
        "async_copies": len(re.findall(loads, text, re.M)),
    }


def occupancy(row: Mapping[str, Any], target: Target) -> float:
    """Part of the warps of a multiprocessor that its blocks can fill, 0 if none fits."""
    limits, warps = target.limits, row["num_warps"]
    if row["shared_bytes"] > limits.shared_of_a_block:
        return 0.0
    if target.gpu.backend == "cuda":
        # Registers are given to warps by 256, from a quarter of the file each.
        a_warp = -(-row["registers"] * 32 // 256) * 256
        fitting = limits.registers // 4 // a_warp * 4
        shared = row["shared_bytes"] + 1024
    else:
        # Of each lane's registers, given by 8, of four units.
        fitting = min(limits.registers // (-(-row["registers"] // 8) * 8), 8) * 4
        shared = max(row["shared_bytes"], 1)
    blocks = min(fitting // warps, limits.warps // warps, limits.blocks, limits.shared // shared)
    return blocks * warps / limits.warps


def compulsory_bytes(launch: Launch) -> int:
    """Bytes of all tensors of a launch, each once."""
    sizes = {}
    for value in launch.arguments.values():
        if isinstance(value, torch.Tensor):
            layout = value.untyped_storage()._cdata, value.storage_offset(), value.shape
            elements = 1
            for side, stride in zip(value.shape, value.stride(), strict=True):
                elements *= side if stride else 1
            sizes[layout] = elements * value.element_size()
    return sum(sizes.values())


def problem(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a compiled kernel."""
    if row["spilled_bytes"]:
        return f"spills {row['spilled_bytes']} bytes"
    if row["matrix"] and not row["tensor_core_instructions"]:
        return "multiplies matrices without tensor cores"
    if not row["occupancy"]:
        return f"does not fit with {row['shared_bytes']} bytes of shared memory"
    return None


def audit(
    cases: Sequence[Case],
    targets: Sequence[str],
    dtypes: Sequence[str],
    batch: int = 64,
    say: Callable[[str], None] = lambda message: None,
) -> list[Row]:
    """Compiles what cases launch, forward and backward, and reads off what it has become.

    Equal compilations are one row: that of the first case they are for.

    Args:
        cases: Ops and shapes.
        targets: Names in ``TARGETS``.
        dtypes: Names in ``DTYPES``.
        batch: Images, fewer where they are large; what is compiled hardly depends on it.
        say: Takes messages on progress.

    Returns:
        Rows with the entries of ``COLUMNS``; the ``error`` of a kernel that is not as it should be
        says why.

    Raises:
        UserError: If there is no such target, or Triton's kernels are interpreted in this process.
    """
    if triton.knobs.runtime.interpret:
        raise UserError("TRITON_INTERPRET is set: interpreted kernels cannot be compiled; unset it")
    for name in targets:
        if name not in TARGETS:
            raise UserError(f"no such target: {name}; there are {', '.join(TARGETS)}")
    software = describe_software(("torch", "triton", "visattn"))
    rows: dict[tuple[Variant, str], Row] = {}
    for case in cases:
        for dtype in dtypes:
            launches = record(case, batch, DTYPES[dtype])
            for name in targets:
                target = TARGETS[name]
                say(f"{case.op}, {case.name}, {dtype}, {name}")
                for launch in launches:
                    variant = specialise(launch, target)
                    if (variant, name) in rows:
                        rows[variant, name]["cases"] += 1
                        continue
                    row = rows[variant, name] = {**dict.fromkeys(COLUMNS), **software}
                    row |= {"op": case.op, "case": case.name, "cases": 1, "dtype": dtype}
                    row |= {"kernel": launch.kernel.__name__, "target": name}
                    row |= _examine(launch, variant, target)
                    if row["error"]:
                        say(f"  {row['kernel']}: {row['error']}")
    return list(rows.values())


def _examine(launch: Launch, variant: Variant, target: Target) -> Row:
    try:
        compiled = compile_variant(variant, target)
    except Exception as error:  # whatever the compilers raise
        while error.__cause__ is not None:
            error = error.__cause__
        line = next(iter(str(error).strip().splitlines()), "")
        return {"error": f"does not compile: {type(error).__name__}: {line}"}
    row = inspect(compiled, variant, target)
    traffic = estimate_traffic(compiled.asm["ttir"], launch.grid, launch.arguments)
    row["mib_moved"] = round((traffic.loaded + traffic.stored) / 2**20, 3)
    row["mib_compulsory"] = round(compulsory_bytes(launch) / 2**20, 3)
    row["moved_exactly"] = traffic.exact
    row["error"] = problem(row)
    return row
