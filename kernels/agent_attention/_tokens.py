"""How tokens of several heads come from memory, and go there.

Heads are given by the first and how many. Their rows of a token lie side by side in memory where
they come from one projection, and always do in blocks.
"""

from .._blocks import copy_in, copy_out, padded
from .._jit import inline, integers, part
from .._vectors import LANES, WIDE_REGISTERS, prefetch
from ._matrices import FLOAT

RANGE, LAYOUT = integers(2), integers(6)


@inline
def _at(x, sample, head, token):
    """Address of a row of a tensor."""
    return x[1] + sample * x[2] + head * x[3] + token * x[4]


@part
def prefetch_next(
    x: LAYOUT, sample, heads: RANGE, start, samples: RANGE, tokens: RANGE, block, columns
):
    """Begins to bring in the rows that a task turns to next, where hardware does not foresee them.

    Processors with wide registers do, and would wait for so many requests at once.
    """
    if WIDE_REGISTERS:
        return
    start = start if sample + 1 < samples[1] else start + block
    sample = sample + 1 if sample + 1 < samples[1] else samples[0]
    size = columns * (4 if x[0] == FLOAT else 2)
    for i in range(start, min(start + block, tokens[1])):
        for head in range(heads[0], heads[0] + heads[1]):
            source = _at(x, sample, head, i)
            for j in range(0, size, 64):
                prefetch(source + j)


@inline
def _is_one_row(x, heads, dim):
    """Whether the rows of a token's heads are one row."""
    return heads[1] == 1 or x[3] == dim * (4 if x[0] == FLOAT else 2)


@part
def tokens_in(x: LAYOUT, sample, heads: RANGE, first, rows, dim, target, row):
    """Copies rows of heads to floats, (rows, heads * dim)."""
    source = _at(x, sample, heads[0], first)
    if _is_one_row(x, heads, dim):
        copy_in(x[0], source, x[4], rows, heads[1] * dim, target, row)
        return
    # What fills up a head's vectors makes place for the next one.
    for h in range(heads[1]):
        copy_in(x[0], source + h * x[3], x[4], rows, dim, target + 4 * h * dim, row)


@part
def tokens_out(x: LAYOUT, sample, heads: RANGE, first, rows, dim, source, row):
    """Copies floats (rows, heads * dim) to rows of heads."""
    target = _at(x, sample, heads[0], first)
    if _is_one_row(x, heads, dim):
        copy_out(x[0], source, row, rows, heads[1] * dim, target, x[4])
        return
    for h in range(heads[1]):
        copy_out(x[0], source + 4 * h * dim, row, rows, dim, target + h * x[3], x[4])


@inline
def are_in_place(x, dim):
    """Whether products can write whole vectors of a tensor's rows."""
    return x[0] == FLOAT and dim % LANES == 0


@inline
def rows_out(x, sample, heads, first, dim, buffer, row):
    """Where rows of heads are to be written as floats: the tensor itself, or a buffer.

    In the latter what fills up a head's vectors makes place for the next one.

    Returns:
        Address, bytes to the next head's, and from row to row.
    """
    if are_in_place(x, dim):
        return _at(x, sample, heads[0], first), x[3], x[4]
    return buffer, 4 * dim, row


@inline
def head_of(rows, h):
    """Address and row of a head of several."""
    return rows[0] + h * rows[1], rows[2]


@part
def agents_in(x: LAYOUT, samples: RANGE, heads: RANGE, count, columns, target):
    """Copies the rows of all agents of each sample and head to floats."""
    row = 4 * padded(columns)
    for b in range(samples[0], samples[1]):
        for head in range(heads[0], heads[0] + heads[1]):
            copy_in(x[0], _at(x, b, head, 0), x[4], count, columns, target, row)
            target += padded(count) * row
