"""Work on several threads, and in forked processes."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import types
from torch.utils.data import DataLoader, Dataset

from visattn.kernels import _threads, window_attention
from visattn.kernels._jit import jit
from visattn.kernels._threads import parallel_for
from visattn.kernels._vectors import get, put

OPENMP = [*(Path(torch.__file__).parent / "lib").glob("libgomp*.so*")]


@pytest.fixture(params=["openmp", "pool"] if OPENMP else ["pool"])
def two_threads(request, monkeypatch):
    """Two threads: of the OpenMP that torch brings, if any, and of a pool."""
    if request.param == "pool":
        monkeypatch.setattr(_threads, "_openmp", 0)
    else:
        assert _threads._openmp
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


give_way = types.ExternalFunction("sched_yield", types.int32())
"""Lets another thread run; no compiler may keep what memory holds across it in registers."""


@jit
def add_step(begin, end, done, step):
    for i in range(begin, end):
        done[i] += step


@pytest.mark.parametrize("tasks, min_chunk", [(0, 1), (1, 1), (7, 1), (100, 1), (100, 30)])
def test_every_task_is_done_once(two_threads, tasks, min_chunk):
    done = np.zeros(tasks, int)
    parallel_for(add_step, tasks, done, 1, min_chunk=min_chunk)
    assert (done == 1).all()


@jit
def meet(begin, end, arrived, met):
    """Waits for the other of two tasks, but not for ever."""
    arrived[begin] = 1
    for _ in range(10_000_000):
        if arrived[1 - begin] == 1:
            met[begin] = 1
            return
        give_way()


def test_two_threads_work_at_once(two_threads):
    arrived, met = np.zeros((2, 2), int)
    parallel_for(meet, 2, arrived, met)
    assert met.all()


@jit
def fail_at_first(begin, end, state):
    state[begin] = 1
    if begin == 0:
        raise ValueError
    for _ in range(1000):
        give_way()
    state[begin] = 2


def test_an_error_is_raised_after_all_have_stopped(two_threads):
    state = np.zeros(8, int)
    with pytest.raises(RuntimeError, match="fail_at_first"):
        parallel_for(fail_at_first, 8, state)
    assert state.tolist() == [1] + [2] * 7


@jit
def fill_scratch(begin, end, scratch, arrived, places, kept):
    """Fills its memory, and looks at it again when the other task has filled its own."""
    places[begin] = scratch
    for i in range(16):
        put(scratch + 64 * i, np.float32(begin))
    arrived[begin] = 1
    for _ in range(10_000_000):
        if arrived[1 - begin] == 1:
            break
        give_way()
    for i in range(16):
        kept[begin] += get(scratch + 64 * i) == begin


def test_each_thread_has_scratch_memory_of_its_own(two_threads):
    arrived, places, kept = np.zeros((3, 2), int)
    parallel_for(fill_scratch, 2, arrived, places, kept, scratch=1000)
    assert kept.tolist() == [16, 16]
    assert not (places % 64).any() and abs(places[0] - places[1]) >= 1000


def attend() -> torch.Tensor:
    x = torch.arange(2 * 8 * 8 * 2 * 16).remainder(17).view(2, 8, 8, 2, 16) / 17
    return window_attention(x, x, x, 4, impl="cpu")


class Attention(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return attend()


def test_runs_in_forked_workers_after_a_first_forward(two_threads):
    wanted = attend()
    loader = DataLoader(Attention(), 2, num_workers=2, multiprocessing_context="fork", timeout=60)
    for _ in range(2):
        for batch in loader:
            assert torch.equal(batch[0], wanted)
        assert torch.equal(attend(), wanted)


def _attend_on_two_threads(results):
    torch.set_num_threads(2)
    results.put(attend().numpy())


def test_runs_on_threads_of_a_forked_process(two_threads):
    wanted = attend()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_attend_on_two_threads, args=(results,))
    child.start()
    assert (results.get(timeout=60) == wanted.numpy()).all()
    child.join(60)
    assert child.exitcode == 0


CODE = """
import sys, torch, visattn.kernels._jit as jit
from visattn.kernels import window_attention
from visattn.kernels._launch import launcher
x = torch.randn(1, 8, 8, 2, 16)
window_attention(x, x, x, 4, impl="cpu")
from visattn.kernels.window_attention import cpu
stats = launcher(cpu._forward_windows, True).stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
print("numba.np.linalg" in sys.modules)
"""


def run(**environment):
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", CODE],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_machine_code_is_kept_on_disk(tmp_path):
    """A second process compiles nothing, and does not import what compiling takes."""
    runs = [run(NUMBA_CACHE_DIR=str(tmp_path)).stdout.split() for _ in range(2)]
    assert runs == [["0", "1", "True"], ["1", "0", "False"]]


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    """Without a folder for it, code is compiled anew, and a warning says so."""
    (tmp_path / "file").touch()
    result = run(NUMBA_CACHE_DIR=str(tmp_path / "file"))
    assert result.returncode == 0, result.stderr
