"""Work on several threads, and in forked processes."""

import ctypes
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from visattn.kernels import _threads, window_attention
from visattn.kernels._threads import parallel_for

OPENMP = [*(Path(torch.__file__).parent / "lib").glob("libgomp*.so*")]


@pytest.fixture(params=["openmp", "pool"] if OPENMP else ["pool"])
def two_threads(request, monkeypatch):
    """Two threads: of the OpenMP that torch brings, if any, and of a pool."""
    if request.param == "pool":
        monkeypatch.setattr(_threads, "_openmp", None)
    else:
        assert _threads._openmp is not None
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("tasks, min_chunk", [(0, 1), (1, 1), (7, 1), (100, 1), (100, 30)])
def test_every_task_is_done_once(two_threads, tasks, min_chunk):
    done = np.zeros(tasks, int)

    def kernel(begin, end, step):
        done[begin:end] += step

    parallel_for(kernel, tasks, 1, min_chunk=min_chunk)
    assert (done == 1).all()


def test_two_threads_work_at_once(two_threads):
    meeting = threading.Barrier(2, timeout=10)
    parallel_for(lambda begin, end: meeting.wait(), 2)


def test_an_error_is_raised_after_all_have_stopped(two_threads):
    working = []

    def kernel(begin, end):
        if begin == 0:
            raise ZeroDivisionError
        working.append(1)
        time.sleep(0.05)
        working.pop()

    with pytest.raises(ZeroDivisionError):
        parallel_for(kernel, 8)
    assert not working


def test_each_call_has_scratch_memory_of_its_own(two_threads):
    meeting, places = threading.Barrier(2, timeout=10), []

    def kernel(begin, end, scratch, size):
        places.append(scratch)
        meeting.wait()
        assert scratch % 64 == 0
        memory = np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(scratch))
        memory[:] = begin
        time.sleep(0.01)
        assert (memory == begin).all()

    parallel_for(kernel, 8, 1000, scratch=1000)
    assert len(set(places)) == 2


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
import torch, visattn.kernels._jit as jit
from visattn.kernels import _threads, window_attention
x = torch.randn(1, 8, 8, 2, 16)
window_attention(x, x, x, 4, impl="cpu")
from visattn.kernels.window_attention import cpu
stats = cpu._forward_windows.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def run(**environment):
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", CODE],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_machine_code_is_kept_on_disk(tmp_path):
    runs = [run(NUMBA_CACHE_DIR=str(tmp_path)).stdout.split() for _ in range(2)]
    assert runs == [["0", "1"], ["1", "0"]]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    """Without a folder for it, code is compiled anew, and a warning says so."""
    (tmp_path / "file").touch()
    result = run(NUMBA_CACHE_DIR=str(tmp_path / "file"))
    assert result.returncode == 0, result.stderr
