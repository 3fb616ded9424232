"""GELU of hidden features with a bias, and its gradient, in one pass on the CPU."""

import math

import numpy as np
import torch

from ._jit import inline, jit
from ._threads import parallel_for
from ._vectors import LANES, broadcast, exp, fma, load, maximum, store

__all__ = ["bias_gelu", "bias_gelu_gradient"]

ROWS = 64
"""Rows of features of a task, each of which has sums of the gradient of its own."""

_P = [-1.60960333262415e-02, -2.95459980854025e-03, -7.34990630326855e-04]
_P += [-5.69250639462346e-05, -2.10102402082508e-06, 2.77068142495902e-08, -2.72614225801306e-10]
_Q = [-1.42647390514189e-02, -7.37332916720468e-03, -1.68282697438203e-03, -2.13374055278905e-04]
_Q += [-1.45660718464996e-05]
P0, P1, P2, P3, P4, P5, P6 = map(np.float32, _P)
Q0, Q1, Q2, Q3, Q4 = map(np.float32, _Q)
FOUR = np.float32(4)
"""From where on the error function is 1 in single precision."""
HALF = np.float32(0.5)
ROOT = np.float32(math.sqrt(0.5))
DENSITY = np.float32(1 / math.sqrt(2 * math.pi))


@inline
def _erf(x):
    """The error function: x times a rational function of its square, on [-4, 4]."""
    most = broadcast(-FOUR)
    x = maximum(broadcast(np.float32(0)) - maximum(x, most), most)  # -x, clamped
    z = x * x
    p = fma(fma(broadcast(P6), z, broadcast(P5)), z, broadcast(P4))
    p = fma(fma(p, z, broadcast(P3)), z, broadcast(P2))
    p = fma(fma(p, z, broadcast(P1)), z, broadcast(P0))
    q = fma(fma(broadcast(Q4), z, broadcast(Q3)), z, broadcast(Q2))
    q = fma(fma(q, z, broadcast(Q1)), z, broadcast(Q0))
    return broadcast(np.float32(0)) - x * (p / q)


@inline
def _distribution(x):
    """Of the normal distribution, at x."""
    return fma(broadcast(HALF), _erf(x * broadcast(ROOT)), broadcast(HALF))


@jit
def _activate(begin, end, rows, width, hidden, bias, out):
    for task in range(begin, end):
        for row in range(task * ROWS, min((task + 1) * ROWS, rows)):
            offset = 4 * row * width
            for j in range(0, 4 * width, 4 * LANES):
                x = load(hidden + offset + j) + load(bias + j)
                store(out + offset + j, x * _distribution(x))


@jit
def _differentiate(begin, end, rows, width, hidden, bias, grad, out, sums):
    zero = broadcast(np.float32(0))
    for task in range(begin, end):
        total = sums + 4 * task * width
        for j in range(0, 4 * width, 4 * LANES):
            store(total + j, zero)
        for row in range(task * ROWS, min((task + 1) * ROWS, rows)):
            offset = 4 * row * width
            for j in range(0, 4 * width, 4 * LANES):
                slope_at = grad + offset + j
                x = load(hidden + offset + j) + load(bias + j)
                share = _distribution(x)
                density = broadcast(DENSITY) * exp(x * x * broadcast(-HALF))
                slope = load(slope_at) * fma(x, density, share)
                store(out + offset + j, x * share)
                store(slope_at, slope)
                store(total + j, load(total + j) + slope)


def bias_gelu(hidden: torch.Tensor, bias: torch.Tensor, out: torch.Tensor) -> None:
    """GELU of features.

    Args:
        hidden: Features without their bias, (rows, width), contiguous and in single precision, with
            ``width`` a multiple of 16.
        bias: Their bias, (width,), contiguous.
        out: Where the GELU goes, as ``hidden``, which it may be.
    """
    rows, width = hidden.shape
    tasks = -(-rows // ROWS)
    parallel_for(_activate, tasks, rows, width, *(t.data_ptr() for t in (hidden, bias, out)))


def bias_gelu_gradient(
    hidden: torch.Tensor, bias: torch.Tensor, grad: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Gradient of features through their GELU, and the GELU once more.

    Deterministic for any number of threads.

    Args:
        hidden: As of ``bias_gelu``.
        bias: As of ``bias_gelu``.
        grad: Gradient of the GELU, as ``hidden``; becomes that of the features.
        out: As of ``bias_gelu``.

    Returns:
        Gradient of the bias, (width,).
    """
    rows, width = hidden.shape
    tasks = -(-rows // ROWS)
    sums = hidden.new_empty(tasks, width)
    places = (t.data_ptr() for t in (hidden, bias, grad, out, sums))
    parallel_for(_differentiate, tasks, rows, width, *places)
    return sums.sum(0)
