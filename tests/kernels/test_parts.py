"""What CPU kernels are built of: parts, transposition, and lines of memory that are asked for."""

import numpy as np
import pytest
from numba import types

from visattn.kernels import _ahead
from visattn.kernels._blocks import copy_in_transposed, copy_out_transposed, multiply
from visattn.kernels._jit import entry, part

SIZES = [(16, 16), (32, 48), (8, 24), (56, 32), (9, 28), (20, 12), (1, 16), (16, 1), (49, 33)]
"""Whole blocks, halves of them, what they overlap in, and less."""


@part
def _divide(x, y, scale: types.float32 = 0.5) -> types.UniTuple(types.float32, 2):
    return scale * (x // y), x % y


@entry
def _divide_both(x, y):
    return _divide(x, y), _divide(x, scale=2, y=y)


@entry
def _transpose_in(source, source_row, rows, columns, target, target_row):
    copy_in_transposed(0, source, source_row, rows, columns, target, target_row)


@entry
def _transpose_out(source, source_row, rows, columns, target, target_row):
    copy_out_transposed(0, source, source_row, rows, columns, target, target_row)


@entry
def _multiply(size, a, a_row, b, b_row, c, c_row, queue):
    multiply(size, 1, size, a, a_row, 4, b, b_row, c, c_row, 1, False, queue)


@entry
def _ask(queue, lines, place, step, count, size):
    _ahead.forget(queue, lines)
    _ahead.ask(queue, place, step, count, size)


def _queue(lines):
    """The memory of a queue, and of it that of the addresses."""
    queue = np.full(_ahead.queue_size(lines) // 8, -1, np.int64)
    return queue, queue[_ahead.HEAD // 8 :]


def _filled_up(count):
    return -(-count // 16) * 16


def test_parts_take_defaults_and_names():
    assert _divide_both(7, 2) == ((1.5, 1), (6, 1))


def test_errors_in_parts_are_raised_in_their_callers():
    with pytest.raises(ZeroDivisionError):
        _divide_both(7, 0)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_transposes_into_whole_vectors(size):
    rows, columns = size
    source = np.random.default_rng(0).standard_normal((rows, columns + 3), np.float32)
    target = np.full((_filled_up(columns), _filled_up(rows)), np.nan, np.float32)
    _transpose_in(
        source.ctypes.data, source.strides[0], *size, target.ctypes.data, target.strides[0]
    )
    assert np.array_equal(target[:columns, :rows], source[:, :columns].T)
    assert not target[columns:].any()
    assert not target[:, rows:].any()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_transposes_no_more_than_is_wanted(size):
    rows, columns = size
    shape = _filled_up(columns), _filled_up(rows)
    source = np.random.default_rng(0).standard_normal(shape, np.float32)
    target = np.full((rows + 1, columns + 1), np.nan, np.float32)
    _transpose_out(
        source.ctypes.data, source.strides[0], *size, target.ctypes.data, target.strides[0]
    )
    assert np.array_equal(target[:rows, :columns], source[:columns, :rows].T)
    assert np.isnan(target[rows]).all()
    assert np.isnan(target[:, columns]).all()


def test_notes_all_lines_of_what_is_asked_for():
    queue, addresses = _queue(9)
    _ask(queue.ctypes.data, 9, 1000, 4096, 3, 130)
    place, end = queue[0], queue[_ahead.END // 8]
    assert (end - place) // 8 == 9
    assert addresses[:9].tolist() == [1000 + 4096 * i + 64 * j for i in range(3) for j in range(3)]


def test_drops_what_does_not_fit():
    queue, addresses = _queue(8)
    _ask(queue.ctypes.data, 8, 1000, 4096, 100, 130)
    assert (queue[_ahead.END // 8] - queue[0]) // 8 == 6
    assert (addresses[6:] == -1).all()


@pytest.mark.parametrize("lines", [0, 5, 10_000])
def test_products_take_lines_until_there_are_none(lines):
    queue, _ = _queue(lines)
    a, b, c = (np.ones((12, 16), np.float32) for _ in range(3))
    _ask(queue.ctypes.data, lines, a.ctypes.data, 0, lines, 64)
    before = queue[0]
    matrices = [y for x in (a, b, c) for y in (x.ctypes.data, x.strides[0])]
    _multiply(12, *matrices, queue.ctypes.data)
    assert (c == 12).all()
    taken = (queue[0] - before) // 8
    assert taken >= min(lines, 1)
    if lines < 16:
        assert queue[0] >= queue[_ahead.END // 8]
