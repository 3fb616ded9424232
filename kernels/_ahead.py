"""What will be read next is asked for while register tiles are worked on.

A processor keeps a dozen or two lines of memory in flight, and drops or waits for those that are
asked for beyond: a burst of prefetches brings little. A thread therefore notes the lines in a queue
in its scratch memory, and each register tile takes a few of them on its way.
"""

from . import _llvm as llvm
from ._jit import inline, jit
from ._vectors import get_int, put_int

__all__ = ["ask", "emit_take", "forget", "queue_size"]

LINE = 64
END, LIMIT, HEAD = 8, 16, LINE
"""Where things are in a queue, in bytes: the place of the next address comes first, then the end of
those that are noted, and of the space; addresses follow."""


def queue_size(lines: int) -> int:
    """Bytes of a queue of at most so many lines."""
    return HEAD + 8 * lines + LINE


@inline
def forget(queue, lines):
    """Empties a queue of at most so many lines."""
    put_int(queue, queue + HEAD)
    put_int(queue + END, queue + HEAD)
    put_int(queue + LIMIT, queue + HEAD + 8 * lines)


@jit
def ask(queue, place, step, count, size):
    """Adds the lines of ``count`` times ``size`` bytes, ``step`` bytes apart, or what fits."""
    end, limit = get_int(queue + END), get_int(queue + LIMIT)
    lines = (size + LINE - 1) // LINE
    for _ in range(min(count, (limit - end) // (8 * lines))):
        for at in range(0, size, LINE):
            put_int(end, place + at)
            end += 8
        place += step
    put_int(queue + END, end)


def emit_take(builder, queue, lines):
    """Begins to bring the next lines of a queue, at most 8, to the second-level cache.

    Does nothing where the queue is empty. Ends in a block of its own.
    """
    place = llvm.load(builder, queue, llvm.I64, 8)
    end = llvm.load(builder, builder.add(queue, llvm.number(END)), llvm.I64, 8)
    with builder.if_then(builder.icmp_signed("<", place, end)):
        for n in range(lines):
            # Behind the end is space for as many, whatever it holds.
            line = llvm.load(builder, builder.add(place, llvm.number(8 * n)), llvm.I64, 8)
            llvm.prefetch(builder, line)
        llvm.store(builder, builder.add(place, llvm.number(8 * lines)), queue, 8)
