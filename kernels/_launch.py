"""Compiled code that runs a kernel on many threads, without the interpreter and its lock."""

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import CPUDispatcher
from numba.extending import intrinsic

from ._jit import entry

__all__ = ["launcher"]

_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_ADDRESS = ir.IntType(8).as_pointer()
_WORK = ir.FunctionType(ir.VoidType(), [_ADDRESS])
_PARALLEL = ir.FunctionType(ir.VoidType(), [_WORK.as_pointer(), _ADDRESS, _I32, _I32])

NEXT, END, CHUNK, SCRATCH, SIZE, FAILED = range(6)
"""What the threads of a launch share, before the kernel's arguments. ``SCRATCH`` is the address of
the memory that the next thread takes."""


@cache
def launcher(kernel: CPUDispatcher, with_scratch: bool) -> Callable[..., int]:
    """Compiles the calls ``kernel(first, last, *args)`` of many threads.

    Args:
        kernel: Function that returns nothing, to be compiled.
        with_scratch: Whether the kernel takes the address of scratch memory before ``args``.

    Returns:
        A function of ``(parallel, threads, begin, end, chunk, scratch, size, args)`` that goes
        through ``range(begin, end)`` in chunks, which threads take as they get free, and returns
        how many calls failed. ``parallel`` is the address of ``GOMP_parallel``, or 0 to work on
        this thread alone; each thread has ``size`` bytes of memory, from ``scratch`` on. It
        releases the interpreter lock.
    """
    run = _intrinsic(kernel, with_scratch)
    python = kernel.py_func
    # Compiled code is cached beside the kernel's, for as long as that is.
    place = {
        "co_filename": python.__code__.co_filename,
        "co_firstlineno": python.__code__.co_firstlineno,
    }
    function = FunctionType(_launch.__code__.replace(**place), {"run": run})
    function.__module__ = python.__module__
    function.__qualname__ = f"{python.__qualname__}.launch"
    return entry(function)


def _launch(parallel, threads, begin, end, chunk, scratch, size, args):
    return run(parallel, threads, begin, end, chunk, scratch, size, args)  # noqa: F821


def _intrinsic(kernel: CPUDispatcher, with_scratch: bool) -> Any:
    @intrinsic
    def run(typingctx, parallel, threads, begin, end, chunk, scratch, size, args):
        numbers = (types.int64,) * (3 if with_scratch else 2)
        kind = types.none(*numbers, *args.types)

        def codegen(context, builder, signature, values):
            parallel, threads, begin, end, chunk, scratch, size, args = values
            args = _borrowed(context, builder, signature.args[-1], args)
            # As a part of the launcher, not as code of its own that would be compiled twice.
            compiled = context.compile_subroutine(builder, kernel.py_func, kind)
            none = ir.Constant(_I64, 0)
            shared = [begin, end, chunk, scratch, size, none, *cgutils.unpack_tuple(builder, args)]
            memory = cgutils.alloca_once(builder, ir.LiteralStructType([x.type for x in shared]))
            for i, value in enumerate(shared):
                builder.store(value, _place(builder, memory, i))
            work = _emit_work(context, builder.module, memory.type, compiled, with_scratch)
            data = builder.bitcast(memory, _ADDRESS)
            with builder.if_else(builder.icmp_signed("!=", parallel, none)) as (then, otherwise):
                with then:
                    function = builder.inttoptr(parallel, _PARALLEL.as_pointer())
                    threads = builder.trunc(threads, _I32)
                    builder.call(function, [work, data, threads, ir.Constant(_I32, 0)])
                with otherwise:
                    builder.call(work, [data])
            return builder.load(_place(builder, memory, FAILED))

        return types.int64(*(types.int64,) * 7, args), codegen

    return run


def _borrowed(context, builder, kind, value):
    """A value whose arrays own nothing.

    The caller keeps them. Threads that count references to the same memory wait for each other.
    """
    if isinstance(kind, types.BaseTuple):
        parts = zip(kind, cgutils.unpack_tuple(builder, value), strict=True)
        return context.make_tuple(
            builder, kind, [_borrowed(context, builder, *part) for part in parts]
        )
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        return array._getvalue()
    return value


def _place(builder, memory, index):
    return builder.gep(memory, [ir.Constant(_I32, 0), ir.Constant(_I32, index)], inbounds=True)


def _emit_work(context, module, kind, compiled, with_scratch):
    """Emits what each thread does."""
    work = ir.Function(module, _WORK, module.get_unique_name("work"))
    work.linkage = "internal"
    builder = ir.IRBuilder(work.append_basic_block())
    memory = builder.bitcast(work.args[0], kind)

    def read(index):
        return builder.load(_place(builder, memory, index))

    def take(index, amount):
        return builder.atomic_rmw("add", _place(builder, memory, index), amount, "monotonic")

    chunk, end = read(CHUNK), read(END)
    scratch = [take(SCRATCH, read(SIZE))] if with_scratch else []
    args = [read(i) for i in range(FAILED + 1, len(kind.pointee.elements))]
    ask, call, done = (builder.append_basic_block(name) for name in ("ask", "call", "done"))
    builder.branch(ask)

    builder.position_at_end(ask)
    first = take(NEXT, chunk)
    builder.cbranch(builder.icmp_signed("<", first, end), call, done)

    builder.position_at_end(call)
    last = builder.add(first, chunk)
    last = builder.select(builder.icmp_signed("<", last, end), last, end)
    status, _ = context.call_internal_no_propagate(
        builder, compiled.fndesc, compiled.signature, [first, last, *scratch, *args]
    )
    take(FAILED, builder.zext(status.is_error, _I64))
    builder.branch(ask)

    builder.position_at_end(done)
    builder.ret_void()
    return work
