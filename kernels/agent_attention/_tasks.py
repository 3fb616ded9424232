"""How passes over tokens are shared out to tasks, and where the memory of a task has what."""

from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from .._blocks import odd_lines, padded, share
from .._jit import inline
from .._vectors import F32, LANES

VECTOR = F32 * LANES
HEADS = 4
"""Most heads of a task."""
WIDE = 128
"""Most elements of the rows of a task's heads together, unless one head alone has more."""
CROWD = 4096
"""Most elements of the agents of a task's heads together, unless one head alone has more."""
TASKS = 16
"""Roughly how many tasks a pass has, whatever the threads, for results must not depend on them."""


class Split(NamedTuple):
    """How a pass over the tokens of a batch is shared out to tasks, each of a few heads."""

    group: int  # samples of a task
    chunk: int  # tokens of a task
    block: int  # tokens worked on at once
    row: int  # bytes of a row of logits
    heads: int  # most heads of a task
    wide: int  # bytes of a row of a token's heads
    groups: int
    chunks: int
    shares: int  # of the heads

    @property
    def tasks(self):
        return self.groups * self.shares * self.chunks


@lru_cache(1024)
def share_out(sizes):
    """How tasks share a pass of ``sizes_of`` its tensors."""
    batch, heads, agents, tokens, *dims = sizes
    dim = max(dims)
    # A chunk has sums of the size of the agents: it must not be short.
    chunk = _even_part(tokens, max(256, 8 * agents))
    block = _even_part(chunk, max(32, min(96, 8192 // agents)))
    chunks = max(1, -(-tokens // chunk))
    shares = -(-heads // max(1, min(HEADS, WIDE // dim, CROWD // (agents * dim))))
    # The more samples a bias is put together for, the better, while there are enough tasks.
    groups = max(1, min(batch, -(-TASKS // max(shares * chunks, 1))))
    some = -(-heads // max(shares, 1))
    group = max(1, min(-(-batch // groups), 8, 65536 // (agents * dim * max(some, 1))))
    rows = _spaced(block), some, _spaced(some * dim)
    return Split(group, chunk, block, *rows, -(-batch // group), chunks, shares)


def _even_part(length, most):
    """Length of parts that are about equal, in whole vectors, and not much longer than ``most``."""
    parts = max(1, round(length / most))
    return max(LANES, padded.py_func(-(-length // parts)))


def _spaced(columns):
    """Bytes of a row of floats with a vector to spare."""
    return odd_lines.py_func(F32 * columns + VECTOR)


def sizes_of(agents, x, y):
    """Samples, heads, agents, tokens, and elements of a head of ``x`` and of ``y``."""
    return *agents.shape[:3], *x.shape[2:], y.shape[3]


@lru_cache(1024)
def forward_places(sizes, split, bias_size):
    """Where a task's scratch memory has what, in bytes, and its size.

    Of each sample and head: agents, values, sums of weights by lanes, maxima. Then logits, two
    blocks of tokens, what is transposed, and of each head the bias of a block, and the bias in
    parts.
    """
    a_size, v_size, tile, rows, tokens, turned = _matrix_sizes(sizes, split)
    each = a_size, v_size, 64 * rows, 4 * rows
    return _places(split, each, (tile, tokens, tokens, turned), (tile, bias_size))


@lru_cache(1024)
def backward_places(sizes, split, bias_size):
    """Where a task's scratch memory has what, in bytes, and its size.

    Of each sample and head: agents, values, gradients of both, mean gradients of logits. Then
    logits, their gradients, what is transposed, two blocks of tokens, their gradients, and of each
    head the bias of a block and its gradient, and the bias in parts.
    """
    a_size, v_size, tile, rows, tokens, turned = _matrix_sizes(sizes, split)
    each = a_size, v_size, a_size, v_size, 4 * rows
    shared = tile, tile, turned, *[tokens] * 4
    return _places(split, each, shared, (tile, tile, bias_size))


def _places(split, each, shared, of_head):
    sizes = (
        *(split.group * split.heads * size for size in each),
        *shared,
        *(split.heads * size for size in of_head),
    )
    return (0, *accumulate(sizes))


def _matrix_sizes(sizes, split):
    """Bytes of a head's agents, values and logits; padded agents; bytes of a block of tokens of all
    heads of a task, and of what is transposed of a head."""
    rows, deep, wide = (padded.py_func(sizes[i]) for i in (2, 4, 5))
    turned = max(64 * split.block, max(deep, wide) * split.row) + 64 * max(deep, wide)
    return (
        4 * rows * deep,
        4 * rows * wide,
        rows * split.row,
        rows,
        split.block * split.wide,
        turned,
    )


@inline
def task_of(task, sizes, split):
    """Group and chunk of a task, its first and number of heads, ranges of samples and tokens."""
    group, chunk, _, _, _, _, _, chunks, shares = split
    i, c = divmod(task, chunks)
    g, part = divmod(i, shares)
    samples = g * group, min((g + 1) * group, sizes[0])
    tokens = c * chunk, min((c + 1) * chunk, sizes[3])
    return g, c, share(part, shares, sizes[1]), samples, tokens
